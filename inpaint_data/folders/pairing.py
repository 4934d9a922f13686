"""Which files of a folder are one sample."""

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from inpaint_data.errors import UsageError
from inpaint_data.folders.doubts import check_twins, masks_next_to, named_by_links, reason_of_folder, sift
from inpaint_data.folders.files import IMAGES, File, LeftOut, composed, walk
from inpaint_data.folders.layouts import (
    IMAGE_NAMES,
    JOINTS,
    LAYOUTS,
    Reading,
    Role,
    classes_of,
    owners_beside,
    owners_in_folder,
    place_of,
    read_name,
    repeats_of,
)
from inpaint_data.folders.owners import Member, Owner, Owners, why_not
from inpaint_data.folders.texts import NO_IMAGE, NOT_THERE, Texts, add_texts, claims, sort_texts
from inpaint_data.shown import meant

BY_TABLE = "a table"  # the source of what a table names


@dataclass
class Pairing:
    """The samples of a folder.

    Attributes:
        layout: the name of the layout that it has.
        samples: key -> member's name -> its file, or bytes that have no file of their own; by key.
        left_out: what is in no sample, by name.
        passed_over: names that are hidden or of the system.
        notes: what somebody may want to know.
    """

    layout: str
    samples: dict[str, dict[str, Member]] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Picture:
    """A picture that is no image but belongs to one.

    Attributes:
        places: where its image may be: places of folders, or the folder itself where `is_beside`.
        source: the folder or the flag that says what it is; "" where its own name does.
    """

    file: File
    role: Role
    places: tuple[str, ...]
    source: str = ""
    asked: tuple[Role, ...] = ()

    def owner(self, owners: Owners) -> tuple[list[Owner], int | None]:
        """The images that it may belong to, and the number that it has among their masks."""
        if not self.source:
            for stem, number in owners_beside(self.file.stem, self.role):
                if found := owners.beside(self.file.folder, stem):
                    return self._or_numbered(found, number, partial(owners.beside, self.file.folder), stem), number
            for stem, number in owners_beside(self.file.stem, self.role):
                if found := owners.nearly_beside(self.file.folder, stem):
                    return found, number
            return [], None
        for place in self.places:
            for stem, number in owners_in_folder(self.file.stem, self.role):
                if found := owners.at(place, stem):
                    return self._or_numbered(found, number, partial(owners.at, place), stem), number
            parent, _, last = place.rpartition("/")
            if self.role == "mask" and self.file.stem.isdecimal() and (found := owners.at(parent, last)):
                return found, int(self.file.stem)  # masks/cat/0.png
        for place in self.places:
            for stem, number in owners_in_folder(self.file.stem, self.role):
                if found := owners.nearly_at(place, stem):
                    return found, number
        return [], None

    def _or_numbered(
        self, found: list[Owner], number: int | None, find: Callable[[str], list[Owner]], stem: str
    ) -> list[Owner]:
        """With what it may belong to just as well: the image that has the number in its own name."""
        digits = re.search(r"([0-9]+)[^0-9]*$", self.file.stem)
        if number is None or digits is None:
            return found
        names = [stem] if stem else ["", *IMAGE_NAMES]
        all_of_them = [
            *found,
            *(other for name in names for joint in JOINTS for other in find(name + joint + digits[1])),
        ]
        return list({id(owner): owner for owner in all_of_them}.values())


