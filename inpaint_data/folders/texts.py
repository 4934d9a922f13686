"""Captions and json come to their images: from files beside them, and from those that one folder has for all."""

import posixpath
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inpaint_data.errors import UsageError
from inpaint_data.folders.captions import (
    TABLE_KINDS,
    TABLES,
    Row,
    Table,
    caption_in,
    is_caption_json,
    json_of,
    read_table,
)
from inpaint_data.folders.coco import Annotated, is_coco, read_coco, via_files
from inpaint_data.folders.files import UNREAD_IMAGES, File, LeftOut, Spellings, composed
from inpaint_data.folders.layouts import CAPTION_FOLDERS, LABEL_FOLDERS, is_in_folder_of, place_of
from inpaint_data.folders.names import Role, without_extension, words_of
from inpaint_data.folders.owners import Member, Owner, Owners, why_not

CAPTIONS = ("txt", "caption")  # the first one counts; kohya's default is the second
NO_IMAGE = "no image of its name"
SECOND = {
    "txt": "a second caption: the first counts; .txt goes before .caption, and both before a table",
    "json": "a second json; an image's own goes before COCO's",
}
NOT_THERE = "there is no such image"


Claim = tuple[str, Role, str, str]  # image, role, picture, and the line that says it


@dataclass
class Texts:
    """All of a folder's files that are no pictures."""

    root: Path
    spellings: Spellings
    captions: list[File] = field(default_factory=list)
    jsons: list[File] = field(default_factory=list)  # of one image each, by their names
    tables: list[Table] = field(default_factory=list)
    coco: list[tuple[File, Any]] = field(default_factory=list)
    via: list[tuple[File, dict[str, bytes]]] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def rows(self) -> Iterator[tuple[Table, Row]]:
        for table in self.tables:
            for row in table.rows:
                yield table, row

    def name_in(self, table: Table, written: str) -> str:
        """The name of a file that a table names, in the folder; one that leads out of it is the name of nothing."""
        path = composed(written.replace("\\", "/"))
        if path.startswith("/"):
            root = composed(self.root.resolve().as_posix())
            return path.removeprefix(f"{root}/") if path.startswith(f"{root}/") else path
        return self.spellings.of(posixpath.normpath(posixpath.join(table.file.folder, path)))


def sort_texts(root: Path, files: Collection[File], pictures: Collection[File], captions_from: str | None) -> Texts:
    """The files that are no pictures, by what they are for; tables and COCO's files are read.

    Raises:
        UsageError: a table cannot be read, or there is none of `captions_from`.
    """
    texts = Texts(root, Spellings(file.name for file in pictures))
    beside = {(file.folder, file.stem) for file in pictures}
    wanted = [file for file in files if file.name == captions_from]
    places = [root / captions_from, Path(captions_from).expanduser()] if captions_from else []
    if not wanted and (outer := next((place for place in places if place.is_file()), None)):
        wanted = [File(outer.name, outer)]
        texts.tables.append(read_table(wanted[0]))
    column = captions_from if not wanted else None
    for file in files:
        if file in wanted or (file.name.rpartition("/")[2].lower() in TABLES and not wanted):
            texts.tables.append(read_table(file, column))
        elif file.extension in CAPTIONS:
            texts.captions.append(file)
        elif file.extension == "json":
            _sort_json(file, (file.folder, file.stem) in beside, texts, bool(wanted))
        elif file.extension in UNREAD_IMAGES:
            texts.left_out.append(LeftOut(file.name, "an image of a kind that is not read; save it as PNG or JPEG"))
        elif file.extension == "tar":
            texts.left_out.append(LeftOut(file.name, "a shard already", is_bad=False))
        elif file.extension in TABLE_KINDS:
            reason = f"a table that is not read; --captions_from {file.name} reads it"
            texts.left_out.append(LeftOut(file.name, reason, is_bad=False))
        else:
            texts.left_out.append(LeftOut(file.name, "neither an image nor a caption nor json", is_bad=False))
    if column is not None and not texts.tables:
        raise UsageError(
            f"captions_from: there is no file {column} in {root}, and no metadata.jsonl with a column {column}"
        )
    for table in texts.tables:
        texts.left_out += table.left_out
        if table.unread:
            texts.notes.append(f"{table.file.name}: these columns are not packed: {', '.join(table.unread)}")
    return texts


