"""Ranks: who holds which shards, how they talk, and how the gradients of all shards become one."""
