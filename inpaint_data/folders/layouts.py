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

from inpaint_data.folders.files import LOSSLESS, File
from inpaint_data.folders.names import LAMA_NAME, MASK_NAME, ONETRAINER_NAME, OTHER_NAMES, Role, owners_beside, words_of

# Folders. A word of these anywhere between breaks: `train_masks`, `10_cat_mask`.
MASK_WORDS = frozenset(
    ["mask", "masks", "masklabel", "masklabels", "segmentation", "segmentations", "matte", "mattes", "trimaps"]
)
_IMAGE_WORDS = frozenset(["image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "jpegimages"])
_CONTROL_WORDS = frozenset(["depth", "canny", "lineart", "openpose", "hed", "softedge", "scribble", "normals"])
_MAPS = frozenset(["map", "maps"])
_MADE_WORDS = frozenset(["seg", "segs", "alpha", "alphas"])  # masks beside a word for images: `image_alpha`
_PARTS_OF_DATA = frozenset(
    ["train", "training", "val", "valid", "validation", "test", "all", "raw", "full", "original"]
)
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
                "gtfine",
                "gtcoarse",
                "segmentationclass",
                "segmentationobject",
            ]
        ),
        "target": frozenset(("target", "targets", "after", "edited")),
        "control": frozenset(("control", "controls", "control_images")),
        "image": frozenset(("input", "inputs", "rgb", "before", "source", "sources", "src")),
    }
)
_CONDITIONING_WORDS = frozenset(["conditioning", "cond"])
_GROUND_TRUTH = frozenset(("gt", "groundtruth", "ground_truth"))
CAPTION_FOLDERS = frozenset(["caption", "captions", "prompt", "prompts", "text", "texts", "txt"])
THUMBNAILS = frozenset(["thumb", "thumbs", "thumbnail", "thumbnails"])
# Left out where the images are elsewhere.
MADE_OF_IMAGES = frozenset(
    [
        "cache",
        "caches",
        "preview",
        "previews",
        "overlay",
        "overlays",
        "mask_overlay",
        "vis",
        "visualization",
        "sample",
        "samples",
    ]
)
# A word at either end of a name; what sd-scripts' Japanese documents call them; and OneTrainer's prior preservation.
_REGULARISATION = re.compile(r"regs?[0-9]*|regdata|regulari[sz].*|正則化.*", re.IGNORECASE)
_CLASS = re.compile(r"(?:^|/)class/1_")  # DreamBooth's, of images that are seen once
_PRIOR = frozenset(["prior", "priors", "prior_preservation", "prior_prediction", "prior_images"])
_CLASS_IMAGES = frozenset(["class_images", "class_image", "class_img", "class_imgs"])
# What training writes beside the classes of kohya and the concepts of OneTrainer.
SAMPLES = frozenset(["sample", "samples", "validation_images"])
WRITTEN = frozenset(["sample", "samples", "log", "logs", "output", "outputs", "model", "models", "workspace"])
LABEL_FOLDERS = frozenset(["annotation", "annotations", "ann", "label", "labels"])
_PARTS_OF_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_A-Za-z]+")
_WORDS = re.compile(r"[^\W_]+")
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
        "onetrainer": Layout("cat.jpg, cat-masklabel.png, cat-condlabel.png", ONETRAINER_NAME),
        "simpletuner": Layout("cat.png, conditioning_data/cat.png", None, has_folders=True, conditioning="mask"),
        "imagefolder": Layout("cat.jpg, metadata.jsonl with file_name, text and mask_file_name", None),
        "lama": Layout("cat.png, cat_mask000.png", LAMA_NAME),
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


def read_name(file: File, layout: Layout, neutral: Collection[str] = ()) -> Reading:
    """What a picture is, by its deepest folder that says that it is no image, else by its own name.

    Args:
        file: the picture.
        layout: how the folder is laid out.
        neutral: folders that say nothing, whatever they are called; see `neutral_folders`.
    """
    parts = file.folder.split("/") if file.folder else []
    for depth in range(len(parts), 0, -1):
        folder = "/".join(parts[:depth])
        roles = () if folder in neutral else _roles_of_folder(parts[depth - 1], layout)
        if roles and roles != ("image",):
            return Reading(roles[0], folder, roles if len(roles) > 1 else (), layout.has_folders)
    if MASK_NAME.fullmatch(file.stem):
        return Reading("mask", is_read=layout.has_mark(file.stem))
    for role, pattern in OTHER_NAMES.items():
        if (match := pattern.fullmatch(file.stem)) and match["stem"]:
            return Reading(role, is_read=layout.marks is not None)
    return Reading("image")


