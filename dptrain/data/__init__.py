"""Data sets: the format on disk, the shards of a rank, and their batches."""
