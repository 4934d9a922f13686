"""How a command's settings are read from flags and YAML files, and refused in one line."""

import re
from ast import literal_eval
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from inpaint_data.encoding.presets import Preset
from inpaint_data.errors import UsageError
from inpaint_data.masks.mixture import MaskMixture
from inpaint_data.masks.offsets import RandomOffset
from inpaint_data.masks.soft_border import SoftBorder
from inpaint_data.pictures.filters import Filters

OF_A_JOB = ("stats", "masks")  # commands that take the settings of a caching job, to make the masks that it would make
OBJECTS: dict[str, type] = {
    "mixture": MaskMixture,
    "soft": SoftBorder,
    "filters": Filters,
    "mask_offset": RandomOffset,
    "preset": Preset,
}
FILES = (".yaml", ".yml", ".json")


def with_checked_files(arguments: Sequence[str]) -> list[str]:
    """The arguments with every `--config FILE` looked at, and one that holds a mixture alone put as `--mixture FILE`.

    Raises:
        UsageError: a file that is not there, is no YAML, sets nothing, or is a mixture where a job is asked for.
    """
    checked = [part for each in arguments for part in (each.split("=", 1) if each.startswith("--config=") else [each])]
    for place, (flag, file) in enumerate(pairwise(checked)):
        if flag != "--config":
            continue
        content = read_settings(file)
        if "weights" not in content and not set(content) <= {each.name for each in fields(MaskMixture)}:
            continue
        if checked[0] in OF_A_JOB:
            checked[place : place + 2] = ["--masks=mixture", f"--mixture={file}"]
        elif checked[0] == "cache":
            raise UsageError(
                f"{file}: is a mixture, not the settings of a job; give it as --mixture {file}, with --masks mixture"
            )
    return checked


def read_settings(file: str) -> dict[str, Any]:
    """What a YAML file of settings holds.

    Raises:
        UsageError: it is not there, is no YAML, or sets nothing.
    """
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"config: no such file: {file}; correct the name") from None
    except OSError as error:
        raise UsageError(f"config: cannot read {file!r} ({error.strerror}); name a YAML file") from None
    except (ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{file}: is no YAML: {' '.join(str(error).split())}; correct it there") from None
    if not isinstance(content, dict) or all(value is None for value in content.values()):
        raise UsageError(f"{file}: sets nothing; write a line `name: value` for each setting")
    for name in content:
        if not isinstance(name, str) or name == "config":
            raise UsageError(f"{file}: there is no setting {name!r}; take the line out")
        # The parser passes over what is unknown and an empty mapping.
        if content[name] == {}:
            raise UsageError(f"{file}: {name}: is empty; take the line out")
        known = [each.name for each in fields(OBJECTS[name])] if name in OBJECTS else []
        if isinstance(content[name], dict) and known and (unknown := set(content[name]) - set(known)):
            raise UsageError(
                f"{file}: {name}: there is no setting {min(unknown, key=str)!r}; it takes {', '.join(known)}"
            )
    return content


def with_objects(settings: dict[str, Any], arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Objects in place of their fields, as a YAML has them; our own errors say more than the parser's.

    Raises:
        UsageError: an object cannot be made of its fields; the message begins with the file they stand in, if any.
    """
    for name, kind in OBJECTS.items():
        given = settings.get(name)
        if isinstance(given, str) and given.startswith("{"):  # the parser takes a preset that cannot be for a name
            with suppress(yaml.YAMLError):
                given = yaml.safe_load(given)
        if not isinstance(given, dict):
            continue
        given.pop("__path__", None)  # where a file was named
        known = [each.name for each in fields(kind)]
        try:
            if unknown := [each for each in given if each not in known]:
                raise UsageError(f"{name}: there is no setting {unknown[0]!r}; it takes {', '.join(known)}")
            settings[name] = kind(**given)
        except UsageError as error:
            raise UsageError(f"{origin(name, arguments)}{error}") from None
    return settings


def explain(complaint: str, arguments: Sequence[str]) -> str:
    """The parser's complaint in one line, with the setting, the value and, where it stands there, the YAML file."""
    text = " ".join(complaint.split())
    key, value = re.match(r'Parser key "(.+?)"', text), re.match(r".*(?:Got|Given) value: ?(.*)$", text)
    absent = re.search(r"Expected a path but (\S+\.(?:ya?ml|json)) either not accessible", text)
    text = re.sub(r" - Expected a path but .*? either not accessible or invalid", "", text)
    takes = re.search(r"Subtypes: \[(.*?)\] Errors|Expected an? (.*)\. Got value", text)
    refused = re.search(r"Option '(.+?)' is not accepted", text)
    stranger = re.search(r"does not accept option '(.+?)'", text)
    missing = re.search(r"arguments are required: (?:\w+\.)?(\w+)", text)
    if key and absent:
        text = f"{key[1]}: no such file, or no YAML in it: {absent[1]}"
    elif key and refused:
        text = f"{key[1]}: there is no setting {refused[1]!r}"
    elif key and value and (reason := refusal(key[1], value[1])):
        text = reason
    elif key and value and takes:
        types = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", takes[1] or takes[2]).removeprefix("typing.")
        text = f"{key[1]}: {value[1]!r} is not of the type it takes: {types.removesuffix(', NoneType')}"
    elif missing:
        text = f"{missing[1]}: must be given"
    setting = key or stranger
    return origin(setting[1].split(".")[0], arguments, not absent) + text if setting else text


def refusal(setting: str, value: str) -> str | None:
    """Why an object cannot be made of these fields; the parser only says that it cannot."""
    one = re.fullmatch(r"NestedArg\(key='(.+?)', val=(.*)\)", value)  # of `--mixture.precision box`
    try:
        given = literal_eval(one[2] if one else value)
        if one:
            given = {one[1]: yaml.safe_load(given) if isinstance(given, str) else given}
        with_objects({setting: given})
    except UsageError as error:
        return str(error)
    except (ValueError, SyntaxError, yaml.YAMLError):
        pass
    return None


def origin(setting: str, arguments: Sequence[str], named: bool = True) -> str:
    """The YAML file in which a setting stands, and a colon; nothing where it was given by its flag.

    The last place counts, as for the parser. With `named` it is rather the file that the setting names as its value.
    """
    files = ""
    for argument, following in pairwise((*arguments, "")):
        flag, _, value = argument.partition("=")
        given: Any = None
        if flag.split(".")[0] == f"--{setting}":
            files, given = "", value or following
        elif flag == "--config":
            content = {key.split(".")[0]: each for key, each in read_settings(following).items()}
            if setting in content:
                files, given = f"{following}: ", content[setting]
        if named and isinstance(given, str) and given.endswith(FILES):
            files = f"{given}: "
    return files