def _sort_json(file: File, is_beside: bool, texts: Texts, is_table_wanted: bool) -> None:
    content = None if is_beside else json_of(file)
    if is_coco(content):
        texts.coco.append((file, content))
    elif files := via_files(content):
        texts.via.append((file, files))
    elif is_caption_json(content) and not is_table_wanted:
        texts.tables.append(read_table(file))
    else:
        texts.jsons.append(file)


def add_texts(texts: Texts, owners: Owners) -> None:
    """Give each image its caption and json."""
    # An image's own stem goes before its whole name, a.txt before a.jpg.txt, and before what else it may be called.
    for file in sorted(
        texts.captions,
        key=lambda file: (
            not owners.has_stem(file.folder, file.stem),
            CAPTIONS.index(file.extension),
            _is_whole_name(file),
            file.name,
        ),
    ):
        _add_file(file, "txt", texts, owners)
    for file in texts.jsons:
        _add_file(file, "json", texts, owners)
    used = _add_coco(texts, owners) | _add_via(texts, owners)
    rows = [(table, row, _owners_of_row(table, row, texts, owners)) for table, row in texts.rows()]
    used |= {table.file.name for table, _, found in rows if found}
    for table, row, found in rows:
        if table.is_by_stem and table.file.name not in used:
            continue  # a json of something else, such as the settings of a training
        if len(found) != 1:
            reason = NOT_THERE if not found else "the name of several images; give it with its folder"
            texts.left_out.append(LeftOut(f"{row.line}: {row.file}", reason))
        elif row.caption is not None:
            _add(found[0], "txt", row.line, row.caption.encode(), texts)
    projects = [file for file, _ in [*texts.coco, *texts.via]]
    for file in [*(table.file for table in texts.tables), *projects]:
        if file.name not in used:
            texts.left_out.append(LeftOut(file.name, "nothing in it belongs to an image here", is_bad=False))
    for owner in owners.all:
        source, member = owner.texts.get("json", ("", b""))
        if "txt" not in owner.texts and isinstance(member, Path) and (caption := _caption_of(source, member)):
            owner.texts["txt"] = (source, caption.encode())


def _is_whole_name(file: File) -> bool:
    """Whether a text is named after an image with its extension."""
    return without_extension(file.stem) != file.stem


def _caption_of(name: str, path: Path) -> str | None:
    return caption_in(json_of(File(name, path)))


def _add(owner: Owner, member: str, source: str, content: Member, texts: Texts) -> None:
    """Give an image its caption or json; the second one is left out, unless it says the same."""
    if member not in owner.texts:
        owner.texts[member] = (source, content)
        return
    if _content(content) != _content(owner.texts[member][1]):
        texts.left_out.append(LeftOut(source, SECOND[member]))


def _content(member: Member) -> bytes:
    try:
        return (member.read_bytes() if isinstance(member, Path) else member).strip()
    except OSError:  # it is named when it is packed
        return b""


def _add_file(file: File, member: str, texts: Texts, owners: Owners) -> None:
    found = owners.beside(file.folder, file.stem)
    if not found and (owner := owners.named(posixpath.join(file.folder, file.stem))):
        found = [owner]  # cat.jpg.txt
    if not found and file.stem.lower() in CAPTION_FOLDERS:
        found = owners.beside(file.folder, "")  # 0001/caption.txt with 0001/image.jpg
    folders = CAPTION_FOLDERS if member == "txt" else CAPTION_FOLDERS | LABEL_FOLDERS | {"json"}
    if not found and is_in_folder_of(folders, file.folder):
        found = owners.at(place_of(file.folder), file.stem)
    found = found or owners.nearly_beside(file.folder, file.stem)
    if len(found) == 1:
        _add(found[0], member, file.name, file.path, texts)
    elif found:
        texts.left_out.append(LeftOut(file.name, why_not(found, file)))
    elif member == "txt" and is_in_folder_of(LABEL_FOLDERS, file.folder):
        reason = "a text in a folder of labels, as YOLO has them: not a caption; convert labels to COCO"
        texts.left_out.append(LeftOut(file.name, reason, is_bad=False))
    else:
        texts.left_out.append(LeftOut(file.name, NO_IMAGE, is_bad=False))


