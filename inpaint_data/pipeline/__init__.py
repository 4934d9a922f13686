"""The way of a sample, stage by stage, for any `wds.DataPipeline`: `import inpaint_data.pipeline as ip`."""

from inpaint_data.pipeline.cache_stage import cached
from inpaint_data.pipeline.datasets import from_dataset
from inpaint_data.pipeline.decorator import stage
from inpaint_data.pipeline.device import encode, in_pinned_memory
from inpaint_data.pipeline.faults import stop, warn
from inpaint_data.pipeline.stages import bucketed, examples, image_stages, own_stages, read_shards
from inpaint_data.shards.naming import expand_shards as expand
from inpaint_data.shards.reading import Fault

__all__ = [
    "Fault",
    "bucketed",
    "cached",
    "encode",
    "examples",
    "expand",
    "from_dataset",
    "image_stages",
    "in_pinned_memory",
    "own_stages",
    "read_shards",
    "stage",
    "stop",
    "warn",
]
