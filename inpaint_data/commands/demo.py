"""inpaint-data demo: the whole way from a dozen images to a verified cache and its contact sheet."""

import shutil

from inpaint_data.commands.contact_sheet import contact_sheet
from inpaint_data.commands.outcome import Outcome
from inpaint_data.commands.packing import pack
from inpaint_data.demo import PHOTOS
from inpaint_data.encoding.settings import EncodeSettings
from inpaint_data.errors import CacheError, UsageError
from inpaint_data.job.audit import verify_cache
from inpaint_data.job.caching import cache_latents
from inpaint_data.job.settings import JobSettings
from inpaint_data.masks.settings import MaskSettings
from inpaint_data.pictures.settings import PictureSettings
from inpaint_data.shards.stores import local_path


def run(out: str = "demo_out", device: str = "auto") -> Outcome:
    """Pack the images that come with the package, cache them, verify the cache and draw a contact sheet.

    Args:
        out: the folder to work in; what an earlier demo left there is replaced.
        device: see the cache command.

    Returns:
        What was made, and where it is.

    Raises:
        UsageError: `out` holds something that is not a demo.
        CacheError: a sample is damaged or not accounted for.
    """
    root = local_path(out)
    shards, cache, sheet = root / "shards", root / "cache", root / "contact_sheet.png"
    marker = root / ".inpaint_data_demo"
    if root.is_dir() and any(root.iterdir()) and not marker.exists():
        raise UsageError(f"out: {root} holds files that are not from a demo; choose another folder")
    try:
        root.mkdir(parents=True, exist_ok=True)
        marker.touch()
    except OSError as error:
        raise UsageError(f"out: cannot write to {root} ({error.strerror}); choose a folder you may write to") from None
    for folder in (shards, cache):
        shutil.rmtree(folder, ignore_errors=True)

    images = sorted(PHOTOS.glob("*.jpg"))
    packed = pack(str(PHOTOS), str(shards), shard_size=6)
    summary = cache_latents(
        str(shards),
        str(cache),
        pictures=PictureSettings(resolution=256),
        masks=MaskSettings(source="mixture", offset=(-8, 24)),
        encode=EncodeSettings(vae="demo"),
        job=JobSettings(variants=2, seed=84, device=device),
    )
    verified = verify_cache(cache, against=str(shards))
    if not verified.ok:
        raise CacheError(f"{cache}: {'; '.join(map(str, verified.problems))}")
    if verified.totals["samples"] + verified.totals["quarantined"] != len(images):
        raise CacheError(f"{cache}: {verified.table()} do not account for {len(images)} images")
    contact_sheet(str(cache), str(shards), str(sheet))
    return Outcome(
        f"{len(images)} images packed into {len(packed.shards)} shards\n{summary.table()}\n"
        f"verified: {verified.totals['samples']} of {len(images)} images are in {cache}\nlook at {sheet}"
    )
