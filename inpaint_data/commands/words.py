"""Words of a command line: which setting each flag means, also where it is spelled in another usual way."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from inpaint_data.errors import UsageError
from inpaint_data.shown import meant

Place = tuple[str, ...]
_BOOLEAN = re.compile("true|false|yes|no|on|off|[01ynYN]", re.IGNORECASE)


@dataclass(frozen=True)
class Flags:
    """The flags that a command has.

    Attributes:
        places: the name of each -> where its setting stands.
        switches: those that need no value.
        lists: those that take several.
        open: those with fields, which flags such as --mixture.precision set -> the names of the fields.
        positional: the settings that need no flag, in their order.
    """

    places: dict[str, Place]
    switches: set[str] = field(default_factory=set)
    lists: set[str] = field(default_factory=set)
    open: dict[str, list[str]] = field(default_factory=dict)
    positional: Sequence[str] = ()

    def read(self, words: Sequence[str]) -> list[tuple[Place, list[str]]]:
        """The settings that the words set, with their values as they were written; in order, for later ones count.

        Raises:
            UsageError: no such flag, one without its value, a list given in two places, or a word too many.
        """
        rest, free = list(words), list(self.positional)
        given: list[tuple[Place, list[str]]] = []
        while rest:
            word = rest.pop(0)
            if not is_flag(word):
                if not free:
                    raise UsageError(f"{word!r} stands behind no flag; {self._where(given)}")
                given.append((self.places[free.pop(0)], [word]))
                continue
            flag, mark, value = word.partition("=")
            name, place = self._named(flag)
            if place[0] in free:
                free.remove(place[0])
            values = [value] if mark else self._values(name, flag, rest, bool(free))
            if name in self.lists and any(place == other for other, _ in given):
                raise UsageError(f"{name}: is given twice; write all of it behind one --{name}")
            given.append((place, values))
        return given

    def _values(self, name: str, flag: str, rest: list[str], has_free: bool) -> list[str]:
        """The values of a flag, taken from the words behind it."""
        if name in self.switches:
            takes = bool(rest) and not is_flag(rest[0]) and (not has_free or bool(_BOOLEAN.fullmatch(rest[0])))
            return [rest.pop(0)] if takes else ["true"]
        if not rest or is_flag(rest[0]):
            raise UsageError(f"{name}: nothing stands behind {flag}; write its value there")
        values = [rest.pop(0)]
        while name in self.lists and not has_free and rest and not is_flag(rest[0]):
            values.append(rest.pop(0))
        return values

    def _named(self, flag: str) -> tuple[str, Place]:
        """The name and the place of a flag; dashes may stand for underscores."""
        name = flag[2:]
        if flag.startswith("--"):
            for spelling in (name, name.replace("-", "_")):
                if spelling in self.places:
                    return spelling, self.places[spelling]
            first, _, inner = name.partition(".")
            first = first.replace("-", "_")
            if inner and first in self.open:
                fields = inner.split(".")
                if fields[0].replace("-", "_") in self.open[first]:
                    fields[0] = fields[0].replace("-", "_")
                return name, (*self.places[first], *fields)
        bare = flag.lstrip("-").removeprefix("no-").removeprefix("no_").replace("-", "_")
        if bare in self.switches:
            raise UsageError(f"there is no flag {flag}; write --{bare}{'' if flag[1:] == bare else ' false'}")
        hint = meant(flag.lstrip("-"), [*self.places, "help"]).replace("mean ", "mean --")
        raise UsageError(f"there is no flag {flag}{hint or '; see --help'}")

    def _where(self, given: list[tuple[Place, list[str]]]) -> str:
        unset = [name for name, place in self.places.items() if all(place != other for other, _ in given)]
        return f"write --{unset[0]} before it, or see --help" if unset and not self.positional else "see --help"


def is_flag(word: str) -> bool:
    """True for a word that begins as flags do, and not as negative numbers."""
    return re.match(r"--?[A-Za-z_]", word) is not None


def as_boolean(raw: str) -> str:
    """A switch in YAML's words, where it is given as 1, 0, y or n."""
    return {"1": "true", "0": "false", "y": "true", "n": "false", "t": "true", "f": "false"}.get(raw.lower(), raw)
