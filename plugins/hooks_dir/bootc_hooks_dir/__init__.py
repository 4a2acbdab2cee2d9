"""hooks_dir plugin."""
