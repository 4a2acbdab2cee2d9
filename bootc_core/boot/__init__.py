"""Kernels, boot entries and kernel arguments as data."""
