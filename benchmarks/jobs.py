"""The offline job beside the encoding that cannot be saved, and its ceiling with an autoencoder that costs nothing.

Real JPEGs of the demo's photos, in shards in memory where the system has it, a mask of the mixture for each, offset
-8...24. A core is a second of CPU time, of all threads together.
"""

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import webdataset as wds
from PIL import Image
from table import CORES, Row, pin, script, side_by_side, spread
from torch import Tensor, nn

from inpaint_data import Autoencoder, cache_latents, load_vae
from inpaint_data.batch import is_batch
from inpaint_data.demo import PHOTOS
from inpaint_data.encoding.settings import EncodeSettings, TextModelSettings
from inpaint_data.job.caching import work_of
from inpaint_data.job.encoding import encode
from inpaint_data.job.settings import JobSettings
from inpaint_data.latent_cache.folder import CacheFolder
from inpaint_data.latent_cache.members import members_of
from inpaint_data.latent_cache.writer import ShardWriter
from inpaint_data.masks.settings import MaskSettings
from inpaint_data.pictures.settings import PictureSettings
from inpaint_data.shards.reading import read_shard

MASKS: dict[str, Any] = {"source": "mixture", "offset": (-8, 24)}
READING, ON_DEVICE = "reading the tar", "offset, fill, what encoders take"  # parts of the job
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


class Free(nn.Module):
    """Moments of nothing."""

    def encode(self, pixels: Tensor) -> Any:
        moments = torch.zeros(len(pixels), 8, pixels.shape[2] // 8, pixels.shape[3] // 8)
        mean, logvar = moments.chunk(2, dim=1)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, logvar=logvar, parameters=moments))


def rows(full: bool) -> Iterator[Row]:
    spread()
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        root = Path(name)
        yield from ceiling(root / "ceiling", 1024 if full else 256)
        pin()
        yield from over_encoding(root / "encoding", 48 if full else 8, 5 if full else 2)


def over_encoding(root: Path, images: int, rounds: int) -> Iterator[Row]:
    """The job over a loop that encodes the same tensors, in the same batches, and does nothing else."""
    vae = load_vae("demo")
    write_shards(root / "shards", 256, images)
    for variants, before in ((1, "1.10x"), (4, "0.99x")):
        work = work_of(
            PictureSettings(resolution=256),
            MaskSettings(**MASKS),
            EncodeSettings(vae=vae),
            JobSettings(batch_size=8, device="cpu", variants=variants),
            (),
            TextModelSettings(),
        )
        shards = sorted(map(str, (root / "shards").glob("*.tar")))
        pixels = [batch["image"].float() / 127.5 - 1 for batch in work.events(shards) if is_batch(batch)]

        def bare(pixels: list[Tensor] = pixels, variants: int = variants) -> None:
            for batch in pixels:
                for _ in range(1 + variants):
                    vae.encode(batch)

        times = side_by_side({"bare": bare, "job": job(root, vae, 256, variants=variants)}, rounds)
        added, encoding = (times["job"] - times["bare"]) / images, times["bare"] / images
        print(f"K={variants}, 256 px: {added * 1e3:.1f} ms added to {encoding * 1e3:.1f} of an image", file=sys.stderr)
        yield Row(f"the job, K={variants}, demo autoencoder, 256 px: over a bare encode loop", before,
                  times["job"] / times["bare"], 1.03, known={1: 1.12, 4: 1.06}[variants])  # fmt: skip


def ceiling(root: Path, images: int) -> Iterator[Row]:
    vae = Autoencoder(Free())
    torch.set_num_threads(1)
    write_shards(root / "shards", 512, images)
    for threads in (1, 2):
        run = job(root, vae, 512, num_workers=threads)
        run()
        cpu, wall = time.process_time(), time.perf_counter()
        run()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        if threads == 1:
            yield Row(
                "the job with a free autoencoder, 512 px: images/s of a core", "-", images / cpu, 600, "/s", True, 90
            )
        print(f"{threads} decoding threads: {images / wall:.0f} images/s of wall time", file=sys.stderr)
    costs = dict(pieces(root, vae))
    told = ", ".join(f"{name} {milliseconds:.2f}" for name, milliseconds in costs.items())
    print(f"CPU milliseconds an image: {told}", file=sys.stderr)
    on_cores = sum(costs.values()) - costs[ON_DEVICE] - costs[READING]  # which is a part of decoding here
    # Each makes 350 encodes a second, of which an image needs two.
    yield Row("cores that feed two H100s, 512 px, K=1", "-", 350 * on_cores / 1000, 16, " cores")
    if len(CORES) > 1 and hasattr(os, "sched_setaffinity"):
        print(f"2 processes of one thread: {images / processes(root, sorted(CORES)[:2]):.0f} images/s", file=sys.stderr)


