"""Benchmarks: protocols over many records, and stored runs of them in processes of their own."""
