"""What the demonstration is made of: a dozen photographs, a small trained VAE, and their licences."""

from pathlib import Path

PHOTOS = Path(__file__).parent / "photos"
OBJECTS = Path(__file__).parent / "objects.json"  # COCO annotations of some of the photographs, by key
VAE = Path(__file__).parent / "vae"
