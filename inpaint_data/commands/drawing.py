"""How a picture for a person is lettered and saved."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from inpaint_data.errors import UsageError

INK, PAPER, MARGIN, LINE = (20, 20, 20), (250, 250, 250), 8, 22


def write(picture: Image.Image, place: tuple[float, float], text: str, size: int = 14) -> None:
    """Letter `text` with its upper left corner at `place` (x, y)."""
    ImageDraw.Draw(picture).text(place, text, INK, ImageFont.load_default(size))


def text_width(text: str, size: int = 14) -> float:
    return float(ImageFont.load_default(size).getlength(text))


def check_suffix(setting: str, out: str, suffixes: tuple[str, ...]) -> None:
    """Raises UsageError unless `out` ends in one of `suffixes`, before anything is computed for it."""
    if Path(out).suffix.lower() not in suffixes:
        raise UsageError(f"{setting}: {out} does not end in {' or '.join(suffixes)}, which this writes; name it so")


def save(picture: Image.Image, setting: str, out: str) -> str:
    """Write the picture as the suffix of `out` says, and return its path.

    Raises:
        UsageError: it cannot be written; `setting` is what named it.
    """
    path = Path(out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() == ".png":
            picture.save(path)
        else:
            picture.save(path, quality=40, optimize=True, progressive=True)
    except OSError as error:
        raise UsageError(f"{setting}: cannot write {path} ({error.strerror or error})") from None
    return str(path)
