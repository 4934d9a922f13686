"""Real shards and a real, small autoencoder for every test."""

import io
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn

from inpaint_data import Autoencoder
from inpaint_data.commands.main import main
from inpaint_data.demo import PHOTOS

DEMO_VAE = PHOTOS.parent / "vae"

Figure = Callable[[str], None]
FIGURES = pytest.StashKey[list[str]]()


class Pooling(nn.Module):
    """The cheapest autoencoder: any module with `encode` will do."""

    def encode(self, pixels: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(pixels, 8)


def small_samples(count: int, seed: int = 0) -> dict[str, dict[str, bytes]]:
    """Real JPEGs of 24x20 pixels, with captions."""
    rng = np.random.default_rng(seed)
    samples = {}
    for i in range(count):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (24, 20, 3), np.uint8)).save(buffer, "JPEG")
        samples[f"sample_{i}"] = {"jpg": buffer.getvalue(), "txt": f"number {i}".encode()}
    return samples


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where the system has one: thousands of fsyncs would take minutes on a disk."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture
def record_figure(request: pytest.FixtureRequest) -> Figure:
    """Keep a measured figure; all are printed at the end of the run."""
    return request.config.stash[FIGURES].append


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FIGURES] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash[FIGURES]:
        terminalreporter.section("measured")
        for figure in config.stash[FIGURES]:
            terminalreporter.write_line(figure)


@pytest.fixture(scope="session")
def photo_bytes() -> dict[str, bytes]:
    """Key -> the JPEG of each demo photograph."""
    return {path.stem: path.read_bytes() for path in sorted(PHOTOS.glob("*.jpg"))}


@pytest.fixture(scope="session")
def vae() -> Autoencoder:
    """An AutoencoderKL of random weights that shrinks by 8."""
    torch.manual_seed(0)
    module = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
    )
    return Autoencoder(module)


def write_shard(path: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    """key -> member name -> bytes, as webdataset writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wds.TarWriter(str(path), mtime=0) as tar:
        for key, members in samples.items():
            tar.write({"__key__": key} | members)
    return path


@pytest.fixture
def shards(tmp_path: Path, photo_bytes: dict[str, bytes]) -> str:
    """A folder of two shards: five and seven photographs with captions."""
    keys = list(photo_bytes)
    for number, part in enumerate((keys[:5], keys[5:])):
        samples = {key: {"jpg": photo_bytes[key], "txt": f"a photo of {key}".encode()} for key in part}
        write_shard(tmp_path / "shards" / f"{number:06d}.tar", samples)
    return str(tmp_path / "shards")


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """An empty bucket on a real S3 server, which is moto's."""
    import fsspec
    from moto.moto_api._internal import moto_api_backend
    from moto.server import ThreadedMotoServer

    # moto's buckets outlive its server in a process; the next one starts without them.
    moto_api_backend.reset()
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "x")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setitem(fsspec.config.conf, "s3", {"endpoint_url": f"http://{host}:{port}"})
        fsspec.filesystem("s3").mkdir("data")
        yield "s3://data"
    server.stop()


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command."""
    try:
        main(arguments)
        code = 0
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out, err
