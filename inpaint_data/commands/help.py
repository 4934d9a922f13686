"""Help of a command: its settings with their texts, choices and defaults."""

import argparse
import inspect
import textwrap
from typing import Any

from inpaint_data.commands.settings import CONFIG, FOR, Reader, Setting


def help_of(reader: Reader) -> str:
    """The help text of a command."""
    parser = argparse.ArgumentParser(
        prog=f"inpaint-data {reader.command}", description=reader.text, formatter_class=_Layout, allow_abbrev=False
    )
    for setting in (CONFIG, *([FOR] if reader.takes_model else [])):
        _add(parser, setting)
    for setting in reader.settings:
        if len(setting.place) == 1:
            _add(parser, setting, setting.name in reader.positional)
    for name, kind in reader.groups.items():
        title = f"{name}: in YAML below `{name}:`"
        group = parser.add_argument_group(title, (inspect.getdoc(kind) or "").splitlines()[0])
        for setting in reader.settings:
            if setting.place[0] == name:
                _add(group, setting)
    return parser.format_help()


def text_of(setting: Setting) -> str:
    """What a setting is, with the choices that its text does not name."""
    text = setting.text
    if setting.choices and not setting.is_switch and any(f'"{name}"' not in text for name in setting.choices):
        text += f"{'' if text.endswith('.') else '.'} Choices: {', '.join(setting.choices)}."
    return text


def default_of(setting: Setting) -> str:
    """A plain default as text; "" for none, and for what says nothing."""
    default = setting.default
    plain = isinstance(default, str | int | float) and default not in (False, "")
    return str(default) if plain else ""


def _add(parser: Any, setting: Setting, is_positional: bool = False) -> None:
    default = default_of(setting)
    text = text_of(setting) + (f" (default: {default})" if default else "")
    options: dict[str, Any] = {"help": text.replace("%", "%%")}
    if is_positional:
        parser.add_argument(setting.name, **options, nargs=None if setting.required else "?", metavar=setting.name)
    elif setting.is_switch:
        parser.add_argument(f"--{setting.name}", **options, nargs="?", metavar="true|false")
    else:
        parser.add_argument(
            f"--{setting.name}", **options, metavar="FILE" if setting == CONFIG else setting.place[-1].upper()
        )


class _Layout(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=110)

    def _split_lines(self, text: str, width: int) -> list[str]:
        """Names such as lama-thin stay in one piece."""
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)
