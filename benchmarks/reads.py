"""Cached reads, one process, shuffled, batches of 32: ours beside a memmap gather, webdataset and others.

The samples are those that a job with Stable Diffusion's autoencoder writes at 512 px: latents and masked latents as
float16 moments, K masks, a caption, a record. Every contender gives the same tensors of the same samples, which is
asserted before any is timed. Ours reads a second epoch, with every member checked before, unless the row says so. Rows
without a target are what a user decides by.
"""

import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from table import Row, pin, script, side_by_side

from inpaint_data import LatentCache
from inpaint_data.encoding.noise import normal_noise
from inpaint_data.latent_cache.encodings import json_bytes, npy_bytes, pbm_bytes
from inpaint_data.latent_cache.folder import CacheFolder
from inpaint_data.latent_cache.format import write_cache_file
from inpaint_data.latent_cache.settings import CacheSettings, FoundInTars, VaeRecord
from inpaint_data.latent_cache.writer import ShardWriter

BATCH, SIDE, LATENT = 32, 512, (8, 64, 64)
SHARDS = 8
Batch = dict[str, Any]
# What is compared where it is installed: its time over ours at a9fda91, and now.
OTHERS = {"safetensors": ("0.7x", 2.6), "mosaicml-streaming": ("2x", 3.5), "litdata": ("6.5x", 4.5)}


def rows(full: bool) -> Iterator[Row]:
    count, rounds = (2048, 7) if full else (512, 5)
    pin()
    with tempfile.TemporaryDirectory() as folder:
        for variants in (1, 4):
            yield from of_variants(Path(folder) / str(variants), count, rounds, variants)


def of_variants(root: Path, count: int, rounds: int, variants: int) -> Iterator[Row]:
    write_cache(root / "cache", count, variants)
    order = np.random.default_rng(0).permutation(count)
    plan = [order[start : start + BATCH].tolist() for start in range(0, count, BATCH)]
    cache = LatentCache(root / "cache", variant=0, carried=[])
    ways: dict[str, Callable[[], Iterator[Batch]]] = {
        "ours": lambda: map(cache.batch, plan),
        "memmap": Memmap(root, cache, variants, plan),
        "webdataset": lambda: plain_webdataset(root / "cache", variants),
    }
    if variants == 1:
        ways |= {"safetensors": Safetensors(root, plan)} | streaming(root) | litdata(root)
    check_equal(cache, ways)
    times = side_by_side({name: (lambda way=way: drain(way())) for name, way in ways.items()}, rounds)
    ours = times["ours"]
    name, (slower, faster) = f"cached read K={variants}", {1: (1.8, 7.5), 4: (1.85, 12)}[variants]
    work = f"{name}, {ours / count * 1e6:.0f} us a sample: time of a memmap gather"
    yield Row(work, "4x", ours / times["memmap"], 1.2, known=slower)
    yield Row(f"{name}: webdataset's time", "2x", times["webdataset"] / ours, 8, higher=True, known=faster)
    for peer, (before, known) in OTHERS.items():
        if peer in times:
            yield Row(f"{name}: {peer}'s time", before, times[peer] / ours, None, higher=True, known=known)
    print(f"K={variants}, microseconds a sample: {pieces(root, plan, ways['memmap'])}", file=sys.stderr)
    yield from of_ours(root, cache, plan, rounds, variants, ways["memmap"])


