"""The views of a shard's samples, found in its index without reading the shard."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from inpaint_data.errors import FilteredError, SampleError
from inpaint_data.pictures.geometry import Size
from inpaint_data.pictures.settings import PictureSettings
from inpaint_data.pipeline.view_finder import ViewFinder
from inpaint_data.shards.image_index import ShardEntry
from inpaint_data.shards.reading import Fault, Sample, image_member

Places = npt.NDArray[np.int64]


def places_of(
    entry: ShardEntry, shard: str, finder: ViewFinder, pictures: PictureSettings
) -> tuple[Places, list[Fault]]:
    """Extent, 0, number and size of each view of a shard's samples: (N, 6) int64, in their order; and its Faults.

    Samples of the same members and sizes have the same views, so each kind is looked at once.
    """
    faults = [replace(fault, shard=shard) for fault in entry.faults]
    tables, orders = [], []
    for rows in entry.alike():
        try:
            views = _views_of(entry, int(rows[0]), len(rows), finder, pictures)
        except FilteredError as error:
            faults += [Fault(shard, entry.key(row), str(error), None, None, on_purpose=True) for row in rows.tolist()]
            continue
        starts, ends = entry.columns["start"][rows], entry.columns["end"][rows]
        for number, (view, (height, width)) in enumerate(views):
            same = [np.full(len(rows), value) for value in (0, view, height, width)]
            tables.append(np.column_stack([starts, ends, *same]))
            orders.append(np.column_stack([rows, np.full(len(rows), number)]))
    if not tables:
        return np.zeros((0, 6), np.int64), faults
    order = np.concatenate(orders)
    places: Places = np.concatenate(tables)[np.lexsort((order[:, 1], order[:, 0]))]
    return places, faults


def _views_of(
    entry: ShardEntry, row: int, count: int, finder: ViewFinder, pictures: PictureSettings
) -> list[tuple[int, Size]]:
    """The views of a sample that stands for `count` of its kind."""

    def size_of(sample: Sample) -> Size:
        height, width = entry.picture_size(row, image_member(sample, pictures.image))
        if height * width > pictures.decoding.max_pixels:
            raise SampleError("it has more pixels than max_pixels")
        return height, width

    too_small = finder.too_small
    views = finder.views(entry.sample(row), size_of)
    finder.too_small += (finder.too_small - too_small) * (count - 1)
    return views
