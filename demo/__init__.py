"""The demonstration: a real Debian image in two versions, a registry on loopback, and a host in a directory.

Everything here runs with Debian's own ``python3`` and its standard library, before the project's environment exists.
"""