def pieces(root: Path, vae: Autoencoder) -> Iterator[tuple[str, float]]:
    """Where an image's CPU time goes: the job's own steps, each by itself over the same shards, in milliseconds."""
    work = work_of(
        PictureSettings(resolution=512),
        MaskSettings(**MASKS),
        EncodeSettings(vae=vae),
        JobSettings(batch_size=8, device="cpu", num_workers=1),
        (),
        TextModelSettings(),
    )
    shards = sorted(map(str, (root / "shards").glob("*.tar")))[:1]
    batches = [batch for batch in work.events(shards) if is_batch(batch)]
    encoded = [each for batch in batches for each, _ in encode(work, batch)]
    rows = [(each, row) for each in encoded for row in range(len(each[0]["__key__"]))]
    contents = [members_of(each, row, work.storing) for each, row in rows]

    def written() -> None:
        with tempfile.TemporaryDirectory(dir=root) as folder:
            writer = ShardWriter(CacheFolder(Path(folder)), "000000")
            for number, members in enumerate(contents):
                writer.add(f"{number:06}", members, (512, 512))
            writer.commit("", {"name": "000000.tar", "size": 1, "sha256": ""}, 1, {}, [], [])

    steps: dict[str, Callable[[], object]] = {
        READING: lambda: [list(read_shard(shard)) for shard in shards],
        "and decoding, cutting, masks, batches": lambda: list(work.events(shards)),
        ON_DEVICE: lambda: [list(encode(work, batch)) for batch in batches],
        "members": lambda: [members_of(each, row, work.storing) for each, row in rows],
        "writing the tar": written,
    }
    for name, seconds in side_by_side(steps, 3).items():
        yield name, seconds / len(rows) * 1000


def processes(root: Path, cores: list[int]) -> float:
    """Seconds of wall time that two processes take, each with half of the shards and a core of its own."""
    code = "import jobs, sys; print(jobs.half(*sys.argv[1:]))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(root), str(part), str(core)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for part, core in enumerate(cores)
    ]
    return max(float(each.communicate()[0]) for each in running)


def half(root: str, part: str, core: str) -> float:
    os.sched_setaffinity(0, {int(core)})
    torch.set_num_threads(1)
    shards = sorted(map(str, (Path(root) / "shards").glob("*.tar")))[int(part) :: 2]
    run = job(Path(root), Autoencoder(Free()), 512, shards, f"half{part}", num_workers=1)
    run()
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def job(
    root: Path, vae: Autoencoder, side: int, shards: list[str] | None = None, out: str = "out", **settings: Any
) -> Callable[[], None]:
    def run() -> None:
        with tempfile.TemporaryDirectory(dir=root, prefix=out) as cache, contextlib.redirect_stderr(io.StringIO()):
            own = {"batch_size": 8, "device": "cpu", **settings}
            cache_latents(
                shards or str(root / "shards"), f"{cache}/out", {"resolution": side}, MASKS, {"vae": vae}, own
            )

    return run


def write_shards(folder: Path, side: int, images: int, per_shard: int = 64) -> None:
    """JPEG photos of `side` x `side`, quality 90, with captions."""
    files = []
    for path in sorted(PHOTOS.glob("*.jpg")):
        data = io.BytesIO()
        Image.open(path).convert("RGB").resize((side, side), Image.Resampling.LANCZOS).save(data, "jpeg", quality=90)
        files.append(data.getvalue())
    folder.mkdir(parents=True)
    for first in range(0, images, per_shard):
        with wds.TarWriter(str(folder / f"{first:06}.tar")) as tar:
            for number in range(first, min(first + per_shard, images)):
                tar.write({"__key__": f"{number:06}", "jpg": files[number % len(files)], "txt": "a photo"})


if __name__ == "__main__":
    script(rows, __doc__)
