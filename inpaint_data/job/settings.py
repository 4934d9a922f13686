"""Settings of the offline job."""

from typing import Annotated, Literal, get_args

from inpaint_data.encoding.settings import DTYPES
from inpaint_data.latent_cache.settings import Storage
from inpaint_data.settings import Choices, Count, Natural, Settings, Share, spelled

OnBad = Literal["quarantine", "raise"]
_STORAGES = {spelling: name for spelling, name in DTYPES.items() if name in get_args(Storage)}


class JobSettings(Settings):
    """How the offline job runs, and what its cache holds beside latents and masks."""

    group = "job"

    variants: Count = 1
    """Masks and offsets for each image; they share one encode of the full image."""

    seed: int = 0
    """Seed of every random choice."""

    batch_size: Count = 8
    """Samples encoded at a time."""

    device: Annotated[str, Choices(("auto", "cpu", "cuda", "mps"))] = "auto"
    """ "auto", "cpu", "cuda", "cuda:1", "mps"."""

    storage: Annotated[Storage, spelled(_STORAGES)] = "float16"
    """Number type of the latents in the cache."""

    num_workers: Natural = 2
    """Threads that decode."""

    on_bad: OnBad = "quarantine"
    """"quarantine" bad samples and continue, or "raise" at the first one."""

    max_bad_fraction: Share = 0.01
    """Share of quarantined samples in the cache above which the run counts as failed."""

    exact: bool = False
    """Refuse to go on with a cache whose shards differ in what moves the last bits of latents alone: batch size,
    device, threads, versions. Without it such a difference is named."""

    dry_run: bool = False
    """Only print what is to do, and how long it would take by a short probe. Writes nothing."""
