"""inpaint-data cache: image shards to a cache of latents and masks."""

from inpaint_data.commands.outcome import Outcome
from inpaint_data.encoding.settings import EncodeSettings, TextModelSettings
from inpaint_data.job.caching import cache_latents
from inpaint_data.job.settings import JobSettings
from inpaint_data.masks.settings import MaskSettings
from inpaint_data.pictures.settings import PictureSettings


def run(
    shards: str | list[str],
    out: str,
    pictures: PictureSettings,
    masks: MaskSettings,
    encode: EncodeSettings,
    job: JobSettings,
    text: TextModelSettings,
) -> Outcome:
    """Encode image shards into a cache.

    Args:
        shards: a brace pattern, a glob, a folder or a list of tar shards; local paths or fsspec URLs
        out: the cache's folder; empty, new, or a cache made with the same settings
    """
    return Outcome(cache_latents(shards, out, pictures, masks, encode, job, text=text).table())
