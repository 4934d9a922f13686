"""Names of pictures: what the stem of a file says that it is, and whose it is."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from inpaint_data.folders.files import IMAGES

Role = Literal["image", "mask", "target", "control", "reference"]
_BREAK = r"[ _.\-]"
BREAKS = re.compile(_BREAK)
JOINTS = ("", " ", "_", "-")  # between a name and a number
IMAGE_NAMES = ("image", "img", "photo", "rgb", "input", "source", "before")  # of one that has no other name
_WORDS = r"(?:masks?|masklabel|segmentation)"
MASK_NAME = re.compile(
    rf"(?P<stem>.*)(?:{_BREAK}\(?{_WORDS}\)?|(?-i:(?<=[a-z0-9])Masks?))(?:{_BREAK}?(?P<number>[0-9]+))?"
    rf"|masks?(?:{_BREAK}(?P<rest>.+)|(?P<only>[0-9]*))",
    re.IGNORECASE | re.DOTALL,
)
LAMA_NAME = re.compile(r"(?P<stem>.+)_mask(?P<number>[0-9]*)", re.IGNORECASE | re.DOTALL)
ONETRAINER_NAME = re.compile(r"(?P<stem>.+)-masklabel", re.IGNORECASE | re.DOTALL)
OTHER_NAMES: Mapping[Role, re.Pattern[str]] = MappingProxyType(
    {
        "target": re.compile(rf"(?:(?P<stem>.+){_BREAK})?target", re.IGNORECASE | re.DOTALL),
        "control": re.compile(
            rf"(?:(?P<stem>.+){_BREAK})?(?:condlabel|control|conditioning)", re.IGNORECASE | re.DOTALL
        ),
    }
)
NUMBERED_NAME = re.compile(rf"(?P<stem>.+){_BREAK}(?P<number>[0-9]+)", re.DOTALL)
_IMAGE = "(?:image|img|photo|rgb|input|original|orig|source|src|before|raw|dirty|leftimg8bit)"
_IMAGE_NAME = re.compile(rf"(?P<stem>.+){_BREAK}{_IMAGE}|{_IMAGE}(?:{_BREAK}(?P<rest>.+))?", re.IGNORECASE | re.DOTALL)

# What may be a mask, or made of an image, and what is not written as any layout writes it.
_MASK_ALONE = re.compile(r"(?P<before>.*?)(?<![^\W_])masks?(?![^\W_])(?P<after>.*)", re.IGNORECASE | re.DOTALL)
_MASK_WITHIN = re.compile(r"(?P<before>.*?)mask(?:s|ed|ing)?(?P<after>.*)", re.IGNORECASE | re.DOTALL)
_LIKE_MASKS = re.compile(
    rf"(?:(?P<before>.*?){_BREAK})?(?:segs?|segm|segmented|mattes?|msks?|trimaps?|alphas?|labels?|annotations?|gt|bw|"
    rf"binary|condlabels?|silhouette|overlay|preview|thumb|thumbnail|depth|canny|viz|cutouts?|no_?bg|fg|bg|foreground|background|rembg|clipseg|blend|blended|openpose|lineart|softedge)"
    rf"(?:{_BREAK}(?P<after>.*))?",
    re.IGNORECASE | re.DOTALL,
)
# What is made of an image: whole names in a folder of one image's files (`0001/result.jpg`), or beside its name.
_MADE = (
    *("result", "results", "output", "outputs", "edit", "edited", "after", "inpaint", "inpainted", "retouched"),
    *("tgt", "final", "clean", "gen", "generated"),
)
_OF_ONE_IMAGE = frozenset([*_MADE, "gt", "ground_truth", "groundtruth", "masked", "overlay", "preview"])
_LIKE_TARGETS = re.compile(
    rf"(?:(?P<before>.*?){_BREAK})?(?:{'|'.join(_MADE)})(?:{_BREAK}(?P<after>.*))?", re.IGNORECASE | re.DOTALL
)
# What training writes, wherever it lies: sd-scripts' sample_images (library/train_util.py), and OneTrainer's
# `2024-01-05_12-34-51-training-sample-500-5-0` (modules/trainer/GenericTrainer.py) and what its debug mode decodes and
# draws (modules/modelSetup/mixin/ModelSetupDebugMixin.py); sd-scripts of 2023 had the time first. And A1111's grids.
SAMPLE_NAME = re.compile(
    r"(?:.*_)?e?[0-9]{6}_[0-9]{2}_[0-9]{14}(?:_[0-9]+)?|(?:.*_)?[0-9]{14}_e?[0-9]{6}_[0-9]{2}(?:_[0-9]+)?"
    r"|.*[0-9]-training-sample-.*|.*-decoded_(?:conditioning_)?(?:image|mask)|step-[0-9]+-[0-9]+-[a-z_]+"
    r"|(?:xyz_)?grid-[0-9]{4}(?:-.*)?",
    re.DOTALL,
)


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
    for pattern in (_MASK_ALONE, _MASK_WITHIN, _LIKE_MASKS, _LIKE_TARGETS):
        if match := pattern.fullmatch(stem):
            rests = [(match[side] or "").strip(" _.-()[]~") for side in ("before", "after")]
            return Doubt(tuple(filter(None, rests)), pattern is _MASK_ALONE)
    return None


def role_in_folder_of_one(stem: str) -> Role | None:
    """What a picture is by its whole name in a folder of one image's files; "image" of what may be any; else None."""
    for role, pattern in OTHER_NAMES.items():
        if (match := pattern.fullmatch(stem)) and not match["stem"]:
            return role
    doubt = doubt_of(stem)
    return "image" if stem.lower() in _OF_ONE_IMAGE or doubt is not None else None


def words_of(name: str) -> list[str]:
    return [word for word in BREAKS.split(name) if word]


def shared_end(stems: Iterable[str]) -> str:
    """The words that all names of a folder end in, and the break before them: `_obj_0` of `a_obj_0` and `b_obj_0`."""
    stems = list(stems)
    if len(stems) < 2:
        return ""
    shortest = min(stems, key=len)
    ends = (shortest[found.start() :] for found in BREAKS.finditer(shortest, 1))
    return next((end for end in ends if all(stem.endswith(end) for stem in stems)), "")


def owners_beside(stem: str, role: Role) -> list[tuple[str, int | None]]:
    """The stems that the image of a picture may have, the likeliest first, each with the number of a mask.

    "" is an image that has no name but that of its kind: `0001/image.png` with `0001/mask.png`.
    """
    pattern = MASK_NAME if role == "mask" else OTHER_NAMES[role]
    found: list[tuple[str, int | None]] = []
    if match := pattern.fullmatch(stem):
        groups = match.groupdict()
        number = groups.get("number") or groups.get("only")
        found.append((groups["stem"] or groups.get("rest") or "", int(number) if number else None))
        if only := groups.get("only"):  # img0.jpg with mask0.png
            found += [(f"{name}{joint}{only}", None) for name in IMAGE_NAMES for joint in JOINTS]
        if (groups.get("rest") or "").isdecimal():
            found.append(("", int(groups["rest"])))
    return [*found, *((without_extension(name), number) for name, number in found if without_extension(name) != name)]


def owners_in_folder(stem: str, role: Role) -> list[tuple[str, int | None]]:
    """`owners_beside` of a picture whose folder says what it is, so that its own name may be just its image's."""
    found = [(stem, None), *owners_beside(stem, role)]
    if without_extension(stem) != stem:
        found.append((without_extension(stem), None))
    if role == "mask" and (match := NUMBERED_NAME.fullmatch(stem)):
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
