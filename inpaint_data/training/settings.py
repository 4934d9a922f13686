"""How batches are loaded for training."""

from typing import Annotated, Literal

from inpaint_data.encoding.text import TextSettings
from inpaint_data.latent_cache.shard_files import Check
from inpaint_data.settings import Count, Natural, Settings, built
from inpaint_data.shards.mirror import DEFAULT_BYTES


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
    """Folder for the copies of remote shards; left out, one of the user's; "none" keeps no copies."""

    mirror_bytes: Natural = DEFAULT_BYTES
    """How much these copies may take, of all processes that share the folder together."""

    @property
    def copies(self) -> tuple[str | None, int]:
        """The mirror's folder, and how much may lie there."""
        return (None, 0) if self.mirror == "none" else (self.mirror, self.mirror_bytes)
