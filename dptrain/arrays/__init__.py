"""Memory, flat vectors and random words, the base of all arithmetic."""
