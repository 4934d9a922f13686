"""`--out s3://…`: the cache that a job writes to a store, whatever the store does, on moto's real S3 server."""

import http.client
import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import fsspec
import pytest
from conftest import run, small_samples, write_shard
from fsspec.implementations.memory import MemoryFileSystem

from inpaint_data import InpaintDataModule, LatentCache
from inpaint_data.errors import CacheError
from inpaint_data.job.caching import cache_latents
from inpaint_data.latent_cache import lock as lock_module
from inpaint_data.latent_cache.folder import opened
from inpaint_data.latent_cache.lock import locked
from inpaint_data.shards.store_errors import TRIES

FLAGS = ["--vae", "demo", "--resolution", "64", "--upscale", "--masks", "boxes", "--device", "cpu"]
SECRET = "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY"


class Proxy(ThreadingHTTPServer):
    """Stands before a store. `fault` says what befalls a request.

    A status, or one with the code and the words of S3's answer; "reset", "half" an upload, or nothing.
    """

    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        super().__init__(("127.0.0.1", 0), Forward)
        self.behind = (host, port)
        self.fault: Callable[[str, str], Any] = lambda method, path: None  # noqa: ARG005
        self.requests: list[tuple[str, str]] = []


class Forward(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def forward(self) -> None:
        server: Any = self.server
        server.requests.append((self.command, self.path))
        fault = server.fault(self.command, self.path)
        length = int(self.headers.get("Content-Length") or 0)
        if fault in ("reset", "half"):
            self.rfile.read(length // 2 if fault == "half" else 0)
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        body = self.rfile.read(length)
        if fault is not None:
            status, code, words = fault if isinstance(fault, tuple) else (fault, "", "")
            data = f"<Error><Code>{code}</Code><Message>{words}</Message></Error>".encode() if code else b""
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data if self.command != "HEAD" else b"")
            return
        connection = http.client.HTTPConnection(*server.behind)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        data = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "connection", "transfer-encoding", "date", "server"):
                self.send_header(name, value)
        is_head = self.command == "HEAD"
        self.send_header("Content-Length", answer.getheader("Content-Length", "0") if is_head else str(len(data)))
        self.end_headers()
        self.wfile.write(b"" if is_head else data)
        connection.close()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def proxy(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:  # noqa: ARG001 - which it stands before
    host, port = fsspec.config.conf["s3"]["endpoint_url"].removeprefix("http://").split(":")
    server = Proxy(host, int(port))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": url})
    monkeypatch.setattr("inpaint_data.shards.store_errors.FIRST_PAUSE", 0.01)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("in")
    for number in range(3):
        samples = {f"{number}_{key}": members for key, members in small_samples(4, number).items()}
        write_shard(root / f"{number}.tar", samples)
    return root


def cache(shards: Path, out: str, **job: Any) -> Any:
    pictures, masks = {"resolution": 64, "upscale": True}, {"source": "boxes"}
    return cache_latents(str(shards), out, pictures, masks, {"vae": "demo"}, {"device": "cpu", **job})


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("whole")
    cache(shards, str(root))
    return {path.name: path.read_bytes() for path in root.iterdir() if not path.name.startswith(".")}


def objects(url: str) -> dict[str, bytes]:
    files = fsspec.filesystem("s3")
    files.invalidate_cache()
    start = url.removeprefix("s3://") + "/"
    return {path.removeprefix(start): files.cat_file(path) for path in files.find(url)}


def contents(url: str) -> dict[str, bytes]:
    return {name: data for name, data in objects(url).items() if not name.startswith(".")}


def once_each(*faults: int | str) -> Callable[[str, str], int | str | None]:
    """The faults one after another, at the uploads of a tar, its sidecar and `cache.json`."""
    left: dict[str, list[int | str]] = {}

    def fault(method: str, path: str) -> int | str | None:
        name = path.rpartition("/")[2]
        waiting = left.setdefault(name, list(faults if name in ("1.tar", "1.json", "cache.json") else []))
        return waiting.pop(0) if method == "PUT" and waiting else None

    return fault


@pytest.mark.parametrize("faults", [(503,), ("reset", "half")], ids=str)
def test_a_store_that_fails_now_and_then_gets_the_same_bytes(
    faults: tuple[int | str, ...], shards: Path, whole: dict[str, bytes], s3: str, proxy: Proxy, tmp_path: Path
) -> None:
    url = f"{s3}/{tmp_path.name}"
    proxy.fault = once_each(*faults)
    cache(shards, url)
    assert contents(url) == whole
    puts = [path.rpartition("/")[2] for method, path in proxy.requests if method == "PUT"]
    assert puts.count("1.tar") == 1 + len(faults)
    last = {name: len(puts) - 1 - puts[::-1].index(name) for name in whole}
    assert all(last[f"{number}.tar"] < last[f"{number}.json"] < last["cache.json"] for number in range(3))


def test_a_job_that_lost_its_store_goes_on_where_it_was(
    shards: Path, whole: dict[str, bytes], s3: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inpaint_data.shards.store_errors.TRIES", min(2, TRIES))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    url = f"{s3}/lost"
    proxy.fault = lambda method, path: 503 if method == "PUT" and path.endswith("1.tar") else None
    with pytest.raises(Exception, match=r"s3://data/lost/1\.tar: .*tried again in vain"):
        cache(shards, url)
    there = objects(url)
    assert {"0.tar", "0.json"} <= there.keys()
    assert "1.json" not in there
    assert json.loads(there["cache.json"])["totals"] is None
    assert ".lock-0" not in there
    proxy.fault = lambda method, path: None  # noqa: ARG005
    assert cache(shards, url).shards == 2
    assert contents(url) == whole


def test_nothing_secret_is_in_a_cache_a_log_or_an_error(
    shards: Path, s3: str, proxy: Proxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, flags = f"{s3}/secret", [*FLAGS, "--log_json", str(tmp_path / "log.json")]
    code, out, err = run(capsys, "cache", "--shards", str(shards), "--out", url, *flags)
    assert code == 0, err
    proxy.fault = lambda method, path: 403 if method == "PUT" else None  # noqa: ARG005
    code, out2, err2 = run(capsys, "cache", "--shards", str(shards), "--out", f"{url}2", *flags)
    assert code == 2
    assert "set AWS_ACCESS_KEY_ID" in err2
    said = "".join((out, err, out2, err2, (tmp_path / "log.json").read_text()))
    assert SECRET not in said
    assert not any(SECRET.encode() in data for data in objects(url).values())


def test_two_jobs_do_not_write_to_one_store_at_once(shards: Path, s3: str) -> None:
    url = f"{s3}/held"
    with (
        locked(url),
        pytest.raises(CacheError, match=rf"{url}: process {os.getpid()} on {socket.gethostname()} is writing"),
    ):
        cache(shards, url)
    assert ".lock-0" not in objects(url)
    dead = {"host": "elsewhere", "pid": 1, "id": "x", "job": "y"}
    fsspec.filesystem("s3").pipe_file(f"{url}/.lock-0", json.dumps(dead).encode())
    with pytest.raises(CacheError, match="process 1 on elsewhere is writing to this cache"):
        cache(shards, url)


def test_a_lock_of_a_dead_machine_goes_and_its_process_commits_nothing_should_it_come_back(
    shards: Path, whole: dict[str, bytes], s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "STALE", -60.0)  # a store tells times in whole seconds
    url = f"{s3}/stale"
    dead = {"host": "elsewhere", "pid": 1, "id": "x", "job": "y"}
    fsspec.filesystem("s3").pipe_file(f"{url}/.lock-0", json.dumps(dead).encode())
    with locked(url) as ours:
        ours.check()
        fsspec.filesystem("s3").pipe_file(f"{url}/.lock-0", json.dumps(dead).encode())
        with pytest.raises(CacheError, match="its lock is gone, and another job may have it"):
            ours.check()
    assert json.loads(objects(url)[".lock-0"]) == dead
    cache(shards, url)
    assert contents(url) == whole


class Overwriting(MemoryFileSystem):
    """A store that writes over what is there, whatever it is asked."""

    protocol = "overwriting"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> Any:  # noqa: ARG002
        return super().pipe_file(path, value, mode="overwrite", **kwargs)


def test_a_store_that_cannot_keep_two_jobs_apart_is_refused(shards: Path) -> None:
    fsspec.register_implementation("overwriting", Overwriting, clobber=True)
    with pytest.raises(CacheError, match="cannot keep two jobs apart, since it writes over what is there; write the"):
        cache(shards, "overwriting://cache")


def test_every_command_takes_the_url(
    shards: Path, whole: dict[str, bytes], s3: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, files = f"{s3}/all", fsspec.filesystem("s3")
    code, out, _ = run(capsys, "cache", "--shards", str(shards), "--out", url, *FLAGS, "--dry_run")
    assert code == 0
    assert "3 new shards" in out
    cache(shards, url)
    capsys.readouterr()
    code, out, err = run(capsys, "verify", url, "--against", str(shards), "--deep")
    assert (code, err) == (0, "")
    assert "compared to the last bit" in out
    code, out, _ = run(capsys, "status", url)
    assert "complete" in out
    code, out, _ = run(capsys, "stats", url)
    assert "of 12 in the cache" in out
    code, _, _ = run(capsys, "sheet", "--cache", url, "--shards", str(shards), "--out", str(tmp_path / "sheet.png"))
    assert code == 0
    assert (tmp_path / "sheet.png").exists()
    files.pipe_file(f"{url}/1.tar", whole["1.tar"][:-700])
    code, _, err = run(capsys, "verify", url)
    assert code == 1
    assert re.search(r"1\.tar: \d+ bytes, its sidecar says", err)
    code, out, _ = run(capsys, "repair", url)
    assert "removed 1.json, 1.tar" in out
    cache(shards, url)
    capsys.readouterr()
    files.rm_file(f"{url}/2.json")
    code, out, _ = run(capsys, "index", url)
    assert "indexed 2.tar" in out
    code, _, err = run(capsys, "verify", url)
    assert (code, err) == (0, "")
    assert len(LatentCache(url, mirror=str(tmp_path / "mirror"))) == 12
    module = InpaintDataModule(url, batch_size=4, loading={"mirror": str(tmp_path / "mirror")})
    module.setup("fit")
    keys = [key for batch in module.train_dataloader() for key in batch["__key__"]]
    assert len(keys) == len(set(keys)) == 12


def test_what_is_brought_here_on_the_way_is_gone_at_the_end(
    shards: Path, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache(shards, f"{s3}/tidy")
    with opened(f"{s3}/tidy") as folder:
        assert {path.name for path in folder.root.iterdir()} >= {"cache.json", "0.json"}
    left = [path for path in (tmp_path / "inpaint_data" / "open").rglob("*") if path.name != ".held"]
    assert left == []


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize(
    ("out", "told"),
    [
        ("s3://no-such-bucket/cache", r"s3://no-such-bucket/.*bucket"),
        ("http://example.invalid/cache", "nothing can be written to"),
    ],
)
def test_an_output_that_cannot_be_is_one_line(
    out: str, told: str, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "cache", "--shards", str(shards), "--out", out, *FLAGS)
    assert code == 2
    assert re.search(told, err.splitlines()[-1]), err


@pytest.mark.parametrize(
    "answer",
    [
        (400, "AuthorizationHeaderMalformed", "the region 'us-east-1' is wrong; expecting 'eu-west-1'"),
        (
            301,
            "PermanentRedirect",
            "The bucket you are attempting to access must be addressed using the specified endpoint.",
        ),
    ],
    ids=lambda answer: answer[1],
)
def test_another_region_is_one_line(
    answer: tuple[int, str, str], shards: Path, proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    proxy.fault = lambda method, path: answer if method in ("GET", "PUT") else None  # noqa: ARG005
    code, _, err = run(capsys, "cache", "--shards", str(shards), "--out", "s3://data/region", *FLAGS)
    assert code == 2
    assert re.search("s3://data/region.*another region .*; set AWS_DEFAULT_REGION to the one of", err.splitlines()[-1])


@pytest.mark.usefixtures("s3")
def test_a_store_that_does_not_answer_is_one_line(
    shards: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": f"http://127.0.0.1:{port}"})
    code, _, err = run(capsys, "cache", "--shards", str(shards), "--out", "s3://data/c", *FLAGS)
    assert code == 2
    assert re.search("s3://data/c: no connection, tried again in vain .*; check the address", err.splitlines()[-1])
