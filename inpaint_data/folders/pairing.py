"""Which files of a folder are one sample."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from inpaint_data.errors import UsageError
from inpaint_data.folders.companions import (
    Companion,
    add_claimed,
    add_companions,
    check_sources,
    given_by,
    or_class,
)
from inpaint_data.folders.doubts import masks_next_to, named_by_links, reason_of_folder, sift
from inpaint_data.folders.files import IMAGES, LOSSLESS, MODELS, File, LeftOut, walk
from inpaint_data.folders.layouts import (
    LAYOUTS,
    Reading,
    is_plain_name,
    masked_masks,
    neutral_folders,
    place_of,
    read_name,
    repeats_of,
)
from inpaint_data.folders.names import ONETRAINER_NAME, SAMPLE_NAME, Role, owners_beside, owners_in_folder
from inpaint_data.folders.owners import Member, Owners
from inpaint_data.folders.texts import Claim, Texts, add_texts, claims, sort_texts, unknown_in
from inpaint_data.folders.twins import check_twins
from inpaint_data.shown import meant


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
        masks_from: the folder of the masks, in `folder` or elsewhere, or a pattern of their names beside their images,
            such as '*_hole.png'; then no other picture is a mask.
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
    given: dict[Role, dict[str, Companion]] = {}
    if masks_from is not None:
        given["mask"] = given_by("masks_from", "mask", masks_from, root, walked.files)
    if targets_from is not None:
        given["target"] = given_by("targets_from", "target", targets_from, root, walked.files)
    belongs = {name for pictures in given.values() for name in pictures}
    files = [file for file in walked.files if file.name not in belongs]
    models = {(file.folder, file.stem): file.name for file in files if file.extension in MODELS}
    previews = {file for file in files if file.extension in IMAGES and (file.folder, file.stem) in models}
    pictures = [file for file in files if file.extension in IMAGES and file not in previews]
    others = [file for file in files if file.extension not in IMAGES]
    texts = sort_texts(root, others, pictures, captions_from)
    texts.left_out += [
        LeftOut(file.name, f"the preview of {models[file.folder, file.stem]}", is_bad=False) for file in previews
    ]
    certain = _named_by(texts)
    claimed = [claim for claim in claims(texts) if claim[1] not in given]
    unknown = unknown_in(texts)
    texts.left_out += [LeftOut(file.name, unknown[file.name]) for file in pictures if file.name in unknown]
    with_claimed = _left_by_tables(pictures, claimed, certain, texts)
    spoken_for = {*unknown, *with_claimed, *(picture for _, _, picture, _ in claimed)}
    unsaid = [file for file in pictures if file.name not in spoken_for]
    images, companions = _by_role(unsaid, layout, given, certain, texts)
    owners = Owners(images, {(file.folder, file.stem) for file in texts.captions})
    if not owners.all:
        raise _nothing(root, companions, others, texts.left_out)
    add_claimed(claimed, owners, {file.name: file for file in pictures}, texts.left_out)
    for by_name in given.values():
        companions += by_name.values()
    add_companions(companions, owners, LAYOUTS[layout], texts.left_out)
    check_sources(owners)
    add_texts(texts, owners)
    texts.left_out += owners.without_second_names()
    texts.notes += check_twins(owners, certain, layout, "mask" in given or bool(claimed))
    if not any("mask" in owner.pictures for owner in owners.all):
        texts.notes += masks_next_to(root)
    left_out = [*walked.left_out, *texts.left_out]
    left_out += [left for owner in owners.all if owner.problem for left in owner.leave_out()]
    return Pairing(
        _recognised(layout, texts, owners),
        {owner.key: owner.members() for owner in sorted(owners.all, key=lambda owner: owner.key) if not owner.problem},
        sorted(left_out, key=lambda left: (left.name, left.reason)),
        walked.passed_over,
        [*_notes_of_classes(owners), *_numbers(owners), *texts.notes],
    )


def _by_role(
    pictures: Sequence[File], layout: str, given: Collection[Role], certain: Set[str], texts: Texts
) -> tuple[list[File], list[Companion]]:
    """The images, and the pictures that belong to one by their names; what is neither is left out."""
    images, companions = [], list[Companion]()
    captioned = {(file.folder, file.stem) for file in texts.captions}
    with_captions = _folders_with_captions(pictures, captioned)
    masked_too = masked_masks(pictures, LAYOUTS[layout])
    neutral = neutral_folders(pictures, LAYOUTS[layout], with_captions, masked_too)
    readings = [(file, read_name(file, LAYOUTS[layout], neutral)) for file in pictures]
    has_classes = any(repeats_of(file.folder) or ONETRAINER_NAME.fullmatch(file.stem) for file in pictures)
    labels = {(file.folder, match["stem"]) for file in pictures if (match := ONETRAINER_NAME.fullmatch(file.stem))}
    # carla_mask.jpg, a photograph, with a caption and carla_mask-masklabel.png.
    whole = {
        file.name
        for file in pictures
        if (file.folder, file.stem) in labels & captioned and file.extension not in LOSSLESS
    }
    by_table = certain if layout == "imagefolder" else _said_to_be_images(texts, readings)
    for file, reading in readings:
        has_outside = has_classes and file.folder not in neutral
        if file.name not in certain and (why := reason_of_folder(file.folder, layout, has_outside)):
            texts.left_out.append(LeftOut(file.name, why, is_bad=False))
        elif file.name not in certain and SAMPLE_NAME.fullmatch(file.stem):
            reason = "named as a sample that training writes; name it in a metadata.jsonl if it is an image"
            texts.left_out.append(LeftOut(file.name, reason, is_bad=False))
        elif reading.role == "image" or file.name in by_table or (file.name in whole and not reading.source):
            images.append(file)
        elif not reading.is_read:
            reason = f"it looks like a {reading.role}, which layout {layout} has not there; --layout auto takes it"
            texts.left_out.append(LeftOut(file.name, reason))
        elif not (roles := [role for role in reading.asked or (reading.role,) if role not in given]):
            reason = f"it looks like a {reading.role} but lies outside --{reading.role}s_from{or_class(file)}"
            texts.left_out.append(LeftOut(file.name, reason))
        else:
            source = f"{reading.source}/" if reading.source else ""
            is_class = reading.source in with_captions and repeats_of(reading.source)
            if layout == "auto" and (is_class or file.folder in masked_too):
                roles.append("image")  # masks that a tool captioned, or a class that is called like masks
            asked = tuple(roles) if len(roles) > 1 else ()
            is_sure = not source or (
                reading.source not in with_captions and is_plain_name(reading.source, roles[0], file.extension)
            )
            companions.append(Companion(file, roles[0], (place_of(file.folder),), source, asked, is_sure=is_sure))
    beside = [picture.file for picture in companions if picture.role == "mask" and not picture.source]
    masked = {
        stem.lower()
        for picture in companions
        if picture.role == "mask"
        for stem, _ in (owners_in_folder if picture.source else owners_beside)(picture.file.stem, "mask")
        if stem
    }
    sifted = sift(images, certain | whole, beside, captioned, masked)
    texts.left_out += sifted.left_out
    texts.notes += sifted.notes
    companions += [Companion(file, role, (file.folder,)) for file, role in sifted.parts if role not in given]
    return sifted.images, companions


def _left_by_tables(
    pictures: Sequence[File], claimed: Sequence[Claim], certain: Collection[str], texts: Texts
) -> set[str]:
    """Pictures that tables do not name, in folders of which they name others as masks or the like alone."""
    roles = dict[str, str]()
    for _, role, picture, _ in claimed:
        roles[picture.rpartition("/")[0]] = role
    for name in certain:
        roles.pop(name.rpartition("/")[0], None)
    named = {picture for _, _, picture, _ in claimed}
    left = {file.name: roles[file.folder] for file in pictures if file.folder in roles and file.name not in named}
    texts.left_out += [
        LeftOut(name, f"no table names it, and the others in its folder are {role}s there; name it too, or move it out")
        for name, role in left.items()
    ]
    return set(left)


def _folders_with_captions(pictures: Iterable[File], captioned: Collection[tuple[str, str]]) -> set[str]:
    """The folders most of whose pictures have captions beside them."""
    counts, with_one = Counter[str](), Counter[str]()
    for file in pictures:
        counts[file.folder] += 1
        with_one[file.folder] += (file.folder, file.stem) in captioned
    return {folder for folder, count in counts.items() if with_one[folder] * 2 > count}


def _named_by(texts: Texts) -> set[str]:
    """The images that tables name."""
    return {texts.name_in(table, row.file) for table, row in texts.rows()}


def _said_to_be_images(texts: Texts, readings: Collection[tuple[File, Reading]]) -> set[str]:
    """The images of people's tables: a gas_mask.jpg is one that a table names, and that is no mask of a gas.jpg.

    A table that names masks of images too, as tools write it of all that lies there, says nothing.
    """
    stems = {"", *(file.stem.lower() for file, reading in readings if reading.role == "image")}
    belonging = {
        file.name
        for file, reading in readings
        if reading.role != "image"
        and any(stem.lower() in stems for stem, _ in owners_in_folder(file.stem, reading.role))
    }
    names = [{texts.name_in(table, row.file) for row in table.rows} for table in texts.tables if not table.is_by_stem]
    return set[str]().union(*(each for each in names if not each & belonging))


def _nothing(root: Path, companions: list[Companion], others: list[File], left_out: list[LeftOut]) -> UsageError:
    if companions:
        first = companions[0]
        return UsageError(
            f"{root}: all pictures look like {first.role}s ({first.file.name}), and none like an image; name the "
            f"folder that has both, or rename what is no mask{or_class(first.file)}"
        )
    if pictures := [left for left in left_out if left.name.rpartition(".")[2].lower() in IMAGES]:
        listed = f"{pictures[0].name}: {pictures[0].reason}"
        return UsageError(f"{root}: none of its {len(pictures)} pictures can be packed as an image; {listed}")
    if any(file.extension == "arrow" for file in others):
        return UsageError(
            f"{root} is a Hugging Face data set that was saved to disk; give datasets.load_from_disk({str(root)!r}) to "
            "InpaintDataModule"
        )
    if packed := [file.name for file in others if file.extension in ("zip", "gz", "tgz", "7z", "rar")]:
        return UsageError(f"{root} has no pictures but {packed[0]}; unpack it")
    if any(file.extension == "tar" for file in others):
        return UsageError(f"{root} has no images but shards; it is packed already: give it to cache --shards")
    return UsageError(f"{root} has no {', '.join(IMAGES)}; name the folder of the images")


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
        if not owner.problem
        and None in (numbers := [number for _, number, _ in owner.pictures.get("mask", [])])
        and len(numbers) > 1
    ]
    if not mixed:
        return []
    return [
        f"{len(mixed)} images have a mask without a number and others with one ({', '.join(mixed[:3])}): "
        "--masks sample uses the first alone"
    ]


def _notes_of_classes(owners: Owners) -> list[str]:
    """Notes on what kohya's training does with classes, and packing does not."""
    count = Counter(owner.file.folder for owner in owners.all)
    repeated = [folder for folder in sorted(count) if (repeats_of(folder) or 1) > 1]
    if not any(map(repeats_of, count)):
        return []
    notes = []
    classes = defaultdict[tuple[str, str], list[File]](list)
    for owner in owners.all:
        if repeats_of(owner.file.folder) and not owner.problem:
            classes[owner.file.folder.rpartition("/")[2], owner.file.stem].append(owner.file)
    if again := [
        [file.name for file in found] for found in classes.values() if len({file.folder for file in found}) > 1
    ]:
        notes.append(
            f"{len(again)} are in two folders of the same class ({', '.join(sorted(again[0])[:2])}): both are packed"
        )
    if repeated:
        notes.append(f"repeats are not packed, each image is in the shards once: {', '.join(repeated[:3])}")
    if outside := [folder for folder in sorted(count) if not repeats_of(folder)]:
        listed = ", ".join(f"{folder}/" if folder else "the folder itself" for folder in outside[:3])
        notes.append(
            f"{sum(count[folder] for folder in outside)} lie in no folder with repeats, which kohya would not read "
            f"({listed}): packed as images"
        )
    return notes
