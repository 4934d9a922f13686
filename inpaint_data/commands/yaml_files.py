"""YAML files of settings, read as data: nothing in them is imported or run, and none is larger than can be meant."""

import re
from typing import Any

import yaml

from inpaint_data.errors import UsageError
from inpaint_data.shards.stores import local_path

MAX_VALUES = 100_000
SETS_NOTHING = "sets nothing; write a line `name: value` for each setting"


class _Loader(yaml.SafeLoader):
    """YAML in which, as in YAML 1.2, 1e-3 is a number, and a date, a time and 16:9 are texts."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        number: int = super().construct_yaml_int(node)
        if number.bit_length() > 64:  # Python cannot even write down those of thousands of digits
            raise yaml.YAMLError(f"a number of {number.bit_length()} bits is too large")
        return number

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [name for name in names if names.count(name) > 1]:
            raise yaml.YAMLError(f"{twice[0]!r} is set twice")
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


_OTHERWISE = ("timestamp", "int", "float")
_Loader.yaml_implicit_resolvers = {
    first: [resolver for resolver in resolvers if resolver[0].rpartition(":")[2] not in _OTHERWISE]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"(?:[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"(?:[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))|"
        r"\.(?:nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def load_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        YAMLError: it is not YAML, or of a size that cannot be meant.
    """
    try:
        value = yaml.load(text, _Loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deep") from None
    except (ValueError, ArithmeticError) as error:
        raise yaml.YAMLError(str(error)) from None
    values, count = [value], 0
    while values:
        item, count = values.pop(), count + 1
        if count > MAX_VALUES:
            raise yaml.YAMLError(f"its aliases make more than {MAX_VALUES} values of it")
        values += item.values() if isinstance(item, dict) else item if isinstance(item, list | tuple | set) else ()
    return value


def read_file(file: str, setting: str = "config") -> dict[Any, Any]:
    """The content of a YAML file of settings.

    Raises:
        UsageError: it is not there, is not YAML, or sets nothing.
    """
    try:
        content = load_yaml(local_path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{setting}: no such file: {file}; correct the name") from None
    except OSError as error:
        raise UsageError(f"{setting}: cannot read {file!r} ({error.strerror}); name a YAML file") from None
    except (ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{file}: is not YAML: {' '.join(str(error).split())}; correct it there") from None
    if not isinstance(content, dict) or all(value is None for value in content.values()):
        raise UsageError(f"{file}: {SETS_NOTHING}")
    return content
