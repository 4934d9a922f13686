"""From the bytes of a sample to pixels and masks of one size."""
