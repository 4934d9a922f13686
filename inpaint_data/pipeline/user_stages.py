"""The user's own functions between reading and examples: run on one sample at a time, and accounted for.

A stage is what it is in webdataset: a function from an iterator of sample dicts to an iterator of sample dicts, such as
`wds.select(keep)`, `wds.map(change)`, or a generator of your own.
"""

import importlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from inpaint_data.errors import UsageError
from inpaint_data.pipeline.decorator import SampleDict, Stage
from inpaint_data.shards.reading import Fault, name_problem

HINT = "; a stage takes an iterator of samples: put a function of one sample into wds.map or wds.select"
_ADDRESS = re.compile(" at 0x[0-9a-f]+")  # another one in every run
LEFT_OUT = "stages: a stage of yours leaves it out"


def check_stages(stages: Sequence[Stage | str]) -> list[Stage]:
    """The stages as functions; a text is the dotted path of one.

    Raises:
        UsageError: one cannot be called, or not be found.
    """
    if isinstance(stages, str) or not isinstance(stages, Sequence):
        raise UsageError(f"stages: {stages!r} is not a list of functions; give [wds.select(keep)]", place=("stages",))
    functions: list[Stage] = []
    for stage in stages:
        function = _at(stage) if isinstance(stage, str) else stage
        if not callable(function):
            raise UsageError(
                f"stages: {function!r} cannot be called; give a function from an iterator of samples to an iterator "
                "of samples, such as wds.select(keep)",
                place=("stages",),
            )
        functions.append(function)
    return functions


def names_of(stages: Sequence[Stage]) -> list[str]:
    """The names that a cache records. A function is known by its name, not by what it does."""
    return [_name(stage) for stage in stages]


def run_on(
    sample: SampleDict, stages: Sequence[Stage], shard: str, keys: set[str] | None = None
) -> Iterator[SampleDict | Fault]:
    """Run the stages on one sample: itself, changed, several, or a Fault that says why there is none."""
    key, samples = sample["__key__"], iter([sample])
    try:
        for stage in stages:
            samples = iter(stage(samples))
        results = list(samples)
    except Exception as error:  # whatever a user's function raises
        hint = HINT if isinstance(error, TypeError) else ""
        yield Fault(shard, key, f"stages: {type(error).__name__}: {' '.join(str(error).split())}{hint}", None, None)
        return
    if not results:
        yield Fault(shard, key, LEFT_OUT, None, None, on_purpose=True)
    keys = set() if keys is None else keys
    for result in results:
        problem = _problem(result, keys)
        if problem:
            yield Fault(shard, key, f"stages: {problem}", None, None)
        else:
            yield result


def _problem(result: Any, keys: set[str]) -> str | None:
    """The problem of a sample that a stage made; None if it is good, and then its key is noted."""
    if not isinstance(result, dict) or not isinstance(result.get("__key__"), str):
        return f"a stage made {type(result).__name__} and not a sample: a dict with __key__ and members of bytes"
    key = result["__key__"]
    if not key or "." in key.rpartition("/")[2]:
        return f"a stage made a sample with the key {key!r}; give one without dots, where webdataset splits names"
    if problem := name_problem(key):
        return f"a stage made a sample with the key {key!r}, which {problem}"
    if key in keys:
        return f"a stage made two samples with the key {key!r} in one shard; give each one of its own"
    for name, value in result.items():
        if not name.startswith("__") and not isinstance(value, bytes):
            return f"a stage made {name} of sample {key!r} {type(value).__name__}, and members are bytes; encode it"
    keys.add(key)
    return None


def _at(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"stages: there is no {path!r} to import ({error}); give a dotted path such as my_package.keep",
            place=("stages",),
        ) from None


def _name(stage: Any) -> str:
    """Of webdataset's own stages, with the functions that they were given."""
    function = getattr(stage, "f", None)
    if function is None:
        kind = stage if hasattr(stage, "__qualname__") else type(stage)
        return f"{kind.__module__}.{kind.__qualname__}"
    arguments = [*getattr(stage, "args", ()), *getattr(stage, "kw", {}).values()]
    named = ", ".join(_name(value) if callable(value) else _ADDRESS.sub("", repr(value)) for value in arguments)
    return f"{function.__name__.lstrip('_')}({named})"
