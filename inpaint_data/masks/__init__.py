"""Masks, from how they are drawn to how they come to latents. No I/O, no state."""
