"""inpaint-data pack: a folder of images to shards."""

from inpaint_data.commands.outcome import Outcome
from inpaint_data.commands.packing import pack
from inpaint_data.shown import shown


def run(folder: str, out: str, shard_size: int = 1000) -> Outcome:
    """Make shards from a folder of images.

    Args:
        folder: the folder with the images
        out: the folder for the shards; new or empty
        shard_size: samples in each
    """
    return Outcome("\n".join(map(shown, pack(folder, out, shard_size))))
