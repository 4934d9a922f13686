"""Masks: drawn, edited, grown and brought to the size of latents. No I/O, no state."""
