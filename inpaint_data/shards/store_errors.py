"""Errors of stores: which of them another try may mend, and one line for the others.

Every file system of fsspec has errors of its own, and most of those libraries are not installed, so an error is known
by the answer's status, by Python's own classes, and by the names that HTTP clients share.
"""

import asyncio
import logging
import random
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from inpaint_data.errors import ReplacedError, ShardError
from inpaint_data.shown import shown

T = TypeVar("T")
TRIES = 6
FIRST_PAUSE = 0.25  # seconds; each further one is twice as long
AT_FIRST = 5.0  # seconds of trying to connect at all, where a person waits for what the first question finds
LONGEST = 30.0  # seconds of trying, after which no third try begins; some libraries try for longer by themselves

REPLACED = "it was replaced by another one while it was read; start again when nobody writes to it"
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_BROKEN_CONNECTION = re.compile(  # of aiohttp, botocore, urllib3, requests, httpx and Azure
    "ClientConnectionError|ClientPayloadError|HTTPClientError|ConnectionError|ConnectTimeout(Error)?|Timeout(Error)?|"
    "ReadTimeout(Error)?|ProtocolError|TransportError|RemoteProtocolError|IncompleteRead(Error)?|"
    "ServiceRequestError|ServiceResponseError|FSTimeoutError|ResponseParserError"
)
_REGION = re.compile(r"\bregion\b|PermanentRedirect|must be addressed using the specified endpoint", re.IGNORECASE)
_LIBRARIES = (
    "aiohttp",
    "botocore",
    "urllib3",
    "requests",
    "httpx",
    "httpx2",
    "httpcore",
    "azure",
    "google",
    "fsspec",
    "http",
)
_jitter = random.Random()
_log = logging.getLogger(__name__)

_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (with AWS_SESSION_TOKEN for temporary ones) or AWS_PROFILE, "
    "renew them if they have expired, or set FSSPEC_S3_ANON=true for a public bucket",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or run gcloud auth application-default login",
    "az": "set AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY",
    "http": "give a URL that may be read; a signed one is valid for some time only, sign it anew",
    "hf": "set HF_TOKEN to a token that may read it",
}
_SAME = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az", "adl": "az", "https": "http"}
_EXTRAS = {"s3": "inpaint_data[s3]", "gs": "gcsfs", "az": "adlfs"}


class Broken(ConnectionError):
    """Fewer bytes came than there are."""


def retried(read: Callable[[], T], is_first: bool = False) -> T:
    """What `read` gives, tried again a few times with growing pauses where its error may pass by itself.

    Args:
        read: the question to a store.
        is_first: whether it is of those that a run begins with: what does not connect then is given up soon.

    Raises:
        Exception: that of the last try.
    """
    started = time.monotonic()
    for number in range(TRIES):
        try:
            return read()
        except Exception as error:
            pause = max(FIRST_PAUSE * 2**number * (0.5 + _jitter.random() / 2), _asked_pause(error))
            taken = time.monotonic() - started
            took_long = number > 0 and taken > LONGEST  # a stalled read may take that alone
            took_long |= is_first and taken > AT_FIRST and _status(error) is None
            if number == TRIES - 1 or took_long or pause > LONGEST or not is_transient(error):
                raise
            _log.info("%s; asked again in %.1f s, try %d of %d", type(error).__name__, pause, number + 2, TRIES)
            time.sleep(pause)
    raise AssertionError("the last try neither gave nor raised anything")


def is_transient(error: BaseException) -> bool:
    """True where the same request may succeed in a moment: a broken connection, a busy store."""
    status = _status(error)
    return status in _BUSY if status is not None else any(map(_is_broken_connection, _causes(error)))


def _is_broken_connection(error: BaseException) -> bool:
    return isinstance(error, ConnectionError | TimeoutError | asyncio.TimeoutError | socket.gaierror) or any(
        kind.__module__.split(".")[0] in _LIBRARIES and _BROKEN_CONNECTION.fullmatch(kind.__name__)
        for kind in type(error).__mro__
    )


def is_absent(error: BaseException) -> bool:
    """True where a store says that it has no such file, and not that it does not answer."""
    status = _status(error)
    return isinstance(error, FileNotFoundError) and (status == 404 or (status is None and not is_transient(error)))


