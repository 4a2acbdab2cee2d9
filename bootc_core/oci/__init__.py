"""Image layers: reading, checking, merging."""
