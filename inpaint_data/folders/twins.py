"""Folders whose pictures are called as the images of another folder are: masks of them, or other images."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator

from inpaint_data.errors import UsageError
from inpaint_data.folders.files import LOSSLESS
from inpaint_data.folders.layouts import LAYOUTS, repeats_of, says_images, without_repeats
from inpaint_data.folders.names import shared_end, words_of
from inpaint_data.folders.owners import Owner, Owners


def check_twins(owners: Owners, certain: Collection[str], layout: str, is_told: bool) -> list[str]:
    """Folders whose pictures are called as other images are, and which may hold their masks.

    Args:
        owners: the images with all that is theirs.
        certain: names of images that a table has.
        layout: how the folder is laid out.
        is_told: whether a flag or a table says which pictures are masks.

    Returns:
        What somebody should know of those that are packed.

    Raises:
        UsageError: nobody can know what such a folder holds.
    """
    by_folder = defaultdict[str, list[Owner]](list)
    for owner in owners.all:
        by_folder[owner.file.folder].append(owner)
    all_twins = _Twins(owners.all, layout)
    # Where an image has its mask beside it, other folders have none.
    twins = _Twins([owner for owner in owners.all if not _has_mask_beside(owner)], layout)
    alike = list[str]()
    for folder, inside in by_folder.items():
        unsaid = [
            owner
            for owner in inside
            if not (owner.pictures or owner.problem or owner.file.name in certain)
            # Tools caption masks too, which are lossless.
            and (not owner.texts or _losses(owner) == "lossless")
        ]
        end = shared_end(owner.file.stem.lower() for owner in inside)
        asked = [(owner, other) for owner in unsaid if (other := twins.image_of(owner, end))]
        if len(asked) * 2 > len(inside) and not is_told and LAYOUTS[layout].has_folders:
            raise _question(*asked[0], owners)
        if sum(all_twins.has_one(owner, end) for owner in unsaid) * 2 > len(inside):
            alike.append(folder)
    if not alike:
        return []
    listed = ", ".join(f"{folder}/" for folder in alike[:3])
    return [f"pictures named as those of other folders are packed as images: {listed}; masks: --masks_from DIR"]


def _has_mask_beside(owner: Owner) -> bool:
    return any(not source for _, _, source in owner.pictures.get("mask", []))


# The last words of names of classes that may hold what belongs to the class without them: `10_woman_labels`.
_DERIVED = frozenset([
    "label", "labels", "annotation", "annotations", "seg", "segs", "alpha", "alphas", "masked", "maske", "masken",
    "inpaint", "bw", "hole", "holes", "msk", "msks", "target", "targets", "control", "cutout", "cutouts", "canny",
    "depth", "lineart", "openpose", "pose", "normal", "nobg", "rembg", "before", "sam",
])  # fmt: skip


class _Twins:
    """Images, by what another picture of the same stem may be called after."""

    def __init__(self, images: Iterable[Owner], layout: str) -> None:
        self._layout = LAYOUTS[layout]
        self._surest: dict[str, tuple[int, Owner]] = {}
        self._classes: dict[tuple[str, tuple[str, ...], str], Owner] = {}  # by what is around, words and stem
        self._at: dict[tuple[str, str], Owner] = {}
        self._siblings: dict[tuple[str, ...], list[Owner]] = defaultdict(list)
        for owner in images:
            stem, sure = owner.file.stem.lower(), says_images(owner.file.folder, self._layout)
            self._at[owner.file.folder, stem] = owner
            if stem not in self._surest or self._surest[stem][0] < sure:
                self._surest[stem] = (sure, owner)
            if repeats_of(owner.file.folder):
                place, words = _class_of(owner)
                self._classes[place, words, stem] = owner
            for key, part in _patterns(owner, stem):
                slot = (*key, "class" if repeats_of(part) else "", _losses(owner))
                found = self._siblings[slot]
                if len(found) < 2:  # of which one is not the picture itself
                    found.append(owner)

    def image_of(self, owner: Owner, end: str = "") -> Owner | None:
        """The image that a picture may be the mask of, with or without an end of its name; None for another image."""
        found = (self._image_called(stem, owner) for stem in _stems(owner, end))
        return next((image for image in found if image is not None), None)

    def _image_called(self, stem: str, owner: Owner) -> Owner | None:
        parts = owner.file.folder.split("/")
        if repeats_of(owner.file.folder) and self._layout is not LAYOUTS["kohya"]:
            place, words = _class_of(owner)
            if words[-1] in _DERIVED and (found_class := self._classes.get((place, words[:-1], stem))):
                return found_class
        own = says_images(owner.file.folder, self._layout)
        if own == 2:
            return None
        sure, surest = self._surest.get(stem, (0, owner))
        if sure > own:
            return surest
        around = ["/".join(parts[:depth]) for depth in range(len(parts))] if owner.file.folder else []
        if found := [self._at[folder, stem] for folder in around if (folder, stem) in self._at]:
            return found[-1]
        if _losses(owner) == "lossy":
            return None
        mirrored = self._mirrored(owner, stem)
        return mirrored if mirrored and _losses(mirrored) == "lossy" else self._sibling(owner, stem, ("lossy",))

    def _mirrored(self, owner: Owner, stem: str) -> Owner | None:
        """The image of the same place without one of the folders around: `man/1.jpg` of `SAM/man/1.png`."""
        parts = owner.file.folder.split("/") if owner.file.folder else []
        without = ("/".join(parts[:depth] + parts[depth + 1 :]) for depth in range(len(parts)))
        return next((self._at[folder, stem] for folder in without if (folder, stem) in self._at), None)

    def has_one(self, owner: Owner, end: str) -> bool:
        """Whether another image may be called as a picture is, with or without an end of its name."""
        if self.image_of(owner, end) is not None:
            return True
        if says_images(owner.file.folder, self._layout) == 2:
            return False
        return any(
            self._mirrored(owner, stem) or self._sibling(owner, stem, ("lossy", "lossless"))
            for stem in _stems(owner, end)
        )

    def _sibling(self, owner: Owner, stem: str, losses: Collection[str]) -> Owner | None:
        """An image of that name in a folder that differs in one name, and not in kohya's class."""
        for key, part in _patterns(owner, stem):
            for kind in [""] if repeats_of(part) else ["", "class"]:
                for loss in losses:
                    for other in self._siblings.get((*key, kind, loss), ()):
                        if other.file.folder != owner.file.folder:
                            return other
        return None


