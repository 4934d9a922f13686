"""Drawing helpers: text on sheets and charts, and saving them."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from inpaint_data.errors import UsageError
from inpaint_data.shards.stores import file_here
from inpaint_data.shown import shown

INK, PAPER, MARGIN, LINE = (20, 20, 20), (250, 250, 250), 8, 22


def draw_text(image: Image.Image, place: tuple[float, float], text: str, size: int = 14) -> None:
    """Draw `text` with its upper left corner at `place` (x, y)."""
    ImageDraw.Draw(image).text(place, shown(text), INK, ImageFont.load_default(size))


def text_width(text: str, size: int = 14) -> float:
    return float(ImageFont.load_default(size).getlength(text))


def check_suffix(setting: str, out: str, suffixes: tuple[str, ...]) -> None:
    """Raises UsageError unless `out` ends in one of `suffixes`, before anything is computed for it."""
    if Path(out).suffix.lower() not in suffixes:
        raise UsageError(
            f"{setting}: {out} does not end in {' or '.join(suffixes)}, which this writes; give it that suffix"
        )


def save(image: Image.Image, setting: str, out: str) -> str:
    """Write the image in the format that the suffix of `out` names, and return its path.

    Raises:
        UsageError: it cannot be written; the error begins with `setting`.
    """
    path = file_here(out, setting)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() == ".png":
            image.save(path)
        else:
            image.save(path, quality=40, optimize=True, progressive=True)
    except OSError as error:
        raise UsageError(f"{setting}: cannot write {path} ({error.strerror or error})") from None
    return str(path)
