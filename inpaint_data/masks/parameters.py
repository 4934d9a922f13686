"""Parameters of mask generators, and the range of each.

They are read from the signatures in `generators.py`, so that a new generator has its own at once.
"""

import inspect
import sys
from collections.abc import Mapping
from typing import Any, get_args

from inpaint_data.errors import UsageError
from inpaint_data.masks.generators import GENERATORS
from inpaint_data.shown import meant

MOST = 256  # of what is counted; LaMa's greatest number is 70
FEWER = {"octaves": 8}
LEAST = {"corners": 3}  # else 1
LONGEST = 1024  # pixels at 512: more than the diagonal, so that nothing longer looks different


def parameters_of(name: str) -> dict[str, Any]:
    """The parameters of a generator with their defaults; a tuple is a span [low, high]."""
    signature = inspect.signature(GENERATORS[name]).parameters.values()
    return {entry.name: entry.default for entry in signature if entry.kind is entry.KEYWORD_ONLY}


def range_of(name: str, parameter: str) -> str:
    """The values that a parameter takes, in words: "[low, high], each a whole number of 1 to 256"."""
    default = parameters_of(name)[parameter]
    low, high = _limits(parameter, default, _whole(name, parameter))
    kind = "a whole number" if _whole(name, parameter) else "a number"
    kind = f"[low, high], each {kind}" if isinstance(default, tuple) else kind
    return f"{kind} above 0, at most {high}" if low is None else f"{kind} of {low} to {high}"


def check_parameters(name: str, values: Any) -> None:
    """Check that a generator takes these parameters: of its defaults' kind, within their range, spans in order.

    Raises:
        UsageError: it does not.
    """
    if name not in GENERATORS:
        raise UsageError(
            f"mixture: parameters: no generator is called {name!r}; choose from {', '.join(GENERATORS)}"
            f"{meant(name, GENERATORS)}"
        )
    defaults = parameters_of(name)
    known = f"it takes {', '.join(defaults)}" if defaults else "it takes none"
    if not isinstance(values, Mapping):
        raise UsageError(f"mixture: parameters: {name}: {values!r} is not a mapping of parameters to values; {known}")
    for parameter, value in values.items():
        if parameter not in defaults:
            raise UsageError(
                f"mixture: parameters: {name} has no parameter {parameter!r}; {known}{meant(parameter, defaults)}"
            )
        default, whole = defaults[parameter], _whole(name, parameter)
        is_span = isinstance(as_tuple(value), tuple)
        ends = _ends(as_tuple(value))
        low, high = _limits(parameter, default, whole)
        if (
            is_span != isinstance(default, tuple)
            or len(ends) != len(_ends(default))
            or not all(is_number(end) and (not whole or type(end) is int) for end in ends)
            or not all((end > 0 if low is None else low <= end) and end <= high for end in ends)
            or list(ends) != sorted(ends)
        ):
            raise UsageError(f"mixture: parameters: {name}: {parameter}: {value!r} is not {range_of(name, parameter)}")


def _whole(name: str, parameter: str) -> bool:
    annotation = GENERATORS[name].__annotations__[parameter]
    return annotation is int or get_args(annotation) == (int, int)


def _limits(parameter: str, default: Any, whole: bool) -> tuple[int | None, int]:
    """The least and the greatest value; None where it must be above 0."""
    if whole:
        return LEAST.get(parameter, 1), FEWER.get(parameter, MOST)
    if 0 < max(_ends(default)) <= 1:  # a share or a probability
        return 0, 1
    return (0 if 0 in _ends(default) else None), LONGEST


def _ends(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def is_number(value: Any) -> bool:
    """True for a finite number that a float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def as_tuple(value: Any) -> Any:
    """The value as a span: a tuple where YAML and JSON have a list."""
    return tuple(value) if isinstance(value, list) else value
