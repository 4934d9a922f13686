"""What a shard and an image cost the job on this machine beside the encoding: CPU time, bytes, and the start.

    python benchmarks/scale_costs.py [--images 96] [--shards 400]

The real job runs over real shards. Its autoencoder has the shape of Stable Diffusion's, 8 times smaller with a
posterior of 4 channels, and computes nothing, so what is left is what the job does around a GPU. Costs of an image and
of a shard are slopes: runs of two sizes, the fastest of three each, and what the larger one took more. They are CPU
time, which other work on the machine disturbs less; a shard's alone is time by the clock, since it waits for the disk.
`benchmarks/scale_sim.py` simulates many GPUs with these figures.
"""

import argparse
import contextlib
import io
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import webdataset as wds
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from torch import Tensor, nn

import inpaint_data.pipeline as ip
from inpaint_data import Autoencoder, Batch, Encoder, EncodeSettings, MaskSettings, PictureSettings, cache_latents
from inpaint_data.demo import PHOTOS
from inpaint_data.latent_cache.codec import Storing
from inpaint_data.latent_cache.folder import CacheFolder
from inpaint_data.latent_cache.members import members_of
from inpaint_data.latent_cache.writer import ShardWriter

MASKS = {"source": "mixture", "offset": (-8, 24)}


@dataclass(frozen=True)
class Costs:
    """What was measured, at one resolution and K = 1."""

    decode_seconds: float  # CPU, an image: read, decode, cut, draw a mask
    transform_seconds: float  # CPU, an image: offset, fill, normalise; on a GPU it is there
    write_seconds: float  # CPU, an image: members, tar, hashes, reading back
    shard_seconds: float  # a shard beside its images: open, commit (three fsyncs), sidecar
    plan_seconds: float  # CPU, a shard of a list that is cached already, at the start and the end of every process
    start_seconds: float  # CPU, of a process beside its shards: imports, settings
    bytes_in: float  # an image
    bytes_out: float  # an image: latents and masked latents, moments in float16, and a mask
    sidecar_bytes: float  # an image
    sidecar_fixed: float  # a shard

    def lines(self) -> str:
        """For a person to read."""
        return "\n".join(f"  {field.name:<18} {_told(field.name, getattr(self, field.name))}" for field in fields(self))


def _told(name: str, value: float) -> str:
    return f"{value * 1e3:10.2f} ms" if name.endswith("seconds") else f"{value:10.0f} bytes"


class Waiting(nn.Module):
    """Stands for Stable Diffusion's autoencoder on a GPU: its shapes, and the time that the host waits for it."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.seconds = seconds  # an image

    def encode(self, pixels: Tensor) -> Any:
        time.sleep(self.seconds * len(pixels))
        pooled = nn.functional.avg_pool2d(pixels, 8)
        moments = torch.cat([pooled, pooled[:, :1], pooled, pooled[:, :1]], 1)  # mean and log-variance, 4 each
        return SimpleNamespace(latent_dist=DiagonalGaussianDistribution(moments))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--images", type=int, default=96, help="of the larger shard")
    parser.add_argument("--shards", type=int, default=400, help="of the larger list")
    options = parser.parse_args()
    print(f"measured here: {options.resolution} px, K = 1, {os.cpu_count()} cores, torch {torch.__version__}")
    print(measured(options.resolution, options.images, options.shards).lines())


def measured(resolution: int, images: int, shards: int, rounds: int = 3) -> Costs:
    """Run the real job, with one thread of torch, and take its costs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            return Costs(
                **costs_of_images(Path(folder), resolution, images, rounds),
                **costs_of_shards(Path(folder), shards, rounds),
                start_seconds=start_seconds(Path(folder), rounds),
            )
    finally:
        torch.set_num_threads(threads)


