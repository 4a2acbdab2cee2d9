"""HTTP, strict and bounded."""
