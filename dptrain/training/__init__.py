"""Training: the state, one step, evaluation, checkpoints, and the loop that joins them."""
