"""The command `inpaint-data`."""

import logging
import re
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]
from PIL.Image import DecompressionBombWarning

from inpaint_data.audit import verify_cache
from inpaint_data.caching import cache_latents
from inpaint_data.demo import run_demo
from inpaint_data.errors import InpaintDataError, UsageError
from inpaint_data.filters import Filters
from inpaint_data.interrupts import Interrupted, interruptible
from inpaint_data.latent_cache.indexing import index_cache
from inpaint_data.latent_cache.repair import repair_cache
from inpaint_data.masks import MaskMixture, offset_from
from inpaint_data.pack import pack
from inpaint_data.progress import Summary
from inpaint_data.report import contact_sheet
from inpaint_data.soft_border import SoftBorder


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


COMMANDS: dict[str, tuple[Callable[..., Any], str]] = {
    "cache": (cache_latents, "Encode image shards into a cache of latents and masks."),
    "pack": (pack, "Make shards from a folder of photographs."),
    "verify": (verify, "Check a cache: its files, its samples and, if asked, its inputs and autoencoder."),
    "repair": (repair, "Remove damaged shards from a cache, so that the cache command makes them again."),
    "index": (index, "Make the sidecars of a cache of plain tars, so that it can be trained from."),
    "sheet": (contact_sheet, "Draw a contact sheet of a cache."),
    "demo": (run_demo, "Pack, cache and verify a dozen photographs, and draw a contact sheet."),
}
POSITIONAL = {
    "pack": ("folder", "the folder with the photographs"),
    "verify": ("root", "the cache's folder"),
    "repair": ("root", "the cache's folder"),
    "index": ("root", "the folder with the tars"),
}
FLAGS = {  # may stand alone or before true and false
    "cache": {
        "target": "each sample has a second picture, target.jpg, to be encoded beside the first one",
        "upscale": "enlarge pictures smaller than the resolution instead of quarantining them",
        "dry_run": "only look: what is to do, and how long it would take by a short probe",
    },
    "verify": {"deep": "also encode some pictures again and compare; needs --against", "json": "print one JSON object"},
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
        command.add_function_arguments(function, as_positional=False, skip=skip)
        commands.add_subcommand(name, command, help=text)
    return main


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; exits 0, or 1 for failed data, 2 for settings that cannot work, 128 + the signal."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    warnings.simplefilter("ignore", DecompressionBombWarning)  # our own limit is lower, and its error has the key
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        given = parser().parse_args(arguments)
    except ArgumentError as error:
        sys.stderr.write(f"inpaint-data: {explain(str(error), arguments)}; see --help\n")
        sys.exit(UsageError.exit_code)
    function, _ = COMMANDS[given.command]
    try:
        settings = with_objects(given[given.command].as_dict())
        settings.pop("config", None)
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


def with_objects(settings: dict[str, Any]) -> dict[str, Any]:
    """Objects in place of their fields, as a YAML has them; our own errors say more than the parser's."""
    if isinstance(mixture := settings.get("mixture"), dict):
        mixture.pop("__path__", None)  # where a file was named
        settings["mixture"] = MaskMixture(**mixture)
    if isinstance(soft := settings.get("soft"), dict):
        soft.pop("__path__", None)
        settings["soft"] = SoftBorder(**soft)
    if isinstance(settings.get("filters"), dict):
        settings["filters"] = Filters(**settings["filters"])
    if isinstance(settings.get("mask_offset"), dict):
        settings["mask_offset"] = offset_from(settings["mask_offset"])
    return settings


def explain(complaint: str, arguments: Sequence[str]) -> str:
    """The parser's complaint in one line, with the setting, the value and, where it stands there, the YAML file."""
    text = " ".join(complaint.split())
    key, value = re.match(r'Parser key "(.+?)"', text), re.search(r"(?:Got|Given) value: (.*)$", text)
    takes = re.search(r"Subtypes: \[(.*?)\] Errors|Expected an? (.*)\. Got value", text)
    if key and value and takes:
        types = re.sub(r"<class '(\w+)'>", r"\1", takes[1] or takes[2]).removeprefix("typing.")
        text = f"{key[1]}: {value[1]!r} is not of the type it takes: {types}"
    from_flag = key and any(argument.startswith(f"--{key[1]}") for argument in arguments)
    config = next((after for flag, after in pairwise(arguments) if flag == "--config"), None)
    return f"{config}: {text}" if config and not from_flag else text


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
