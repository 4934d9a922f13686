"""Captions, and names of masks, that one file has for many images: tables, and the json files of captioning tools."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from inpaint_data.errors import UsageError
from inpaint_data.folders.files import IMAGES, File, LeftOut
from inpaint_data.folders.layouts import MASK_WORDS
from inpaint_data.folders.names import Role, words_of
from inpaint_data.shown import shortened

TABLES = ("metadata.jsonl", "metadata.csv")  # of imagefolders; others are read where `captions_from` names them
TABLE_KINDS = ("jsonl", "csv", "tsv")
_FILE_COLUMNS = ("file_name", "filename", "image_path", "image", "file", "path")
_CAPTION_COLUMNS = ("text", "caption", "prompt", "description")
_ENDINGS = (
    "_file_names",
    "_file_name",
    "_filename",
    "_paths",
    "_path",
    "_files",
    "_file",
)  # huggingface/datasets has the first
_PICTURES: Mapping[str, Role] = {
    "seg": "mask",
    "segs": "mask",
    "alpha": "mask",
    "target": "target",
    "target_image": "target",
    "control": "control",
    "control_image": "control",
    "conditioning": "control",
    "conditioning_image": "control",
    "reference": "reference",
    "reference_image": "reference",
    "references": "reference",
}
MAX_FIELD = 2**24  # characters of a field of a csv


@dataclass(frozen=True)
class Row:
    """One image of a table.

    Attributes:
        line: where it stands, for a person.
        file: the image as the table names it.
        caption: None where the table has none for it.
        pictures: the files of its masks, target, conditioning picture and references.
        unknown: the pictures that columns name of which nobody knows what they are for, by column.
    """

    line: str
    file: str
    caption: str | None
    pictures: Mapping[Role, Sequence[str]] = field(default_factory=dict)
    unknown: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass
class Table:
    """The rows of a file; `is_by_stem` where images are named without their extension."""

    file: File
    rows: list[Row] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)  # columns
    is_by_stem: bool = False


def text_of(file: File) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises:
        UsageError: it is not UTF-8, or cannot be read.
    """
    try:
        return file.path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file.path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except OSError as error:
        raise UsageError(f"{file.path}: cannot be read ({error.strerror}); make it readable or move it out") from None


def read_table(file: File, column: str | None = None) -> Table:
    """The rows of a .jsonl, .csv, .tsv, or of a json that is a list of objects or maps images to captions.

    Args:
        file: the table.
        column: of the captions; None for the one that is known by its name, or else is the only text.

    Raises:
        UsageError: it cannot be read, no column names the images, or nobody can know which one has the captions.
    """
    table = Table(file)
    if file.extension == "json":
        content = json_of(file)
        if isinstance(content, dict):
            return _of_mapping(file, content)
        records = _of_list(content if isinstance(content, list) else [], file)
    else:
        records = _of_csv(file) if file.extension in ("csv", "tsv") else _of_jsonl(file, table)
    _take(table, list(records), column)
    return table


def json_of(file: File) -> Any:
    """What a json file holds; None where it is none."""
    try:
        return json.loads(file.path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def is_caption_json(content: Any) -> bool:
    """Whether a json maps images to captions: {"cat": "a cat"}, or kohya's {"cat": {"caption": …, "tags": …}}."""
    if not isinstance(content, dict) or not all(isinstance(entry, str | dict) for entry in content.values()):
        return False
    if {"key", "status"} <= content.keys():  # img2dataset's, of one image
        return False
    return any(_said(entry) is not None for entry in content.values())


def caption_in(content: Any) -> str | None:
    """The caption in the json of one image, as img2dataset writes it; None where there is none."""
    caption = content.get("caption") if isinstance(content, dict) else None
    return caption if isinstance(caption, str) and caption.strip() else None


def _said(entry: Any) -> str | None:
    """A caption, the first of several; of kohya's caption and tags both, as its training joins them."""
    if isinstance(entry, str):
        return entry
    if not isinstance(entry, dict):
        return None
    fields = [entry.get(name) for name in ("caption", "tags")]
    firsts = [field[0] if isinstance(field, list) and field else field for field in fields]
    texts = [text for text in firsts if isinstance(text, str)]
    return ", ".join(filter(None, texts)) if texts else None


def _of_mapping(file: File, content: Mapping[str, Any]) -> Table:
    rows = [Row(f"{file.name}, {shortened(name)}", name, _said(entry)) for name, entry in content.items()]
    return Table(file, rows, is_by_stem=True)


def _of_list(content: Iterable[Any], file: File) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, record in enumerate(content, 1):
        if isinstance(record, dict):
            yield f"{file.name}, entry {number}", record


def _of_jsonl(file: File, table: Table) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text_of(file).split("\n"), 1):
        if not line.strip():
            continue
        place = f"{file.name}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            yield place, record
        else:
            table.left_out.append(LeftOut(place, "a line that is not a json object"))


