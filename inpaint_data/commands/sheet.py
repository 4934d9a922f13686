"""inpaint-data sheet: a contact sheet of a cache."""

from inpaint_data.commands.contact_sheet import contact_sheet
from inpaint_data.commands.outcome import Outcome


def run(
    cache: str, shards: str | list[str], out: str, vae: str | None = None, count: int = 6, tile: int = 192
) -> Outcome:
    """Draw a contact sheet of a cache.

    Args:
        cache: the cache's folder
        shards: the image shards it was made from
        out: the PNG to write
        vae: the autoencoder that the cache was made with, for decoding; left out, the demo's, if that made it
        count: rows
        tile: side of each tile, in pixels
    """
    return Outcome(contact_sheet(cache, shards, out, vae, count, tile))
