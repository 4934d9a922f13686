"""Masks, targets and conditioning pictures come to their images: by their names, or as a table says."""

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path

from inpaint_data.errors import UsageError
from inpaint_data.folders.files import IMAGES, File, LeftOut, composed, walk
from inpaint_data.folders.layouts import MASK_WORDS, Layout, place_of, repeats_of, says_images
from inpaint_data.folders.names import (
    IMAGE_NAMES,
    JOINTS,
    MASK_NAME,
    NUMBERED_NAME,
    Role,
    owners_beside,
    owners_in_folder,
    shared_end,
    words_of,
)
from inpaint_data.folders.owners import Owner, Owners, why_not
from inpaint_data.folders.texts import NO_IMAGE, NOT_THERE

NUMBERED: tuple[Role, ...] = ("mask", "reference")  # of which an image may have several
BY_TABLE = "a table"  # the source of what a table names


@dataclass(frozen=True)
class Companion:
    """A picture that is no image but belongs to one.

    Attributes:
        places: where its image may be: places of folders, or the folder itself of one beside its image.
        source: the folder or the flag that says what it is; "" where its own name does.
        stem: its image's, beside which it lies, where a pattern says so.
        end: what its image's name does not have, where those of all its folder end in it.
        is_sure: whether its folder's name can hardly be that of other images.
    """

    file: File
    role: Role
    places: tuple[str, ...]
    source: str = ""
    asked: tuple[Role, ...] = ()
    stem: str | None = None
    end: str = ""
    is_sure: bool = True

    def _stems(self) -> list[tuple[str, int | None]]:
        """The names that its image may have, where a folder says what it is."""
        without: list[tuple[str, int | None]] = [(self.file.stem.removesuffix(self.end), None)] if self.end else []
        return [*owners_in_folder(self.file.stem, self.role), *without]

    def by_exact_name(self, owners: Owners) -> tuple[list[Owner], int | None]:
        """The images that it may belong to, and the number that it has among their masks."""
        if self.stem is not None:
            return owners.beside(self.file.folder, self.stem), None
        if not self.source:
            for stem, number in owners_beside(self.file.stem, self.role):
                if found := owners.beside(self.file.folder, stem):
                    return self._or_numbered(found, number, partial(owners.beside, self.file.folder), stem), number
            return [], None
        for stem, number in self._stems():
            if found := owners.in_class(self.file.folder, stem):
                return self._or_numbered(found, number, partial(owners.in_class, self.file.folder), stem), number
        for place in self.places:
            for stem, number in self._stems():
                if found := owners.at(place, stem):
                    return self._or_numbered(found, number, partial(owners.at, place), stem), number
            parent, _, last = place.rpartition("/")
            if self.role == "mask" and self.file.stem.isdecimal() and (found := owners.at(parent, last)):
                return found, int(self.file.stem)  # masks/cat/0.png
        return [], None

    def by_near_name(self, owners: Owners) -> tuple[list[Owner], int | None]:
        """The same by a name in another case, a class of other repeats, or the only image of a folder."""
        if self.stem is not None:
            return owners.nearly_beside(self.file.folder, self.stem), None
        if not self.source:
            stems = owners_beside(self.file.stem, self.role)
            for stem, number in stems:
                if found := owners.nearly_beside(self.file.folder, stem):
                    return found, number
            nameless = [number for stem, number in stems if not stem]
            alone = owners.only_one_in(self.file.folder) if nameless else None
            return ([alone], nameless[0]) if alone else ([], None)
        for place in self.places:
            for stem, number in self._stems():
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


def given_by(flag: str, role: Role, name: str, root: Path, files: Iterable[File]) -> dict[str, Companion]:
    """The pictures of the folder that a flag names, by name."""
    if "*" in name:
        return _given_beside(flag, role, name, files)
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
    end = shared_end(file.stem for file in within if file.extension in IMAGES)
    for file, below in within.items():
        places = (place_of(posixpath.join(outside, below).strip("/")), place_of(below))
        pictures[file.name] = Companion(file, role, places, f"--{flag} {name}", end=end)
    if not any(file.extension in IMAGES for file in within):
        raise UsageError(f"{flag}: {folder} has no {', '.join(IMAGES[:4])}; name the folder of the {role}s")
    return {name: picture for name, picture in pictures.items() if picture.file.extension in IMAGES}


