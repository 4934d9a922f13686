"""Settings of the offline job."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, model_validator

from inpaint_data.batch import PAIRED
from inpaint_data.encoding.settings import DTYPES
from inpaint_data.errors import UsageError
from inpaint_data.latent_cache.storage import Storage
from inpaint_data.settings import Choices, Count, Natural, Positive, Settings, Share, checked, spelled
from inpaint_data.shown import meant

Kept = Literal["moments", "mean"]
LATENT_KEYS = ("latents", "masked_latents", "hole_latents", *PAIRED.values())
OnBad = Literal["quarantine", "raise"]
_STORAGES = {spelling: name for spelling, name in DTYPES.items() if name in get_args(Storage)}


def _keep(value: Any) -> Any:
    names = value if isinstance(value, Mapping) else {"latents": value}
    if unknown := sorted(map(str, set(names) - set(LATENT_KEYS))):
        raise UsageError(
            f"keep: there is no {unknown[0]!r}; it takes {', '.join(LATENT_KEYS)}{meant(unknown[0], LATENT_KEYS)}"
        )
    for kept in names.values():
        if kept not in get_args(Kept):
            raise UsageError(
                f"keep: {kept!r} is unknown; choose from moments, mean, or a mapping: {{masked_latents: mean}}"
            )
    return dict(value) if isinstance(value, Mapping) else value


def _batch_size(value: Any) -> Any:
    if isinstance(value, str) and value != "auto":
        raise UsageError(f"batch_size: {value!r} is neither a whole number nor auto; give one of them")
    return value


class JobSettings(Settings):
    """How the offline job runs, and what its cache holds beside latents and masks."""

    group = "job"

    variants: Count = 1
    """Masks and offsets for each image; they share one encode of the full image."""

    seed: int = 0
    """Seed of every random choice."""

    batch_size: Annotated[Count | Literal["auto"], BeforeValidator(_batch_size)] = 8
    """Samples encoded at a time; "auto" is what suits the device: 16 of 512 x 512 pixels on a GPU, 2 on a CPU. Where
    memory is short, a batch is encoded in parts."""

    device: Annotated[str, Choices(("auto", "cpu", "cuda", "mps"))] = "auto"
    """ "auto", "cpu", "cuda", "cuda:1", "mps"."""

    storage: Annotated[Storage, spelled(_STORAGES)] = "float16"
    """Number type of the latents in the cache."""

    keep: Annotated[dict[str, Kept] | Kept, checked(_keep, str | dict[str, Any]), Choices(get_args(Kept))] = "moments"
    """What is kept of an autoencoder's posterior: its "moments", of which training draws, or the "mean" alone, half the
    bytes, which is posterior "mode"; or a mapping: {masked_latents: mean}."""

    num_workers: Natural = 2
    """Threads that decode."""

    on_bad: OnBad = "quarantine"
    """"quarantine" bad samples and continue, or "raise" at the first one."""

    max_bad_fraction: Share = 0.01
    """Share of quarantined samples in the cache above which the run counts as failed."""

    exact: bool = False
    """Refuse to go on with a cache whose shards differ in what moves the last bits of latents alone: batch size,
    device, threads, versions. Without it such a difference is named."""

    log_json: str | None = None
    """Append a JSON line for each event to this file: start, shard, fault, left_out, retry, end, with rates and time to
    go; the processes of a job may share it."""

    engine: Literal["here", "ray"] = "here"
    """Who does the shards: the processes that run the command, or the workers of a Ray cluster."""

    ray_address: str | None = None
    """Address of the Ray cluster; "auto" is the one that this machine is of. Left out, RAY_ADDRESS says it, or there is
    one for this machine alone."""

    ray_workers: Natural = 0
    """Workers on the cluster; 0 is as many as it has room for at the start. Each takes `num_workers` CPUs."""

    ray_gpus: Positive = 1.0
    """GPUs that a Ray worker takes, where there are any; 0.5 puts two on each."""

    dry_run: bool = False
    """Only print what is to do, and how long it would take by a short probe. Writes nothing."""

    @model_validator(mode="after")
    def _check_engine(self) -> "JobSettings":
        """Refuse what is said to Ray, and would be passed over."""
        usual = {"ray_address": None, "ray_workers": 0, "ray_gpus": 1.0}
        of_ray = [name for name, value in usual.items() if getattr(self, name) != value]
        if of_ray and self.engine != "ray":
            raise UsageError(f"{of_ray[0]}: is for engine ray; give engine: ray, or leave it out", (of_ray[0],))
        return self

    @property
    def means(self) -> frozenset[str]:
        """The keys of the latents that are kept as means."""
        kept = self.keep if isinstance(self.keep, Mapping) else dict.fromkeys(LATENT_KEYS, self.keep)
        return frozenset(key for key, what in kept.items() if what == "mean")
