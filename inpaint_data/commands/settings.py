"""Command line: settings read from flags and YAML files, and refused in one line.

All of it comes from the signature of the command's function: a parameter that is a group of `Settings` gives a flag for
each setting in it, any other parameter a flag of its own. A YAML file has the same tree.
"""

import argparse
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from docstring_parser import parse as parse_docstring
from pydantic import TypeAdapter, ValidationError

from inpaint_data.commands.yaml_files import SETS_NOTHING, load_yaml, read_file
from inpaint_data.errors import UsageError
from inpaint_data.masks.mixture import MaskMixture
from inpaint_data.settings import Flag, Settings, reason_of
from inpaint_data.shards.stores import local_path
from inpaint_data.shown import meant

FILES = (".yaml", ".yml", ".json")
Place = tuple[str, ...]
MIXTURE: Place = ("masks", "mixture")


@dataclass(frozen=True)
class Setting:
    """One setting of a command."""

    place: Place  # in the tree: ("pictures", "resolution"), or ("out",)
    name: str  # of its flag
    kind: Any  # the type it takes
    text: str
    default: Any
    required: bool = False

    @property
    def takes_text(self) -> bool:
        """True if a flag's value is taken as it stands, and not as YAML."""
        return all(kind is Any or kind is str or _is_text_literal(kind) for kind in _alternatives(self.kind))

    @property
    def may_be_text(self) -> bool:
        return str in _alternatives(self.kind)

    @property
    def is_switch(self) -> bool:
        return self.kind is bool

    @property
    def fields(self) -> list[str]:
        """The fields of its object, if it is one; each may be set by a flag of its own."""
        return [field.name for kind in _alternatives(self.kind) if is_dataclass(kind) for field in fields(kind)]


@dataclass(frozen=True)
class Value:
    """The value of a setting, and the YAML file it is from: none where it was a flag."""

    value: Any
    file: str = ""


def settings_of(function: Callable[..., Any]) -> list[Setting]:
    """Every setting of a command, in the order of its function's parameters."""
    described = parse_docstring(inspect.getdoc(function) or "")
    texts = {param.arg_name: " ".join((param.description or "").split()) for param in described.params}
    settings: list[Setting] = []
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        if _is_group(parameter.annotation):
            settings += settings_of_group(name, parameter.annotation)
        else:
            required = parameter.default is parameter.empty
            default = None if required else parameter.default
            settings.append(Setting((name,), name, parameter.annotation, texts.get(name, ""), default, required))
    return settings


def settings_of_group(name: str, kind: type[Settings]) -> list[Setting]:
    """The settings of one group."""
    settings = []
    for field, info in kind.model_fields.items():
        flag = next((item.name for item in info.metadata if isinstance(item, Flag)), field)
        text = " ".join((info.description or "").split())
        settings.append(Setting((name, field), flag, info.annotation, text, info.default))
    return settings


