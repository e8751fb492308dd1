"""Training: one step, evaluation, resume and recovery, and the loop that calls them."""
