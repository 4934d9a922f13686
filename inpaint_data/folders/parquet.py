"""Tables that hold the pictures themselves, as Hugging Face's datasets are stored."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inpaint_data.errors import UsageError
from inpaint_data.folders.files import IMAGES, File, composed, walk
from inpaint_data.folders.rows import columns_given, columns_of, members_of_row

AT_ONCE = 16  # rows in memory


def parquet_files(root: Path, without: Path | None = None) -> list[File]:
    """The tables that are to be packed: the file itself, or those of a folder without images."""
    if root.is_file():
        return [File(composed(root.name), root)] if root.suffix.lower() == ".parquet" else []
    files = walk(root, without).files if root.is_dir() else []
    if any(file.extension in IMAGES for file in files):
        return []
    return [file for file in files if file.extension == "parquet"]


@dataclass(frozen=True)
class RowSample:
    """A row: its key, where it stands, its members, and why it cannot be packed."""

    key: str
    where: str
    members: dict[str, bytes]
    problem: str | None = None


@dataclass
class ParquetRows:
    """The rows of tables, read anew by each iteration, a few in memory at a time.

    A key is the table's name and the row's number.

    Args:
        files: the tables.
        columns: which column holds what, `image=photo,mask=seg,caption=en`; what it does not say is known by name.

    Raises:
        UsageError: pyarrow is missing, a file is no table, or no column holds the images.
    """

    files: Sequence[File]
    columns: str | None = None
    unread: list[str] = field(default_factory=list)  # columns that are not packed

    def __post_init__(self) -> None:
        try:
            import pyarrow.parquet  # noqa: F401 - only these tables need it
        except ImportError:
            raise UsageError("parquet needs pyarrow; pip install 'inpaint_data[parquet]'") from None
        given = columns_given(self.columns)
        self._tables = []
        for file in self.files:
            opened = self._opened(file)
            names = list(opened.schema_arrow.names)
            chosen = columns_of(names, given, str(file.path))
            self._tables.append((file, chosen, opened.metadata.num_rows))
            self.unread += [name for name in names if name not in chosen.values() and name not in self.unread]

    def __len__(self) -> int:
        return sum(rows for _, _, rows in self._tables)

    def __iter__(self) -> Iterator[RowSample]:
        import pyarrow

        for file, columns, _ in self._tables:
            stem = file.name.rpartition(".")[0]
            number = 0
            try:
                for batch in self._opened(file).iter_batches(AT_ONCE, columns=list(columns.values())):
                    for record in batch.to_pylist():
                        members, problem = members_of_row(record, columns)
                        yield RowSample(f"{stem}/{number:07d}", f"{file.name}, row {number}", members, problem)
                        number += 1
            except (pyarrow.ArrowException, OSError) as error:
                raise UsageError(f"{file.path}: row {number} cannot be read ({error}); download it again") from None

    def _opened(self, file: File) -> Any:
        import pyarrow
        import pyarrow.parquet

        try:
            return pyarrow.parquet.ParquetFile(file.path)
        except (pyarrow.ArrowException, OSError) as error:
            raise UsageError(f"{file.path}: not a parquet table ({error}); download it again") from None
