"""The catalogue: every command's flags and their help as plain data, so that neither help nor a misspelt flag has to
wait for what a command imports.

It is written from the settings themselves by `python -m inpaint_data.commands.catalogue`; a test holds both equal.
"""

import inspect
import json
from pathlib import Path
from typing import Any

from inpaint_data.commands.words import Flags

FILE = Path(__file__).with_name("catalogue.json")


def shipped() -> dict[str, Any]:
    """Command -> its entry."""
    entries: dict[str, Any] = json.loads(FILE.read_bytes())
    return entries


def flags_of(entry: dict[str, Any]) -> Flags:
    """The flags that an entry lists."""
    listed = entry["flags"]
    places = {name: tuple(place) for name, place in listed["places"].items()}
    return Flags(places, set(listed["switches"]), set(listed["lists"]), listed["open"], listed["positional"])


def entry_of(reader: Any) -> dict[str, Any]:
    """What the catalogue says of a command, by the reader of its settings."""
    from inpaint_data.commands.settings import CONFIG, FOR  # not for who reads the catalogue: it imports pydantic

    flags = reader.flags()
    first = [CONFIG, *([FOR] if reader.takes_model else [])]
    own = [setting for setting in reader.settings if len(setting.place) == 1]
    groups = [["", "", [_option(reader, setting) for setting in (*first, *own)]]]
    for name, kind in reader.groups.items():
        options = [_option(reader, setting) for setting in reader.settings if setting.place[0] == name]
        groups.append([f"{name}: in YAML below `{name}:`", (inspect.getdoc(kind) or "").splitlines()[0], options])
    return {
        "text": reader.text,
        "flags": {
            "places": {name: list(place) for name, place in flags.places.items()},
            "switches": sorted(flags.switches),
            "lists": sorted(flags.lists),
            "open": flags.open,
            "positional": list(flags.positional),
        },
        "help": groups,
    }


def _option(reader: Any, setting: Any) -> dict[str, Any]:
    """What help says of a setting."""
    from inpaint_data.commands.settings import CONFIG

    default = default_of(setting)
    option = {"name": setting.name, "text": text_of(setting) + (f" (default: {default})" if default else "")}
    if setting.name in reader.positional:
        return option | {"positional": True, "required": setting.required}
    if setting.is_switch:
        return option | {"switch": True}
    return option | {"takes": "FILE" if setting == CONFIG else setting.place[-1].upper()}


def text_of(setting: Any) -> str:
    """What a setting is, with the choices that its text does not name."""
    text: str = setting.text
    if setting.choices and not setting.is_switch and any(f'"{name}"' not in text for name in setting.choices):
        text += f"{'' if text.endswith('.') else '.'} Choices: {', '.join(setting.choices)}."
    return text


def default_of(setting: Any) -> str:
    """A plain default as text; "" for none, and for what says nothing."""
    default = setting.default
    plain = isinstance(default, str | int | float) and default not in (False, "")
    return str(default) if plain else ""


def write() -> None:
    """Write the catalogue anew."""
    from inpaint_data.commands.main import COMMANDS, reader_of

    entries = {name: entry_of(reader_of(name)) for name in COMMANDS}
    FILE.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    write()