def costs_of_images(folder: Path, resolution: int, images: int, rounds: int) -> dict[str, float]:
    """By runs over a shard of `images` and one of a quarter of them."""
    large, small = images, max(4, images // 4)
    more = large - small
    inputs = {count: write_shard(folder / f"in{count}" / "0.tar", count, resolution) for count in (large, small)}
    took: dict[str, dict[int, float]] = {name: {} for name in ("decode", "encode", "write")}
    outputs: dict[int, tuple[int, int]] = {}
    encoder = Encoder(MaskSettings(**MASKS), EncodeSettings(posterior="moments"), Autoencoder(Waiting()))
    for round_ in range(rounds):
        for count, shard in inputs.items():
            out = folder / f"out{count}-{round_}"
            job(str(shard), out, resolution)
            batches = [item for item in decoded(shard, resolution) if isinstance(item, dict)]
            encoded = [encoder.variants(batch)[0] for batch in batches]
            runs: dict[str, Callable[[], object]] = {
                "decode": lambda shard=shard: list(decoded(shard, resolution)),
                "encode": lambda batches=batches: [encoder.variants(batch) for batch in batches],
                "write": lambda encoded=encoded, out=out: write(encoded, out),
            }
            for name, run in runs.items():
                took[name][count] = min(took[name].get(count, float("inf")), cpu_seconds(run))
            outputs[count] = ((out / "0.tar").stat().st_size, (out / "0.json").stat().st_size)
    each = {name: (values[large] - values[small]) / more for name, values in took.items()}
    bytes_out, sidecar = ((outputs[large][part] - outputs[small][part]) / more for part in (0, 1))
    return {
        "decode_seconds": each["decode"],
        "transform_seconds": each["encode"],
        "write_seconds": each["write"],
        "bytes_in": inputs[large].stat().st_size / large,
        "bytes_out": bytes_out,
        "sidecar_bytes": sidecar,
        "sidecar_fixed": max(0.0, outputs[small][1] - sidecar * small),
    }


def costs_of_shards(folder: Path, shards: int, rounds: int) -> dict[str, float]:
    """By runs over lists of `shards` tiny shards and of a quarter of them, and by doing nothing over them again."""
    large, small = shards, max(2, shards // 4)
    took: dict[str, dict[int, float]] = {"new": {}, "done": {}}
    for count in (large, small):
        inputs = folder / f"list{count}"
        for number in range(count):
            write_shard(inputs / f"{number:06d}.tar", 1, 64)
        for name, times in (("new", 1), ("done", rounds)):
            for _ in range(times):
                clock = time.perf_counter if name == "new" else time.process_time
                started = clock()
                job(str(inputs), folder / f"cache{count}", 64)
                took[name][count] = min(took[name].get(count, float("inf")), clock() - started)
    new, done = (max(0.0, values[large] - values[small]) / (large - small) for values in took.values())
    return {"shard_seconds": max(0.0, new - done), "plan_seconds": done}


def start_seconds(folder: Path, rounds: int) -> float:
    """CPU time of the command over a cache that is complete: what a process needs before and after its shards."""
    shard = write_shard(folder / "start" / "0.tar", 1, 64)
    words = ["cache", "--shards", str(shard), "--out", str(folder / "started"), "--vae", "demo", "--resolution", "64"]
    command = [sys.executable, "-m", "inpaint_data", *words, "--masks", "boxes"]
    best = float("inf")
    for _ in range(rounds):  # the first makes the cache
        started = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True, env=alone())
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, ended.ru_utime - started.ru_utime + ended.ru_stime - started.ru_stime)
    return best


def alone(**more: str) -> dict[str, str]:
    """The environment of a process that is alone, with one thread of torch."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return kept | {"OMP_NUM_THREADS": "1"} | more


def job(shards: str, out: Path, resolution: int, seconds: float = 0.0, workers: int = 1) -> Any:
    """The real job, with an autoencoder that waits for `seconds` an image."""
    pictures = {"resolution": resolution}
    settings = {"batch_size": 8, "device": "cpu", "num_workers": workers}
    return cache_latents(shards, str(out), pictures, MASKS, {"vae": Autoencoder(Waiting(seconds))}, settings)


def decoded(shard: Path, resolution: int) -> wds.DataPipeline:
    """The stages before the device, in this thread."""
    examples = ip.examples(PictureSettings(resolution=resolution), MaskSettings(**MASKS))
    return wds.DataPipeline(wds.SimpleShardList([str(shard)]), ip.read_shards(), examples, ip.bucketed(8))


def write(batches: Iterable[Batch], cache: Path) -> None:
    """Write encoded batches to a shard, by what the job writes with."""
    writer = ShardWriter(CacheFolder(cache), "again")
    for batch in batches:
        for row, key in enumerate(batch["__key__"]):
            writer.add(key, members_of([batch], row, Storing("float16", True)), (0, 0))
    writer.commit("", {}, 1, {}, [])


def cpu_seconds(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def write_shard(path: Path, images: int, resolution: int) -> Path:
    """A shard of photographs, five quarters as wide and high as they are cut to, as img2dataset leaves them."""
    photos = sorted(PHOTOS.glob("*.jpg"))
    sides = (resolution * 3 // 2, resolution * 5 // 4)
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded: dict[Path, bytes] = {}
    with wds.TarWriter(str(path), mtime=0) as tar:
        for index in range(images):
            photo = photos[index % len(photos)]
            if photo not in encoded:
                buffer = io.BytesIO()
                Image.open(photo).convert("RGB").resize(sides).save(buffer, "JPEG", quality=92)
                encoded[photo] = buffer.getvalue()
            # The key is of the shard too, so that no two shards have the same bytes.
            tar.write({"__key__": f"{path.stem}_{index}", "jpg": encoded[photo], "txt": b"a photo"})
    return path


if __name__ == "__main__":
    main()
