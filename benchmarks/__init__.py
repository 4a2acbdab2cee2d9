"""Benchmarks against real peers; see bench.py."""
