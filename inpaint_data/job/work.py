"""The work of a job: everything that is needed to cache any shard."""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import webdataset as wds

from inpaint_data.ahead import ahead
from inpaint_data.encoding.encoder import Encoder
from inpaint_data.job.settings import JobSettings
from inpaint_data.latent_cache.codec import Storing
from inpaint_data.latent_cache.settings import made_with
from inpaint_data.pictures.settings import ExampleSettings
from inpaint_data.pipeline.decorator import Stage
from inpaint_data.pipeline.device import in_pinned_memory
from inpaint_data.pipeline.stages import Tally, image_stages

BATCHES_AHEAD = 2  # decoded ones that may wait for the device


@dataclass(frozen=True)
class Work:
    """Everything a job needs to cache any shard."""

    examples: ExampleSettings
    own_stages: Sequence[Stage]
    encoder: Encoder
    device: torch.device
    job: JobSettings
    text: Any = None  # a TextEncoder, whose module needs transformers

    @property
    def batch_size(self) -> int:
        assert self.job.batch_size != "auto", "whoever made the work has chosen"
        return self.job.batch_size

    @property
    def made_with(self) -> dict[str, Any]:
        return made_with(self.batch_size, self.device)

    @property
    def storing(self) -> Storing:
        return Storing(self.job.storage, self.encoder.autoencoder.has_posterior, self.job.means)

    def events(self, shards: Iterable[str], tally: Tally | None = None) -> Generator[Any, None, None]:
        """The pictures of some shards in batches, read and decoded ahead, with Faults and ShardEnds among them."""
        variants = range(self.job.variants)
        stages = image_stages(
            shards, self.examples, self.own_stages, self.batch_size, variants, max(1, self.job.num_workers), tally
        )
        return ahead(iter(wds.DataPipeline(*stages, in_pinned_memory())), BATCHES_AHEAD)