@lru_cache(2**14)
def says_images(folder: str, layout: Layout) -> int:
    """How surely a folder is of images by its name: 2 is `images`, 1 a class of kohya's, else 0.

    The innermost name that is neither a class nor a part of the data counts: in `images/Masken` that is not of images.
    """
    parts = [part for part in folder.split("/") if not set(map(str.lower, words_of(part))) <= _PARTS_OF_DATA]
    plain = [part for part in parts if repeats_of(part) is None]
    if parts and plain and (repeats_of(parts[-1]) or parts[-1] == plain[-1]) and _is_of_images(plain[-1], layout):
        return 2
    return int(bool(parts) and repeats_of(parts[-1]) is not None)


def _is_of_images(name: str, layout: Layout) -> bool:
    """Whether all the words of a folder's name say that it is of images: `train_images`, but not `img_m`."""
    words = {word.lower() for word in words_of(name)}
    known = words <= _IMAGE_WORDS | _PARTS_OF_DATA | _FOLDERS["image"]
    return known and _roles_of_folder(name, layout) == ("image",)


def is_plain_name(folder: str, role: Role, extension: str) -> bool:
    """Whether a folder's name can hardly be that of other images: `masks`, but not `edited`, or `label` of JPEGs."""
    name = folder.rpartition("/")[2]
    words = [word.lower() for word in words_of(name)]
    if role == "mask" and not MASK_WORDS.intersection(words):
        return extension in LOSSLESS
    if role == "mask" and repeats_of(name):  # 10_mask woman
        return words[-1] in MASK_WORDS
    return role != "target" or bool({"target", "targets"}.intersection(words))


def neutral_folders(
    pictures: Collection[File], layout: Layout, captioned: Collection[str], masked_too: Collection[str]
) -> frozenset[str]:
    """The folders whose names say nothing of their pictures, though words in them do elsewhere.

    A class of kohya's, in its layout: `5_oni mask`. A folder of images that have their masks beside them:
    `ski mask/1.jpg`, `1-masklabel.png`. And one around folders of images and masks, `dog masks/images` and
    `dog masks/masks`, or around the only folder of images.

    Args:
        pictures: all there are.
        layout: how the folder is laid out.
        captioned: folders most of whose pictures have captions.
        masked_too: see `masked_masks`.
    """
    inner = {file.folder for file in pictures}
    folders = {folder for each in inner for folder in _around(each)}
    own = {folder: _roles_of_folder(folder.rpartition("/")[2], layout) for folder in folders}
    beside = _with_masks_beside(pictures).difference(masked_too)
    neutral = beside | (_classes(folders, captioned) if layout is LAYOUTS["kohya"] else set())
    saying = {folder for folder, roles in own.items() if roles and roles != ("image",) and folder not in neutral}
    outside = any(not saying.intersection(_around(folder)) for folder in inner)
    with_images = {outer for each in folders if own[each] == ("image",) for outer in _around(each)[:-1]}
    with_masks = {outer for each in saying | beside for outer in _around(each)[:-1]}
    return frozenset(neutral | (saying & with_images & with_masks if outside else saying & with_images))


def masked_masks(pictures: Collection[File], layout: Layout) -> set[str]:
    """Folders called as those of masks or the like, of which a tool may have made masks too.

    Their pictures have masks beside them and the names of images: `x/1.jpg`, `x/masks/1.png` and
    `x/masks/1-masklabel.png`.
    """
    saying = {folder for folder in {file.folder for file in pictures} if not _may_be_of_images(folder, layout)}
    plain = [file for file in pictures if file.folder not in saying]
    images = {(place, file.stem) for file in plain for place in (place_of(file.folder), "")}
    doubtful = saying & _with_masks_beside(pictures)
    # `masks`, which says nothing else, may be of images anywhere.
    places = {folder: place_of(folder) if place_of(folder.rpartition("/")[2]) else "" for folder in doubtful}
    return {file.folder for file in pictures if (places.get(file.folder), file.stem) in images}


def _may_be_of_images(folder: str, layout: Layout) -> bool:
    return _roles_of_folder(folder.rpartition("/")[2], layout) in ((), ("image",))


def _around(folder: str) -> list[str]:
    """A folder and those around it."""
    parts = folder.split("/") if folder else []
    return ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def _with_masks_beside(pictures: Iterable[File]) -> set[str]:
    stems = {(file.folder, file.stem) for file in pictures}
    return {
        folder
        for folder, stem in stems
        if MASK_NAME.fullmatch(stem)
        and any(name and name != stem and (folder, name) in stems for name, _ in owners_beside(stem, "mask"))
    }


