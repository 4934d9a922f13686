"""How tools lay folders out: what the name of a file, or of its folder, says that a picture is.

Looked up in the tools themselves:
- LaMa (advimman/lama 786f593): `x_mask000.png` beside `x.png`, README.md and saicinpainting/evaluation/data.py; its own
  generator writes `x_crop000.png` with `x_crop000_mask000.png`, bin/gen_mask_dataset.py.
- OneTrainer (Nerogar/OneTrainer 23df383): `x-masklabel.png`, `x-condlabel.png` and `x.txt` beside `x.jpg`,
  modules/dataLoader/mixin/DataLoaderText2ImageMixin.py.
- kohya (kohya-ss/sd-scripts 48d368f): folders `10_name class`, library/config_util.py; captions `x.caption` or `x.txt`;
  masks of the images' names in another folder, `conditioning_data_dir`, docs/masked_loss_README.md, as ControlNet's
  pictures are.
- SimpleTuner (bghira/SimpleTuner bc8e6ab): `x.txt` beside `x.png`, and a data set of conditioning pictures, masks or
  ControlNet's, with the images' paths, documentation/DATALOADER.md and helpers/multiaspect/sampler.py.
- Hugging Face (huggingface/datasets b7cb10b): `metadata.jsonl` or `.csv` with `file_name` and `*_file_name`,
  packaged_modules/folder_based_builder/folder_based_builder.py.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

from inpaint_data.folders.files import IMAGES, File

Role = Literal["image", "mask", "target", "control"]
_BREAK = r"[ _.\-]"
BREAKS = re.compile(_BREAK)
JOINTS = ("", " ", "_", "-")  # between a name and a number
IMAGE_NAMES = (
    "image",
    "img",
    "photo",
    "input",
    "source",
    "before",
)  # of images that have no name but that of their kind
_WORDS = r"(?:masks?|masklabel|segmentation)"
MASK_NAME = re.compile(
    rf"(?P<stem>.*)(?:{_BREAK}\(?{_WORDS}\)?|(?-i:(?<=[a-z0-9])Masks?))(?:{_BREAK}?(?P<number>[0-9]+))?"
    rf"|masks?(?:{_BREAK}(?P<rest>.+)|(?P<only>[0-9]*))",
    re.IGNORECASE | re.DOTALL,
)
_LAMA = re.compile(r"(?P<stem>.+)_mask(?P<number>[0-9]*)", re.IGNORECASE | re.DOTALL)
_ONETRAINER = re.compile(r"(?P<stem>.+)-masklabel", re.IGNORECASE | re.DOTALL)
_OTHER_NAMES: Mapping[Role, re.Pattern[str]] = MappingProxyType(
    {
        "target": re.compile(rf"(?:(?P<stem>.+){_BREAK})?target", re.IGNORECASE | re.DOTALL),
        "control": re.compile(
            rf"(?:(?P<stem>.+){_BREAK})?(?:condlabel|control|conditioning)", re.IGNORECASE | re.DOTALL
        ),
    }
)
_NUMBERED = re.compile(rf"(?P<stem>.+){_BREAK}(?P<number>[0-9]+)", re.DOTALL)
_IMAGE = "(?:image|img|photo|input|original|orig|source|before)"
_IMAGE_NAME = re.compile(rf"(?P<stem>.+){_BREAK}{_IMAGE}|{_IMAGE}(?:{_BREAK}(?P<rest>.+))?", re.IGNORECASE | re.DOTALL)

# What may be a mask, or made of an image, and what is not written as any layout writes it.
_MASK_ALONE = re.compile(r"(?P<before>.*?)(?<![^\W_])masks?(?![^\W_])(?P<after>.*)", re.IGNORECASE | re.DOTALL)
_MASK_WITHIN = re.compile(r"(?P<before>.*?)mask(?:s|ed|ing)?(?P<after>.*)", re.IGNORECASE | re.DOTALL)
_LIKE_MASKS = re.compile(
    rf"(?:(?P<before>.*?){_BREAK})?(?:segs?|segm|segmented|mattes?|msks?|trimaps?|alphas?|labels?|annotations?|gt|bw|"
    rf"binary|silhouette|overlay|preview|thumb|thumbnail|depth|canny|cutout|no_?bg|fg|bg|foreground|background|rembg)"
    rf"(?:{_BREAK}(?P<after>.*))?",
    re.IGNORECASE | re.DOTALL,
)
# Whole names in a folder of one image's files: `0001/result.jpg`.
_OF_ONE_IMAGE = frozenset(
    [
        "result",
        "output",
        "gt",
        "ground_truth",
        "groundtruth",
        "edited",
        "after",
        "inpainted",
        "masked",
        "overlay",
        "preview",
    ]
)

# Folders. A word of these anywhere between breaks: `train_masks`, `10_cat_mask`.
MASK_WORDS = frozenset(
    ["mask", "masks", "masklabel", "masklabels", "segmentation", "segmentations", "matte", "mattes", "trimaps"]
)
_IMAGE_WORDS = frozenset(["image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "jpegimages"])
# The whole name.
_FOLDERS: Mapping[Role, frozenset[str]] = MappingProxyType(
    {
        "mask": frozenset(
            [
                "annotation",
                "annotations",
                "ann",
                "label",
                "labels",
                "seg",
                "segs",
                "alpha",
                "alphas",
                "segmentationclass",
                "segmentationobject",
            ]
        ),
        "target": frozenset(("target", "targets")),
        "control": frozenset(("control", "controls", "control_images")),
        "image": frozenset(("input", "inputs", "rgb")),
    }
)
_CONDITIONING = frozenset(["conditioning", "conditioning_data", "conditioning_image", "conditioning_images", "cond"])
_GROUND_TRUTH = frozenset(("gt", "groundtruth", "ground_truth"))
CAPTION_FOLDERS = frozenset(["caption", "captions", "prompt", "prompts", "text", "texts", "txt"])
THUMBNAILS = frozenset(["thumb", "thumbs", "thumbnail", "thumbnails"])
# Left out where the images are elsewhere.
MADE_OF_IMAGES = frozenset(
    ["cache", "caches", "preview", "previews", "overlay", "overlays", "mask_overlay", "vis", "visualization", "samples"]
)
REGULARISATION = frozenset(["reg", "regs", "reg_images", "regularization", "regularisation", "regularization_images"])
LABEL_FOLDERS = frozenset(["annotation", "annotations", "ann", "label", "labels"])
_REPEATS = re.compile(r"(?P<times>[1-9][0-9]{0,2})_.+", re.DOTALL)


@dataclass(frozen=True)
class Layout:
    """A row of `LAYOUTS`.

    Attributes:
        text: what it looks like.
        marks: what the name of a mask beside its image looks like; None where none lies there.
        has_folders: whether masks, targets and conditioning pictures lie in folders of their own.
        conditioning: what a folder of that name holds; None where nobody can know.
    """

    text: str
    marks: re.Pattern[str] | None = MASK_NAME
    has_folders: bool = False
    conditioning: Role | None = None

    def has_mark(self, stem: str) -> bool:
        """Whether a name is that of a mask beside its image."""
        return self.marks is not None and self.marks.fullmatch(stem) is not None


LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        "auto": Layout("whichever of these it is", MASK_NAME, has_folders=True),
        "beside": Layout("cat.jpg, cat_mask.png, cat.txt, cat_target.jpg in one folder"),
        "folders": Layout("images/cat.jpg, masks/cat.png", MASK_NAME, has_folders=True, conditioning="control"),
        "kohya": Layout("10_name class/cat.png, mask/cat.png", MASK_NAME, has_folders=True, conditioning="mask"),
        "onetrainer": Layout("cat.jpg, cat-masklabel.png, cat-condlabel.png", _ONETRAINER),
        "simpletuner": Layout("cat.png, conditioning_data/cat.png", None, has_folders=True, conditioning="mask"),
        "imagefolder": Layout("cat.jpg, metadata.jsonl with file_name, text and mask_file_name", None),
        "lama": Layout("cat.png, cat_mask000.png", _LAMA),
        "coco": Layout("cat.jpg, instances.json", None),
    }
)


@dataclass(frozen=True)
class Reading:
    """What a picture is by its name.

    Attributes:
        role: none where it is `asked` what it is.
        source: the folder that says so; "" where the file's own name does.
        asked: the roles that its folder may stand for.
        is_read: whether the layout has such pictures.
    """

    role: Role
    source: str = ""
    asked: tuple[Role, ...] = ()
    is_read: bool = True


def read_name(file: File, layout: Layout, classes: Collection[str] = ()) -> Reading:
    """What a picture is, by its deepest folder that says anything, else by its own name.

    Args:
        file: the picture.
        layout: how the folder is laid out.
        classes: names of folders that say nothing, whatever they are called.
    """
    parts = file.folder.split("/") if file.folder else []
    for depth in range(len(parts), 0, -1):
        roles = () if parts[depth - 1] in classes else _roles_of_folder(parts[depth - 1], layout)
        if roles == ("image",):
            break
        if roles:
            return Reading(roles[0], "/".join(parts[:depth]), roles if len(roles) > 1 else (), layout.has_folders)
    if MASK_NAME.fullmatch(file.stem):
        return Reading("mask", is_read=layout.has_mark(file.stem))
    for role, pattern in _OTHER_NAMES.items():
        if (match := pattern.fullmatch(file.stem)) and match["stem"]:
            return Reading(role, is_read=layout.marks is not None)
    return Reading("image")


@lru_cache(2**14)
def says_images(folder: str, layout: Layout) -> int:
    """How surely a folder is of images by its name or those around it: 2 is `images`, 1 a class of kohya's, else 0."""
    parts = folder.split("/")
    if any(_roles_of_folder(part, layout) == ("image",) for part in parts):
        return 2
    return int(any(repeats_of(part) is not None for part in parts))