def of_ours(
    root: Path, cache: LatentCache, plan: list[list[int]], rounds: int, variants: int, memmap: Callable[[], Any]
) -> Iterator[Row]:
    """Other ways to read the cache, beside the memmap gather and beside its own plain read."""

    def opened(**chosen: Any) -> Callable[[], None]:
        other = LatentCache(root / "cache", **{"variant": 0, "carried": [], **chosen})
        drain(map(other.batch, plan))  # so what follows is a second epoch
        return lambda: drain(map(other.batch, plan))

    shape, names = (BATCH, LATENT[0] // 2, *LATENT[1:]), [str(number) for number in range(BATCH)]
    ways: dict[str, Callable[[], object]] = {
        "memmap": lambda: drain(memmap()),
        "ours": lambda: drain(map(cache.batch, plan)),
        "first": opened(check="always"),
        "draw": opened(variant="draw"),
        "sample": opened(posterior="sample"),
        "randn": lambda: [torch.randn(shape) for _ in range(2 * len(plan))],
        "noise": lambda: [normal_noise(0, names, range(BATCH), "latents", shape[1:]) for _ in range(2 * len(plan))],
    }
    times = side_by_side(ways, rounds)
    k = f"cached read K={variants}"
    first, draw, sample = {1: (2.4, 1.9, 3.0), 4: (5.2, 2.1, 3.2)}[variants]
    yield Row(
        f"{k}, first epoch, with checksums: time of a later one", "-", times["first"] / times["ours"], None, known=first
    )
    yield Row(f"{k}, variants drawn: time of a memmap gather", "-", times["draw"] / times["memmap"], None, known=draw)
    yield Row(
        f"{k}, posterior sample, its noise: time of torch.randn", "-", times["noise"] / times["randn"], None, known=1.2
    )
    rest = (times["sample"] - times["randn"]) / times["ours"]
    yield Row(f"{k}, posterior sample less torch.randn: time of mode", "-", rest, None, known=sample)


def pieces(root: Path, plan: list[list[int]], memmap: Any) -> str:
    """Where the time goes: as many bytes by system calls and from a map, and what both do then."""
    size, count = SIDE * SIDE // 8, sum(map(len, plan))  # of each of the three, which happen to be as long
    masks = np.zeros((BATCH, SIDE, SIDE // 8), np.uint8)
    halves = np.zeros((BATCH, LATENT[0] // 2, *LATENT[1:]), np.float16)
    rows_of = [masks.data.cast("B")[at * size : (at + 1) * size] for at in range(BATCH)]
    with ExitStack() as stack:
        files = {name: stack.enter_context((root / f"{name}.npy").open("rb")) for name in memmap.arrays}

        def called() -> None:
            for rows in plan:
                for name, array in memmap.arrays.items():
                    number, first, step = files[name].fileno(), array.offset, array.strides[0]
                    for buffer, row in zip(rows_of, rows, strict=False):
                        os.preadv(number, (buffer,), first + row * step)

        def copied() -> None:
            half = LATENT[0] // 2
            for rows in plan:
                memmap.arrays["latents"][rows, :half]
                memmap.arrays["masked_latents"][rows, 0, :half]
                memmap.arrays["mask"][rows, 0]

        ways: dict[str, Callable[[], object]] = {
            "3 x preadv": called,
            "3 x mapped copy": copied,
            "to float32": lambda: drain(torch.from_numpy(halves).float() for _ in plan * 2),
            "to masks": lambda: drain(np.unpackbits(masks, axis=-1) for _ in plan),
        }
        times = side_by_side(ways, 9)
    return ", ".join(f"{name} {seconds / count * 1e6:.0f}" for name, seconds in times.items())


def drain(batches: Iterator[Any]) -> None:
    for _ in batches:
        pass


# ---- The data


def write_cache(root: Path, count: int, variants: int) -> None:
    """A cache as the job writes it, of noise and boxes."""
    root.mkdir(parents=True)
    rng, folder = np.random.default_rng(1), CacheFolder(root)
    settings = settings_of(variants)
    sidecars = []
    for number in range(SHARDS):
        writer = ShardWriter(folder, f"{number:06d}")
        for row in range(count // SHARDS):
            writer.add(f"{row:08d}", members(rng, variants, f"a photo of {row}"), (SIDE, SIDE))
        source = {"name": f"{number:06d}.tar", "size": 1, "sha256": "0" * 64}
        sidecars.append(writer.commit(settings.fingerprint, source, variants, {}, []))
    write_cache_file(folder, settings.to_json(), sidecars)


def settings_of(variants: int) -> CacheSettings:
    return CacheSettings(
        vae=VaeRecord(
            kind="AutoencoderKL",
            config={"block_out_channels": [1, 1, 1, 1]},
            weights_sha256="0" * 64,
            dtype="float32",
            channels_last=False,
            has_posterior=True,
            factor=8,
        ),
        variants=variants,
        storage="float16",
        masked_latents=True,
        indexed=FoundInTars(
            sizes=[[SIDE, SIDE]],
            low=0,
            high=8,
            windows=["square"],
            soft=False,
            paired=[],
            references=0,
            carry_image="none",
        ),
    )


def members(rng: np.random.Generator, variants: int, caption: str) -> dict[str, bytes]:
    masks = np.zeros((variants, SIDE, SIDE), bool)
    for mask in masks:
        top, left = rng.integers(SIDE // 2, size=2)
        mask[top : top + SIDE // 2, left : left + SIDE // 2] = True
    drawn = [
        {"offset": number, "window": "square", "generator": "boxes", "edits": [], "coverage": 0.25}
        for number in range(variants)
    ]
    size = [SIDE, SIDE]
    record = {"caption": caption, "original_size": size, "resized_size": size, "crop_top_left": [0, 0]}
    record |= {"target_size": size, "flip": False, "has_posterior": True, "variants": drawn}
    return {
        "latents.npy": npy_bytes(rng.standard_normal(LATENT, np.float32).astype(np.float16)),
        "masked_latents.npy": npy_bytes(rng.standard_normal((variants, *LATENT), np.float32).astype(np.float16)),
        "mask.pbm": pbm_bytes(masks),
        "inpaint.json": json_bytes(record),
        "txt": caption.encode(),
    }


# ---- The contenders


class Memmap:
    """What one would write for one training: three arrays on the disk, gathered by batch; tensors alone, no names."""

    def __init__(self, root: Path, cache: LatentCache, variants: int, plan: list[list[int]]) -> None:
        self.plan, count = plan, len(cache)
        shapes = {"latents": LATENT, "masked_latents": (variants, *LATENT), "mask": (variants, SIDE, SIDE // 8)}
        self.arrays = {
            name: np.lib.format.open_memmap(
                root / f"{name}.npy", "w+", np.uint8 if name == "mask" else np.float16, (count, *shape)
            )
            for name, shape in shapes.items()
        }
        for row, sample in enumerate(stored(root / "cache")):
            self.arrays["latents"][row] = sample["latents"]
            self.arrays["masked_latents"][row] = sample["masked_latents"]
            self.arrays["mask"][row] = np.packbits(sample["masks"], axis=-1)

    def __call__(self) -> Iterator[Batch]:
        half = LATENT[0] // 2
        for rows in self.plan:
            masks = np.unpackbits(self.arrays["mask"][rows, 0], axis=-1).view(bool)
            yield {
                "latents": torch.from_numpy(self.arrays["latents"][rows, :half]).float(),
                "masked_latents": torch.from_numpy(self.arrays["masked_latents"][rows, 0, :half]).float(),
                "mask": torch.from_numpy(masks)[:, None],
            }


def stored(cache: Path) -> Iterator[dict[str, Any]]:
    """The samples one by one, by webdataset, NumPy and a few lines."""
    shards = sorted(map(str, cache.glob("*.tar")))
    for sample in wds.WebDataset(shards, shardshuffle=False, empty_check=False):
        yield decoded(sample)


def decoded(sample: dict[str, Any]) -> dict[str, Any]:
    record = json.loads(sample["inpaint.json"])
    height, width = record["target_size"]
    bits = np.frombuffer(sample["mask.pbm"], np.uint8, offset=sample["mask.pbm"].index(b"\n", 3) + 1)
    return {
        "__key__": sample["__key__"],
        "latents": np.load(io.BytesIO(sample["latents.npy"])),
        "masked_latents": np.load(io.BytesIO(sample["masked_latents.npy"])),
        "masks": np.unpackbits(bits ^ 255).view(bool).reshape(-1, height, width),
        "caption": record["caption"],
        **record["variants"][0],
    }


def plain_webdataset(cache: Path, variants: int) -> Iterator[Batch]:  # noqa: ARG001
    """Decoded, shuffled in a buffer and batched as its documentation does it, with torch's conversion for a batch."""
    shards = sorted(map(str, cache.glob("*.tar")))
    half = LATENT[0] // 2

    def chosen(sample: dict[str, Any]) -> dict[str, Any]:
        found = decoded(sample)
        return found | {
            "latents": found["latents"][:half],
            "masked_latents": found["masked_latents"][0, :half],
            "masks": found["masks"][0],
        }

    def collated(samples: Sequence[dict[str, Any]]) -> Batch:
        return {
            "latents": torch.from_numpy(np.stack([each["latents"] for each in samples])).float(),
            "masked_latents": torch.from_numpy(np.stack([each["masked_latents"] for each in samples])).float(),
            "mask": torch.from_numpy(np.stack([each["masks"] for each in samples]))[:, None],
            "caption": [each["caption"] for each in samples],
            "__key__": [each["__key__"] for each in samples],
        }

    data = wds.WebDataset(shards, shardshuffle=100, seed=0, empty_check=False)
    return iter(data.shuffle(128).map(chosen).batched(BATCH, collation_fn=collated))


class Safetensors:
    """A file a sample, with half of the moments and the bits of the mask in it."""

    def __init__(self, root: Path, plan: list[list[int]]) -> None:
        from safetensors.torch import save_file

        self.folder, self.plan, half = root / "safetensors", plan, LATENT[0] // 2
        self.folder.mkdir()
        for row, sample in enumerate(stored(root / "cache")):
            tensors = {
                "latents": sample["latents"][:half],
                "masked_latents": sample["masked_latents"][0, :half],
                "mask": np.packbits(sample["masks"][0], axis=-1),
            }
            save_file({name: torch.from_numpy(value.copy()) for name, value in tensors.items()}, self._file(row))

    def _file(self, row: int) -> Path:
        return self.folder / f"{row}.safetensors"

    def __call__(self) -> Iterator[Batch]:
        from safetensors.torch import load_file

        for rows in self.plan:
            samples = [load_file(self._file(row)) for row in rows]
            bits = torch.stack([sample["mask"] for sample in samples]).numpy()
            yield {
                "latents": torch.stack([sample["latents"] for sample in samples]).float(),
                "masked_latents": torch.stack([sample["masked_latents"] for sample in samples]).float(),
                "mask": torch.from_numpy(np.unpackbits(bits, axis=-1).view(bool))[:, None],
            }


def packed(root: Path) -> Iterator[dict[str, Any]]:
    """The samples as the formats of others take them."""
    half = LATENT[0] // 2
    for sample in stored(root / "cache"):
        yield {
            "latents": sample["latents"][:half].copy(),
            "masked_latents": sample["masked_latents"][0, :half].copy(),
            "mask": np.packbits(sample["masks"][0], axis=-1),
            "caption": sample["caption"],
        }


def joined(samples: Sequence[dict[str, Any]]) -> Batch:
    bits = np.stack([np.asarray(sample["mask"]) for sample in samples])
    return {
        "latents": torch.from_numpy(np.stack([np.asarray(sample["latents"]) for sample in samples])).float(),
        "masked_latents": torch.from_numpy(np.stack([np.asarray(each["masked_latents"]) for each in samples])).float(),
        "mask": torch.from_numpy(np.unpackbits(bits, axis=-1).view(bool))[:, None],
        "caption": [sample["caption"] for sample in samples],
    }


def in_batches(data: Iterable[dict[str, Any]]) -> Iterator[Batch]:
    samples: list[dict[str, Any]] = []
    for sample in data:
        samples.append(sample)
        if len(samples) == BATCH:
            yield joined(samples)
            samples = []


def streaming(root: Path) -> dict[str, Callable[[], Iterator[Batch]]]:
    try:
        from streaming import MDSWriter, StreamingDataset
    except ImportError as error:
        print(f"without mosaicml-streaming ({error}): pip install mosaicml-streaming", file=sys.stderr)
        return {}
    columns = {
        "latents": "ndarray:float16:4,64,64",
        "masked_latents": "ndarray:float16:4,64,64",
        "mask": f"ndarray:uint8:{SIDE},{SIDE // 8}",
        "caption": "str",
    }
    with MDSWriter(out=str(root / "mds"), columns=columns) as writer:
        for sample in packed(root):
            writer.write(sample)
    data = StreamingDataset(local=str(root / "mds"), shuffle=True, batch_size=BATCH)

    return {"mosaicml-streaming": lambda: in_batches(data)}


def litdata(root: Path) -> dict[str, Callable[[], Iterator[Batch]]]:
    try:
        from litdata import StreamingDataset
        from litdata.streaming import Cache
    except ImportError as error:
        print(f"without litdata ({error}): pip install litdata", file=sys.stderr)
        return {}
    written = Cache(str(root / "litdata"), chunk_bytes="64MB")
    for row, sample in enumerate(packed(root)):
        written[row] = {
            name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in sample.items()
        }
    written.done()
    written.merge()
    data = StreamingDataset(str(root / "litdata"), shuffle=True)

    return {"litdata": lambda: in_batches(data)}


def check_equal(cache: LatentCache, ways: dict[str, Callable[[], Iterator[Batch]]]) -> None:
    """Every contender gives the tensors of every sample once, bit for bit; which goes by the first mean of each."""

    def of(batches: Iterator[Batch]) -> dict[bytes, tuple[bytes, bytes]]:
        found = {}
        for batch in batches:
            assert batch["latents"].dtype == batch["masked_latents"].dtype == torch.float32
            assert batch["mask"].dtype == torch.bool
            for latents, masked, mask in zip(batch["latents"], batch["masked_latents"], batch["mask"], strict=True):
                rest = masked.numpy().tobytes(), np.packbits(mask.numpy()).tobytes()
                found[latents.numpy().tobytes()[:64]] = rest
        return found

    expected = of(ways["ours"]())
    assert len(expected) == len(cache)
    for name, way in ways.items():
        assert of(way()) == expected, f"{name} gives something else"


if __name__ == "__main__":
    script(rows, __doc__)
