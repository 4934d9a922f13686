"""The images of a folder, each the owner of what belongs to it, and how one is found by a name."""

import posixpath
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from inpaint_data.folders.files import File, LeftOut
from inpaint_data.folders.layouts import place_of, without_repeats
from inpaint_data.folders.names import Role, other_stem

Member = Path | bytes  # a file, or what has no file of its own


@dataclass
class Owner:
    """An image and what is its own. `problem` says why there can be no sample of it."""

    file: File
    key: str
    pictures: dict[Role, list[tuple[File, int | None, str]]] = field(default_factory=dict)  # file, number, source
    texts: dict[str, tuple[str, Member]] = field(default_factory=dict)  # member -> where it is from, what it is
    problem: str | None = None
    has_caption: bool = False  # a file of its own, beside it

    def members(self) -> dict[str, Member]:
        """What is packed: member's name -> file or bytes."""
        members: dict[str, Member] = {self.file.extension: self.file.path}
        for role, found in self.pictures.items():
            for file, number, _ in found:
                # One mask is the mask, whatever its number: LaMa numbers each.
                middle = f".{number}" if number is not None and len(found) > 1 else ""
                members[f"{role}{middle}.{file.extension}"] = file.path
        return members | {name: member for name, (_, member) in self.texts.items()}

    def leave_out(self) -> list[LeftOut]:
        """The files of a sample that cannot be."""
        reason = self.problem or ""
        files = [self.file, *(file for found in self.pictures.values() for file, _, _ in found)]
        texts = [LeftOut(source, reason) for source, text in self.texts.values() if isinstance(text, Path)]
        return [*(LeftOut(file.name, reason) for file in files), *texts]


