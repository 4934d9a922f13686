"""The command `inpaint-data`."""

import logging
import sys
import warnings
from argparse import SUPPRESS, ArgumentError
from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]
from PIL.Image import DecompressionBombWarning

from inpaint_data.commands.demo import run_demo
from inpaint_data.commands.masks import mask_sheet
from inpaint_data.commands.pack import pack
from inpaint_data.commands.settings import OF_A_JOB, explain, with_checked_files, with_objects
from inpaint_data.commands.sheet import contact_sheet
from inpaint_data.commands.statistics import mask_statistics
from inpaint_data.commands.statistics_report import check_png, draw_statistics, statistics_table
from inpaint_data.errors import InpaintDataError, UsageError
from inpaint_data.job.audit import verify_cache
from inpaint_data.job.caching import cache_latents
from inpaint_data.job.interrupts import Interrupted, interruptible
from inpaint_data.job.progress import Summary
from inpaint_data.latent_cache.indexing import index_cache
from inpaint_data.latent_cache.repair import repair_cache


def verify(
    root: str, deep: bool = False, against: str | list[str] | None = None, vae: str = "demo", json: bool = False
) -> None:
    """Print what is wrong with a cache, and exit 1 if anything is.

    Args:
        root: the cache's folder.
        deep: also encode some pictures again and compare; needs `against`.
        against: the input shards: every sample of theirs must be cached or quarantined.
        vae: the autoencoder for `deep`: a hub name, a folder, a .safetensors file, or demo.
        json: print one JSON object instead.
    """
    found = verify_cache(root, deep, against, vae)
    if not json:
        sys.stderr.write("".join(f"{problem}\n" for problem in found.problems))
    sys.stdout.write(f"{found.to_json() if json else found.table()}\n")
    if not found.ok:
        sys.exit(1)


def repair(root: str) -> str:
    """Remove what is damaged, and say what."""
    removed = repair_cache(root)
    if not removed:
        return "no shard had to be removed"
    return f"removed {', '.join(removed)}; run the cache command again, it makes just these shards anew"


def index(root: str, vae: str | None = None) -> str:
    """Write the sidecars that a folder of tars lacks, and say for which.

    Args:
        root: the folder with the tars.
        vae: the autoencoder that made the latents; needed where there is no cache.json to say so.
    """
    made = index_cache(root, vae)
    return f"indexed {', '.join(made)}" if made else "every shard has its sidecar"


def stats(
    source: str,
    samples: int = 1000,
    factor: int | None = None,
    json: bool = False,
    png: str | None = None,
    **settings: Any,
) -> str:
    """What `mask_statistics` found, as a table or JSON, and as a picture if asked; what is amiss goes to stderr."""
    if png is not None:
        check_png(png)
    found = mask_statistics(source, samples, factor, **settings)
    sys.stderr.write("".join(f"{warning}\n" for warning in found.warnings()))
    if png is not None:
        draw_statistics(found, png)
    return found.to_json() if json else statistics_table(found)


COMMANDS: dict[str, tuple[Callable[..., Any], str]] = {
    "cache": (cache_latents, "Encode image shards into a cache of latents and masks."),
    "pack": (pack, "Make shards from a folder of photographs."),
    "verify": (verify, "Check a cache: its files, its samples and, if asked, its inputs and autoencoder."),
    "repair": (repair, "Remove damaged shards from a cache, so that the cache command makes them again."),
    "index": (index, "Make the sidecars of a cache of plain tars, so that it can be trained from."),
    "stats": (stats, "Count what masks are like: those of a cache, or those that shards would be cached with."),
    "masks": (mask_sheet, "Draw 64 masks over the demonstration's photographs, as a job would make them."),
    "sheet": (contact_sheet, "Draw a contact sheet of a cache."),
    "demo": (run_demo, "Pack, cache and verify a dozen photographs, and draw a contact sheet."),
}
POSITIONAL = {
    "pack": ("folder", "the folder with the photographs"),
    "verify": ("root", "the cache's folder"),
    "repair": ("root", "the cache's folder"),
    "index": ("root", "the folder with the tars"),
    "stats": ("source", "a cache's folder or URL; or image shards: a brace pattern, a glob, a folder, a URL"),
}
NO_MASK_DEPENDS_ON = {
    "shards", "out", "vae", "fill", "batch_size", "device", "dtype", "storage", "carry_image", "masked_latents",
    "num_workers", "on_bad", "max_bad_fraction", "dry_run",
}  # fmt: skip
UNUSED = {"stats": NO_MASK_DEPENDS_ON, "masks": NO_MASK_DEPENDS_ON | {"target", "upscale", "variants"}}
TARGET = "each sample has a second picture, target.jpg, to be encoded beside the first one"
UPSCALE = "enlarge pictures smaller than the resolution instead of quarantining them"
FLAGS = {  # may stand alone or before true and false
    "cache": {
        "target": TARGET,
        "upscale": UPSCALE,
        "dry_run": "only look: what is to do, and how long it would take by a short probe",
    },
    "verify": {"deep": "also encode some pictures again and compare; needs --against", "json": "print one JSON object"},
    "stats": {"target": TARGET, "upscale": UPSCALE, "json": "print one JSON object"},
}


