"""Pictures that may be masks though no layout has them as such: they are left out, asked for or named."""

import posixpath
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from inpaint_data.folders.files import IMAGES, File, LeftOut, Walk, first_of
from inpaint_data.folders.layouts import (
    LAYOUTS,
    MADE_OF_IMAGES,
    REGULARISATION,
    THUMBNAILS,
    is_in_folder_of,
    place_of,
    read_name,
    repeats_of,
)
from inpaint_data.folders.names import (
    BREAKS,
    Doubt,
    Role,
    doubt_of,
    other_stem,
    owners_beside,
    owners_in_folder,
    role_in_folder_of_one,
    without_extension,
)

_OTHERWISE = "if it is an image, rename it or name it in a metadata.jsonl"
_ALONE = {  # layouts that know folders of images which do not belong to the others
    "auto": REGULARISATION,
    "kohya": REGULARISATION,
}


@dataclass
class Sifted:
    """Pictures by what speaks against their being images.

    Attributes:
        images: nothing does.
        parts: those that belong to the image of their folder, with what they are.
        left_out: those that may be masks, or are made of an image.
        notes: what somebody may want to know of the images.
    """

    images: list[File] = field(default_factory=list)
    parts: list[tuple[File, Role]] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def named_by_links(walked: Walk, layout: str) -> None:
    """Let a link's name decide where it says what a picture is, and that of what is behind it does not."""
    for link, real in walked.again:
        is_inside = not real or f"{link}/".startswith(f"{real}/")
        link_role, real_role = (_role(f"{folder}/x.png", layout) for folder in (link, real))
        is_said = link_role != "image" and real_role == "image"
        is_said |= reason_of_folder(real, layout) is not None and reason_of_folder(link, layout) is None
        is_said |= link_role == real_role == "image" and bool(repeats_of(link)) and not repeats_of(real)
        if not is_inside and is_said:
            walked.files = [_renamed(file, real, link) for file in walked.files]
            walked.left_out = [left for left in walked.left_out if left.name != f"{link}/"]
    walked.files.sort(key=lambda file: (file.name, str(file.path)))
    said = {
        file.identity: file for file in walked.files if file.extension in IMAGES and _role(file.name, layout) != "image"
    }
    again = {
        file
        for file in walked.files
        if (other := said.get(file.identity))
        and _role(file.name, layout) == "image"
        and not _is_own(other, file, layout)
    }
    walked.files = [file for file in walked.files if file not in again]
    walked.left_out += [
        LeftOut(file.name, f"the same file as {said[file.identity].name}, which says what it is", is_bad=False)
        for file in again
    ]


def _is_own(picture: File, image: File, layout: str) -> bool:
    """Whether an image is its own target or conditioning picture, by a link."""
    role = _role(picture.name, layout)
    return role != "mask" and image.stem in [stem for stem, _ in owners_in_folder(picture.stem, role)]


def _role(name: str, layout: str) -> Role:
    return read_name(File(name, Path()), LAYOUTS[layout]).role


def _renamed(file: File, folder: str, other: str) -> File:
    below = file.name.removeprefix(f"{folder}/")
    return file if below == file.name else replace(file, name=f"{other}/{below}")


def reason_of_folder(folder: str, layout: str) -> str | None:
    """Why no picture of a folder is packed; None where it may be."""
    if is_in_folder_of(THUMBNAILS, folder):
        return "in a folder of thumbnails; pack that folder by itself if they are images"
    if is_in_folder_of(_ALONE.get(layout, frozenset()), folder):
        return "a regularisation image, which is not trained as the others are; pack its folder by itself"
    return None


def sift(
    images: Iterable[File], certain: Collection[str], masks: Iterable[File], captioned: Collection[tuple[str, str]]
) -> Sifted:
    """Set apart what may be no image.

    Args:
        images: the pictures that no layout has as anything else.
        certain: names of images that a table has.
        masks: the pictures that are masks by their own names.
        captioned: (folder, stem) of the captions.
    """
    images = list(images)
    stems: dict[str, str] = {}  # lower case -> an image's name
    for file in images:
        if not is_in_folder_of(MADE_OF_IMAGES, file.folder):
            other = other_stem(file.stem)
            stems.update({stem.lower(): file.name for stem in (file.stem, other) if stem})
    names = {file.name.lower(): file.name for file in images}
    of_one = {file.folder for file in images if other_stem(file.stem) == ""}
    of_one |= {file.folder for file in masks if owners_beside(file.stem, "mask")[:1] == [("", None)]}
    sifted, doubtful = Sifted(), list[str]()
    made = _of_most_images(images, captioned)
    for file in images:
        doubt = doubt_of(file.stem)
        role = role_in_folder_of_one(file.stem) if file.folder in of_one else None
        image = names.get(posixpath.join(file.folder, file.stem).lower())
        if file.name in certain:
            sifted.images.append(file)
        elif role in ("target", "control"):
            sifted.parts.append((file, role))
        elif role == "image":
            reason = (
                "it is beside a mask, a target or an image of its own; name the image image.jpg, its mask mask.png and "
                "its target target.jpg"
            )
            sifted.left_out.append(LeftOut(file.name, reason))
        elif image is not None and without_extension(file.stem) != file.stem:
            sifted.left_out.append(LeftOut(file.name, _may_be_mask(image)))
        elif is_in_folder_of(MADE_OF_IMAGES, file.folder) and file.stem.lower() in stems:
            reason = f"in a folder of what is made of images, such as {stems[file.stem.lower()]}; {_OTHERWISE}"
            sifted.left_out.append(LeftOut(file.name, reason))
        elif doubt is not None and (why := _against(doubt, stems)):
            sifted.left_out.append(LeftOut(file.name, why))
        elif file.name in made:
            sifted.left_out.append(LeftOut(file.name, made[file.name]))
        else:
            sifted.images.append(file)
            doubtful += [file.name] if doubt is not None else []
    sifted.notes += _with_more_words(images, {left.name for left in sifted.left_out})
    if doubtful:
        sifted.notes.append(
            f"{len(doubtful)} have names as masks may have ({', '.join(doubtful[:3])}), but no image has the rest of "
            "their names: packed as images"
        )
    return sifted


