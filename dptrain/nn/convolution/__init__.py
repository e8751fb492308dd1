"""Algorithms that compute a convolution."""
