"""Help of a command: its settings with their texts, choices and defaults, as the catalogue has them."""

import argparse
import textwrap
from collections.abc import Mapping
from typing import Any


def help_of(command: str, entry: Mapping[str, Any]) -> str:
    """The help text of a command, given its entry in the catalogue."""
    parser = argparse.ArgumentParser(
        prog=f"inpaint-data {command}", description=entry["text"], formatter_class=_Layout, allow_abbrev=False
    )
    for title, description, options in entry["help"]:
        group: Any = parser.add_argument_group(title, description) if title else parser
        for option in options:
            _add(group, option)
    return parser.format_help()


def _add(parser: Any, option: Mapping[str, Any]) -> None:
    text = option["text"].replace("%", "%%")
    if "positional" in option:
        count = None if option["required"] else "?"
        parser.add_argument(option["name"], help=text, nargs=count, metavar=option["name"])
    elif "switch" in option:
        parser.add_argument(f"--{option['name']}", help=text, nargs="?", metavar="true|false")
    else:
        parser.add_argument(f"--{option['name']}", help=text, metavar=option["takes"])


class _Layout(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=110)

    def _split_lines(self, text: str, width: int) -> list[str]:
        """Names such as lama-thin stay in one piece."""
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)
