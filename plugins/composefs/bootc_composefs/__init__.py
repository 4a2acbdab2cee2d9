"""composefs plugin."""