class Owners:
    """The images of a folder."""

    def __init__(self, images: Iterable[File], captioned: Collection[tuple[str, str]] = ()) -> None:
        self.all: list[Owner] = []
        self._by_name: dict[str, Owner] = {}
        self._beside: dict[tuple[str, str], list[Owner]] = defaultdict(list)
        self._places: dict[tuple[str, str], list[Owner]] = defaultdict(list)
        self._classes: dict[tuple[str, str], list[Owner]] = defaultdict(list)
        self._starts: dict[tuple[str, str], list[Owner]] = defaultdict(list)
        self._ends: dict[tuple[str, str], list[Owner]] = defaultdict(list)  # by every end of their places
        self._loose_beside: dict[tuple[str, str], list[Owner]] = defaultdict(list)
        self._loose_ends: dict[tuple[str, str], list[Owner]] = defaultdict(list)
        self._stems: dict[str, list[Owner]] = defaultdict(list)
        self._in: dict[str, list[Owner]] = defaultdict(list)
        by_key: dict[str, list[Owner]] = defaultdict(list)
        for file in images:
            stem = file.stem.replace(".", "_")  # readers split names at the first dot
            key = f"{file.folder}/{stem}" if file.folder else stem
            owner = Owner(file, key, has_caption=(file.folder, file.stem) in captioned)
            by_key[owner.key].append(owner)
            self.all.append(owner)
            self._by_name[file.name] = owner
            self._register(owner)
        for key, owners in by_key.items():
            if len(owners) > 1:
                names = " and ".join(owner.file.name.rpartition("/")[2] for owner in owners[:3])
                for owner in owners:
                    owner.problem = (
                        f"{names} would both be the image of {key!r}; remove one, or name a mask "
                        f"{owner.file.stem}_mask.png"
                    )

    def without_second_names(self) -> list[LeftOut]:
        """Take away the images that are files of other images too, by a link, and have nothing else of their own."""
        by_file = defaultdict[tuple[int, int] | str, list[Owner]](list)
        for owner in self.all:
            by_file[owner.file.identity or owner.file.name].append(owner)
        again = dict[str, Owner]()
        for owners in by_file.values():
            first, *others = sorted(owners, key=lambda owner: not (owner.pictures or owner.texts))
            again |= {owner.key: first for owner in others if not (owner.pictures or owner.texts or owner.problem)}
        left_out = [
            LeftOut(owner.file.name, f"the same file as {again[owner.key].file.name}", is_bad=False)
            for owner in self.all
            if owner.key in again
        ]
        self.all = [owner for owner in self.all if owner.key not in again]
        return left_out

    def _register(self, owner: Owner) -> None:
        file = owner.file
        self._stems[file.stem].append(owner)
        self._in[file.folder].append(owner)
        place, other = place_of(file.folder), other_stem(file.stem)
        # Behind a zero byte, which no name can have, for an exact name goes first.
        for name in [file.stem] if other is None else [file.stem, f"\0{other}"]:
            self._beside[file.folder, name].append(owner)
            self._places[place, name].append(owner)
            self._classes[place_of(file.folder, whole_classes=True), name].append(owner)
            for end in _ends(place):
                self._ends[end, name].append(owner)
            for start in _starts(place):
                self._starts[start, name].append(owner)
            # Found where the exact ones are not: names by another case, kohya's classes by other repeats.
            loose = without_repeats(place).lower()
            self._loose_beside[file.folder, name.lower()].append(owner)
            for end in [loose, *_ends(loose)]:
                self._loose_ends[end, name.lower()].append(owner)

    def named(self, name: str) -> Owner | None:
        """The image of that very name."""
        return self._by_name.get(name)

    def has_stem(self, folder: str, stem: str) -> bool:
        """Whether an image in a folder is called just so."""
        return (folder, stem) in self._beside

    def beside(self, folder: str, stem: str) -> list[Owner]:
        """The images in a folder that are called so."""
        return self._beside.get((folder, stem)) or self._beside.get((folder, f"\0{stem}")) or []

    def at(self, place: str, stem: str) -> list[Owner]:
        """The images that are called so, at a place or where one of both places is the end of the other."""
        for name in (stem, f"\0{stem}"):
            if found := self._places.get((place, name)):
                return found
            near = self._ends.get((place, name)) or []
            if near := near + [owner for end in _ends(place) for owner in self._places.get((end, name), ())]:
                return near
            if below := self._starts.get((place, name)):  # data/mask/1.png of data/img/10_x/1.png
                return below
        return []

    def only_one_in(self, folder: str) -> Owner | None:
        """The image of a folder that has no other."""
        found = self._in.get(folder, [])
        return found[0] if len(found) == 1 else None

    def in_class(self, folder: str, stem: str) -> list[Owner]:
        """The images that are called so in the place of a folder, of whose names of classes every word counts."""
        place = place_of(folder, whole_classes=True)
        return self._classes.get((place, stem)) or self._classes.get((place, f"\0{stem}")) or []

    def nearly_beside(self, folder: str, stem: str) -> list[Owner]:
        """The images in a folder that are called so in letters of either case."""
        return self._loose_beside.get((folder, stem.lower())) or []

    def nearly_at(self, place: str, stem: str) -> list[Owner]:
        """The images that are called so in letters of either case, at the end of a place, whatever its repeats."""
        return self._loose_ends.get((without_repeats(place).lower(), stem.lower())) or []

    def stemmed(self, folder: str, stem: str) -> list[Owner]:
        """The images that are called so in a folder or below it."""
        return [owner for owner in self._stems.get(stem, ()) if not folder or owner.key.startswith(f"{folder}/")]

    def ending_in(self, path: str) -> list[Owner]:
        """The images whose names end in a path."""
        stem = path.rpartition("/")[2].rpartition(".")[0]
        return [owner for owner in self._stems.get(stem, ()) if f"/{owner.file.name}".endswith(f"/{path}")]


def _ends(place: str) -> list[str]:
    """All that a place ends in but itself, to nothing at all: `a/b/c` in `b/c`, `c` and ``."""
    parts = place.split("/") if place else []
    return ["/".join(parts[start:]) for start in range(1, len(parts) + 1)]


def _starts(place: str) -> list[str]:
    """All that a place begins with but itself and nothing: `a/b/c` with `a/b` and `a`."""
    parts = place.split("/") if place else []
    return ["/".join(parts[:end]) for end in range(1, len(parts))]


def why_not(owners: list[Owner], file: File, role: Role | None = None) -> str:
    """Why a file belongs to none of several images, and what decides."""
    problems = {owner.problem for owner in owners}
    if len(problems) == 1 and (problem := problems.pop()):
        return problem
    first, second = owners[:2]
    names = f"it may belong to {first.file.name} or {second.file.name}"
    if first.file.folder == second.file.folder:
        return f"{names}; name it after one of them, in the same letters"
    own = f"{first.file.stem}_{role}" if role else first.file.stem
    return f"{names}; put it beside its image, such as {posixpath.join(first.file.folder, own)}.{file.extension}"
