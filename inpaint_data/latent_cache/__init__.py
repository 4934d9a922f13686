"""The cache of latents and masks on disk: format 1, a plain WebDataset that anyone can read."""