def _owners_of_row(table: Table, row: Row, texts: Texts, owners: Owners) -> list[Owner]:
    name = texts.name_in(table, row.file)
    if owner := owners.named(name):
        return [owner]
    for end in _ends_of(_path_in(row.file))[1:]:
        if "/" in end and (owner := owners.named(texts.spellings.of(end))):
            return [owner]
    if not table.is_by_stem:
        return []
    folder, stem = _split(name)
    if "/" not in _path_in(row.file):
        return owners.beside(folder, stem) or owners.stemmed(folder, stem)
    nearest = (owners.beside(*_split(end)) for end in [name, *_ends_of(_path_in(row.file))[:-1]])
    return next((found for found in nearest if found), [])


def _split(name: str) -> tuple[str, str]:
    folder, _, stem = name.rpartition("/")
    return folder, stem


def _add_coco(texts: Texts, owners: Owners) -> set[str]:
    """Returns the names of the files of which something came."""
    found: dict[str, tuple[Owner, Annotated, str]] = {}  # by key
    used = set[str]()
    for file, content in texts.coco:
        images, left_out = read_coco(file, content)
        texts.left_out += left_out
        exact = {name: owner for name in images if (owner := _exact(file, name, owners))}
        for name, image in images.items():
            # Where some names are paths, the others are not those of images elsewhere.
            named = [exact[name]] if name in exact else [] if exact else owners.ending_in(_path_in(name))
            if len(named) > 1:  # instances_train2017.json speaks of train2017/
                said = set(words_of(file.stem))
                named = [owner for owner in named if said & set(owner.file.folder.split("/"))] or named
            if len(named) != 1:
                reason = NOT_THERE if not named else "the name of several images; give it with its folder"
                texts.left_out.append(LeftOut(f"{file.name}: {name}", reason, is_bad=bool(named)))
                continue
            used.add(file.name)
            found.setdefault(named[0].key, (named[0], Annotated(), file.name))[1].add(image)
    for owner, image, source in found.values():
        if image.has_objects:
            _add(owner, "json", source, image.json(), texts)
        if image.captions:
            _add(owner, "txt", source, image.captions[0].strip().encode(), texts)
    several = sum(len(image.captions) > 1 for _, image, _ in found.values())
    if several:
        texts.notes.append(f"{several} images have several captions in COCO's files; the first of each is packed")
    return used


def _add_via(texts: Texts, owners: Owners) -> set[str]:
    """Returns the names of the files of which something came."""
    used = set[str]()
    for file, images in texts.via:
        for name, content in images.items():
            exact = _exact(file, name, owners)
            named = [exact] if exact else owners.ending_in(_path_in(name))
            if len(named) == 1:
                used.add(file.name)
                _add(named[0], "json", file.name, content, texts)
            else:
                reason = NOT_THERE if not named else "the name of several images; give it with its folder"
                texts.left_out.append(LeftOut(f"{file.name}: {name}", reason, is_bad=bool(named)))
    return used


def _exact(file: File, name: str, owners: Owners) -> Owner | None:
    """The image that a file of COCO's names: from where the file is, in the folder, or by the end of a longer path."""
    paths = [posixpath.normpath(posixpath.join(file.folder, _path_in(name))), *_ends_of(_path_in(name))]
    return next((owner for path in paths if (owner := owners.named(path))), None)


def _ends_of(path: str) -> list[str]:
    """A path, and what is left of it without its first folders, as it is where they have others."""
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _path_in(name: str) -> str:
    return composed(posixpath.normpath(name.replace("\\", "/"))).lstrip("/")


def unknown_in(texts: Texts) -> dict[str, str]:
    """The pictures that tables name in a column which nobody knows, each with the reason to leave it out."""
    certain = {texts.name_in(table, row.file) for table, row in texts.rows()}
    reasons = {
        texts.name_in(table, written): f"{row.line} names it as {column}, of which nobody knows what it is; call the "
        "column mask_file_name, target_file_name, conditioning_file_name or reference_file_name"
        for table, row in texts.rows()
        for column, names in row.unknown.items()
        for written in names
    }
    return {name: reason for name, reason in reasons.items() if name not in certain}


def claims(texts: Texts) -> Iterator[Claim]:
    """What tables say of pictures: image, role, picture, and the line that says it."""
    for table, row in texts.rows():
        for role, names in row.pictures.items():
            for written in names:
                yield texts.name_in(table, row.file), role, texts.name_in(table, written), row.line