def _of_csv(file: File) -> Iterator[tuple[str, dict[str, Any]]]:
    text = text_of(file)
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)  # a table program writes ; where numbers have a decimal comma
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    usual = csv.field_size_limit(MAX_FIELD)
    try:
        records = [(reader.line_num, record) for record in reader]
    except csv.Error as error:
        raise UsageError(f"{file.path}: line {reader.line_num} is not csv ({error}); correct it") from None
    finally:
        csv.field_size_limit(usual)
    for number, record in records:
        yield f"{file.name}, line {number}", {name: record[name] for name in record if isinstance(name, str)}


def _take(table: Table, records: list[tuple[str, dict[str, Any]]], column: str | None) -> None:
    columns = list(dict.fromkeys(name for _, record in records for name in record))
    names = next((name for name in _FILE_COLUMNS if name in columns), None)
    if records and names is None:
        raise UsageError(f"{table.file.path}: no column names the images; call one file_name")
    pictures = {
        name: role
        for name in columns
        if (role := _role_of(name)) and name != names and _has_files([record.get(name) for _, record in records])
    }
    captions = _caption_column(table, records, column, [name for name in columns if name not in (names, *pictures)])
    table.unread = [name for name in columns if name not in (names, captions, *pictures)]
    for line, record in records:
        image, caption = record.get(names or ""), record.get(captions or "")
        if not isinstance(image, str) or not image:
            table.left_out.append(LeftOut(line, f"its {names} is not the name of a file"))
            continue
        files: dict[Role, list[str]] = {}
        for name, role in pictures.items():
            files.setdefault(role, []).extend(_texts_in(record.get(name)))
        said = next((text for text in _texts_in(caption) if text.strip()), None)
        if said is None and caption not in (None, "", []) and not isinstance(caption, str):
            table.left_out.append(LeftOut(line, f"its {captions} is no text: {shortened(str(caption))}"))
        unknown = {name: named for name in table.unread if (named := _pictures_in(record.get(name)))}
        table.rows.append(Row(line, image, said, files, unknown))


def _role_of(column: str) -> Role | None:
    base = next((column.removesuffix(ending) for ending in _ENDINGS if column.endswith(ending)), column)
    return _PICTURES.get(base) or ("mask" if MASK_WORDS.intersection(words_of(base)) else None)


def _texts_in(value: Any) -> list[str]:
    """The names of files in a field: one, or a list."""
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str) and text]


def _has_files(values: Iterable[Any]) -> bool:
    """Whether a column names pictures; a segmentation may also be polygons."""
    values = list(values)
    return any(map(_pictures_in, values)) or not any(map(_texts_in, values))


def _pictures_in(value: Any) -> list[str]:
    return [text for text in _texts_in(value) if text.rpartition(".")[2].lower() in IMAGES]


def _caption_column(
    table: Table, records: list[tuple[str, dict[str, Any]]], column: str | None, columns: list[str]
) -> str | None:
    if column is not None:
        if column not in columns:
            raise UsageError(
                f"captions_from: {table.file.path} has no column {column!r}; it has {', '.join(columns) or 'no other'}"
            )
        return column
    if known := [name for name in _CAPTION_COLUMNS if name in columns]:
        return known[0]
    texts = [name for name in columns if any(_is_text(record.get(name)) for _, record in records)]
    if len(texts) > 1:
        raise UsageError(
            f"{table.file.path}: {' or '.join(texts[:4])} may be the captions; say which: --captions_from {texts[0]}"
        )
    return texts[0] if texts else None


def _is_text(value: Any) -> bool:
    """Whether a field is a text that people read, and not a number in a csv or a name."""
    return isinstance(value, str) and " " in value.strip()
