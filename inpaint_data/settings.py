"""How settings are declared, checked, and named in an error.

A group of settings is a class of `Settings`; a setting is one line of it: its type, its range, its default, and its
text below. Command line, YAML, Python, `--help` and errors take all of it from there.

Built on pydantic: its errors are data (a code, a place, the value), so no sentence of another library is ever read or
passed on. A class of its own for each group, not a dict, is what lets a setting that somebody gave be told from one
that was left out (`given`).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError

from inpaint_data.errors import UsageError
from inpaint_data.shown import meant

G = TypeVar("G", bound="Settings")
T = TypeVar("T")
MOST = 2**16  # samples of a batch, variants of a sample, workers
Count = Annotated[int, Field(ge=1, le=MOST)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


@dataclass(frozen=True)
class Flag:
    """The short name of a setting on the command line, where it is not the setting's own."""

    name: str


@dataclass(frozen=True)
class Choices:
    """The names that a setting takes, where its type does not say them."""

    names: tuple[str, ...]


def spelled(names: Mapping[str, str]) -> BeforeValidator:
    """How pydantic takes other spellings of a setting's names: spelling -> name."""
    return BeforeValidator(lambda value: names.get(value, value) if isinstance(value, str) else value)


class Settings(BaseModel):
    """A frozen group of settings. Fields may be given by position or name, each of the type that it says.

    Raises:
        UsageError: one line that names the setting, its value and what it takes; `place` is where it stands.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, arbitrary_types_allowed=True
    )
    group: ClassVar[str] = ""  # what the whole group is called in an error

    def __init__(self, *values: Any, **given: Any) -> None:
        names = list(type(self).model_fields)
        if len(values) > len(names):
            raise UsageError(f"{type(self).__name__} has {len(names)} settings, not {len(values)}")
        try:
            super().__init__(**dict(zip(names, values, strict=False)), **given)
        except ValidationError as error:
            raise usage_error(error, type(self)) from None

    @property
    def given(self) -> dict[str, Any]:
        """The settings that were given, with their values; the others are at their defaults."""
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}

    def but(self: G, **changes: Any) -> G:
        """The same settings with some of them changed, and checked again."""
        return type(self)(**(self.given | changes))


def group_of(kind: type[G], settings: G | Mapping[str, Any] | None) -> G:
    """The group that a Python object, a YAML mapping, or nothing at all stands for.

    Raises:
        UsageError: it stands for none.
    """
    if isinstance(settings, kind):
        return settings
    if settings is None:
        return kind()
    if not isinstance(settings, Mapping) or not all(isinstance(name, str) for name in settings):
        raise UsageError(
            f"{kind.group}: {settings!r} is not a mapping of settings; give a {kind.__name__}", place=(kind.group,)
        )
    try:
        # A setting left empty in a YAML is left out.
        return kind(**{name: value for name, value in settings.items() if value is not None})
    except UsageError as error:
        raise UsageError(str(error), place=(kind.group, *error.place)) from None


def built(kind: type[Any]) -> PlainValidator:
    """How pydantic makes a setting that is an object of `kind` or, in YAML and JSON, a mapping of its fields.

    `kind` is a dataclass that checks itself; its own sentences say more than a type could.
    """

    def build(value: Any) -> Any:
        return value if isinstance(value, kind) else built_of(kind, value)

    return PlainValidator(build, json_schema_input_type=dict[str, Any])


def built_of(kind: type[T], value: Any) -> T:
    """An object of `kind`, a dataclass, from a mapping of its fields.

    Raises:
        UsageError: it is not a mapping, has a field that there is not, or `kind` refuses it.
    """
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if not isinstance(value, Mapping):
        pairs = re.fullmatch(r"(\w+) ?= ?([^ =,]+)", value) if isinstance(value, str) else None
        fix = f"write {{{pairs[1]}: {pairs[2]}}}" if pairs else f"give some of {', '.join(known)}"
        raise UsageError(f"{value!r} is not a mapping; {fix}")
    if unknown := [name for name in value if name not in known]:
        raise UsageError(
            f"there is no setting {unknown[0]!r}; it takes {', '.join(known)}{meant(unknown[0], known)}",
            (str(unknown[0]),),
        )
    return kind(**value)


def checked(check: Callable[[Any], Any], kind: Any) -> PlainValidator:
    """How pydantic takes a setting of type `kind` that `check` refuses with a sentence of its own, or returns."""
    return PlainValidator(check, json_schema_input_type=kind)


def member_name(value: Any) -> str | None:
    """The name of a member as samples have it: lower case, all after the first dot of a file's name."""
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip(". ") or "/" in value:
        raise UsageError(f"{value!r} is not a member of a sample; give what follows the key, such as input.jpg")
    return value.strip().removeprefix(".").lower()


