"""archives plugin."""
