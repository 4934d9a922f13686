"""From a folder as people have it to samples: by names alone, no image is decoded."""
