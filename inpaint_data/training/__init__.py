"""Batches for Lightning and for any other training loop."""
