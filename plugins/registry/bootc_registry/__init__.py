"""registry plugin."""
