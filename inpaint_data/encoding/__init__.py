"""The steps on the device: offset, fill, encode; and the input of each model."""
