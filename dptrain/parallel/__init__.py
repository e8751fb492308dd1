"""Ranks: which shards each holds, how ranks communicate, and how the gradients of all shards are summed."""
