"""What happens on the device: offset, fill, encode; and what each model is fed."""
