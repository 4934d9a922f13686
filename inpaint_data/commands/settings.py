"""Command line: settings read from flags and YAML files, and refused in one line.

All of it comes from the signature of the command's function: a parameter that is a group of `Settings` gives a flag for
each setting in it, any other parameter a flag of its own. A YAML file has the same tree.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from docstring_parser import parse as parse_docstring
from pydantic import TypeAdapter, ValidationError

from inpaint_data.commands.words import Flags, Place, as_boolean
from inpaint_data.commands.yaml_files import SETS_NOTHING, load_yaml, read_file
from inpaint_data.encoding.models import MODELS
from inpaint_data.errors import UsageError
from inpaint_data.masks.mixture import MaskMixture
from inpaint_data.settings import Choices, Flag, Settings, reason_of
from inpaint_data.shards.stores import local_path
from inpaint_data.shown import meant

FILES = (".yaml", ".yml", ".json")
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
    choices: tuple[str, ...] = ()

    @property
    def takes_text(self) -> bool:
        """True if a flag's value is taken as it stands, and not as YAML."""
        return all(kind is Any or kind is str or _is_text_literal(kind) for kind in _alternatives(self.kind))

    @property
    def may_be_text(self) -> bool:
        return str in _alternatives(self.kind)

    @property
    def is_switch(self) -> bool:
        return _alternatives(self.kind) == [bool]

    @property
    def may_be_list(self) -> bool:
        return any(get_origin(kind) in (list, tuple) for kind in _alternatives(self.kind))

    @property
    def fields(self) -> list[str]:
        """The fields of its object, if it is one; each may be set by a flag of its own."""
        return [field.name for kind in _alternatives(self.kind) if is_dataclass(kind) for field in fields(kind)]


CONFIG = Setting(("config",), "config", str, "a YAML file with any of the settings below", "")
FOR = Setting(
    ("for",),
    "for",
    str,
    "the model to be trained: sets its autoencoder, sizes, dtype and recipe, where they are not given",
    None,
    choices=tuple(MODELS),
)


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
            kind = parameter.annotation
            settings.append(Setting((name,), name, kind, texts.get(name, ""), default, required, _choices(kind)))
    return settings


def settings_of_group(name: str, kind: type[Settings]) -> list[Setting]:
    """The settings of one group."""
    settings = []
    for field, info in kind.model_fields.items():
        flag = next((item.name for item in info.metadata if isinstance(item, Flag)), field)
        text = " ".join((info.description or "").split())
        named = next((item.names for item in info.metadata if isinstance(item, Choices)), _choices(info.annotation))
        default = info.get_default(call_default_factory=True)
        settings.append(Setting((name, field), flag, info.annotation, text, default, choices=named))
    return settings


