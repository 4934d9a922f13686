"""Packing: a folder of images to shards."""

import re
import sys
from pathlib import Path

from inpaint_data.batch import PAIRED
from inpaint_data.durable import NewFile
from inpaint_data.errors import SampleError, UsageError
from inpaint_data.pictures.examples import PAIRED_MEMBERS
from inpaint_data.pictures.formats import DECODERS, Decoding
from inpaint_data.pictures.images import image_size
from inpaint_data.shards.reading import IMAGE_EXTENSIONS, name_problem
from inpaint_data.shards.stores import local_path
from inpaint_data.shards.writing import tar_writer

FOREIGN_IMAGES = ("jp2", "jxl", "psd", "svg")
Files = dict[str, dict[str, Path]]  # key -> extension in the shard -> file


def pack(folder: str, out: str, shard_size: int = 1000) -> list[str]:
    """Pack the images of a folder and its subfolders into `out/000000.tar` …, `shard_size` samples in each.

    `cat.jpg` (or another image) becomes key `cat`; beside it may lie `cat_mask.png`, `cat.txt`, `cat.json`, and
    `cat_target.jpg` (or another image) for a paired target. A key keeps its subfolder, and its dots become `_`, since
    readers split names at the first dot. Bytes are packed as they are, by the order of the keys, so the same folder
    gives the same shards. Hidden files and files of other kinds stay out. No shard appears before all are written.

    Returns:
        The paths of the shards.

    Raises:
        UsageError: the first file or argument that prevents it.
        SampleError: images that cannot be read or masks of another size, all of them.
    """
    if shard_size < 1:
        raise UsageError(f"shard_size is {shard_size}; give at least 1")
    samples = _samples(local_path(folder))
    _check_images(samples)
    keys = sorted(samples)
    shards = [local_path(out) / f"{number:06d}.tar" for number in range(-(-len(keys) // shard_size))]
    files: list[NewFile] = []
    try:
        _make_empty(local_path(out))
        for number, shard in enumerate(shards):
            files.append(NewFile(shard))
            _write(files[-1], {key: samples[key] for key in keys[number * shard_size : (number + 1) * shard_size]})
        for file in files:
            file.publish()
    except OSError as error:
        raise UsageError(f"{error.filename or out}: {error.strerror or error}; fix it and pack again") from error
    finally:
        for file in files:
            file.drop()
    return [str(shard) for shard in shards]


def _samples(folder: Path) -> Files:
    """Every image with the files that belong to it. Raises UsageError for the first file that prevents it."""
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}; name the one that has the images")
    samples: Files = {}
    names: dict[str, str] = {}  # key -> the name it was made from, with its dots
    for path in _files(folder):
        name, extension = _name_and_extension(path, folder)
        if extension is None:
            continue
        key = Path(name).with_name(Path(name).name.replace(".", "_")).as_posix()
        if problem := name_problem(key):
            raise UsageError(f"{path} {problem}")
        if names.setdefault(key, name) != name:
            raise UsageError(f"{names[key]!r} and {name!r} would both get the key {key!r}; rename one")
        files = samples.setdefault(key, {})
        rivals = IMAGE_EXTENSIONS if extension in IMAGE_EXTENSIONS else (extension,)
        if other := next((files[rival] for rival in rivals if rival in files), None):
            raise UsageError(f"{other} and {path} would both be in sample {key!r}; rename or remove one")
        files[extension] = path
    for files in samples.values():
        if not any(extension in files for extension in IMAGE_EXTENSIONS):
            lone = next(iter(files.values()))
            raise UsageError(f"{lone} has no image of its name beside it; add the image or move this file out")
    if not samples:
        raise UsageError(f"{folder} has no {', '.join(IMAGE_EXTENSIONS)}; name the folder of the images")
    return samples


def _files(folder: Path) -> list[Path]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(path for path in paths if not any(part[0] == "." for part in path.relative_to(folder).parts))


def _name_and_extension(path: Path, folder: Path) -> tuple[str, str | None]:
    """`sub/cat_mask.png` -> `sub/cat`, `mask.png`; the extension is None where the file stays out."""
    name = path.relative_to(folder).with_suffix("").as_posix()
    extension = path.suffix.lower()[1:]
    if extension in FOREIGN_IMAGES:
        raise UsageError(f"{path} is of a format that is not decoded; convert it or move it out")
    if extension in IMAGE_EXTENSIONS and name.endswith("_mask"):
        if extension != "png":
            raise UsageError(f"{path} is a mask but not a PNG; masks must be lossless, save it as PNG")
        if name.endswith("/_mask") or name == "_mask":
            raise UsageError(f"{path} has no image of its name beside it; name it after its image")
        return name.removesuffix("_mask"), "mask.png"
    for paired in PAIRED:
        if extension in IMAGE_EXTENSIONS and re.search(f"[^/]_{paired}$", name):
            return name.removesuffix(f"_{paired}"), f"{paired}.{extension}"
    return name, extension if extension in (*IMAGE_EXTENSIONS, "txt", "json") else None


def _make_empty(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    shards = sorted(out.glob("*.tar"))
    if shards:
        raise UsageError(f"{out} already has shards ({shards[0].name}); choose another folder or delete them")


def _write(file: NewFile, samples: Files) -> None:
    """Write one shard, the same bytes every time: no times, no owners, no pax headers."""
    with tar_writer(file) as tar:
        for key, files in samples.items():
            tar.write({"__key__": key} | {extension: path.read_bytes() for extension, path in files.items()})
    file.sync()


def _check_images(samples: Files) -> None:
    """Check images and masks by their headers; the cache command decodes them and quarantines damaged ones."""
    problems = []
    for files in samples.values():
        sizes: dict[str, tuple[int, int]] = {}
        for extension, path in files.items():
            if extension in (*IMAGE_EXTENSIONS, *PAIRED_MEMBERS, "mask.png"):
                try:
                    sizes[extension] = image_size(path.read_bytes(), Decoding(tuple(DECODERS), max_pixels=sys.maxsize))
                except (SampleError, OSError) as error:
                    problems.append(f"{path}: {error}")
        image = next((size for name, size in sizes.items() if name in IMAGE_EXTENSIONS), None)
        for name in ("mask.png", *PAIRED_MEMBERS):
            if name in sizes and image not in (None, sizes[name]):
                kind, (height, width) = name.partition(".")[0], sizes[name]
                problems.append(
                    f"{files[name]}: the {kind} is {height} high and {width} wide, its image has another size"
                )
    if problems:
        more = f" … and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise SampleError(f"fix these or move them out: {'; '.join(problems[:10])}{more}")
