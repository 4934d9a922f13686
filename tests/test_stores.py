"""Stores that break off, refuse, change their mind: read all the same, or one line that says what to do."""

import hashlib
import http.server
import os
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from conftest import Pooling, run, small_samples, write_shard
from flat import cache_latents, data_module
from torch._utils import ExceptionWrapper

from inpaint_data import Autoencoder, InpaintDataError, LatentCache, ShardError, UsageError, VaeError, load_vae
from inpaint_data.errors import ReplacedError
from inpaint_data.pictures.settings import ExampleSettings
from inpaint_data.pipeline.indexed import IndexedShards
from inpaint_data.shards import store_errors, stores
from inpaint_data.shards.mirror import mirror_in
from inpaint_data.shards.naming import expand_shards, shard_identity, shard_size, shard_stamp
from inpaint_data.shards.reading import Fault, read_shard
from inpaint_data.shards.streams import open_stream, read_range
from inpaint_data.shown import shown

SMALL: dict[str, Any] = {"resolution": 16, "masks": "boxes", "upscale": True}
SECRET = "X-Amz-Signature=0badc0de&X-Amz-Security-Token=t0p"


class Web:
    """A real HTTP server on loopback for the files of a folder.

    `faults` are met in turn by the requests for bytes: "drop" breaks off in the middle of the body, "stall" falls
    silent there, "reset" answers nothing, a number is a status, a function is called first; None is no fault. `always`
    is met by every request.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.bucket, self.index = folder, "", ""
        self.faults: list[str | int | Callable[[], Any] | None] = []
        self.always: int | None = None
        self.has_length = self.has_ranges = self.has_etag = self.pins = True
        self.requests: Counter[str] = Counter()
        self.paths: list[str] = []  # that bytes were asked of
        web = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                web.answer(self, False)

            def do_GET(self) -> None:
                web.answer(self, True)

        class Server(socketserver.ThreadingTCPServer):  # HTTPServer asks the DNS for its own name
            daemon_threads, request_queue_size = True, 128

            def handle_error(self, *_: Any) -> None:
                pass  # whoever breaks off is the test

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, to: Any, wants_body: bool) -> None:
        self.requests[to.command] += 1
        self.paths += [to.path] if wants_body else []
        fault = self.faults.pop(0) if wants_body and self.faults else self.always
        if callable(fault):
            fault()
        path = self.folder / to.path.partition("?")[0].lstrip("/")
        path = path / self.index if path.is_dir() else path
        status = fault if isinstance(fault, int) else 200 if path.is_file() else 404
        if fault == "reset":
            to.close_connection = True
            to.connection.shutdown(socket.SHUT_RDWR)
            return
        if status != 200:
            to.send_response(status)
            to.send_header("Content-Length", "0")
            to.end_headers()
            return
        data = path.read_bytes()
        etag, size = hashlib.sha256(data).hexdigest()[:16], len(data)
        if self.pins and to.headers.get("If-Match", f'"{etag}"') != f'"{etag}"':
            to.send_response(412)
            to.send_header("Content-Length", "0")
            to.end_headers()
            return
        asked = to.headers.get("Range") if self.has_ranges else None
        first = 0
        if asked:
            start, _, end = asked.removeprefix("bytes=").partition("-")
            first = int(start)
            data = data[first : int(end) + 1 if end else None]
        to.send_response(206 if asked else 200)
        if asked:
            to.send_header("Content-Range", f"bytes {first}-{first + len(data) - 1}/{size}")
        if self.has_etag:
            to.send_header("ETag", f'"{etag}"')
        if self.bucket:
            to.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")  # which S3 always says
        if self.has_length:
            to.send_header("Content-Length", str(len(data)))
        else:
            to.send_header("Connection", "close")
            to.close_connection = True
        to.end_headers()
        if wants_body and fault == "drop":
            to.wfile.write(data[: len(data) // 2])
            to.wfile.flush()
            to.close_connection = True
            to.connection.shutdown(socket.SHUT_RDWR)
        elif wants_body and fault == "stall":
            to.wfile.write(data[: len(data) // 2])
            to.wfile.flush()
            time.sleep(20)
        elif wants_body:
            to.wfile.write(data)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    (tmp_path / "web").mkdir()
    server = Web(tmp_path / "web")
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_errors, "FIRST_PAUSE", 0.01)


def shards_on(web: Web, count: int, seed: int = 0) -> list[str]:
    for number in range(count):
        samples = {f"{number}_{key}": members for key, members in small_samples(4, seed + number).items()}
        write_shard(web.folder / f"{number}.tar", samples)
    return [f"{web.url}/{number}.tar" for number in range(count)]


def big_file(web: Web, seed: int = 0) -> tuple[str, bytes]:
    """A file of several requests: fsspec asks for 5 MiB at a time."""
    data = bytes([seed]) + os.urandom(12 * 2**20)
    (web.folder / web.bucket / "big.tar").write_bytes(data)
    return f"{web.url}/big.tar", data


def all_of(url: str) -> bytes:
    with open_stream(url) as stream:
        return b"".join(iter(lambda: stream.read(2**20), b""))


# ---- tried again


@pytest.mark.parametrize(
    "faults",
    [["drop"], [None, "drop", "drop"], ["reset"], [503, 429, 500], [None, "reset", 503, "drop"]],
    ids=str,
)
@pytest.mark.parametrize("kind", ["all", "no ranges", "no etag", "no ranges, no etag"])
def test_a_read_that_breaks_is_tried_again_to_the_same_bytes(faults: list[Any], kind: str, web: Web) -> None:
    url, data = big_file(web)
    web.faults, web.has_ranges, web.has_etag = list(faults), "no ranges" not in kind, "no etag" not in kind
    assert all_of(url) == data
    assert not web.faults or kind != "all"  # which is asked once for the whole


def test_a_server_that_says_no_length_is_read(web: Web, tmp_path: Path) -> None:
    urls = shards_on(web, 2)
    web.has_length = web.has_etag = web.has_ranges = False
    data = (web.folder / "0.tar").read_bytes()
    assert shard_size(urls[0]) == len(data)
    assert hashlib.sha256(data).hexdigest() in shard_stamp(urls[0])
    for _ in range(2):
        cache_latents(urls, str(tmp_path / "c"), vae=Autoencoder(Pooling()), **SMALL)
    images = data_module(urls, vae=Autoencoder(Pooling()), batch_size=2, mirror=str(tmp_path / "m"), **SMALL)
    images.setup("fit")
    assert sum(len(batch["__key__"]) for batch in images.train_dataloader()) == 8


@pytest.mark.parametrize("faults", [["drop"], ["reset"], [503, 503]], ids=str)
def test_ranges_copies_and_names_are_tried_again(faults: list[Any], web: Web, tmp_path: Path) -> None:
    url, data = big_file(web)
    web.faults = list(faults)
    assert read_range(url, 10, 10**6) == data[10 : 10**6]
    web.faults = list(faults)
    copy = mirror_in(tmp_path / "m").copy(url, "big", len(data), 10**9)
    assert copy is not None
    assert copy.read_bytes() == data
    web.always = 503
    threading.Timer(0.02, lambda: setattr(web, "always", None)).start()
    assert expand_shards(url) == [url]
    assert not web.faults


def test_a_job_and_training_outlive_broken_connections(web: Web, tmp_path: Path) -> None:
    urls, vae = shards_on(web, 3), Autoencoder(Pooling())
    cache_latents(str(web.folder), str(tmp_path / "local"), vae=vae, **SMALL)
    web.faults = ["drop", None, 503, "reset", "drop"]
    cache_latents(f"{web.url}/{{0..2}}.tar", str(tmp_path / "remote"), vae=vae, **SMALL)
    assert not web.faults
    for path in (tmp_path / "local").glob("*.tar"):
        assert (tmp_path / "remote" / path.name).read_bytes() == path.read_bytes()
    web.faults = ["drop", 503, "reset"]
    images = data_module(urls, vae=vae, batch_size=2, mirror=str(tmp_path / "m"), **SMALL)
    images.setup("fit")
    assert sum(len(batch["__key__"]) for batch in images.train_dataloader()) == 12
    assert not web.faults


def test_the_pause_that_a_store_asks_for_is_kept(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)

    class Busy(Exception):
        status, headers = 429, {"Retry-After": "7"}

    answers: list[Any] = [Busy(), 1]

    def read() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert store_errors.retried(read) == 1
    assert pauses == [7.0]
    assert web.requests == {}


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_what_is_refused_is_not_asked_for_again(status: int, web: Web) -> None:
    url, _ = big_file(web)
    web.always = status
    with pytest.raises(ShardError):
        read_range(url, 0, 10)
    assert web.requests == {"GET": 1}


# ---- replaced while it is read


def other_file(web: Web, data: bytes) -> bytes:
    """Put a file of the same size in place of the big one, which is unlike it from its first byte on."""
    data = bytes([1 ^ data[0]]) + data[1:]
    (web.folder / "new").write_bytes(data)
    (web.folder / "new").replace(web.folder / web.bucket / "big.tar")
    return data


@pytest.mark.parametrize("pins", [True, False])
def test_a_read_never_mixes_two_files(pins: bool, web: Web) -> None:
    url, data = big_file(web)
    web.faults, web.pins = [None, lambda: other_file(web, bytes(len(data)))], pins
    got: list[bytes] = []
    with open_stream(url) as stream, pytest.raises(ReplacedError, match=r"big\.tar: it was replaced by another one"):
        got.extend(iter(lambda: stream.read(2**20), b""))
    assert not pins or data.startswith(b"".join(got))  # a store that can tells at once, others at the end
    assert all_of(url) == (web.folder / web.bucket / "big.tar").read_bytes()


@pytest.mark.parametrize("etag", [True, False])
def test_an_answer_that_breaks_off_is_not_continued_with_another_file(etag: bool, web: Web) -> None:
    url, data = big_file(web)
    web.has_etag, web.has_ranges = etag, False
    web.faults = ["drop", lambda: other_file(web, data)]
    with open_stream(url) as stream:
        start = stream.read(100)
        try:
            got = start + b"".join(iter(lambda: stream.read(2**20), b""))
        except ReplacedError:
            got = b""
    assert got in (b"", (web.folder / web.bucket / "big.tar").read_bytes())
    assert start != data[:100] or got == b""


def test_whoever_needs_the_whole_begins_anew_once(web: Web) -> None:
    url, data = big_file(web)
    web.faults = [None, lambda: other_file(web, data)]
    assert shard_identity(url).sha256 == hashlib.sha256(bytes([1 ^ data[0]]) + data[1:]).hexdigest()
    swap = [lambda: other_file(web, b"\1" + data[1:]), lambda: other_file(web, b"\0" + data[1:])]
    web.faults = [None, swap[0], None, None, swap[1]]
    with pytest.raises(ReplacedError):
        shard_identity(url)


def test_a_shard_replaced_under_the_job_is_cached_as_the_new_one(web: Web, tmp_path: Path) -> None:
    urls, vae = shards_on(web, 3), Autoencoder(Pooling())
    (tmp_path / "new").mkdir()
    new = write_shard(tmp_path / "new" / "1.tar", small_samples(7, 99))
    replaced = [False]
    original = web.answer

    def answer(to: Any, wants_body: bool) -> None:
        write = to.wfile.write

        def write_later(data: bytes) -> None:
            """What is sent was read before, so that nobody can have seen all of it when the shard is replaced."""
            if wants_body and to.path == "/1.tar" and not replaced[0]:
                replaced[0] = True
                new.replace(web.folder / "1.tar")
            write(data)

        to.wfile.write = write_later
        original(to, wants_body)

    web.answer = answer  # type: ignore[method-assign]
    summary = cache_latents(urls, str(tmp_path / "out"), vae=vae, **SMALL)
    assert replaced[0]
    assert (summary.shards, summary.cached, summary.masks) == (3, 15, 15)
    cache_latents(str(web.folder), str(tmp_path / "straight"), vae=vae, **SMALL)
    for path in (tmp_path / "straight").glob("*.tar"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_training_piece_by_piece_never_takes_a_replaced_shard_for_bad_samples(web: Web, tmp_path: Path) -> None:
    (url,) = shards_on(web, 1)
    images = IndexedShards([url], ExampleSettings(), mirror=str(tmp_path / "m"), mirror_bytes=0)
    assert not isinstance(images.sample(3), Fault)
    write_shard(web.folder / "0.tar", {key: {"cls": b"1"} | members for key, members in small_samples(7).items()})
    with pytest.raises(ReplacedError, match=r"0\.tar: it was replaced by another one since training began"):
        images.sample(3)


# ---- few questions


def test_each_remote_shard_is_asked_about_little(web: Web, tmp_path: Path) -> None:
    urls, vae = shards_on(web, 8), Autoencoder(Pooling())
    cache_latents(urls, str(tmp_path / "out"), vae=vae, **SMALL)
    assert web.requests["HEAD"] == 2 * 8  # once when it is named, once when it was read
    assert web.requests["GET"] == 8 + 1  # one whether the folder is a cache
    web.requests.clear()
    images = IndexedShards(expand_shards(urls), ExampleSettings(), mirror=str(tmp_path / "m"))
    assert len(images) == 32
    assert web.requests == {"HEAD": 2 * 8, "GET": 8}


def test_many_shards_are_asked_about_at_once(web: Web) -> None:
    urls = shards_on(web, 16)
    original, waiting = web.answer, threading.Barrier(8)

    def answer(to: Any, wants_body: bool) -> None:
        if not wants_body:
            waiting.wait(10)  # for seven others
        original(to, wants_body)

    web.answer = answer  # type: ignore[method-assign]
    assert expand_shards(urls) == urls
    assert expand_shards(f"{web.url}/{{0..15}}.tar") == urls


def test_a_change_of_the_same_size_is_noticed_at_the_next_run(web: Web, tmp_path: Path) -> None:
    (url,), vae = shards_on(web, 1), Autoencoder(Pooling())
    cache_latents(url, str(tmp_path / "out"), vae=vae, **SMALL)
    assert cache_latents(url, str(tmp_path / "out"), vae=vae, **SMALL).shards == 0
    data = bytearray((web.folder / "0.tar").read_bytes())
    data[data.index(b"number 0")] = ord("N")
    (web.folder / "0.tar").write_bytes(data)
    assert cache_latents(url, str(tmp_path / "out"), vae=vae, **SMALL).shards == 1


# ---- one line


def trained_on(url: Any, folder: Path) -> Any:
    data = data_module(url, vae=Autoencoder(Pooling()), mirror=str(folder / "m"), **SMALL)
    data.setup("fit")
    return data.train_dataloader()


def lines_of(error: pytest.ExceptionInfo[Any], url: str) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert shown(url) in text
    assert error.value.__cause__ is None  # so no traceback of a library comes before it
    assert error.value.__suppress_context__ or error.value.__context__ is None
    return text


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (403, "refused .*403.*sign it anew"),
        (401, "refused"),
        (404, "no such file|404"),
        (503, "answers 503, tried again"),
    ],
)
def test_what_a_store_refuses_is_one_line(status: int, says: str, web: Web, tmp_path: Path) -> None:
    url = shards_on(web, 1)[0]
    expand_shards(url)
    web.always = status
    vae = Autoencoder(Pooling())
    asked: list[Callable[[], Any]] = [
        lambda: all_of(url),
        lambda: list(read_shard(url)),
        lambda: shard_identity(url),
        lambda: read_range(url, 0, 10),
        lambda: mirror_in(tmp_path / "m").copy(url, "one", 10, 10**6),
    ]
    for ask in asked:
        with pytest.raises(ShardError, match=says) as error:
            ask()
        lines_of(error, url)
    named: list[Callable[[], Any]] = [
        lambda: expand_shards(url),
        lambda: cache_latents(url, str(tmp_path / "out"), vae=vae, **SMALL),
        lambda: trained_on(url, tmp_path),
    ]
    for ask in named:
        with pytest.raises(UsageError, match=says) as usage:
            ask()
        lines_of(usage, url)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://127.0.0.1:1/a.tar", "no connection, tried again in vain"),
        ("nonsense://b/a.tar", "Protocol not known"),
        ("gs://b/a.tar", "pip install 'gcsfs'"),
        ("abfs://c@b/a.tar", "pip install 'adlfs'"),
        ("s3://bucket/a.tar", "set AWS_ACCESS_KEY_ID .* FSSPEC_S3_ANON=true"),
    ],
)
def test_a_store_that_cannot_be_reached_is_one_line(
    url: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InpaintDataError, match=says) as error:
        trained_on(url, tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match=says) as usage:
        expand_shards(url)
    lines_of(usage, url)
    code, out, err = run(capsys, "cache", "--shards", url, "--out", str(tmp_path / "out"), "--vae", "demo")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["cache", "--vae", "demo", "--shards", "s3://bucket/a.tar", "--out", "out"],
            "shards: s3://bucket/a.tar: no connection",
        ),
        (["verify", "s3://bucket/cache"], "s3://bucket/cache: no connection"),
        (["repair", "s3://bucket/cache"], "s3://bucket/cache: no connection"),
        (["index", "s3://bucket/shards"], "source: s3://bucket/shards: no connection"),
        (
            ["cache", "--vae", "demo", "--shards", "hf://datasets/a/b/c.tar", "--out", "out"],
            "shards: hf://datasets/a/b/c.tar: no connection",
        ),
    ],
)
def test_a_store_that_is_down_is_said_within_seconds(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    once = {"retries": {"max_attempts": 0}}  # of botocore, which takes five seconds by itself
    # On loopback nobody listens at port 9, and no name server knows a domain of "invalid".
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": "http://127.0.0.1:9", "config_kwargs": once})
    monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": "http://nowhere.invalid"})
    started = time.monotonic()
    code, out, err = run(capsys, *arguments)
    assert time.monotonic() - started < 20  # as long as the import of s3fs may take; it was a minute
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith(f"inpaint-data {arguments[0]}: {says}")


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("https://huggingface.co/stabilityai/sd-vae-ft-mse/tree/main", "write stabilityai/sd-vae-ft-mse"),
        ("hf://stabilityai/sd-vae-ft-mse", "write stabilityai/sd-vae-ft-mse"),
        ("s3://bucket/vae", "copy it into a folder here, and name that"),
    ],
)
def test_an_autoencoder_by_url_is_refused_with_what_to_write(name: str, fix: str) -> None:
    with pytest.raises(VaeError) as error:
        load_vae(name)
    assert str(error.value) == f"vae: {name} is a URL, from which none is loaded; {fix}"


def test_an_error_in_a_worker_of_torch_keeps_its_traceback_readable() -> None:
    try:
        raise ShardError("shard.tar: line one\n0")
    except ShardError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")  # as torch hands it over
    with pytest.raises(ShardError, match=r"shard\.tar: line one\\n0") as error:
        wrapped.reraise()
    assert len(str(error.value).splitlines()) > 4


# ---- secrets


def test_the_secrets_of_a_url_are_nowhere(
    web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    shards_on(web, 2)
    samples = small_samples(2) | {"bad": {"jpg": b"no picture"}}
    write_shard(web.folder / "1.tar", samples)
    urls = [f"{web.url.replace('http://', 'http://user:passw0rd@')}/{number}.tar?{SECRET}" for number in range(2)]
    settings = ["--vae", "demo", "--resolution", "16", "--upscale", "--masks", "boxes", "--max_bad_fraction", "1"]
    out = tmp_path / "out"
    said = []
    for command in (
        ["cache", "--shards", str(urls).replace("'", '"'), "--out", str(out), *settings],
        ["cache", "--shards", str(urls).replace("'", '"'), "--out", str(out), *settings],
        ["verify", str(out), "--against", str(urls).replace("'", '"')],
        ["stats", urls[1], "--resolution", "16", "--upscale", "--masks", "boxes"],
    ):
        _, printed, err = run(capsys, *command)
        said += [printed, err]
    assert "quarantined  1" in said[0]
    assert len(IndexedShards(urls, ExampleSettings(), mirror=str(tmp_path / "m"))) == 7
    web.always = 403
    said.append(run(capsys, "cache", "--shards", urls[0], "--out", str(tmp_path / "no"), *settings)[2])
    assert "refused" in said[-1]
    with pytest.raises(ShardError) as error:
        read_range(urls[0], 0, 10)
    said += [str(error.value), caplog.text]
    stored = [path.read_bytes() for folder in ("out", "m") for path in (tmp_path / folder).rglob("*") if path.is_file()]
    names = [str(path) for path in tmp_path.rglob("*")]
    for text in ["".join(said).encode(), *stored, "".join(names).encode()]:
        for secret in (b"0badc0de", b"t0p", b"passw0rd"):
            assert secret not in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://u:p@h/a.tar?X-Amz-Signature=abc&X=1: gone; see", "https://h/a.tar?…: gone; see"),
        ("'http://h/a.tar?token'.", "'http://h/a.tar?…'."),
        ("simplecache::https://u:p@h/a?x=1", "simplecache::https://h/a?…"),
        ("abfs://container@account/x?sv=1&sig=2", "abfs://container@account/x?…"),
        ("with url: /x.tar?Signature=abc (Caused", "with url: /x.tar?… (Caused"),
        ("s3://b/00?.tar and why? x=1", "s3://b/00?.tar and why? x=1"),
        ("http://u:p'w@h/x (ftp://me@h)", "http://h/x (ftp://h)"),
        ("a\nb\r\x1b[2J\u202ed é\u3000\u200d\udc80", r"a\nb\r\x1b[2J\u202ed é" + "\u3000\u200d" + r"\udc80"),
    ],
)
def test_shown_is_one_harmless_line_without_secrets(text: str, expected: str) -> None:
    assert shown(text) == expected
    assert shown(shown(text)) == expected


HOSTILE = "a\x1b[1A\x1b[2K\r  cached       1000000\n\u202e\x9b2J"


def is_harmless(text: str) -> bool:
    return not set("\x1b\r\x9b\u202e") & set(text)


def test_names_from_data_reach_the_terminal_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    samples = small_samples(2)
    picture = samples["sample_0"]["jpg"]
    samples |= {HOSTILE: {"jpg": b"no picture"}, "two": {"jpg": picture, f"png {HOSTILE}": picture}}
    samples |= {"three": {HOSTILE: b"", "jpeg": b""}}
    shard = write_shard(tmp_path / "in" / f"s{HOSTILE.replace('/', '')}.tar", samples)
    settings = ["--resolution", "16", "--upscale", "--masks", "boxes"]
    out = str(tmp_path / "out")
    said: list[tuple[int, str, str]] = []
    cache = ["cache", "--shards", str(tmp_path / "in"), "--out", out, "--vae", "demo", *settings, "--max_bad_fraction"]
    for command in (
        [*cache, "1"],
        [*cache, "0"],
        ["verify", out, "--against", str(tmp_path / "in")],
        ["verify", out, "--json"],
        ["stats", str(tmp_path / "in"), *settings],
        ["stats", str(tmp_path / "in"), "--json", *settings],
    ):
        code, printed, err = run(capsys, *command)
        assert is_harmless(printed + err), command
        assert not any(line.startswith("  cached       1000000") for line in (printed + err).splitlines())
        said.append((code, printed, err))
    assert r"sa\x1b[1A\x1b[2K\r  cached       1000000\n\u202e\x9b2J.tar, 'three'" in said[0][1]
    assert (said[1][0], len(said[1][2].splitlines())) == (1, 1)
    IndexedShards([str(shard)], ExampleSettings())
    trained_on(str(shard), tmp_path)
    assert is_harmless(caplog.text)
    with pytest.raises(UsageError) as error:
        expand_shards(f"gone{HOSTILE}.tar")
    assert "\n" not in str(error.value)
    assert is_harmless(str(error.value))


# ---- S3: what it answers to a question for an object is plain HTTP


@pytest.fixture
def bucket(web: Web, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": web.url, "default_block_size": 5 * 2**20})
    web.bucket = "bucket"
    (web.folder / web.bucket).mkdir()
    return "s3://bucket"


@pytest.mark.parametrize("faults", [["drop"], [None, "drop", "reset"], [None, 503]], ids=str)
def test_a_read_from_s3_is_tried_again_to_the_same_bytes(faults: list[Any], web: Web, bucket: str) -> None:
    _, data = big_file(web)
    web.faults = list(faults)
    assert all_of(f"{bucket}/big.tar") == data
    assert not web.faults


def test_an_object_replaced_in_s3_is_never_mixed(web: Web, bucket: str) -> None:
    _, data = big_file(web)
    web.faults = [None, lambda: other_file(web, data)]
    assert expand_shards(f"{bucket}/big.tar") == [f"{bucket}/big.tar"]
    with pytest.raises(ReplacedError):
        all_of(f"{bucket}/big.tar")
    assert all_of(f"{bucket}/big.tar") == (web.folder / web.bucket / "big.tar").read_bytes()


def test_what_s3_refuses_says_what_to_set(web: Web, bucket: str, tmp_path: Path) -> None:
    big_file(web)
    for status in (403, 400):  # 400 is what it answers to an expired token
        web.always = status
        for ask in (expand_shards, lambda url: trained_on(url, tmp_path)):
            with pytest.raises(InpaintDataError, match=r"s3://bucket/big\.tar: refused .*AWS_SESSION_TOKEN") as error:
                ask(f"{bucket}/big.tar")
            assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["a.", "http://", "?a", "?a=", ":", "://", "?", "@", "a:b@", "\x1b", "abfs://x@"])
def test_text_of_any_length_is_shown_at_once(part: str) -> None:
    started = time.perf_counter()
    for text in (part * 50_000, f"http://{part * 50_000}", f"http://h?a={part * 50_000} "):
        assert shown(shown(text)) == shown(text)
    assert time.perf_counter() - started < 5  # a quadratic one takes minutes


def test_a_remote_cache_is_opened_in_spite_of_broken_connections(web: Web, tmp_path: Path) -> None:
    cache_latents(shards_on(web, 2), str(web.folder / "c"), vae=Autoencoder(Pooling()), **SMALL)
    (web.folder / "c" / "index.html").write_text(
        "".join(f'<a href="{path.name}">' for path in (web.folder / "c").glob("*.json"))
    )
    web.index = "index.html"
    web.faults = ["reset", None, "drop", 503]
    cache = LatentCache(f"{web.url}/c", mirror=str(tmp_path / "m"))
    assert len(cache) == len([cache[row] for row in range(8)]) == 8
    assert not web.faults
    web.always = 403
    with pytest.raises(InpaintDataError) as error:
        LatentCache(f"{web.url}/c", mirror=str(tmp_path / "m"))
    lines_of(error, f"{web.url}/c")


def test_training_from_signed_urls_is_no_cache(web: Web, tmp_path: Path) -> None:
    urls = [f"{url}?{SECRET}/with/slashes" for url in shards_on(web, 2)]
    assert sum(len(batch["__key__"]) for batch in trained_on(urls, tmp_path)) == 8


def test_a_cache_whose_server_lists_nothing_is_told_from_none(web: Web, tmp_path: Path) -> None:
    cache_latents(shards_on(web, 2), str(web.folder / "c"), vae=Autoencoder(Pooling()), **SMALL)
    (web.folder / "empty").mkdir()
    assert len(LatentCache(f"{web.url}/c", mirror=str(tmp_path / "m"))) == 8, "its index names the shards"
    (web.folder / "c" / ".index").unlink()
    for folder, says in (
        ("c", "its server has the cache's files but does not list them"),
        ("empty", "not a latent cache"),
    ):
        with pytest.raises(InpaintDataError, match=says):
            LatentCache(f"{web.url}/{folder}", mirror=str(tmp_path / "another"))


def test_a_server_that_answers_everything_with_a_page_has_no_cache(web: Web, tmp_path: Path) -> None:
    shards = shards_on(web, 1)
    (web.folder / "cache.json").write_text("<html>please log in</html>")
    assert sum(len(batch["__key__"]) for batch in trained_on(shards, tmp_path)) == 4


def test_a_server_that_falls_silent_is_asked_again(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "SILENCE", 0.3)
    shards = shards_on(web, 1)
    web.faults = [None, "stall"]
    summary = cache_latents(shards, str(tmp_path / "c"), vae=Autoencoder(Pooling()), **SMALL)
    assert summary.cached == 4
    assert not web.faults