def pair_folder(
    folder: str | Path,
    layout: str = "auto",
    masks_from: str | None = None,
    targets_from: str | None = None,
    captions_from: str | None = None,
    without: Path | None = None,
) -> Pairing:
    """Pair the images of a folder and of those below it with their masks, captions and the rest, by names alone.

    A key is the image's path in the folder; its dots become `_`, since readers split names at the first dot. What is
    named as a mask, or lies in a folder of masks, is a mask or left out, and never an image.

    Args:
        folder: the folder.
        layout: a name of `LAYOUTS`.
        masks_from: the folder of the masks, in `folder` or elsewhere; then no other picture is a mask.
        targets_from: the same for targets.
        captions_from: the table with the captions, or the column of a table.
        without: a folder that may lie in `folder` and does not belong to it.

    Raises:
        UsageError: there is no folder or no image in it, a table cannot be read, or two readings are possible; the line
            names what decides.
    """
    root = Path(folder).expanduser()
    if root.is_file():
        raise UsageError(f"{root} is a file; name the folder that it is in")
    if not root.is_dir():
        raise UsageError(f"there is no folder {root}; name the one that has the images")
    if layout not in LAYOUTS:
        raise UsageError(f"layout: there is no {layout!r}; choose from {', '.join(LAYOUTS)}{meant(layout, LAYOUTS)}")
    walked = walk(root, without)
    named_by_links(walked, layout)
    given: dict[Role, dict[str, _Picture]] = {}
    if masks_from is not None:
        given["mask"] = _given("masks_from", "mask", masks_from, root, walked.files)
    if targets_from is not None:
        given["target"] = _given("targets_from", "target", targets_from, root, walked.files)
    belongs = {name for pictures in given.values() for name in pictures}
    files = [file for file in walked.files if file.name not in belongs]
    pictures = [file for file in files if file.extension in IMAGES]
    others = [file for file in files if file.extension not in IMAGES]
    texts = sort_texts(root, others, pictures, captions_from)
    claimed = [claim for claim in claims(texts) if claim[1] not in given]
    images, companions = _by_role(pictures, layout, given, texts, {picture for _, _, picture, _ in claimed})
    owners = Owners(images)
    if not owners.all:
        raise _nothing(root, companions, others, texts.left_out)
    _add_claimed(claimed, owners, {file.name: file for file in pictures}, texts.left_out)
    for by_name in given.values():
        companions += by_name.values()
    _add_pictures(companions, owners, texts.left_out)
    _check_sources(owners)
    add_texts(texts, owners)
    texts.notes += check_twins(owners, _named_by(texts), layout, "mask" in given or bool(claimed))
    if not any("mask" in owner.pictures for owner in owners.all):
        texts.notes += masks_next_to(root)
    left_out = [*walked.left_out, *texts.left_out]
    left_out += [left for owner in owners.all if owner.problem for left in owner.leave_out()]
    return Pairing(
        _recognised(layout, texts, owners),
        {owner.key: owner.members() for owner in sorted(owners.all, key=lambda owner: owner.key) if not owner.problem},
        sorted(left_out, key=lambda left: (left.name, left.reason)),
        walked.passed_over,
        [*_repeats(owners), *_numbers(owners), *texts.notes],
    )


def _given(flag: str, role: Role, name: str, root: Path, files: Iterable[File]) -> dict[str, _Picture]:
    """The pictures of the folder that a flag names, by name."""
    folder = root / name if (root / name).is_dir() else Path(name).expanduser()
    if not folder.is_dir():
        raise UsageError(f"{flag}: there is no folder {name}, neither in {root} nor here; correct the name")
    real, real_root = folder.resolve(), root.resolve()
    if real == real_root or real in real_root.parents:
        raise UsageError(f"{flag}: {name} holds the images too; name the folder of the {role}s alone")
    if real_root in real.parents:
        inner = composed(real.relative_to(real_root).as_posix())
        outside = posixpath.dirname(inner)
        within = {file: file.folder[len(inner) + 1 :] for file in files if file.name.startswith(f"{inner}/")}
    else:
        outside = ""
        within = {File(f"{name}/{file.name}", file.path): file.folder for file in walk(folder).files}
    pictures = {}
    for file, below in within.items():
        places = (place_of(posixpath.join(outside, below).strip("/")), place_of(below))
        pictures[file.name] = _Picture(file, role, places, f"--{flag} {name}")
    if not any(file.extension in IMAGES for file in within):
        raise UsageError(f"{flag}: {folder} has no {', '.join(IMAGES[:4])}; name the folder of the {role}s")
    return {name: picture for name, picture in pictures.items() if picture.file.extension in IMAGES}


