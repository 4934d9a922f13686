"""A broken run and an unbroken one learn from the same samples, each once an epoch, on any number of ranks."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_shard
from flat import cache_latents, data_module
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from inpaint_data import Autoencoder, InpaintDataModule

SAMPLES, BATCH, EPOCHS = 22, 2, 3  # 11 batches an epoch
SETTINGS = {"resolution": 32, "masks": "mixture", "mask_offset": (-4, 9)}
Step = tuple[int, tuple[str, ...], tuple[int, ...]]  # epoch, keys, offsets


class Recorder(LightningModule):
    """Learns next to nothing, and writes down what from."""

    def __init__(self, ask_for_steps: bool = False) -> None:
        super().__init__()
        self.layer, self.ask_for_steps = nn.Conv2d(4, 4, 1), ask_for_steps
        self.seen: list[Step] = []

    def training_step(self, batch: dict) -> torch.Tensor:
        self.seen.append((self.current_epoch, tuple(batch["__key__"]), tuple(batch["offset"].tolist())))
        return self.layer(batch["latents"]).square().mean()

    def validation_step(self, batch: dict) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.ask_for_steps:
            assert self.trainer.estimated_stepping_batches == SAMPLES // BATCH * EPOCHS
        return torch.optim.SGD(self.parameters(), 1e-3)


class SaveInMidEpoch(Callback):
    """A user's own call, after the third batch of the second epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        if trainer.current_epoch == 1 and trainer.fit_loop.batch_idx == 2:
            trainer.save_checkpoint(self.path)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, photo_bytes: dict[str, bytes], vae: Autoencoder) -> dict:
    folder = tmp_path_factory.mktemp("resume")
    names = list(photo_bytes)
    samples = {f"sample{i}": {"jpg": photo_bytes[names[i % len(names)]]} for i in range(SAMPLES)}
    for number in range(2):
        part = dict(list(samples.items())[number * 11 : number * 11 + 11])
        write_shard(folder / "shards" / f"{number}.tar", part)
    cache_latents(str(folder / "shards"), str(folder / "cache"), vae=vae, variants=3, **SETTINGS)
    return {"cache": str(folder / "cache"), "shards": str(folder / "shards")}


def module_of(sources: dict, source: str, vae: Autoencoder, **more: object) -> InpaintDataModule:
    live = {"vae": vae, **SETTINGS} if source == "shards" else {}
    return data_module(sources[source], batch_size=BATCH, **live, **more)


def fit(
    data: InpaintDataModule, folder: Path, resume: Path | None = None, callbacks: tuple = (), **more: object
) -> list[Step]:
    model = Recorder(bool(more.pop("ask_for_steps", False)))
    epochs: Any = more.pop("max_epochs", EPOCHS)
    trainer = Trainer(
        accelerator="cpu", max_epochs=epochs, default_root_dir=folder, logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=list(callbacks), **more,
    )  # fmt: skip
    trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=False)
    return model.seen


@pytest.mark.parametrize("ask_for_steps", [False, True], ids=["", "estimated_stepping_batches"])
@pytest.mark.parametrize("source", ["cache", "shards"])
def test_every_checkpoint_goes_on_with_the_very_next_batch(
    source: str, ask_for_steps: bool, sources: dict, tmp_path: Path, vae: Autoencoder
) -> None:
    saves = ModelCheckpoint(tmp_path / "all", every_n_train_steps=1, save_top_k=-1)
    by_hand = SaveInMidEpoch(tmp_path / "hand.ckpt")
    unbroken = fit(module_of(sources, source, vae), tmp_path, callbacks=(saves, by_hand), ask_for_steps=ask_for_steps)
    assert len(unbroken) == 33
    for epoch in range(EPOCHS):
        keys = [key for step in unbroken if step[0] == epoch for key in step[1]]
        assert sorted(keys) == sorted(f"sample{i}" for i in range(SAMPLES))
    some = {1, 2, 5, 10, 11, 12, 17, 22, 23, 32} if source == "cache" else {4, 11, 15}
    for path in (tmp_path / "all").glob("*.ckpt"):
        step = int(path.stem.partition("step=")[2])
        if step in some:
            resumed = fit(module_of(sources, source, vae), tmp_path, path, ask_for_steps=ask_for_steps)
            assert resumed == unbroken[step:], step
    resumed = fit(module_of(sources, source, vae), tmp_path, tmp_path / "hand.ckpt", ask_for_steps=ask_for_steps)
    assert resumed == unbroken[11 + 3 :]


@pytest.mark.parametrize("source", ["cache", "shards"])
def test_a_run_over_buckets_and_views_goes_on_with_the_very_next_batch(
    source: str, sources: dict, tmp_path: Path, vae: Autoencoder
) -> None:
    cuts = {"resolution": [32, 64], "crop": ["center", "center+flip"], "max_aspect": 2, "bucket_step": 8}
    where, more = sources["shards"], {"vae": vae, **SETTINGS | cuts}
    if source == "cache":
        where, more = str(tmp_path / "cache"), {}
        cache_latents(sources["shards"], where, vae=vae, **SETTINGS | cuts)

    def made() -> InpaintDataModule:
        return data_module(where, batch_size=3, **more)

    saves = ModelCheckpoint(tmp_path / "all", every_n_train_steps=7, save_top_k=-1)
    unbroken = fit(made(), tmp_path, callbacks=(saves,), max_epochs=2)
    for epoch in range(2):
        keys = [key for step in unbroken if step[0] == epoch for key in step[1]]
        assert sorted(keys) == sorted(f"sample{i}_view{view}" for i in range(SAMPLES) for view in range(4))
    paths = sorted((tmp_path / "all").glob("*.ckpt"), key=lambda path: int(path.stem.partition("step=")[2]))
    for path in (paths[1], paths[-1]):
        step = int(path.stem.partition("step=")[2])
        assert fit(made(), tmp_path, path, max_epochs=2) == unbroken[step:], step


