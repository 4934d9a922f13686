"""How batches are loaded for training."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from inpaint_data.encoding.text import TextSettings
from inpaint_data.errors import UsageError
from inpaint_data.latent_cache.shard_files import Check
from inpaint_data.masks.settings import MaskSettings
from inpaint_data.pictures.settings import caption_member
from inpaint_data.settings import MOST, Count, Natural, Settings, built, checked, group_of
from inpaint_data.shards.mirror import DEFAULT_BYTES


def _named(value: Any) -> Any:
    paths = [value] if isinstance(value, str | Path) else value
    if not isinstance(paths, list | tuple) or not paths or not all(isinstance(each, str | Path) for each in paths):
        raise UsageError(
            f"{value!r} is not a path or a list of paths; name image shards or a cache, and mix samples of your own in "
            "a pipeline of your own"
        )
    return value


def _masks(value: Any) -> MaskSettings | None:
    return None if value is None else group_of(MaskSettings, value)


def _caption(value: Any) -> str | None:
    return None if value is None else caption_member(value)


class SourceSettings(Settings):
    """One of several sources that training mixes."""

    group = "source"

    source: Annotated[Any, checked(_named, str | list[str])]
    """Image shards or a cache; or a list of image shards, or of caches of the same settings."""

    weight: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None
    """How often its samples come beside those of the others, 3 to 1; left out, 1 where another source has a weight.
    Where none has, `repeats` alone decide."""

    repeats: Annotated[float, Field(gt=0, le=MOST, allow_inf_nan=False)] = 1.0
    """How often each of its samples comes in an epoch, with new masks each time; 0.5 is half of them, the other half in
    the next epoch. Where sources have weights, what it has given when it is exhausted, see `exhausted`."""

    masks: Annotated[MaskSettings | None, checked(_masks, dict[str, Any] | None)] = None
    """Its own masks, of pictures or with `fresh_masks`: what is given here takes the place of the same in `masks`."""

    captions: Annotated[str | None, checked(_caption, str | None)] = None
    """The member of its pictures that is the caption, in place of `pictures.caption`."""


class LoadSettings(Settings):
    """How batches are loaded for training."""

    group = "loading"

    seed: int = 0
    """Of the order, and in training of masks, offsets and noise."""

    num_workers: Natural = 2
    """How many decode at a time."""

    workers: Literal["threads", "processes"] = "threads"
    """Whether these are threads of this process, or a DataLoader's processes; benchmarks/workers.py measures both."""

    fresh_masks: bool = False
    """From a cache that carries its pictures, new masks and offsets every epoch; only the masked picture is encoded
    live, and not even that for recipes that only blend."""

    exhausted: Literal["repeat", "end"] = "repeat"
    """What a source with a weight does when all its samples came, each `repeats` times: begin again, so that the epoch
    ends when those of all sources came; or "end" the epoch."""

    text: Annotated[TextSettings, built(TextSettings)] = TextSettings()
    """Carried text embeddings and caption dropout, see TextSettings."""

    carried: list[str] | None = None
    """The carried members of a cache that batches have, beside the text's; left out, all of them."""

    check: Check = "first"
    """When the bytes of a cached sample are compared with their checksums: the first time that a process reads it,
    always or never."""

    fingerprint: str | None = None
    """Refuse a cache whose fingerprint does not begin with this."""

    index: str | None = None
    """Path or URL of the index that `inpaint-data index` made of image shards; left out, the one beside them is taken
    where there is one."""

    epoch_batches: Count | None = None
    """Train on image shards as they come, one after another, and end an epoch after so many batches on each rank. Left
    out, an epoch is all samples, which an index, the headers of shards that lie here, or counts beside remote ones
    tell."""

    shuffle_buffer: Natural = 1000
    """Samples, on each rank or worker process, of which the next one is drawn where shards come one after another."""

    mirror: str | None = None
    """Folder for the copies of remote shards, and for the index of many local ones; left out, one of the user's; "none"
    keeps neither."""

    mirror_bytes: Natural = DEFAULT_BYTES
    """How much these copies may take, of all processes that share the folder together."""

    @property
    def copies(self) -> tuple[str | None, int]:
        """The mirror's folder, and how much may lie there."""
        return (None, 0) if self.mirror == "none" else (self.mirror, self.mirror_bytes)

    @property
    def processes(self) -> int:
        """How many worker processes read."""
        return self.num_workers if self.workers == "processes" else 0