def _class_of(owner: Owner) -> tuple[str, tuple[str, ...]]:
    """What is around a class of kohya's, and the words of its name without repeats."""
    place, _, name = owner.file.folder.rpartition("/")
    return place, tuple(word.lower() for word in words_of(without_repeats(name)))


def _stems(owner: Owner, end: str) -> list[str]:
    stem = owner.file.stem.lower()
    return [stem, stem.removesuffix(end)] if end else [stem]


def _patterns(owner: Owner, stem: str) -> Iterator[tuple[tuple[str, str, str], str]]:
    """Each way to leave one name out of a picture's folder: what is around, within and a stem; and that name."""
    parts = owner.file.folder.split("/")
    for depth, part in enumerate(parts):
        yield ("/".join(parts[:depth]), "/".join(parts[depth + 1 :]), stem), part


def _losses(owner: Owner) -> str:
    return "lossless" if owner.file.extension in LOSSLESS else "lossy"


def _question(owner: Owner, other: Owner, owners: Owners) -> UsageError:
    parts, others_parts = owner.file.folder.split("/"), other.file.folder.split("/")
    alike = next((depth for depth, part in enumerate(parts) if others_parts[depth : depth + 1] != [part]), 0)
    folder = "/".join(parts[: alike + 1])
    masks = {source for each in owners.all for _, _, source in each.pictures.get("mask", []) if source.endswith("/")}
    images = f"--masks_from {min(masks).rstrip('/')}" if masks else "--layout beside"
    return UsageError(
        f"{folder}/ may hold images, masks or targets: its pictures are called as images are ({owner.file.name}, "
        f"{other.file.name}); say which. masks: --masks_from {folder}; targets: --targets_from {folder}; "
        f"conditioning pictures: rename it to control; images: {images}; none of these: move it out"
    )
