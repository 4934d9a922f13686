"""Text as it may be shown or stored: on one line, harmless to a terminal, and without the secrets of URLs."""

import re
import reprlib
import unicodedata
from typing import Any

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 80
_short.maxlevel = 2
_CONTAINER = r"(?:abfss?|wasbs?)://[^\s/?#:@]*@"  # which Azure writes where others have the user
_USER = re.compile(rf"(\b(?!{_CONTAINER})[A-Za-z][\w+.-]*://)[^\s/?#]*@")
_END = r"""(?=[:;,.)\]]*(?:[\s'"<>]|$))"""  # of a URL within a sentence
_WEB_QUERY = re.compile(rf"""(\bhttps?://[^\s'"<>?#]*)[?#][^\s'"<>]+?{_END}""")
_FIELDS = re.compile(rf"""\?[^\s'"<>?#=]+=[^\s'"<>]*?{_END}""")  # not the ? of a glob
_JOINERS = "\u200c\u200d"  # which scripts and emoji need


def shown(text: object) -> str:
    """A text on one line: control characters are escaped, and of URLs the query and `user:password@` are left out.

    Whatever comes from data or from a library (names, captions, URLs, errors) goes through here before it is printed,
    logged or written to a file. Twice does no harm.
    """
    line = _USER.sub(r"\1", str(text))
    line = _FIELDS.sub("?…", _WEB_QUERY.sub(r"\1?…", line))
    return line if line.isprintable() else "".join(map(_escaped, line))


def shortened(value: Any) -> str:
    """`repr` within a line, whatever a stranger's file holds: texts of megabytes, numbers of thousands of digits."""
    return _short.repr(value)


def _escaped(character: str) -> str:
    category = unicodedata.category(character)
    if character in _JOINERS or (category[0] != "C" and category not in ("Zl", "Zp")):
        return character
    return character.encode("unicode_escape").decode()
