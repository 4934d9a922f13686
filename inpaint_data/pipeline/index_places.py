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
    if not len(entry):
        return np.zeros((0, 6), np.int64), faults
    rows, kinds = entry.kinds()
    of_kind = np.bincount(kinds)
    views: list[list[tuple[int, Size]]] = []
    for kind, row in enumerate(rows.tolist()):
        try:
            views.append(_views_of(entry, row, int(of_kind[kind]), finder, pictures))
        except FilteredError as error:
            views.append([])
            for same in np.flatnonzero(kinds == kind).tolist():
                faults.append(Fault(shard, entry.key(same), str(error), None, None, on_purpose=True))
    table = np.array([(0, view, *size) for each in views for view, size in each], np.int64).reshape(-1, 4)
    counts = np.array([len(each) for each in views])
    starts = (np.cumsum(counts) - counts)[kinds]  # of a row's views in the table
    row_of = np.repeat(np.arange(len(entry)), counts[kinds])
    place = np.arange(len(row_of)) - np.searchsorted(row_of, row_of)  # among the views of its row
    extents = np.column_stack([entry.columns["start"], entry.columns["end"]])[row_of]
    return np.hstack([extents, table[starts[row_of] + place]]), faults


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