class Reader:
    """Reads the settings of one command.

    Args:
        command: its name.
        function: the function that runs it.
        text: one line for its help.
        positional: the parameters that need no flag.
        ignored: settings that a job's YAML may hold and this command does not use.
        defaults: of settings, where this command has other ones.
    """

    def __init__(
        self,
        command: str,
        function: Callable[..., Any],
        text: str,
        positional: Sequence[str] = (),
        ignored: Sequence[str] = (),
        defaults: Mapping[Place, Any] | None = None,
    ) -> None:
        self.command, self.function, self.positional = command, function, positional
        self.values = {place: Value(value) for place, value in (defaults or {}).items()}
        self.settings = [
            replace(setting, default=self.values[setting.place].value) if setting.place in self.values else setting
            for setting in settings_of(function)
        ]
        self.by_place = {setting.place: setting for setting in self.settings}
        self.by_name = {setting.name: setting for setting in self.settings}
        self.groups = {
            name: parameter.annotation
            for name, parameter in inspect.signature(function, eval_str=True).parameters.items()
            if _is_group(parameter.annotation)
        }
        self.ignored = set(ignored)
        self.text = text

    def read(self, arguments: Sequence[str]) -> dict[str, Any]:
        """The arguments of the command's function.

        Raises:
            UsageError: an unknown setting, or a value that cannot be; the line names the YAML file that it is in.
        """
        try:
            return self._read(arguments)
        except UsageError as error:
            raise self.named(error) from None

    def _read(self, arguments: Sequence[str]) -> dict[str, Any]:
        namespace = self._parser(arguments).parse_args(list(arguments))
        for place, raw in namespace.flags or []:
            if place == ("config",):
                self._take_file(raw)
            else:
                self._take_flag(place, raw)
        result: dict[str, Any] = {}
        for name, kind in self.groups.items():
            values = {place[1]: value.value for place, value in self.values.items() if place[0] == name}
            try:
                result[name] = kind(**values)
            except UsageError as error:
                raise UsageError(str(error), (name, *error.place)) from None
        for setting in self.settings:
            if len(setting.place) == 1:
                if setting.place in self.values:
                    result[setting.name] = self._checked(setting, self.values[setting.place].value)
                elif setting.required:
                    raise UsageError(f"{setting.name}: must be given; see --help")
        return result

    def named(self, error: UsageError) -> UsageError:
        """The error, beginning with the YAML file that its setting is in."""
        places = [error.place[:length] for length in range(len(error.place), 0, -1)]
        first = self.by_name.get(str(error).partition(":")[0])  # errors without a place begin with the setting's name
        if first is not None:
            places.append(first.place)
        file = next((self.values[place].file for place in places if place in self.values), "")
        return UsageError(f"{file}: {error}" if file else str(error))

    def _take_flag(self, place: Place, raw: str) -> None:
        setting = self.by_place[place[:2] if place[:2] in self.by_place else place[:1]]
        field_path = place[len(setting.place) :]
        if not field_path:
            self._take(setting, _parsed(setting, raw), "")
            return
        previous = self.values.get(setting.place)
        tree: dict[str, Any] = dict(previous.value) if previous and isinstance(previous.value, Mapping) else {}
        inner = tree
        for name in field_path[:-1]:
            inner[name] = dict(inner.get(name) or {})
            inner = inner[name]
        inner[field_path[-1]] = _loaded(raw)
        self.values[setting.place] = Value(tree, "")

    def _take_file(self, file: str) -> None:
        content = read_file(file)
        if is_mixture(content):
            if MIXTURE not in self.by_place or self.command == "cache":
                raise UsageError(
                    f"{file}: is a mixture, not the settings of a job; give it as --mixture {file}, with --masks "
                    "mixture"
                )
            self.values[MIXTURE] = Value(content, file)
            self.values["masks", "source"] = Value("mixture", file)
            return
        groups = [content[name] for name in content if name in self.groups]
        if len(groups) == len(content) and not any(_sets_something(group) for group in groups):
            raise UsageError(f"{file}: {SETS_NOTHING}")
        for name, value in content.items():
            if name in self.groups:
                self._take_group(name, value, file)
            elif (name,) in self.by_place and name not in self.positional:
                self._take(self.by_place[name,], value, file)
            elif name not in self.ignored:
                raise UsageError(f"{file}: there is no setting {name!r}; {self._where(name)}")

    def _take_group(self, name: str, content: Any, file: str) -> None:
        if content is None:
            return
        if not isinstance(content, Mapping):
            advice = self._where(name) if name in self.by_name else "write one setting a line below it"
            raise UsageError(f"{file}: {name}: {content!r} is not a mapping of settings; {advice}")
        for field, value in content.items():
            if (name, field) not in self.by_place:
                known = [place[1] for place in self.by_place if place[0] == name]
                takes = f"it takes {', '.join(known)}{meant(field, known)}"
                raise UsageError(f"{file}: {name}: there is no setting {field!r}; {takes}")
            self._take(self.by_place[name, field], value, file)

    def _where(self, name: object) -> str:
        """Where a setting at the top of a YAML belongs; for an unknown one, which settings there are."""
        setting = self.by_name.get(name) if isinstance(name, str) else None
        if setting is not None and len(setting.place) == 2:
            return f"write it as {setting.place[1]} below {setting.place[0]}:"
        names = [*self.groups, *(setting.name for setting in self.settings if len(setting.place) == 1)]
        taken = [name for name in names if name not in self.positional]
        return f"it takes {', '.join(taken)}{meant(name, [*taken, *self.by_name])}"

    def _take(self, setting: Setting, value: Any, file: str) -> None:
        if value is None:  # left empty: the default, or the value set before
            return
        self.values[setting.place] = Value(value, file)
        if value == {}:
            raise UsageError(f"{setting.name}: {value!r} is empty; leave it out", setting.place)
        if setting.fields and isinstance(value, str) and value.endswith(FILES):
            path = str(local_path(file).parent / local_path(value))  # relative to the file that names it
            self.values[setting.place] = Value(read_file(path, setting.name), path)

    def _checked(self, setting: Setting, value: Any) -> Any:
        """The value of a parameter, of the type that it takes."""
        try:
            return TypeAdapter(setting.kind).validate_python(value, strict=True)
        except ValidationError as error:
            reason = reason_of(error.errors(include_url=False)[0])
            if any(get_origin(kind) is list for kind in _alternatives(setting.kind)):
                reason += " or a list of them"
            raise UsageError(f"{setting.name}: {value!r} {reason}", setting.place) from None

    def _parser(self, arguments: Sequence[str]) -> argparse.ArgumentParser:
        parser = _Parser(
            prog=f"inpaint-data {self.command}", description=self.text, formatter_class=_Help, allow_abbrev=False
        )
        parser.add_argument(
            "--config",
            action=_Record,
            place=("config",),
            metavar="FILE",
            help="a YAML file with any of the settings below",
        )
        for setting in self.settings:
            if len(setting.place) == 1:
                self._add(parser, setting)
        for name, kind in self.groups.items():
            title = f"{name}: in YAML below `{name}:`"
            group = parser.add_argument_group(title, (inspect.getdoc(kind) or "").splitlines()[0])
            for setting in self.settings:
                if setting.place[0] == name:
                    self._add(group, setting)
                    parser.add_argument(
                        f"--{'.'.join(setting.place)}", action=_Record, place=setting.place, help=argparse.SUPPRESS
                    )
        for flag, place in self._field_flags(arguments).items():
            parser.add_argument(flag, action=_Record, place=place, help=argparse.SUPPRESS)
        return parser

    def _add(self, parser: Any, setting: Setting) -> None:
        default = "" if setting.default in (None, False, "", ()) or not _is_plain(setting.default) else setting.default
        text = setting.text + (f" (default: {default})" if default != "" else "")
        options: dict[str, Any] = {"action": _Record, "place": setting.place, "help": text.replace("%", "%%")}
        if setting.is_switch:
            options |= {"nargs": "?", "const": "true", "metavar": "true|false"}
        else:
            options |= {"metavar": setting.place[-1].upper()}
        if setting.name in self.positional:
            parser.add_argument(setting.name, **(options | {"metavar": setting.name}))
        else:
            parser.add_argument(f"--{setting.name}", **options)

    def _field_flags(self, arguments: Sequence[str]) -> dict[str, Place]:
        """The flags that set a field of an object, such as `--mixture.precision`, among the arguments."""
        flags: dict[str, Place] = {}
        for argument in arguments:
            match = re.match(r"--([\w.-]+)", argument)
            names = match[1].split(".") if match else []
            setting = self.by_name.get(names[0]) if len(names) > 1 else None
            if setting is not None and setting.fields:
                flags[f"--{'.'.join(names)}"] = (*setting.place, *names[1:])
        return flags


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        flag = re.match(r"unrecognized arguments: (--[\w.-]+)", message)
        hint = meant(flag[1], self._option_string_actions) if flag else ""
        raise UsageError(f"{message}{hint}; see --help")


