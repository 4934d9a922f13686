"""What a training step waits for its batch: cached, with fresh masks, live, and cached but read by webdataset.

    python benchmarks/training_sources.py [--device cuda] [--vae NAME] [--resolution 512]

Every way is run in turn, three times round, over the same photographs; the figures are the fastest of each.
"""

import argparse
import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
from torch.utils.data import DataLoader

from inpaint_data import InpaintDataModule, cache_latents, load_vae
from inpaint_data.demo import PHOTOS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--vae", default="demo")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--batch_size", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        ways = prepared(Path(folder), options)
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(3):
            for name, batches in ways.items():
                best[name] = min(best[name], seconds(batches, options.device))
    print(f"{options.samples} photographs of {options.resolution} px, batches of {options.batch_size}, ", end="")
    print(f"VAE {options.vae}, {options.device}, torch {torch.__version__}, {os.cpu_count()} cores")
    print(f"{'':<38} ms a sample   times cached")
    for name, value in best.items():
        print(f"{name:<38} {value / options.samples * 1e3:>11.2f} {value / best['cached']:>14.1f}")


def prepared(folder: Path, options: argparse.Namespace) -> dict[str, Callable[[], Iterable[object]]]:
    """The ways, by name; each gives the batches of an epoch, on the device."""
    photos = sorted(PHOTOS.glob("*.jpg"))
    for number in range(4):
        (folder / "shards").mkdir(exist_ok=True)
        with wds.TarWriter(str(folder / "shards" / f"{number}.tar")) as tar:
            for index in range(options.samples // 4):
                data = photos[index % len(photos)].read_bytes()
                tar.write({"__key__": f"{number}_{index}", "jpg": data, "txt": b"a photo"})
    vae = load_vae(options.vae)
    shards, cache = str(folder / "shards"), str(folder / "cache")
    pictures = {"resolution": options.resolution}
    masks = {"source": "mixture", "offset": (-8, 24)}
    job = {"batch_size": options.batch_size, "device": options.device, "variants": 2}
    cache_latents(shards, cache, pictures | {"carry_image": "crop"}, masks, {"vae": vae}, job)

    def way(source: str, **settings: object) -> Callable[[], Iterable[object]]:
        module = InpaintDataModule(source, batch_size=options.batch_size, **settings)
        module.setup("fit")
        return lambda: on_device(module, options.device)

    fresh = {"masks": masks, "loading": {"fresh_masks": True}}
    return {
        "cached": way(cache),  # checked in the first round alone, so the fastest is without
        "cached, checksums always": way(cache, loading={"check": "always"}),
        "cached, read by webdataset, 2 workers": lambda: plain_reader(cache, options.batch_size),
        "fresh masks, blend-only recipe": way(cache, encode={"masked_latents": False}, **fresh),
        "fresh masks": way(cache, encode={"vae": vae}, **fresh),
        "live": way(shards, pictures=pictures, masks=masks, encode={"vae": vae}),
    }


def on_device(module: InpaintDataModule, device: str) -> Iterable[object]:
    for batch in module.train_dataloader():
        moved = module.transfer_batch_to_device(batch, torch.device(device), 0)
        yield module.on_after_batch_transfer(moved, 0)


def plain_reader(cache: str, batch_size: int) -> Iterable[object]:
    """What a user without this library would write: webdataset's reader in two worker processes."""

    def decoded(sample: dict) -> dict:
        masked = np.load(io.BytesIO(sample["masked_latents.npy"]))
        return {"latents": np.load(io.BytesIO(sample["latents.npy"])), "masked_latents": masked[0]}

    shards = sorted(map(str, Path(cache).glob("*.tar")))
    data = wds.WebDataset(shards, shardshuffle=False).map(decoded)
    return DataLoader(data, batch_size, num_workers=2)


def seconds(batches: Callable[[], Iterable[object]], device: str) -> float:
    started = time.perf_counter()
    for _ in batches():
        pass
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
