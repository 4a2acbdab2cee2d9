"""signing plugin."""