class _Help(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=110)


class _Record(argparse.Action):
    """Records all flags in their order: later ones count."""

    def __init__(self, place: Place, **options: Any) -> None:
        super().__init__(**(options | {"dest": "flags"}))
        self.place = place

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:  # noqa: ARG002
        namespace.flags = [*(namespace.flags or []), (self.place, str(values))]


def is_mixture(content: Mapping[Any, Any]) -> bool:
    """True if a YAML file holds a mixture alone, and not the settings of a job."""
    return "weights" in content or set(content) <= {field.name for field in fields(MaskMixture)}


def _sets_something(group: Any) -> bool:
    return any(value is not None for value in group.values()) if isinstance(group, Mapping) else group is not None


def _parsed(setting: Setting, raw: str) -> Any:
    """The value of a flag."""
    if setting.takes_text or (setting.may_be_text and not raw.lstrip().startswith("[")):
        return raw
    return _loaded(raw)


def _loaded(raw: str) -> Any:
    try:
        return load_yaml(raw)
    except yaml.YAMLError:
        return raw


def _is_group(annotation: Any) -> bool:
    return inspect.isclass(annotation) and issubclass(annotation, Settings)


def _alternatives(kind: Any) -> list[Any]:
    """The types of a union, without None."""
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return [member for member in members if member is not NoneType]


def _is_text_literal(kind: Any) -> bool:
    return get_origin(kind) is Literal and all(isinstance(choice, str) for choice in get_args(kind))


def _is_plain(default: Any) -> bool:
    return isinstance(default, str | int | float | bool)
