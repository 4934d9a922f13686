"""Pipeline stages: webdataset's own kind, with types, and so that they can be pickled."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Concatenate, ParamSpec, cast

import webdataset as wds

P = ParamSpec("P")
SampleDict = dict[str, Any]  # __key__, __url__, and members: extension -> bytes
Stage = Callable[[Iterable[Any]], Iterable[Any]]


def stage(function: Callable[Concatenate[Iterable[Any], P], Iterator[Any]]) -> Callable[P, Stage]:
    """Make a generator function of (items, ...) into a stage: called without the items, it waits for them."""
    curried = wds.pipelinefilter(function)
    # pickle looks a function up by its name, under which the stage stands now; it has the function as `f`.
    function.__qualname__ = f"{function.__qualname__}.f"
    return cast(Callable[P, Stage], curried)
