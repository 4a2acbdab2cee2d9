"""Hosts of a fleet switch one at a time, in a maintenance window."""
