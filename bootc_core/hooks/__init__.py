"""The contract between engine and plugins."""
