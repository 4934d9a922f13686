"""The rows of a Hugging Face `Dataset` as samples, without its library unless one is given."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from inpaint_data.errors import UsageError
from inpaint_data.folders.rows import columns_given, columns_of, members_of_row
from inpaint_data.order import permutation
from inpaint_data.pipeline.decorator import SampleDict
from inpaint_data.shards.reading import Fault

NAME = "dataset.tar"  # what its samples are from: with their keys it decides what is drawn for them


def from_dataset(dataset: Any, columns: str | Mapping[str, str] | None = None, seed: int = 0) -> "DatasetSamples":
    """The samples of a Hugging Face `Dataset`, or of a streamed `IterableDataset`: the head of a pipeline, or a source.

    Pictures keep their own bytes; they are decoded by `examples` like any others.

    Args:
        dataset: one split.
        columns: which column holds what, "image=photo,mask=seg,target=after,caption=en" or a mapping; what it does not
            say is known by name.
        seed: of the order, once an epoch is set.

    Raises:
        UsageError: a column that is not there, or none with images.
    """
    return DatasetSamples(dataset, columns, seed)


def is_dataset(source: Any) -> bool:
    """Whether it is one of Hugging Face's."""
    return type(source).__module__.partition(".")[0] == "datasets"


class DatasetSamples:
    """See `from_dataset`. A key is the row's number; the rows come in their own order, or in that of an epoch."""

    def __init__(self, dataset: Any, columns: str | Mapping[str, str] | None = None, seed: int = 0) -> None:
        if isinstance(dataset, Mapping):
            raise UsageError(f"source: the dataset is one of splits; give one of {', '.join(map(repr, dataset))}")
        features = dataset.features
        names = list(features or dataset.column_names or ())
        self.columns = columns_of(names, columns_given(columns), "the dataset, see from_dataset")
        self.dataset = _undecoded(dataset, features, [name for use, name in self.columns.items() if use != "caption"])
        self.seed = seed
        self._epoch: int | None = None

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next pass is, which decides its order."""
        self._epoch = epoch
        if not hasattr(self.dataset, "__len__"):
            self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[SampleDict | Fault]:
        for number, row in self._rows():
            key = f"{number:09d}"
            members, problem = members_of_row(_with_bytes(row, self.columns), self.columns)
            if problem:
                yield Fault(NAME, key, problem, None, None)
            else:
                yield {"__key__": key, "__url__": NAME, **members}

    def _rows(self) -> Iterable[tuple[int, Mapping[str, Any]]]:
        if self._epoch is None or not hasattr(self.dataset, "__len__"):
            return enumerate(self.dataset)
        order = permutation(len(self.dataset), self.seed, self._epoch)
        return ((number, self.dataset[number]) for number in order.tolist())


def _undecoded(dataset: Any, features: Mapping[str, Any] | None, names: list[str]) -> Any:
    """The dataset, whose pictures come as bytes and not as what PIL makes of them."""
    import datasets

    for name in names:
        feature: Any = (features or {}).get(name)
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            dataset = dataset.cast_column(name, type(feature)(datasets.Image(decode=False)))
    return dataset


def _with_bytes(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row, with the bytes of pictures of which it has the path."""

    def read(value: Any) -> Any:
        if isinstance(value, list):
            return [read(each) for each in value]
        if isinstance(value, dict) and value.get("bytes") is None and value.get("path"):
            try:
                return {"bytes": Path(value["path"]).read_bytes()}
            except OSError:
                return value
        return value

    return {name: read(row[name]) if use != "caption" else row[name] for use, name in columns.items()}