def usage_error(error: ValidationError, kind: type[BaseModel]) -> UsageError:
    """The first thing that is wrong, as one line."""
    first = error.errors(include_url=False)[0]
    field = str(first["loc"][0]) if first["loc"] else ""
    shown = short_name(kind, field)
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, UsageError):
        names = (f"{shown}:", f"{shown} ", f"{field}:")
        named = not field or str(cause).startswith(names)
        return UsageError(str(cause) if named else f"{shown}: {cause}", (*([field] if field else []), *cause.place))
    if first["type"] == "extra_forbidden":
        known = kind.model_fields
        return UsageError(f"there is no setting {field!r}; it takes {', '.join(known)}{meant(field, known)}", (field,))
    if first["type"] == "missing":
        return UsageError(f"{shown}: must be given", (field,))
    return UsageError(f"{shown}: {first['input']!r} {reason_of(first)}", (field,))


def reason_of(details: Mapping[str, Any]) -> str:
    """What is wrong with a value, to be said after it, from pydantic's data of an error."""
    reason = REASONS.get(details["type"])
    if reason is None:
        return f"is not of the type it takes ({details['type']})"
    return reason(details.get("ctx", {})) + _fix(details["type"], details["input"], details.get("ctx", {}))


def short_name(kind: type[BaseModel], field: str) -> str:
    """What a setting is called on the command line, and in errors."""
    metadata = kind.model_fields[field].metadata if field in kind.model_fields else []
    return next((mark.name for mark in metadata if isinstance(mark, Flag)), field)


def _choices(context: Mapping[str, Any]) -> str:
    return f"is unknown; choose from {_named(context)}"


def _named(context: Mapping[str, Any]) -> str:
    return str(context["expected"]).replace("'", "").replace(" or ", ", ")


def _fix(kind: str, value: Any, context: Mapping[str, Any]) -> str:
    """What to give in place of a value, as the end of an error; "" where nothing near can be named."""
    if kind == "literal_error":
        return meant(value, _named(context).split(", "))
    if kind == "bool_type":
        return "; write true or false"
    digits = re.fullmatch(r"([-+]?[0-9][0-9,_ ]*)(\.0*)? ?(px|%)?,?", str(value)[:40])
    number = int(re.sub("[,_ ]", "", digits[1])) if digits else None
    if kind in ("int_type", "int_from_float"):
        return "; give one" if number is None else f"; write {number}"
    if kind == "float_type":
        return f"; write {number / 100:g}" if number is not None and str(value).endswith("%") else "; give one"
    return ""


# By pydantic's documented codes of errors, never by its words.
REASONS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "int_type": lambda _: "is not a whole number",
    "int_from_float": lambda _: "is not a whole number",
    "float_type": lambda _: "is not a number",
    "finite_number": lambda _: "is not a finite number",
    "bool_type": lambda _: "is neither true nor false",
    "string_type": lambda _: "is not a text",
    "literal_error": _choices,
    "greater_than": lambda context: f"is too small; give more than {context['gt']:g}",
    "greater_than_equal": lambda context: f"is too small; give {context['ge']:g} or more",
    "less_than_equal": lambda context: f"is too large; give at most {context['le']:g}",
    "mapping_type": lambda _: "is not a mapping of names to values",
    "dict_type": lambda _: "is not a mapping of names to values",
    "tuple_type": lambda _: "is not a list",
    "list_type": lambda _: "is not a list",
}