def classes_of(folders: Iterable[str]) -> frozenset[str]:
    """kohya's folders with repeats: also `5_oni mask`, but not `10_cat_mask` where there is a `10_cat`."""
    parts = {part for folder in folders for part in folder.split("/")}
    plain = {place_of(part) for part in parts if place_of(part) == "_".join(words_of(part))}
    return frozenset(part for part in parts if repeats_of(part) and _is_class(part, plain))


def _is_class(part: str, plain: Collection[str]) -> bool:
    return place_of(part) == "_".join(words_of(part)) or place_of(part) not in plain


@dataclass(frozen=True)
class Doubt:
    """What speaks against a picture being an image.

    Attributes:
        rests: what else there is in its name, each of which may be an image's name.
        is_word: whether "mask" stands there as a word of its own.
    """

    rests: tuple[str, ...]
    is_word: bool = False


def doubt_of(stem: str) -> Doubt | None:
    """The doubt about a picture that no layout has by this name; None where there is none."""
    for pattern in (_MASK_ALONE, _MASK_WITHIN, _LIKE_MASKS):
        if match := pattern.fullmatch(stem):
            rests = [(match[side] or "").strip(" _.-()[]~") for side in ("before", "after")]
            return Doubt(tuple(filter(None, rests)), pattern is _MASK_ALONE)
    return None


