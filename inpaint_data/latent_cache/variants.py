"""Carried members of which a mask variant has its own: the text of a caption that follows the mask."""

import re
from collections.abc import Iterable

_OWN = re.compile(r"variant([0-9]+)\.(.+\.npy)")


def is_of_variant(name: str) -> bool:
    """Whether a member is one variant's alone."""
    return _OWN.fullmatch(name) is not None


def of_variant(number: int, name: str) -> str:
    """The member that stands for another one where a variant has a caption of its own."""
    return f"variant{number}.{name}"


def carried_of(names: Iterable[str], variant: int) -> dict[str, str]:
    """What a variant carries: each name -> the member that holds it, its own where it has one."""
    names = list(names)
    own = {match[2]: name for name in names if (match := _OWN.fullmatch(name)) and int(match[1]) == variant}
    return {name: own.get(name, name) for name in names if _OWN.fullmatch(name) is None}
