"""The command `inpaint-data`."""

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]

from inpaint_data.caching import Summary, cache_latents
from inpaint_data.demo import run_demo
from inpaint_data.errors import InpaintDataError
from inpaint_data.latent_cache.verify import verify_cache
from inpaint_data.pack import pack
from inpaint_data.report import contact_sheet

COMMANDS: dict[str, tuple[Callable[..., Any], str]] = {
    "cache": (cache_latents, "Encode image shards into a cache of latents and masks."),
    "pack": (pack, "Make shards from a folder of photographs."),
    "verify": (verify_cache, "Check every file of a cache against its sidecar."),
    "sheet": (contact_sheet, "Draw a contact sheet of a cache."),
    "demo": (run_demo, "Pack, cache and verify a dozen photographs, and draw a contact sheet."),
}
POSITIONAL = {"pack": ("folder", "the folder with the photographs"), "verify": ("root", "the cache's folder")}


def parser() -> ArgumentParser:
    main = ArgumentParser(prog="inpaint-data", description="Latents and masks for training inpainting models.")
    commands = main.add_subcommands(required=True, dest="command")
    for name, (function, text) in COMMANDS.items():
        command = ArgumentParser(description=text)
        command.add_argument("--config", action=ActionConfigFile, help="a YAML file with any of the settings below")
        skip: set[str | int] = set()
        if name in POSITIONAL:
            argument, text_of_it = POSITIONAL[name]
            command.add_argument(argument, type=str, help=text_of_it)
            skip.add(argument)
        if name == "cache":  # in Python an autoencoder object may be passed; on the command line it is a name
            command.add_argument(
                "--vae", type=str, default="demo", help="a hub name, a folder, a .safetensors file, or demo"
            )
            skip.add("vae")
        command.add_function_arguments(function, as_positional=False, skip=skip)
        commands.add_subcommand(name, command, help=text)
    return main


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; exits 0, or 1 for failed data, 2 for settings that cannot work, 130 when interrupted."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    given = parser().parse_args(arguments)
    settings = given[given.command].as_dict()
    settings.pop("config", None)
    function, _ = COMMANDS[given.command]
    try:
        show(function(**settings))
    except InpaintDataError as error:
        summary = getattr(error, "summary", None)
        if summary is not None:
            show(summary)
        sys.stderr.write(f"inpaint-data {given.command}: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; finished shards are kept, the same command goes on with the rest\n")
        sys.exit(130)


def show(result: object) -> None:
    """Print what a command gives back."""
    if isinstance(result, Summary):
        lines = [result.table()]
    elif isinstance(result, dict):
        lines = [", ".join(f"{value} {name}" for name, value in result.items())]
    elif isinstance(result, list):
        lines = [str(Path(each)) for each in result]
    else:
        lines = [str(result)]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