class Reader:
    """Reads the settings of one command.

    Args:
        command: its name.
        function: the function that runs it.
        text: one line for its help.
        positional: the parameters that need no flag.
        ignored: settings that a job's YAML may hold and this command does not use.
    """

    def __init__(
        self,
        command: str,
        function: Callable[..., Any],
        text: str,
        positional: Sequence[str] = (),
        ignored: Sequence[str] = (),
    ) -> None:
        self.command, self.function, self.positional = command, function, positional
        self.values: dict[Place, Value] = {}
        self.settings = settings_of(function)
        self.by_place = {setting.place: setting for setting in self.settings}
        self.by_name = {setting.name: setting for setting in self.settings}
        self.groups = {
            name: parameter.annotation
            for name, parameter in inspect.signature(function, eval_str=True).parameters.items()
            if _is_group(parameter.annotation)
        }
        self.ignored = set(ignored)
        self.text = text
        self.model = ""  # that the settings are for
        self.note = ""  # what it has set, for a person

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
        for place, raw in self.flags().read(arguments):
            if place == CONFIG.place:
                self._take_file(raw[0])
            elif place == FOR.place:
                self._take_model(raw[0], "")
            else:
                self._take_flag(place, raw)
        self._set_model()
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

    @property
    def takes_model(self) -> bool:
        """Whether `for` sets anything of this command."""
        return any(place in self.by_place for model in MODELS.values() for place in model.settings(""))

    def flags(self) -> Flags:
        """The flags of the command."""
        places: dict[str, Place] = {}
        for setting in (*self.settings, CONFIG, *([FOR] if self.takes_model else [])):
            places |= {setting.name: setting.place, ".".join(setting.place): setting.place}
        return Flags(
            places,
            {setting.name for setting in self.settings if setting.is_switch},
            {setting.name for setting in self.settings if setting.may_be_list},
            {setting.name: setting.fields for setting in self.settings if setting.fields},
            self.positional,
        )

    def _take_model(self, name: Any, file: str) -> None:
        if name not in FOR.choices:
            known = ", ".join(FOR.choices)
            start = f"{file}: " if file else ""
            raise UsageError(f"{start}for: {name!r} is unknown; choose from {known}{meant(name, FOR.choices)}")
        self.model = name

    def _set_model(self) -> None:
        """What the model sets, below all that is given."""
        if not self.model:
            return
        chosen = {
            place: value
            for place, value in MODELS[self.model].settings(self.model).items()
            if place in self.by_place and place not in self.values
        }
        self.values |= {place: Value(value, f"for {self.model}") for place, value in chosen.items()}
        said = ", ".join(f"{self.by_place[place].name} {value}" for place, value in chosen.items())
        self.note = f"for {self.model}: {said or 'all that it would set is given'}\n"

    def _take_flag(self, place: Place, words: Sequence[str]) -> None:
        raw = words[0]
        setting = self.by_place[place[:2] if place[:2] in self.by_place else place[:1]]
        field_path = place[len(setting.place) :]
        if not field_path:
            values = [_parsed(setting, word) for word in words]
            self._take(setting, values if len(values) > 1 else values[0], "")
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
            elif name == FOR.name and self.takes_model:
                if value is not None:
                    self._take_model(value, file)
            elif (name,) in self.by_place and name not in (*self.positional, *self.ignored):
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
                if (flag := self.by_name.get(field)) is not None and flag.place[0] == name:
                    raise UsageError(f"{file}: {name}: {field!r} is the flag; below {name}: it is {flag.place[1]}")
                hint = "; a list is written [-8, 24]" if isinstance(field, int | float) else meant(field, known)
                takes = f"it takes {', '.join(known)}{hint}"
                raise UsageError(f"{file}: {name}: there is no setting {field!r}; {takes}")
            self._take(self.by_place[name, field], value, file)

    def _where(self, name: object) -> str:
        """Where a setting at the top of a YAML belongs; for an unknown one, which settings there are."""
        setting = self.by_name.get(name) if isinstance(name, str) else None
        if setting is not None and len(setting.place) == 2:
            return f"write it as {setting.place[1]} below {setting.place[0]}:"
        names = [*self.groups, *(setting.name for setting in self.settings if len(setting.place) == 1)]
        taken = [name for name in names if name not in self.positional] + [FOR.name] * self.takes_model
        return f"it takes {', '.join(taken)}{meant(name, [*taken, *self.by_name])}"

    def _take(self, setting: Setting, value: Any, file: str) -> None:
        if value is None:  # left empty: the default, or the value set before
            return
        if setting.is_switch and type(value) is int and value in (0, 1):
            value = bool(value)
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


def is_mixture(content: Mapping[Any, Any]) -> bool:
    """True if a YAML file holds a mixture alone, and not the settings of a job."""
    return "weights" in content or set(content) <= {field.name for field in fields(MaskMixture)}


def _sets_something(group: Any) -> bool:
    return any(value is not None for value in group.values()) if isinstance(group, Mapping) else group is not None


def _parsed(setting: Setting, raw: str) -> Any:
    """The value of a flag."""
    if setting.is_switch:
        return _loaded(as_boolean(raw))
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


def _choices(kind: Any) -> tuple[str, ...]:
    """The names that a type takes, if it takes names alone."""
    kinds = _alternatives(kind)
    if kinds == [bool]:
        return ("true", "false")
    return get_args(kinds[0]) if len(kinds) == 1 and _is_text_literal(kinds[0]) else ()


def _is_text_literal(kind: Any) -> bool:
    return get_origin(kind) is Literal and all(isinstance(choice, str) for choice in get_args(kind))
