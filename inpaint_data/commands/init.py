"""inpaint-data init: a YAML of settings to begin with."""

import textwrap
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

import inpaint_data
from inpaint_data.commands.catalogue import text_of
from inpaint_data.commands.main import reader_of
from inpaint_data.commands.outcome import Outcome
from inpaint_data.commands.settings import FOR, Reader, Setting
from inpaint_data.errors import UsageError
from inpaint_data.masks.presets import PRESETS
from inpaint_data.shards.stores import file_here

Example = Literal[
    "cache_buckets", "cache_demo", "masks_objects", "masks_training", "train_demo", "train_sd15", "train_sdxl"
]
# What nearly every job sets; nothing that `for` sets, which would then change nothing.
FILLED = {
    ("shards",): "shards",
    ("out",): "cache",
    ("masks", "source"): "sample",
    ("job", "variants"): 1,
}
HEAD = """\
# A job: inpaint-data cache --config {file}
# Each setting of the cache command is here with its text; behind a # stands the default.

"""


def run(file: str = "job.yaml", example: Example | None = None) -> Outcome:
    """Write a YAML for the cache command, with every setting, to be filled in.

    Args:
        file: the YAML to write; a file that is there already stays
        example: write this example of the package instead
    """
    path = file_here(file, "file")
    text = _job(path.name) if example is None else (examples() / f"{example}.yaml").read_text(encoding="utf-8")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise UsageError(f"file: {path} is there already; name another one, or remove it") from None
    except OSError as error:
        raise UsageError(f"file: cannot write {path} ({error.strerror}); choose a place you may write to") from None
    if example is not None:
        return Outcome(f"{path}: the lines at its top say how to use it")
    return Outcome(
        f"{path}: correct shards and out in it, name vae or for, then run: inpaint-data cache --config {path}"
    )


def examples() -> Path:
    """The folder of the examples: beside the package in a checkout, within it where it was installed."""
    package = Path(inpaint_data.__path__[0])
    return next(folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir())


def _job(name: str) -> str:
    reader: Reader = reader_of("cache")
    lines: list[str] = []
    for setting in reader.settings:
        if len(setting.place) == 1:
            lines += [*_lines(setting, ""), ""]
    lines += [*_lines(FOR, ""), ""]
    for group, kind in reader.groups.items():
        lines += [f"# {(kind.__doc__ or '').splitlines()[0]}", f"{group}:"]
        for setting in reader.settings:
            if setting.place[0] == group:
                lines += _lines(setting, "  ")
        lines.append("")
    return HEAD.format(file=name) + "\n".join(lines[:-1]) + "\n"


def _lines(setting: Setting, indent: str) -> Iterator[str]:
    """A setting with its text above it."""
    start = f"{indent}# "
    yield from textwrap.wrap(
        text_of(setting), 100, initial_indent=start, subsequent_indent=start, break_on_hyphens=False
    )
    if setting.place in FILLED:
        yield f"{indent}{setting.place[-1]}: {_value(FILLED[setting.place])}"
    else:
        yield f"{indent}# {setting.place[-1]}: {_value(setting.default)}".rstrip()


def _value(value: Any) -> str:
    """A value in one line of YAML; nothing where there is none."""
    name = next((name for name, preset in PRESETS.items() if preset is value), None)
    plain = name or (asdict(value) if is_dataclass(value) and not isinstance(value, type) else value)
    if plain is None:
        return ""
    text: str = yaml.safe_dump(plain, default_flow_style=True, width=10**6, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")