def _given_beside(flag: str, role: Role, pattern: str, files: Iterable[File]) -> dict[str, Companion]:
    """The pictures whose names a pattern has, by name: its star is the name of the image beside them."""
    if pattern.count("*") != 1 or "/" in pattern:
        raise UsageError(f"{flag}: {pattern!r} is not a folder, nor a name with one star for the image's: '*_hole.png'")
    before, _, after = pattern.partition("*")
    name = re.compile(f"{re.escape(before)}(.+){re.escape(after)}", re.IGNORECASE | re.DOTALL)
    pictures = {}
    for file in files:
        match = name.fullmatch(file.name.rpartition("/")[2])
        if match and file.extension in IMAGES:
            pictures[file.name] = Companion(file, role, (file.folder,), f"--{flag} {pattern}", stem=match[1])
    if not pictures:
        raise UsageError(f"{flag}: no picture is called {pattern}; correct the pattern")
    return pictures


def add_claimed(
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


def add_companions(companions: list[Companion], owners: Owners, layout: Layout, left_out: list[LeftOut]) -> None:
    """Give each picture to its image.

    Raises:
        UsageError: nobody can know what a folder holds, or no picture of its folders has an image.
    """
    paired, alone = Counter[str](), defaultdict[str, list[Companion]](list)
    exact = [(picture, *picture.by_exact_name(owners)) for picture in companions]
    exact = [(picture, [*found, *_rivals(picture, found, number, owners)], number) for picture, found, number in exact]
    exact, stale = _without_stale(exact)
    left_out += stale
    taken = {(owner.key, role) for owner in owners.all for role in owner.pictures}
    taken |= {(owner.key, picture.role) for picture, found, _ in exact for owner in found}
    for picture, found, number in exact:
        if not found:
            near, number = picture.by_near_name(owners)
            found = [owner for owner in near if (owner.key, picture.role) not in taken]
            if near and not found:
                reason = f"{near[0].file.name} is nearest to its name, and has a {picture.role} of its own name"
                left_out.append(LeftOut(picture.file.name, reason))
                continue
        if found and (picture.asked or (not picture.is_sure and _is_elsewhere(picture, found[0], layout))):
            raise _question(picture)
        if len(found) == 1:
            found[0].pictures.setdefault(picture.role, []).append((picture.file, number, picture.source))
            paired[picture.role] += bool(picture.source)
        elif found:
            left_out.append(LeftOut(picture.file.name, why_not(found, picture.file, picture.role)))
        else:
            left_out.append(
                LeftOut(picture.file.name, f"a {picture.role} without an image: {NO_IMAGE}{or_class(picture.file)}")
            )
            if picture.source:
                alone[picture.role].append(picture)
    for role, pictures in alone.items():
        if not paired[role]:
            source = pictures[0].source
            known = role == "control" or source.startswith("--")
            way = f", or give --{role}s_from {source.rstrip('/')} if they are of images elsewhere"
            elsewhere = "" if known else way
            raise UsageError(
                f"{source} looks like {role}s, but none of its pictures has the name and the place of an image "
                f"({pictures[0].file.name}); name them after their images{elsewhere}, or move them out; if they are "
                f"photographs, rename their folder{or_class(pictures[0].file)}"
            )


def _is_numbered(picture: Companion, number: int | None) -> bool:
    """Whether a mask is that of an image by a number behind its name, and by no word for masks."""
    own = picture.file.stem
    return number is not None and bool(picture.source) and not (MASK_NAME.fullmatch(own) or own.isdecimal())


def _rivals(picture: Companion, found: list[Owner], number: int | None, owners: Owners) -> list[Owner]:
    """Images that a picture may belong to just as well as to the one that was found.

    Of `photo_1.png`, the first mask of `photo`, an image that is called `photo_1` itself; of a folder of masks beside
    both, the captioned image of kohya's class and not the original it was copied from.
    """
    if len(found) != 1 or not picture.source:
        return []
    if _is_numbered(picture, number):
        return owners.stemmed("", picture.file.stem)
    (first,) = found
    near = _shared_depth(picture.source, first.file.folder)
    return [
        other
        for other in owners.stemmed("", first.file.stem)
        if other is not first
        and _is_trained(other) > _is_trained(first)
        and _shared_depth(picture.source, other.file.folder) >= near
    ]


def _is_trained(owner: Owner) -> tuple[bool, bool]:
    """What speaks for its being what is trained on: kohya's class, and a caption."""
    return repeats_of(owner.file.folder) is not None, owner.has_caption


def _shared_depth(folder: str, other: str) -> int:
    """How many folders two have in common from the top."""
    pairs = zip(folder.split("/"), other.split("/"), strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


_Found = tuple[Companion, list[Owner], int | None]  # a picture, the images that it may belong to, its number


def _without_stale(exact: list[_Found]) -> tuple[list[_Found], list[LeftOut]]:
    """Leave out masks with a number whose image is gone: `photo_1.png` where `photo_2.png` is the mask of `photo_2`.

    Masks of one image are numbered from 0 or 1 on.
    """
    families = {  # of masks that have an image of their whole name
        (picture.file.folder, match["stem"])
        for picture, found, number in exact
        if found and number is None and (match := NUMBERED_NAME.fullmatch(picture.file.stem))
    }
    numbers = defaultdict[str, set[int]](set)
    for picture, found, number in exact:
        if len(found) == 1 and number is not None and _is_numbered(picture, number):
            numbers[found[0].key].add(number)
    kept, left_out = list[_Found](), list[LeftOut]()
    for picture, found, number in exact:
        match = NUMBERED_NAME.fullmatch(picture.file.stem)
        if len(found) == 1 and match and _is_numbered(picture, number):
            if (picture.file.folder, match["stem"]) in families:
                why = "others beside it are masks of images of their whole names"
            elif min(numbers[found[0].key]) > 1:
                why = "masks of one image are numbered from 0 or 1 on"
            else:
                kept.append((picture, found, number))
                continue
            reason = f"no image of its name, and it is no numbered mask of {found[0].file.name}: {why}"
            left_out.append(LeftOut(picture.file.name, reason))
        else:
            kept.append((picture, found, number))
    return kept, left_out


def or_class(file: File) -> str:
    """What kohya's users do about a class that is called like masks."""
    own = file.folder.rpartition("/")[2]
    is_called_so = repeats_of(own) and MASK_WORDS.intersection(word.lower() for word in words_of(own))
    return ", or give --layout kohya if it is a class of kohya's" if is_called_so else ""


def _is_elsewhere(picture: Companion, owner: Owner, layout: Layout) -> bool:
    """Whether an image lies in a folder of another name, which does not say that it is of images."""
    folder = owner.file.folder
    if repeats_of(picture.source.rstrip("/")) and repeats_of(folder):  # 10_matte painting beside 10_painting
        return True
    return folder != "" and not picture.source.startswith(f"{folder}/") and says_images(folder, layout) == 0


def _question(picture: Companion) -> UsageError:
    folder = picture.source.rstrip("/")
    ways = {
        "mask": f"masks: --masks_from {folder}",
        "target": f"targets: --targets_from {folder}",
        "control": "conditioning pictures: --layout folders",
        "image": "a class of kohya's: --layout kohya" if repeats_of(folder) else "images: rename the folder",
    }
    asked = picture.asked or (picture.role, "image")
    return UsageError(
        f"{folder}/ may hold {' or '.join(f'{role}s' for role in asked)} ({picture.file.name}); say which. "
        f"{'; '.join(ways[role] for role in asked)}"
    )


def check_sources(owners: Owners) -> None:
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
            numbers = Counter(number if role in NUMBERED else None for _, number, _ in found)
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
