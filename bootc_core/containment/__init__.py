"""Plugins of others: what they are without running them, whether root may, and running them in a child process."""