def _by_role(
    pictures: Iterable[File], layout: str, given: Collection[Role], texts: Texts, claimed: Collection[str]
) -> tuple[list[File], list[_Picture]]:
    """The images, and the pictures that belong to one by their names; what is neither is left out."""
    images, companions = [], list[_Picture]()
    pictures = list(pictures)
    certain = _named_by(texts)
    by_table = certain if layout == "imagefolder" else set[str]()
    classes = classes_of(file.folder for file in pictures) if layout == "kohya" else ()
    for file in pictures:
        if file.name in claimed:
            continue
        reading: Reading = read_name(file, LAYOUTS[layout], classes)
        if file.name not in certain and (why := reason_of_folder(file.folder, layout)):
            texts.left_out.append(LeftOut(file.name, why, is_bad=False))
        elif reading.role == "image" or file.name in by_table:
            images.append(file)
        elif not reading.is_read:
            reason = f"it looks like a {reading.role}, which layout {layout} has not there; --layout auto takes it"
            texts.left_out.append(LeftOut(file.name, reason))
        elif not (roles := [role for role in reading.asked or (reading.role,) if role not in given]):
            reason = f"it looks like a {reading.role} but lies outside --{reading.role}s_from{_or_class(file)}"
            texts.left_out.append(LeftOut(file.name, reason))
        else:
            source = f"{reading.source}/" if reading.source else ""
            asked = tuple(roles) if len(roles) > 1 else ()
            companions.append(_Picture(file, roles[0], (place_of(file.folder),), source, asked))
    beside = [picture.file for picture in companions if picture.role == "mask" and not picture.source]
    sifted = sift(images, certain, beside)
    texts.left_out += sifted.left_out
    texts.notes += sifted.notes
    companions += [_Picture(file, role, (file.folder,)) for file, role in sifted.parts if role not in given]
    return sifted.images, companions


def _named_by(texts: Texts) -> set[str]:
    """The images that tables name."""
    return {texts.name_in(table, row.file) for table, row in texts.rows()}


def _nothing(root: Path, companions: list[_Picture], others: list[File], left_out: list[LeftOut]) -> UsageError:
    if companions:
        first = companions[0]
        return UsageError(
            f"{root}: all pictures look like {first.role}s ({first.file.name}), and none like an image; name the "
            f"folder that has both, or rename what is no mask{_or_class(first.file)}"
        )
    if pictures := [left for left in left_out if left.name.rpartition(".")[2].lower() in IMAGES]:
        listed = f"{pictures[0].name}: {pictures[0].reason}"
        return UsageError(f"{root}: none of its {len(pictures)} pictures can be packed as an image; {listed}")
    if any(file.extension == "tar" for file in others):
        return UsageError(f"{root} has no images but shards; it is packed already: give it to cache --shards")
    return UsageError(f"{root} has no {', '.join(IMAGES)}; name the folder of the images")


def _add_claimed(
    claimed: Iterable[tuple[str, Role, str, str]],
    owners: Owners,
    pictures: Mapping[str, File],
    left_out: list[LeftOut],
) -> None:
    """Give each picture that a table names to its image."""
    for image, role, name, line in claimed:
        owner = owners.named(image)
        if name not in pictures:
            left_out.append(LeftOut(f"{line}: {name}", f"a {role} that is not there"))
            if owner is not None:
                owner.problem = f"its {role} is not there, {line}"
        elif owner is None:
            left_out.append(LeftOut(name, f"a {role} without an image: {NOT_THERE}"))
        else:
            found = owner.pictures.setdefault(role, [])
            if pictures[name] not in [file for file, _, _ in found]:
                found.append((pictures[name], len(found), BY_TABLE))  # a line for each of several masks


def _add_pictures(companions: list[_Picture], owners: Owners, left_out: list[LeftOut]) -> None:
    """Give each picture to its image.

    Raises:
        UsageError: nobody can know what a folder holds, or no picture of its folders has an image.
    """
    paired, alone = Counter[str](), defaultdict[str, list[_Picture]](list)
    for picture in companions:
        found, number = picture.owner(owners)
        if found and picture.asked:
            raise _question(picture)
        if len(found) == 1:
            found[0].pictures.setdefault(picture.role, []).append((picture.file, number, picture.source))
            paired[picture.role] += bool(picture.source)
        elif found:
            left_out.append(LeftOut(picture.file.name, why_not(found, picture.file)))
        else:
            left_out.append(
                LeftOut(picture.file.name, f"a {picture.role} without an image: {NO_IMAGE}{_or_class(picture.file)}")
            )
            if picture.source:
                alone[picture.role].append(picture)
    for role, pictures in alone.items():
        if not paired[role]:
            raise UsageError(
                f"{pictures[0].source} looks like {role}s, but none of its pictures has the name of an image "
                f"({pictures[0].file.name}); name them after their images, or move them out; if they are "
                f"photographs, rename their folder{_or_class(pictures[0].file)}"
            )