def parser() -> ArgumentParser:
    description = "Latents and masks for training inpainting models."
    main = ArgumentParser(prog="inpaint-data", description=description, exit_on_error=False)
    commands = main.add_subcommands(required=True, dest="command")
    for name, (function, text) in COMMANDS.items():
        command = ArgumentParser(description=text, exit_on_error=False)
        command.add_argument("--config", action=ActionConfigFile, help="a YAML file with any of the settings below")
        skip: set[str | int] = set()
        if name in POSITIONAL:
            argument, text_of_it = POSITIONAL[name]
            command.add_argument(argument, type=str, help=text_of_it)
            skip.add(argument)
        for flag, text_of_it in FLAGS.get(name, {}).items():
            command.add_argument(f"--{flag}", type=bool, nargs="?", const=True, default=False, help=text_of_it)
            skip.add(flag)
        if name == "cache":  # in Python an autoencoder object may be passed; on the command line it is a name
            command.add_argument(
                "--vae", type=str, default="demo", help="a hub name, a folder, a .safetensors file, or demo"
            )
            skip.add("vae")
        if name in OF_A_JOB:
            add_settings_of_a_job(command, name, skip)
        else:
            command.add_function_arguments(function, as_positional=False, skip=skip, sub_configs=True)
        commands.add_subcommand(name, command, help=text)
    return main


def add_settings_of_a_job(command: ArgumentParser, name: str, skip: set[str | int]) -> None:
    """All that a job's YAML may hold; what decides no mask is taken, and not listed."""
    if name == "stats":
        command.add_argument("--samples", type=int, default=1000, help="how many to look at, evenly spread over all")
        factor = "pixels per latent along each side, for shards; 8 if left out"
        command.add_argument("--factor", type=int | None, default=None, help=factor)
        command.add_argument("--png", type=str | None, default=None, help="also draw the histograms, as this PNG")
    else:
        command.add_argument("--out", type=str, required=True, help="the .png or .jpg to write")
    for setting in sorted(UNUSED[name] - ({"out"} if name == "masks" else set())):
        command.add_argument(f"--{setting}", type=Any, default=None, help=SUPPRESS)
    command.add_function_arguments(
        cache_latents, as_group=False, as_positional=False, skip=skip | UNUSED[name], sub_configs=True
    )
    if name == "masks":
        command.set_defaults(masks="mixture")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; exits 0, or 1 for failed data, 2 for settings that cannot work, 128 + the signal."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    warnings.simplefilter("ignore", DecompressionBombWarning)  # our own limit is lower, and its error has the key
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        arguments = with_checked_files(arguments)
        given = parser().parse_args(arguments)
    except UsageError as error:
        sys.stderr.write(f"inpaint-data: {error}\n")
        sys.exit(error.exit_code)
    except ArgumentError as error:
        sys.stderr.write(f"inpaint-data: {explain(str(error), arguments)}; see --help\n")
        sys.exit(UsageError.exit_code)
    function, _ = COMMANDS[given.command]
    try:
        settings = with_objects(given[given.command].as_dict(), arguments)
        settings = {name: value for name, value in settings.items() if value is not None and name != "config"}
        if given.command in OF_A_JOB:
            settings = of_the_masks(given.command, settings)
        with interruptible():
            show(function(**settings))
    except InpaintDataError as error:
        summary = getattr(error, "summary", None)
        if summary is not None:
            show(summary)
        sys.stderr.write(f"inpaint-data {given.command}: {error}\n")
        sys.exit(error.exit_code)
    except Interrupted as interrupted:
        sys.stderr.write(f"\n{interrupted}: what was finished is kept; the same command goes on with the rest\n")
        sys.exit(interrupted.exit_code)


def of_the_masks(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that were given, without those of a job that decide no mask."""
    job = signature(cache_latents).parameters
    own = ("out", "masks") if name == "masks" else ()
    return {
        each: value
        for each, value in settings.items()
        if each in own or each not in job or (each not in UNUSED[name] and value != job[each].default)
    }


def show(result: object) -> None:
    """Print what a command gives back, if anything."""
    if result is None:
        return
    if isinstance(result, Summary):
        lines = [result.table()]
    elif isinstance(result, list):
        lines = [str(Path(each)) for each in result]
    else:
        lines = [str(result)]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
