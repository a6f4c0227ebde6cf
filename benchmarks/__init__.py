"""Benchmarks: one file per question, each prints one table."""
