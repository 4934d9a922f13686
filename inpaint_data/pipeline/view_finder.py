"""Which views a sample has, and of which size, found by the header of its picture before anything is decoded."""

from collections.abc import Callable

from inpaint_data.errors import FilteredError, SampleError
from inpaint_data.pictures.captions import caption_of
from inpaint_data.pictures.geometry import Size
from inpaint_data.pictures.settings import PictureSettings
from inpaint_data.shards.reading import Sample


class ViewFinder:
    """Finds the views of samples.

    Args:
        pictures: how they are cut.

    Attributes:
        sizes: those that views can have.
        too_small: how many views there are not, since their picture is too small, though not for all.
    """

    def __init__(self, pictures: PictureSettings) -> None:
        self._pictures, self._views = pictures, pictures.views
        self.sizes = pictures.views.sizes()
        self.too_small = 0

    @property
    def needs_sizes(self) -> bool:
        """Whether the views of a sample depend on the size of its picture."""
        return self._views.count > 1 or len(self.sizes) > 1 or self._pictures.filters.of_images

    def views(self, sample: Sample, size_of: Callable[[Sample], Size]) -> list[tuple[int, Size]]:
        """Number and size of each view of a sample.

        Args:
            sample: whose members may have no bytes.
            size_of: the size of its picture; raises SampleError where there is none that can be read.

        Raises:
            FilteredError: a filter that tells by size and caption leaves the sample out.
        """
        filters = self._pictures.filters
        unknown = [(0, self.sizes[0])]  # why it cannot be used is said when it is decoded
        if not self.needs_sizes:
            return unknown
        try:
            size = size_of(sample)
            filters.check_image(size, caption_of(sample.members, self._pictures.caption))
        except FilteredError:
            raise
        except SampleError:
            return unknown
        try:
            fitting = self._views.of(size)
        except SampleError:  # too small for any
            return unknown
        self.too_small += self._views.count - len(fitting)
        return [(view.number, view.target) for view in fitting]