def role_in_folder_of_one(stem: str) -> Role | None:
    """What a picture is by its whole name in a folder of one image's files; "image" of what may be any; else None."""
    for role, pattern in _OTHER_NAMES.items():
        if (match := pattern.fullmatch(stem)) and not match["stem"]:
            return role
    doubt = doubt_of(stem)
    return "image" if stem.lower() in _OF_ONE_IMAGE or (doubt is not None and not doubt.rests) else None


@lru_cache(2**14)
def _roles_of_folder(name: str, layout: Layout) -> tuple[Role, ...]:
    """What the pictures of a folder are by its name; none where it says nothing."""
    whole = "_".join(words_of(name)).lower()
    if whole in _CONDITIONING:
        return (layout.conditioning,) if layout.conditioning else ("mask", "control")
    if whole in _GROUND_TRUTH:
        return ("mask", "target")
    for role, names in _FOLDERS.items():
        if whole in names:
            return (role,)
    words = {word.lower() for word in words_of(name)}
    if words & MASK_WORDS:
        return ("mask",)
    return ("image",) if words & _IMAGE_WORDS else ()


@lru_cache(2**14)
def place_of(folder: str) -> str:
    """A folder without what only says what its files are: `train/images` and `train/masks` are both `train`."""
    kept = []
    for part in folder.split("/"):
        whole = "_".join(words_of(part)).lower()
        if whole in _NAMELESS:
            continue
        words = [word for word in words_of(part) if word.lower() not in MASK_WORDS | _IMAGE_WORDS]
        if words:
            kept.append("_".join(words))
    return "/".join(kept)