def _or_class(file: File) -> str:
    """What kohya's users do about a class that is called like masks."""
    return ", or give --layout kohya if it is a class of kohya's" if repeats_of(file.folder) else ""


def _question(picture: _Picture) -> UsageError:
    folder = picture.source.rstrip("/")
    ways = {
        "mask": f"masks: --masks_from {folder}",
        "target": f"targets: --targets_from {folder}",
        "control": "conditioning pictures: --layout folders",
    }
    return UsageError(
        f"{folder}/ may hold {' or '.join(f'{role}s' for role in picture.asked)} ({picture.file.name}); say which. "
        f"{'; '.join(ways[role] for role in picture.asked)}"
    )


def _check_sources(owners: Owners) -> None:
    """One picture for one place.

    Raises:
        UsageError: pictures of one role come from two sources, so that the folder has two readings.
    """
    for owner in owners.all:
        for role, found in owner.pictures.items():
            sources = {source: file for file, _, source in found}
            if len(sources) > 1:
                named = sorted(sources.items(), reverse=True)[:2]
                files = " and ".join(file.name for _, file in named)
                ways = " or ".join(_way(role, source) for source, _ in named)
                raise UsageError(f"{owner.file.name} has two {role}s, {files}; say which counts: {ways}")
            numbers = Counter(number if role == "mask" else None for _, number, _ in found)
            if max(numbers.values()) > 1:
                names = " and ".join(sorted(file.name.rpartition("/")[2] for file, _, _ in found)[:3])
                owner.problem = owner.problem or f"{names} would both be its {role}; rename or remove one"


def _way(role: Role, source: str) -> str:
    """The flag by which only the pictures of a source count."""
    if source == BY_TABLE:
        return "--layout imagefolder"
    if not source:
        return "--layout beside"
    return source if source.startswith("--") else f"--{role}s_from {source.rstrip('/')}"


def _recognised(layout: str, texts: Texts, owners: Owners) -> str:
    """The layout's name; of `auto`, that of the first one that the folder has marks of."""
    if layout != "auto":
        return layout
    found = [(picture[0].stem, picture[2]) for owner in owners.all for picture in owner.pictures.get("mask", [])]
    marks = {
        "coco": any(source in {file.name for file, _ in texts.coco} for source in _sources(owners)),
        "imagefolder": any(table.file.stem == "metadata" for table in texts.tables),
        "kohya": any(repeats_of(owner.file.folder) for owner in owners.all),
        "folders": any(source for _, source in found),
        "onetrainer": bool(found) and all(stem.lower().endswith("-masklabel") for stem, _ in found),
        "lama": bool(found) and all(LAYOUTS["lama"].has_mark(stem) and stem[-1].isdecimal() for stem, _ in found),
    }
    return next((name for name, is_so in marks.items() if is_so), "beside")


def _sources(owners: Owners) -> set[str]:
    """The files that captions and json are from; a table's with the line."""
    return {source for owner in owners.all for source, _ in owner.texts.values()}


def _numbers(owners: Owners) -> list[str]:
    """A note on images whose first mask is not one of their objects."""
    mixed = [
        owner.file.name
        for owner in owners.all
        if None in (numbers := [number for _, number, _ in owner.pictures.get("mask", [])]) and len(numbers) > 1
    ]
    if not mixed:
        return []
    return [
        f"{len(mixed)} images have a mask without a number and others with one ({', '.join(mixed[:3])}): "
        "--masks sample uses the first alone"
    ]


def _repeats(owners: Owners) -> list[str]:
    folders = sorted({owner.file.folder for owner in owners.all})
    repeated = [folder for folder in folders if (repeats_of(folder) or 1) > 1]
    if not repeated:
        return []
    return [f"repeats are not packed, each image is in the shards once: {', '.join(repeated[:3])}"]
