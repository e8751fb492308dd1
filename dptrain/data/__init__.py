"""Data sets: their format on disk, the shards a rank holds, and the batches made of them."""
