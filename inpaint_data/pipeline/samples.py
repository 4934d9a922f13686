"""Samples as webdataset has them, dicts, and as the strict reader has them."""

from typing import Any

from inpaint_data.batch import is_batch
from inpaint_data.errors import UsageError
from inpaint_data.pipeline.decorator import SampleDict
from inpaint_data.shards.reading import Sample


def is_sample(item: Any) -> bool:
    return isinstance(item, dict) and not is_batch(item)


def as_dict(sample: Sample) -> SampleDict:
    """A sample as webdataset has it."""
    return {"__key__": sample.key, "__url__": sample.shard, **sample.members}


def shard_of(sample: SampleDict) -> str:
    """The shard of a sample dict as it is: `str` would take the name of a `NamedShard`."""
    shard = sample.get("__url__", "")
    return shard if isinstance(shard, str) else str(shard)


def as_sample(sample: SampleDict) -> Sample:
    """A sample dict as the strict reader has it.

    Raises:
        UsageError: it has no key, or a member is not bytes.
    """
    key, shard = sample.get("__key__"), shard_of(sample)
    if not isinstance(key, str):
        raise UsageError(f"a sample has no __key__, only {', '.join(map(str, sample))}; keep webdataset's keys")
    members = {}
    for name, data in sample.items():
        if name.startswith("__"):
            continue
        if not isinstance(data, bytes):
            raise UsageError(
                f"{shard}, sample {key!r}: {name} is {type(data).__name__}, not bytes; put this stage before decode()"
            )
        members[name.lower()] = data
    return Sample(shard, key, members)
