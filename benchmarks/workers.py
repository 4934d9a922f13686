"""Whether images are decoded faster by threads or by processes, through a real Trainer.

    python benchmarks/workers.py [--workers 2] [--resolution 512] [--samples 192]

The training step does nothing and no autoencoder is in it: what is timed is reading, decoding, masks and batches.
Every way is run in turn, three times round, over the same images; the figures are the fastest of each.
"""

import argparse
import contextlib
import io
import logging
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import webdataset as wds
from lightning.pytorch import LightningModule, Trainer
from PIL import Image

from inpaint_data import InpaintDataModule
from inpaint_data.demo import PHOTOS


class Nothing(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: Any) -> torch.Tensor:
        return self.layer(torch.zeros(1, 1) * len(batch["__key__"])).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3)


class Undecoded(InpaintDataModule):
    """Hands out batches as they are, without encoding them."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ARG002 - Lightning's signature
        return batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--samples", type=int, default=192)
    parser.add_argument("--batch_size", type=int, default=8)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    ways = [("threads", 1), ("threads", options.workers), ("processes", 1), ("processes", options.workers)]
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), options)
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(3):
            for way in ways:
                best[way] = min(best[way], seconds(folder, way, options))
    print(
        f"{options.samples} JPEGs at {options.resolution} px, batches of {options.batch_size}, {os.cpu_count()} cores"
    )
    print(f"{'':<16} ms a sample   times {options.workers} threads")
    for kind, count in ways:
        value = best[kind, count]
        ratio = value / best["threads", options.workers]
        print(f"{count} {kind:<14} {value / options.samples * 1e3:>11.2f} {ratio:>14.2f}")


def write_shards(folder: Path, options: argparse.Namespace) -> None:
    photos = sorted(PHOTOS.glob("*.jpg"))
    for number in range(4):
        with wds.TarWriter(str(folder / f"{number}.tar")) as tar:
            for index in range(options.samples // 4):
                image = Image.open(photos[index % len(photos)]).convert("RGB").resize((768, 640))
                buffer = io.BytesIO()
                image.save(buffer, "JPEG", quality=92)
                tar.write({"__key__": f"{number}_{index}", "jpg": buffer.getvalue()})


def seconds(folder: str, way: tuple[str, int], options: argparse.Namespace) -> float:
    """Of one epoch, with the start of its workers."""
    kind, count = way
    data = Undecoded(
        folder, batch_size=options.batch_size, pictures={"resolution": options.resolution},
        masks={"source": "mixture"}, loading={"workers": kind, "num_workers": count},
    )  # fmt: skip
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    started = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):
        trainer.fit(Nothing(), datamodule=data)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
