"""Runs a transaction: plan, hooks, journal, recovery."""
