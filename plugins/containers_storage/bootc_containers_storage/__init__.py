"""containers-storage plugin."""
