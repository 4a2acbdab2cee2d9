"""Upgrades wait for a maintenance window."""