def is_refused(error: BaseException) -> bool:
    """True where a store does not say whether it has such a file, but that it may not be asked."""
    status = _status(error)
    if status is None:
        return any(isinstance(cause, PermissionError) for cause in _causes(error))
    return status in (401, 403)


def unreadable(url: str, error: Exception) -> ShardError:
    """The error for a shard that cannot be read, of one line: what was refused, and what to set."""
    if isinstance(error, ShardError):
        return error
    kind = ReplacedError if _is_replaced(error) else ShardError
    return kind(f"{url}: {reason_of(url, error)}")


def unwritable(url: str, error: Exception) -> ShardError:
    """The error for a file that cannot be written, of one line."""
    fix = "see that its bucket or folder is there and may be written to, then start again"
    return error if isinstance(error, ShardError) else ShardError(f"{url}: {reason_of(url, error, fix)}")


def reason_of(url: str, error: Exception, fix: str = "see that it is there and may be read, then start again") -> str:
    """Why a URL or a path cannot be read or written, and the fix; `fix` where nothing better is known."""
    protocol = re.split(r"://|::", url)[-2] if "://" in url else ""  # the innermost of a chain
    protocol = _SAME.get(protocol, protocol)
    status = _status(error)
    said = _said(url, error)
    causes = list(_causes(error))
    if isinstance(error, ImportError):
        return f"{said}; pip install '{_EXTRAS[protocol]}'" if protocol in _EXTRAS else f"{said}; install it"
    if _is_replaced(error):
        return REPLACED
    if status in (301, 307, 400) and _REGION.search(said):
        return f"another region ({said}); set AWS_DEFAULT_REGION to the one of its bucket"
    if status in (400, 401, 403) or (status is None and _lacks_credentials(causes)):
        return f"refused ({said}); {_CREDENTIALS.get(protocol, 'check its permissions')}"
    if is_transient(error):
        what = f"the store answers {status}" if status else "no connection"
        return f"{what}, tried again in vain ({said}); check the address and the network, or start again later"
    return f"{said}; {fix}"


def _is_replaced(error: BaseException) -> bool:
    """True where a store does not have the very object any more that was asked for."""
    return _status(error) == 412 or any(type(cause).__name__ == "FileExpired" for cause in _causes(error))


def _lacks_credentials(causes: list[BaseException]) -> bool:
    return any(isinstance(cause, PermissionError) or "Credential" in type(cause).__name__ for cause in causes) and all(
        getattr(cause, "filename", None) is None
        for cause in causes  # a file's own permissions
    )


def _said(url: str, error: Exception) -> str:
    """The library's own words, from the cause that has some; a path alone says nothing."""
    for cause in [error, *_causes(error)]:
        words = shown(getattr(cause, "strerror", None) or cause).strip().removeprefix("[Errno None] ")
        if words and words.strip("'") not in (shown(url), shown(url).partition("://")[2]):
            return words[:300]
    return "no such file" if isinstance(error, FileNotFoundError) else type(error).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those behind it."""
    for _ in range(10):
        if error is None:
            return
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _status(error: BaseException) -> int | None:
    """The HTTP status of the answer behind an error; None where there was no whole answer."""
    for cause in _causes(error):
        if _is_broken_connection(cause):
            return None  # what is behind it has numbers that no store sent
        response = getattr(cause, "response", None)
        if isinstance(response, dict):  # botocore's
            number = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            holders = ((cause, "status"), (cause, "status_code"), (response, "status_code"), (cause, "code"))
            number = next((getattr(holder, name) for holder, name in holders if hasattr(holder, name)), None)
        if re.fullmatch("[1-5][0-9][0-9]", str(number)):
            return int(str(number))
    return None


def _asked_pause(error: BaseException) -> float:
    """The seconds that the answer asks to wait; 0 where it does not."""
    for cause in _causes(error):
        headers = getattr(cause, "headers", None) or getattr(getattr(cause, "response", None), "headers", None)
        if headers is None and isinstance(getattr(cause, "response", None), dict):
            headers = cause.response.get("ResponseMetadata", {}).get("HTTPHeaders")  # type: ignore[attr-defined]
        with_any_case = {str(name).lower(): value for name, value in dict(headers or {}).items()}
        if re.fullmatch("[0-9]{1,4}", str(with_any_case.get("retry-after", ""))):
            return float(with_any_case["retry-after"])
    return 0.0
