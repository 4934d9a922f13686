"""Pictures that may be masks though no layout has them as such: they are left out, asked for or named."""

import posixpath
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from inpaint_data.folders.files import IMAGES, LOSSLESS, File, LeftOut, Walk, first_of
from inpaint_data.folders.layouts import (
    LAYOUTS,
    MADE_OF_IMAGES,
    SAMPLES,
    THUMBNAILS,
    WRITTEN,
    is_in_folder_of,
    is_regularisation,
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

OF_ONE = 4  # pictures that a folder of one image's files has at most, beside masks
_OTHERWISE = "if it is an image, rename it or name it in a metadata.jsonl"
_WITH_REGULARISATION = ("auto", "kohya", "onetrainer")  # layouts that know such folders


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
        is_said |= is_regularisation(link) and not is_regularisation(real)
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


def reason_of_folder(folder: str, layout: str, has_classes: bool = False) -> str | None:
    """Why no picture of a folder is packed; None where it may be.

    Args:
        folder: its name.
        layout: how the whole is laid out.
        has_classes: whether there are folders of kohya's or OneTrainer's, beside which their training writes.
    """
    parts = folder.split("/")
    outside = "/".join(parts[max((depth for depth, part in enumerate(parts, 1) if repeats_of(part)), default=0) :])
    if is_in_folder_of(WRITTEN, outside) and (has_classes or is_in_folder_of(SAMPLES, "/".join(parts[1:]))):
        return "in a folder of what training writes; pack that folder by itself if they are images"
    if is_in_folder_of(THUMBNAILS, folder):
        return "in a folder of thumbnails; pack that folder by itself if they are images"
    if layout in _WITH_REGULARISATION and is_regularisation(folder):
        return "a regularisation image, which is not trained as the others are; pack its folder by itself"
    return None


def sift(
    images: Iterable[File],
    certain: Collection[str],
    masks: Iterable[File],
    captioned: Collection[tuple[str, str]],
    masked: Collection[str],
) -> Sifted:
    """Set apart what may be no image.

    Args:
        images: the pictures that no layout has as anything else.
        certain: names of images that a table has.
        masks: the pictures that are masks by their own names.
        captioned: (folder, stem) of the captions.
        masked: stems that masks are called after.
    """
    images = list(images)
    stems: dict[str, str] = {}  # lower case -> an image's name
    for file in images:
        if not is_in_folder_of(MADE_OF_IMAGES, file.folder):
            other = other_stem(file.stem)
            stems.update({stem.lower(): file.name for stem in (file.stem, other) if stem})
    names = {file.name.lower(): file.name for file in images}
    count = Counter(file.folder for file in images)
    of_one = {file.folder for file in images if other_stem(file.stem) == "" and count[file.folder] <= OF_ONE}
    of_one |= {file.folder for file in masks if owners_beside(file.stem, "mask")[:1] == [("", None)]}
    sifted, doubtful = Sifted(), list[str]()
    own = {file for file in images if (file.folder, file.stem) in captioned or file.stem.lower() in masked}
    often = _often_in(images, of_one)
    made = _of_most_images(images, own)
    for file in images:
        doubt = doubt_of(file.stem)
        role = role_in_folder_of_one(file.stem) if file.folder in of_one else None
        image = names.get(posixpath.join(file.folder, file.stem).lower())
        if file.name in certain:
            sifted.images.append(file)
        elif role in ("target", "control"):
            sifted.parts.append((file, role))
        elif role == "image" or (file.folder in of_one and file not in own and file.stem.lower() in often):
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
        elif doubt is not None and file not in own and any(rest.lower() in masked for rest in doubt.rests):
            reason = f"there is a mask of its name, so it may be made by the same tool; {_OTHERWISE}"
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


def _often_in(images: Collection[File], folders: Collection[str]) -> set[str]:
    """Names that pictures have in most of several folders of one image each, beside an `image`: `hole` or `final2`."""
    places = {(file.folder, file.stem.lower()) for file in images if file.folder in folders}
    stems = Counter(stem for _, stem in places)
    enough = max(2, len(folders) / 2)
    return {
        stem for stem, count in stems.items() if count >= enough and other_stem(stem.rstrip(" _-()0123456789")) != ""
    }


def _of_most_images(images: Iterable[File], own: Collection[File]) -> dict[str, str]:
    """Pictures whose names have the same word more than those of most images beside them: cat_msk.png, dog_msk.png.

    Those that have a caption or a mask of their own are images.

    Returns:
        Their names, each with the reason to leave it out.
    """
    files = {(file.folder, file.stem): file for file in images}
    words = defaultdict[str, dict[File, File]](dict)  # a word -> pictures with it -> their images
    for (folder, stem), file in files.items():
        for word, rest in _words_at_the_ends(stem):
            image = files.get((folder, rest))
            # Numbers are those of images too, but not of one that is lossless beside one that is not.
            if image is None or file in own or not (_has_letters(word) or _is_sharper(file, image)):
                continue
            words[word][file] = image
    reasons = dict[str, str]()
    for word, named in words.items():
        around = {file.folder for file in named}
        others = sum(folder in around for folder, _ in files) - len(named)
        if len(named) > 1 and len(named) * 2 >= others:
            for file, image in named.items():
                reasons[file.name] = (
                    f"{len(named)} pictures have the name of an image and {word!r}, as masks and targets have; say "
                    f"which: --masks_from '{_pattern(file, image)}', --targets_from '{_pattern(file, image)}'; or "
                    f"{_OTHERWISE}, or give it a caption"
                )
    return reasons


def _has_letters(word: str) -> bool:
    return any(map(str.isalpha, word))


def _is_sharper(file: File, image: File) -> bool:
    return file.extension in LOSSLESS and image.extension not in LOSSLESS


def _pattern(file: File, image: File) -> str:
    """How --masks_from names pictures beside their images: the star is an image's name."""
    own = file.name.rpartition("/")[2]
    return own.replace(image.stem, "*", 1)


def _with_more_words(images: Iterable[File], left_out: Collection[str]) -> list[str]:
    """A note on pictures that have the name of an image beside them and a word more, and are packed as images."""
    stems = {(file.folder, file.stem): file.name for file in images}
    pairs = [
        (file.name, stems[file.folder, rest])
        for file in images
        if file.name not in left_out
        for word, rest in _words_at_the_ends(file.stem)
        if (file.folder, rest) in stems and _has_letters(word)
    ]
    if not pairs:
        return []
    return [
        f"{len({name for name, _ in pairs})} have the name of another image and a word more ({pairs[0][0]}, "
        f"{pairs[0][1]}): packed as images"
    ]


def _words_at_the_ends(stem: str) -> Iterator[tuple[str, str]]:
    """The words that a name may have more than another: all behind a break or before one."""
    for match in BREAKS.finditer(stem):
        before, after = stem[: match.start()], stem[match.end() :]
        for word, rest in ((after, before), (before, after)):
            if word and rest:
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
