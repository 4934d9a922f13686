"""From a folder of photographs to shards."""

import re
import tarfile
from pathlib import Path

import webdataset as wds

from inpaint_data.batch import PAIRED
from inpaint_data.durable import NewFile
from inpaint_data.errors import SampleError, UsageError
from inpaint_data.pictures.examples import PAIRED_MEMBERS
from inpaint_data.pictures.images import image_size
from inpaint_data.shards.reading import IMAGE_EXTENSIONS, name_problem

FOREIGN_IMAGES = ("avif", "bmp", "gif", "heic", "heif", "jp2", "jxl", "tif", "tiff")
Photos = dict[str, dict[str, Path]]  # key -> extension in the shard -> file


def pack(folder: str, out: str, shard_size: int = 1000) -> list[str]:
    """Pack the photographs of a folder and its subfolders into `out/000000.tar` …, `shard_size` samples in each.

    `cat.jpg` (or jpeg, png, webp) becomes key `cat`; beside it may lie `cat_mask.png`, `cat.txt`, `cat.json`, and
    `cat_target.jpg` (or png, webp) for a paired target. A key keeps its subfolder, and its dots become `_`, since
    readers split names at the first dot. Bytes are packed as they are, by the order of the keys, so the same folder
    gives the same shards. Hidden files and files of other kinds stay out. No shard is there before all are written.

    Returns:
        The paths of the shards.

    Raises:
        UsageError: what is in the way, and which file it is.
        SampleError: images that cannot be read or masks of another size, all of them.
    """
    if shard_size < 1:
        raise UsageError(f"pack: shard_size is {shard_size}; give at least 1")
    photos = _photos(Path(folder))
    _check_images(photos)
    keys = sorted(photos)
    shards = [Path(out) / f"{number:06d}.tar" for number in range(-(-len(keys) // shard_size))]
    files: list[NewFile] = []
    try:
        _make_empty(Path(out))
        for number, shard in enumerate(shards):
            files.append(NewFile(shard))
            _write(files[-1], {key: photos[key] for key in keys[number * shard_size : (number + 1) * shard_size]})
        for file in files:
            file.publish()
    except OSError as error:
        raise UsageError(f"pack: {error.filename or out}: {error.strerror or error}; fix it and pack again") from error
    finally:
        for file in files:
            file.drop()
    return [str(shard) for shard in shards]


def _photos(folder: Path) -> Photos:
    """Every image with what belongs to it, or the first thing that is in the way."""
    if not folder.is_dir():
        raise UsageError(f"pack: there is no folder {folder}; name the one that has the photographs")
    photos: Photos = {}
    names: dict[str, str] = {}  # key -> the name it was made of, dots and all
    for path in _files(folder):
        name, extension = _name_and_extension(path, folder)
        if extension is None:
            continue
        key = Path(name).with_name(Path(name).name.replace(".", "_")).as_posix()
        if problem := name_problem(key):
            raise UsageError(f"pack: {path} {problem}")
        if names.setdefault(key, name) != name:
            raise UsageError(f"pack: {names[key]!r} and {name!r} would both get the key {key!r}; rename one")
        files = photos.setdefault(key, {})
        rivals = IMAGE_EXTENSIONS if extension in IMAGE_EXTENSIONS else (extension,)
        if other := next((files[rival] for rival in rivals if rival in files), None):
            raise UsageError(f"pack: {other} and {path} would both be in sample {key!r}; rename or remove one")
        files[extension] = path
    for files in photos.values():
        if not any(extension in files for extension in IMAGE_EXTENSIONS):
            lone = next(iter(files.values()))
            raise UsageError(f"pack: {lone} has no image of its name beside it; add the image or move this file out")
    if not photos:
        raise UsageError(f"pack: {folder} has no {', '.join(IMAGE_EXTENSIONS)}; name the folder of the photographs")
    return photos


def _files(folder: Path) -> list[Path]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(path for path in found if not any(part[0] == "." for part in path.relative_to(folder).parts))


def _name_and_extension(path: Path, folder: Path) -> tuple[str, str | None]:
    """`sub/cat_mask.png` -> `sub/cat`, `mask.png`; the extension is None where the file stays out."""
    name = path.relative_to(folder).with_suffix("").as_posix()
    extension = path.suffix.lower()[1:]
    if extension in FOREIGN_IMAGES:
        raise UsageError(f"pack: {path} is neither JPEG, PNG nor WEBP; convert it or move it out")
    if extension in IMAGE_EXTENSIONS and name.endswith("_mask"):
        if extension != "png":
            raise UsageError(f"pack: {path} is a mask but no PNG; masks must be lossless, save it as PNG")
        if name.endswith("/_mask") or name == "_mask":
            raise UsageError(f"pack: {path} has no image of its name beside it; name it after its image")
        return name.removesuffix("_mask"), "mask.png"
    for paired in PAIRED if extension in IMAGE_EXTENSIONS else ():
        if re.search(f"[^/]_{paired}$", name):
            return name.removesuffix(f"_{paired}"), f"{paired}.{extension}"
    return name, extension if extension in (*IMAGE_EXTENSIONS, "txt", "json") else None


def _make_empty(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    shards = sorted(out.glob("*.tar"))
    if shards:
        raise UsageError(f"pack: {out} already has shards ({shards[0].name}); choose another folder or delete them")


def _write(file: NewFile, photos: Photos) -> None:
    """One shard with the same bytes every time: no times, no owners, no pax headers."""
    tar = wds.TarWriter(file, encoder=False, keep_meta=True, mtime=0, mode=0o644, user="", group="")
    tar.tarstream.format = tarfile.GNU_FORMAT  # which TarWriter takes, but does not pass on
    for key, files in photos.items():
        tar.write({"__key__": key} | {extension: path.read_bytes() for extension, path in files.items()})
    tar.close()
    file.sync()


def _check_images(photos: Photos) -> None:
    """By their headers; the cache command decodes them and quarantines what is damaged behind its header."""
    problems = []
    for files in photos.values():
        sizes: dict[str, tuple[int, int]] = {}
        for extension, path in files.items():
            if extension in (*IMAGE_EXTENSIONS, *PAIRED_MEMBERS, "mask.png"):
                try:
                    sizes[extension] = image_size(path.read_bytes())
                except (SampleError, OSError) as error:
                    problems.append(f"{path}: {error}")
        picture = next((size for name, size in sizes.items() if name in IMAGE_EXTENSIONS), None)
        for name in ("mask.png", *PAIRED_MEMBERS):
            if name in sizes and picture not in (None, sizes[name]):
                (height, width), what = sizes[name], name.partition(".")[0]
                problems.append(
                    f"{files[name]}: the {what} is {height} high and {width} wide, its image is of another size"
                )
    if problems:
        more = f" … and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise SampleError(f"pack: mend these or move them out: {'; '.join(problems[:10])}{more}")
