"""ostree plugin."""
