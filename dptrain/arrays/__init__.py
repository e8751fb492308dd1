"""Memory, flat vectors and random words: what all arithmetic stands on."""
