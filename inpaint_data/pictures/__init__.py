"""Pixels and masks of one size, from the bytes of a sample."""
