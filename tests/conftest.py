"""Real shards and a real, small autoencoder for every test."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import webdataset as wds
from diffusers import AutoencoderKL

from inpaint_data import Autoencoder

PHOTOS = Path(__file__).parents[1] / "inpaint_data" / "demo" / "photos"
Shards = Callable[..., str]


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