_NAMELESS = frozenset().union(*_FOLDERS.values(), _CONDITIONING, _GROUND_TRUTH, CAPTION_FOLDERS)


def words_of(name: str) -> list[str]:
    return [word for word in BREAKS.split(name) if word]


def is_in_folder_of(names: frozenset[str], folder: str) -> bool:
    """Whether a folder or one around it is called so."""
    return any("_".join(words_of(part)).lower() in names for part in folder.split("/"))


def owners_beside(stem: str, role: Role) -> list[tuple[str, int | None]]:
    """The stems that the image of a picture may have, the likeliest first, each with the number of a mask.

    "" is an image that has no name but that of its kind: `0001/image.png` with `0001/mask.png`.
    """
    pattern = MASK_NAME if role == "mask" else _OTHER_NAMES[role]
    found: list[tuple[str, int | None]] = []
    if match := pattern.fullmatch(stem):
        groups = match.groupdict()
        number = groups.get("number") or groups.get("only")
        found.append((groups["stem"] or groups.get("rest") or "", int(number) if number else None))
        if (groups.get("rest") or "").isdecimal():
            found.append(("", int(groups["rest"])))
    return [*found, *((without_extension(name), number) for name, number in found if without_extension(name) != name)]


def owners_in_folder(stem: str, role: Role) -> list[tuple[str, int | None]]:
    """`owners_beside` of a picture whose folder says what it is, so that its own name may be just its image's."""
    found = [(stem, None), *owners_beside(stem, role)]
    if without_extension(stem) != stem:
        found.append((without_extension(stem), None))
    if role == "mask" and (match := _NUMBERED.fullmatch(stem)):
        found.append((match["stem"], int(match["number"])))
    return found


def without_extension(stem: str) -> str:
    """`cat.jpg` of a mask `cat.jpg.png`."""
    base, _, extension = stem.rpartition(".")
    return base if base and extension.lower() in IMAGES else stem


def other_stem(stem: str) -> str | None:
    """What an image is called without the word that says it is one; None where there is no such word."""
    match = _IMAGE_NAME.fullmatch(stem)
    return (match["stem"] or match["rest"] or "") if match else None


def without_repeats(place: str) -> str:
    """A place without the repeats of kohya's classes: the same class may have others elsewhere."""
    parts = [part.partition("_")[2] if repeats_of(part) else part for part in place.split("/")]
    return "/".join(parts)


def repeats_of(folder: str) -> int | None:
    """The repeats that kohya reads in a folder's name; None where there are none."""
    match = _REPEATS.fullmatch(folder.rpartition("/")[2])
    return int(match["times"]) if match else None