def _classes(folders: Iterable[str], captioned: Collection[str]) -> set[str]:
    """kohya's folders with repeats: also `5_oni mask`, but not `10_cat_mask` where there is a `10_cat`."""
    words = {
        folder: tuple(word.lower() for word in words_of(without_repeats(folder.rpartition("/")[2])))
        for folder in folders
        if repeats_of(folder)
    }
    plain = {each for each in words.values() if not MASK_WORDS.intersection(each)}
    rest = {folder: tuple(word for word in each if word not in MASK_WORDS) for folder, each in words.items()}
    return {
        folder
        for folder, each in words.items()
        if rest[folder] == each or rest[folder] not in plain or folder in captioned
    }


@lru_cache(2**14)
def _roles_of_folder(name: str, layout: Layout) -> tuple[Role, ...]:
    """What the pictures of a folder are by its name; none where it says nothing."""
    words = {*map(str.lower, words_of(name)), *words_of_folder(name)}
    whole = "_".join(words_of(name)).lower()
    if words & _CONDITIONING_WORDS:
        return (layout.conditioning,) if layout.conditioning else ("mask", "control")
    if whole in _GROUND_TRUTH:
        return ("mask", "target")
    for role, names in _FOLDERS.items():
        if whole in names:
            return (role,)
    if words & MASK_WORDS or (words & _MADE_WORDS and words & _IMAGE_WORDS):
        return ("mask",)
    is_control = words_of(name)[-1:] and words_of(name)[-1].lower() in _CONTROL_WORDS
    if (
        words & _CONTROL_WORDS
        and not repeats_of(name)
        and (is_control or words <= _CONTROL_WORDS | _MAPS | _IMAGE_WORDS)
    ):
        return ("control",)
    return ("image",) if words & _IMAGE_WORDS else ()


@lru_cache(2**14)
def place_of(folder: str, whole_classes: bool = False) -> str:
    """A folder without what only says what its files are: `train/images` and `train/masks` are both `train`.

    Of kohya's classes only the words for masks are left out, and with `whole_classes` none.
    """
    kept = []
    for part in folder.split("/"):
        words = words_of(part)
        if repeats_of(part):
            words = words if whole_classes else [word for word in words if word.lower() not in _SAYING - _IMAGE_WORDS]
        elif "_".join(words).lower() in _NAMELESS:
            continue
        else:
            words = [word for word in words if not _SAYING.issuperset(words_of_folder(word) or [word])]
        if words:
            kept.append("_".join(words))
    return "/".join(kept)


_NAMELESS = frozenset().union(*_FOLDERS.values(), _GROUND_TRUTH, CAPTION_FOLDERS, ["conditioning_data"])
_SAYING = MASK_WORDS | _IMAGE_WORDS | _CONTROL_WORDS | _CONDITIONING_WORDS | frozenset(["data", "dataset"])


def is_regularisation(folder: str) -> bool:
    """Whether a folder or one around it is of regularisation images: `reg`, `woman_reg`, `class_images`, `prior`."""
    parts = [part for part in folder.split("/") if not repeats_of(part)]
    outer = {word for part in parts if (words := _WORDS.findall(part)) for word in (words[0], words[-1])}
    # Of the well-known repository it is the third: Stable-Diffusion-Regularization-Images-woman_ddim.
    inner = {word for part in parts for word in _WORDS.findall(part) if len(word) > len("regulari")}
    is_said = any(_REGULARISATION.fullmatch(word) for word in outer | inner)
    return is_said or is_in_folder_of(_CLASS_IMAGES | _PRIOR, folder) or _CLASS.search(folder) is not None


def is_in_folder_of(names: frozenset[str], folder: str) -> bool:
    """Whether a folder or one around it is called so."""
    return any("_".join(words_of(part)).lower() in names for part in folder.split("/"))


def without_repeats(place: str) -> str:
    """A place without the repeats of kohya's classes: the same class may have others elsewhere."""
    parts = [part.partition("_")[2] if repeats_of(part) else part for part in place.split("/")]
    return "/".join(parts)


def words_of_folder(name: str) -> list[str]:
    """The words of a folder's name in lower case, without numbers behind them: of `masks2` and `MasksOld` too."""
    return [part.lower() for word in words_of(name) for part in _PARTS_OF_WORD.findall(word)]


def repeats_of(folder: str) -> int | None:
    """The repeats that kohya reads in a folder's name; None where there are none."""
    match = _REPEATS.fullmatch(folder.rpartition("/")[2])
    return int(match["times"]) if match else None