def _of_most_images(images: Iterable[File], captioned: Collection[tuple[str, str]]) -> dict[str, str]:
    """Pictures whose names have the same word more than those of most images beside them: cat_msk.png, dog_msk.png.

    Returns:
        Their names, each with the reason to leave it out.
    """
    folders = defaultdict[str, dict[str, File]](dict)
    for file in images:
        folders[file.folder][file.stem] = file
    reasons = dict[str, str]()
    for folder, files in folders.items():
        words = defaultdict[str, dict[str, str]](dict)  # a word -> stems with it -> stems of their images
        for stem in files:
            for word, rest in _words_at_the_ends(stem):
                if rest in files and (folder, stem) not in captioned:
                    words[word][stem] = rest
        for word, named in words.items():
            if len(named) > 1 and len(named) * 2 >= len(files.keys() - named.keys()):
                for stem, rest in named.items():
                    reasons[files[stem].name] = (
                        f"{len(named)} pictures have the name of an image and {word!r}, as masks and targets have; "
                        f"name it {rest}_mask.png or {rest}_target.png; {_OTHERWISE}, or give it a caption"
                    )
    return reasons


def _with_more_words(images: Iterable[File], left_out: Collection[str]) -> list[str]:
    """A note on pictures that have the name of an image beside them and a word more, and are packed as images."""
    stems = {(file.folder, file.stem): file.name for file in images}
    pairs = [
        (file.name, stems[file.folder, rest])
        for file in images
        if file.name not in left_out
        for word, rest in _words_at_the_ends(file.stem)
        if (file.folder, rest) in stems
    ]
    if not pairs:
        return []
    return [
        f"{len({name for name, _ in pairs})} have the name of another image and a word more ({pairs[0][0]}, "
        f"{pairs[0][1]}): packed as images"
    ]


def _words_at_the_ends(stem: str) -> Iterator[tuple[str, str]]:
    """The words that a name may have more than another: all behind a break or before one; no numbers."""
    for match in BREAKS.finditer(stem):
        before, after = stem[: match.start()], stem[match.end() :]
        for word, rest in ((after, before), (before, after)):
            if any(map(str.isalpha, word)) and rest:
                yield word, rest


def _against(doubt: Doubt, stems: dict[str, str]) -> str | None:
    if found := next((stems[rest.lower()] for rest in doubt.rests if rest.lower() in stems), None):
        return _may_be_mask(found)
    return f"it may be a mask; a mask is named after its image, cat_mask.png; {_OTHERWISE}" if doubt.is_word else None


def _may_be_mask(image: str) -> str:
    stem = image.rpartition("/")[2].rpartition(".")[0]
    named = f"name it {stem}_mask.png or {stem}_target.png"
    return f"it may be a mask of {image}, or made of it; {named} if so; {_OTHERWISE}"


def masks_next_to(root: Path) -> list[str]:
    """A note where a folder without masks lies next to one that is named as theirs."""
    root = root.resolve()
    try:
        beside = sorted(path.name for path in root.parent.iterdir() if path.is_dir() and path != root)
    except OSError:
        return []
    masks = [
        name
        for name in beside
        if read_name(File(f"{name}/x.png", root), LAYOUTS["auto"]).role == "mask"
        and place_of(name) in ("", place_of(root.name))
        and first_of(root.parent / name, IMAGES)
    ]
    if read_name(File(f"{root.name}/x.png", root), LAYOUTS["auto"]).role == "mask":
        return [f"{root.name} is called as folders of masks are; if it is one, pack the folder above"]
    if not masks:
        return []
    folder = root.parent / masks[0]
    return [f"masks may lie in {folder}: pack {root.name} with --masks_from {folder}, or give the folder above"]
