"""inpaint-data cache: image shards to a cache of latents and masks."""

from inpaint_data.commands.launch import check_devices, is_to_launch, launch
from inpaint_data.commands.loggers import LoggerName, check_logger, logger_of
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
    devices: int = 1,
    logger: LoggerName | None = None,
) -> Outcome:
    """Encode image shards into a cache.

    Args:
        shards: a brace pattern, a glob, a folder or a list of tar shards; local paths or fsspec URLs
        out: the cache's folder, or a URL such as s3://bucket/cache; empty, new, or a cache made with the same settings
        devices: processes on this machine, each on a device of its own, or its share of the CPU
        logger: draws curves of images a second, shards, quarantined samples, retries and time to go, into runs/ of the
            working directory; tensorboard and wandb need their package
    """
    check_devices(devices, job)
    if logger is not None:
        check_logger(logger)
    if is_to_launch(devices) and not job.dry_run:
        return launch(devices, out)
    curves = logger_of(logger, out) if logger is not None and not job.dry_run else None
    return Outcome(cache_latents(shards, out, pictures, masks, encode, job, text=text, logger=curves).table())
