"""Samples of a shard that are the masks of others: of tars of whole folders, in which a mask has a key of its own."""

from pathlib import Path

from inpaint_data.folders.files import File
from inpaint_data.folders.layouts import LAYOUTS, place_of, read_name
from inpaint_data.folders.names import owners_beside, owners_in_folder


class MaskKeys:
    """The keys of a shard so far, and of which of them a new one is the mask by its name."""

    def __init__(self) -> None:
        self._images: dict[tuple[str, str], str] = {}  # by place and stem

    def owner_of(self, key: str) -> str | None:
        """The key of the image that a sample would be the mask of: `cat` of `cat_mask`, `images/cat` of `masks/cat`."""
        file = File(f"{key}.png", Path())
        reading, place = read_name(file, LAYOUTS["auto"]), place_of(file.folder)
        if reading.role == "mask":
            stems = owners_in_folder(file.stem, "mask") if reading.source else owners_beside(file.stem, "mask")
            found = (self._images.get((place, stem)) for stem, _ in stems)
            if owner := next((owner for owner in found if owner not in (None, key)), None):
                return owner
        self._images[place, file.stem] = key
        return None
