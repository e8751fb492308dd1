"""Sums over all shards."""
