"""Text as it may be shown or stored: on one line, harmless to a terminal, and without the secrets of URLs."""

import difflib
import re
import reprlib
import unicodedata
from collections.abc import Iterable
from typing import Any

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 80
_short.maxlevel = 2
# Azure writes the container where others have the user: it stays, unless there is a password.
_USER = re.compile(r"(?<!abfs)(?<!abfss)(?<!wasb)(?<!wasbs)://[^\s/?#]*@|://[^\s/?#:]*:[^\s/?#]*@")
_WORD = re.compile(r"""[^\s'"<>]+""")
_FIELD = re.compile(r"\?[^?#=]+=")  # not the ? of a glob
_PUNCTUATION = ":;,.)]"  # of the sentence around a URL
_JOINERS = "\u200c\u200d"  # which scripts and emoji need


def shown(text: object) -> str:
    """A text on one line: control characters are escaped, and of URLs the query and `user:password@` are left out.

    Whatever comes from data or from a library (names, captions, URLs, errors) goes through here before it is printed,
    logged or written to a file. Twice does no harm.
    """
    line = str(text)
    if "://" in line or "?" in line:
        line = _WORD.sub(_without_query, _USER.sub("://", line))
    return line if line.isprintable() else "".join(map(_escaped, line))


def meant(name: object, known: Iterable[str]) -> str:
    """What was probably meant by a name that there is not, as the end of an error; "" where nothing is near."""
    by_letters = {_letters(each): each for each in reversed(list(known))}
    letters = _letters(str(name))
    begun = [
        each
        for each in reversed(by_letters)
        if min(len(letters), len(each)) > 2 and (each.startswith(letters) or letters.startswith(each))
    ]
    very_near, near = (difflib.get_close_matches(letters, list(by_letters), 1, share) for share in (0.85, 0.7))
    best = [*very_near, *begun, *near]
    return f"; did you mean {by_letters[best[0]]}?" if best else ""


def _letters(name: str) -> str:
    return re.sub("[-_ ]", "", name.lower())


def shortened(value: Any) -> str:
    """`repr` within a line, whatever a stranger's file holds: texts of megabytes, numbers of thousands of digits."""
    return _short.repr(value)


def _without_query(match: re.Match[str]) -> str:
    word = match[0]
    field, web = _FIELD.search(word), re.search("https?://", word)
    query = re.compile("[?#]").search(word, web.end()) if web else None
    starts = [found.start() for found in (field, query) if found]
    if not starts:
        return word
    left_out = word[min(starts) :]
    return f"{word[: min(starts)]}?…{left_out[len(left_out.rstrip(_PUNCTUATION)) :]}"


def _escaped(character: str) -> str:
    category = unicodedata.category(character)
    if character in _JOINERS or (category[0] != "C" and category not in ("Zl", "Zp")):
        return character
    return character.encode("unicode_escape").decode()