@pytest.mark.parametrize("moment", ["epoch's end", "validation within", "validation at the end"])
def test_checkpoints_of_other_moments_go_on_too(moment: str, sources: dict, tmp_path: Path, vae: Autoencoder) -> None:
    options: dict = {"val_check_interval": 4} if moment == "validation within" else {}
    at_end = moment == "epoch's end"
    saves = ModelCheckpoint(tmp_path / "all", save_top_k=-1, save_on_train_epoch_end=at_end)

    def data() -> InpaintDataModule:
        return module_of(sources, "cache", vae, val_source=None if at_end else sources["cache"])

    unbroken = fit(data(), tmp_path, callbacks=(saves,), **options)
    paths = sorted((tmp_path / "all").glob("*.ckpt"))
    assert len(paths) >= 3
    for path in paths:
        resumed = fit(data(), tmp_path, path, **options)
        assert resumed == unbroken[int(path.stem.partition("step=")[2].partition("-")[0]) :], path.name


def test_another_batch_size_takes_what_is_left_of_the_epoch(sources: dict, tmp_path: Path, vae: Autoencoder) -> None:
    hand = SaveInMidEpoch(tmp_path / "hand.ckpt")
    unbroken = fit(module_of(sources, "cache", vae), tmp_path, callbacks=(hand,))
    before = Counter(key for step in unbroken[11:14] for key in step[1])
    data = data_module(sources["cache"], batch_size=5)
    after = fit(data, tmp_path, tmp_path / "hand.ckpt")
    assert [len(step[1]) for step in after if step[0] == 1] == [5, 5, 5, 1]
    assert before + Counter(key for step in after if step[0] == 1 for key in step[1]) == Counter(
        f"sample{i}" for i in range(SAMPLES)
    )


RANKS = """
import json, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import torch
from test_resume import Recorder
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from flat import data_module

cache, folder, devices, resume, workers = sys.argv[1:]
data = data_module(cache, batch_size=2, num_workers=int(workers))
model = Recorder()
saves = ModelCheckpoint(folder + "/all", every_n_train_steps=2, save_top_k=-1)
trainer = Trainer(
    accelerator="cpu", devices=int(devices), strategy="ddp", max_epochs=2, default_root_dir=folder, logger=False,
    enable_progress_bar=False, enable_model_summary=False, callbacks=[saves],
)
trainer.fit(model, datamodule=data, ckpt_path=resume or None, weights_only=False)
Path(folder, "seen-%d.json" % trainer.global_rank).write_text(json.dumps(model.seen))
"""


def fit_on(ranks: int, sources: dict, folder: Path, resume: str = "", workers: int = 1) -> list[list]:
    """The steps of each rank, of a run in processes of its own."""
    folder.mkdir()
    script = folder / "run.py"
    script.write_text(RANKS.format(tests=str(Path(__file__).parent)))
    command = [sys.executable, str(script), sources["cache"], str(folder), str(ranks), resume, str(workers)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"seen-{rank}.json").read_text()) for rank in range(ranks)]


@pytest.fixture(scope="module")
def alone(sources: dict, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A run of one rank, unbroken: its folder, and what it saw."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    return folder, fit_on(1, sources, folder)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_run_goes_on_with_more_or_fewer_ranks(
    before: int, after: int, sources: dict, alone: tuple[Path, list[Any]], tmp_path: Path
) -> None:
    """11 batches an epoch, one of which waits for another epoch when there are two ranks."""
    folder, first = alone if before == 1 else (tmp_path / "first", fit_on(before, sources, tmp_path / "first"))
    steps = {len(rank) for rank in first}
    assert steps == {22 // before if before == 1 else 10}, "ranks make equally many steps"
    per_epoch = len(first[0]) // 2
    saved = per_epoch + (2 if before == 2 else 4) - (per_epoch % 2)
    (checkpoint,) = (folder / "all").glob(f"*step={saved}.ckpt")
    second = fit_on(after, sources, tmp_path / "second", str(checkpoint), workers=3)
    assert len({len(rank) for rank in second}) == 1
    taken = [step for rank in first for step in rank[:saved] if step[0] == 1]
    rest = [step for rank in second for step in rank if step[0] == 1]
    keys = Counter(key for step in taken + rest for key in step[1])
    assert max(keys.values()) == 1, "no sample comes twice"
    assert len(taken) + len(rest) == 11 - (11 - len(taken)) % after
    # The order is that of the epoch, whoever takes the next batch.
    order = [step[1] for step in alone[1][0] if step[0] == 1]
    interleaved = [step[1] for steps in zip(*second, strict=True) for step in steps if step[0] == 1]
    assert interleaved == order[len(taken) : len(taken) + len(rest)]
