"""The command `inpaint-data`: a table of its commands, and how one is run."""

import importlib
import logging
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import inpaint_data
from inpaint_data.commands.catalogue import flags_of, shipped
from inpaint_data.commands.help import help_of
from inpaint_data.commands.outcome import RUNNING
from inpaint_data.encoding.models import MODELS
from inpaint_data.errors import InpaintDataError, UsageError
from inpaint_data.job.interrupts import Interrupted, interruptible
from inpaint_data.listener import let_go, tell
from inpaint_data.shown import meant


@dataclass(frozen=True)
class Command:
    """One command. Its function is `run` in the module of its name, which is imported only when the command runs."""

    text: str
    positional: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()  # settings that a job's YAML may hold and this command does not use


# GENERATORS of masks/generators.py, which takes long to import.
DRAWN = (
    "strokes", "boxes", "full", "none", "center", "grid", "outpaint", "polygons", "clouds", "free-form", "mat",
    "mat-256", "comodgan", "comodgan-256", "lama-thin", "lama-medium", "lama-thick", "lama-thin-256", "lama-medium-256",
    "lama-thick-256", "lama-mix", "kohya", "kohya-cloud", "kohya-polygon", "kohya-shape", "kohya-wobbly",
)  # fmt: skip
JOB_ONLY = ("shards", "out", "encode", "text")
COMMANDS = {
    "cache": Command("Encode image shards into a cache of latents and masks."),
    "look": Command(
        "Look at images before anything is encoded: what would be cached, and the command for it.",
        ("source",),
        ("shards", "out", "text"),
    ),
    "pack": Command("Make shards from a folder of images.", ("folder",)),
    "text": Command("Add the text embeddings of captions to shards."),
    "verify": Command("Check a cache: its files, its samples and, if asked, its inputs and autoencoder.", ("root",)),
    "repair": Command("Remove damaged shards from a cache, so that the cache command makes them again.", ("root",)),
    "index": Command(
        "Index image shards, so that training begins at once wherever they lie; or the tars of a cache.", ("source",)
    ),
    "status": Command("Tell how far a cache is, while its job runs or after it.", ("root",)),
    "stats": Command(
        "Count what masks are like: those of a cache, or those that shards would be cached with.",
        ("source",),
        JOB_ONLY,
    ),
    "masks": Command(
        "Draw 64 masks over the demo's images or your own, as a job would make them.", (), ("shards", "encode", "text")
    ),
    "sheet": Command("Draw a contact sheet of a cache."),
    "comfyui": Command("Put the ComfyUI nodes into a folder of custom nodes."),
    "init": Command("Write a job.yaml with every setting of the cache command, to be filled in.", ("file",)),
    "completion": Command("Print the script with which a shell completes this command.", ("shell",)),
    "demo": Command("Pack, cache and verify a dozen images, and draw a contact sheet."),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; exits 0, or 1 for failed data, 2 for settings that cannot work, 128 + the signal."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        code = _main(words)
    finally:
        let_go()
    if code:
        sys.exit(code)


def _main(words: Sequence[str]) -> int:
    """Run the command and say what came of it; returns the exit code."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    if words and words[0] in ("-h", "--help"):
        tell("stdout", overview())
        return 0
    if words and words[0] == "--version":
        tell("stdout", f"inpaint-data {inpaint_data.__version__}\n")
        return 0
    if not words or words[0] not in COMMANDS:
        problem = f"{words[0]!r} is not a command" if words else "a command must be given"
        hint = meant(words[0], COMMANDS) if words else ""
        tell("stderr", f"inpaint-data: {problem}; choose from {', '.join(COMMANDS)}{hint}\n")
        return UsageError.exit_code
    name = words[0]
    RUNNING.set(words)
    entry = shipped()[name]
    if {"-h", "--help"} & set(words[1:]):
        tell("stdout", help_of(name, entry))
        return 0
    try:
        flags_of(entry).read(words[1:])
    except UsageError as error:  # before seconds of importing
        tell("stderr", f"inpaint-data {name}: {error}\n")
        return error.exit_code
    reader = reader_of(name)
    try:
        with interruptible():
            outcome = run_command(reader, words[1:])
    except InpaintDataError as error:
        if error.summary is not None:
            tell("stdout", f"{error.summary.table()}\n")
        message = reader.named(error) if isinstance(error, UsageError) else error
        tell("stderr", f"inpaint-data {name}: {message}\n")
        return error.exit_code
    except Interrupted as interrupted:
        tell("stderr", f"\n{interrupted}: what was finished is kept; the same command resumes with the rest\n")
        return interrupted.exit_code
    tell("stderr", outcome.errors)
    if outcome.text and not tell("stdout", f"{outcome.text}\n"):
        tell("stderr", f"inpaint-data {name}: its output could not be written and is lost\n")
    return int(outcome.code)


def run_command(reader: Any, words: Sequence[str]) -> Any:
    """Read the settings and run."""
    settings = reader.read(words)
    tell("stderr", reader.note)
    return reader.function(**settings)


def reader_of(name: str) -> Any:
    """The reader of a command's settings."""
    from inpaint_data.commands.settings import Reader  # not for an overview: it imports pydantic

    command = COMMANDS[name]
    module = importlib.import_module(f"inpaint_data.commands.{name.replace('-', '_')}")
    return Reader(name, module.run, command.text, command.positional, command.ignored)


def overview() -> str:
    """The help text: all commands, a line each, and the names that their settings take."""
    commands = "\n".join(f"  {name:<12} {command.text}" for name, command in COMMANDS.items())
    return (
        "usage: inpaint-data COMMAND ...\n\nLatents and masks for training inpainting models.\n\n"
        f"{commands}\n\n"
        f"{_listed('masks that are drawn (--masks)', DRAWN)}\n"
        f"{_listed('models and their recipes (--for, --recipe)', MODELS)}\n"
        "exit codes:\n  0 done   1 data failed   2 settings that cannot work   128 + N stopped by signal N\n\n"
        "inpaint-data COMMAND --help lists the settings of a command; README.md begins with three of them.\n"
    )


def _listed(title: str, names: Iterable[str]) -> str:
    listed = textwrap.fill(", ".join(names), 100, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    return f"{title}:\n{listed}\n"


if __name__ == "__main__":
    main()
