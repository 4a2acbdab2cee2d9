"""Installs hosts: disks, file systems, and what is written around the first deployment."""
