"""Several sources as one: the rows of one after those of another, in batches of what may come together."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from inpaint_data.training.loader import TrainingSource
from inpaint_data.training.mixture import Planned, Rows
from inpaint_data.training.sources import CacheSource, ImageSource, buckets_of


class MixedSource:
    """Batches of several sources.

    Samples of caches come together, and so do those of pictures whose masks are treated alike once they are drawn;
    others have batches of their own.

    Args:
        sources: each with rows of its own.

    Attributes:
        parts: (N,) which of the sources each row is of.
    """

    def __init__(self, sources: Sequence[TrainingSource]) -> None:
        groups: dict[Any, list[int]] = {}
        for number, source in enumerate(sources):
            groups.setdefault(_kind(source), []).append(number)
        self._groups = [_together([sources[number] for number in group]) for group in groups.values()]
        order = [number for group in groups.values() for number in group]
        self.parts: Rows = np.repeat(order, [len(sources[number]) for number in order])
        self.sizes: Rows = np.concatenate([group.sizes for group in self._groups])
        lengths = [len(group) for group in self._groups]
        self._ends = np.cumsum(lengths)
        group_of_row = np.repeat(np.arange(len(lengths)), lengths)
        self.buckets = buckets_of(np.column_stack([group_of_row, self.sizes]))

    def __len__(self) -> int:
        return len(self.sizes)

    def planned(self, plan: Sequence[Planned], batch_size: int) -> Iterator[Any]:
        which = np.searchsorted(self._ends, [planned.rows[0] for planned in plan], side="right").tolist()
        batches: list[Any] = []
        for number, (group, end) in enumerate(zip(self._groups, self._ends, strict=True)):
            start = end - len(group)
            of_group = [
                Planned(planned.rows - start, planned.numbers)
                for planned, its in zip(plan, which, strict=True)
                if its == number
            ]
            batches.append(group.planned(of_group, batch_size))
        try:
            for number in which:
                yield next(batches[number])
        finally:
            for of_one in batches:
                of_one.close()  # its threads end with it


def _kind(source: TrainingSource) -> Any:
    """What sources have in common whose samples may come together."""
    if isinstance(source, ImageSource):
        return "images", source.masks_of
    return ("cache", source.is_soft) if isinstance(source, CacheSource) else source


def _together(sources: Sequence[TrainingSource]) -> TrainingSource:
    """One source of several of one kind."""
    first = sources[0]
    if isinstance(first, ImageSource):
        images = [source for source in sources if isinstance(source, ImageSource)]
        parts = [part for source in images for part in source.parts]
        names = [name for source in images for name in source.names]
        return ImageSource(parts, first.threads, first.masks_of, names)
    if isinstance(first, CacheSource):
        return CacheSource(*[cache for source in sources if isinstance(source, CacheSource) for cache in source.caches])
    return first
