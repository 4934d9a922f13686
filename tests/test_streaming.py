"""Image shards that come one after another: the first batch at once, and after a stop the very next one."""

import os
import subprocess
import sys
import textwrap
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import Pooling, small_samples, write_shard
from flat import cache_latents, data_module
from lightning.fabric import Fabric
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from test_stores import Web, web  # noqa: F401 - a fixture
from torch import nn

from inpaint_data import Autoencoder, InpaintDataModule, ShardError, UsageError
from inpaint_data.shards import store_errors

SMALL: dict[str, Any] = {"resolution": 16, "masks": "boxes", "upscale": True, "mask_offset": (-2, 3)}


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_errors, "FIRST_PAUSE", 0.01)


def put(folder: Path, count: int, of: int = 4) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        samples = {f"{number}_{key}": members for key, members in small_samples(of, number).items()}
        write_shard(folder / f"{number:03}.tar", samples)
    return str(folder)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twelve of four samples."""
    return put(tmp_path_factory.mktemp("streaming") / "in", 12)


def streamed(source: Any, batches: int, **more: Any) -> InpaintDataModule:
    given = {"batch_size": 2, "vae": Autoencoder(Pooling()), "epoch_batches": batches, "shuffle_buffer": 8}
    return data_module(source, **SMALL | given | more)


class Recorder(LightningModule):
    """Learns next to nothing, and writes down what from."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Conv2d(3, 3, 1), list[tuple[int, tuple[str, ...], tuple[int, ...]]]()

    def training_step(self, batch: dict[str, Any]) -> torch.Tensor:
        self.seen.append((self.current_epoch, tuple(batch["__key__"]), tuple(batch["offset"].tolist())))
        return self.layer(batch["latents"]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3)


def fit(
    data: InpaintDataModule,
    folder: Path,
    resume: Path | None = None,
    callbacks: tuple[Any, ...] = (),
    max_epochs: int = 1,
) -> list[Any]:
    model = Recorder()
    trainer = Trainer(
        accelerator="cpu", max_epochs=max_epochs, default_root_dir=folder, logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=False)
    return model.seen


def keys_of(data: InpaintDataModule, epoch: int = 0) -> list[tuple[str, ...]]:
    data.setup("fit")
    data.epoch = epoch
    return [tuple(batch["__key__"]) for batch in data.train_dataloader()]


def test_an_epoch_is_as_long_as_it_is_said_and_goes_through_all_shards_before_any_again(shards: str) -> None:
    data = streamed(shards, 24)
    assert len(data.train_dataloader()) == 24
    epochs = [keys_of(data, epoch) for epoch in (0, 1)]
    for keys in epochs:
        assert len(keys) == 24
        assert len({key for batch in keys for key in batch}) == 48
    assert epochs[0] != epochs[1]
    assert keys_of(streamed(shards, 24)) == epochs[0]
    assert keys_of(streamed(shards, 24, seed=1)) != epochs[0]
    twice = Counter(key for batch in keys_of(streamed(shards, 48)) for key in batch)
    assert set(twice.values()) == {2}
    assert keys_of(streamed(shards, 48))[:24] == epochs[0]


def test_samples_are_shuffled_within_the_buffer_and_come_in_order_without_one(shards: str) -> None:
    def shard_of(keys: list[tuple[str, ...]]) -> list[str]:
        return [key.split("_")[0] for batch in keys for key in batch]

    in_order = shard_of(keys_of(streamed(shards, 24, shuffle_buffer=0)))
    assert [in_order[i] for i in range(0, 48, 4)] == [in_order[i + 3] for i in range(0, 48, 4)]
    mixed = shard_of(keys_of(streamed(shards, 24, shuffle_buffer=16)))
    assert sum(len(set(mixed[i : i + 4])) > 1 for i in range(0, 48, 4)) > 8


def test_a_sample_is_the_same_sample_whichever_way_it_comes(shards: str) -> None:
    modules = streamed(shards, 24), data_module(shards, batch_size=2, vae=Autoencoder(Pooling()), **SMALL)
    seen: list[dict[str, Any]] = []
    for data in modules:
        data.setup("fit")
        rows: dict[str, Any] = {}
        for batch in data.train_dataloader():
            encoded: Any = data.on_after_batch_transfer(batch, 0)
            for row, key in enumerate(encoded["__key__"]):
                rows[key] = [encoded[name][row] for name in ("latents", "masked_latents", "mask", "offset")]
        seen.append(rows)
    assert seen[0].keys() == seen[1].keys()
    for key, entries in seen[0].items():
        assert all((ours == theirs).all() for ours, theirs in zip(entries, seen[1][key], strict=True))


@pytest.mark.parametrize("workers", [{"num_workers": 3}, {"num_workers": 2, "workers": "processes"}], ids=str)
def test_workers_give_every_sample_once_and_the_same_batches_again(workers: dict[str, Any], shards: str) -> None:
    keys = keys_of(streamed(shards, 24, **workers))
    assert len({key for batch in keys for key in batch}) == 48
    assert keys_of(streamed(shards, 24, **workers)) == keys
    if "workers" not in workers:  # threads decode, and one reads
        assert keys == keys_of(streamed(shards, 24))


@pytest.mark.parametrize("mirror", ["none", "here"])
def test_the_first_batch_comes_after_a_hundredth_of_the_shards(
    mirror: str,
    web: Web,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    put(web.folder, 200, of=24)
    names = [f"{web.url}/{number:03}.tar" for number in range(200)]
    data = streamed(names, 5, mirror="none" if mirror == "none" else str(tmp_path / mirror), shuffle_buffer=4)
    data.setup("fit")
    loader = iter(data.train_dataloader())
    next(loader)
    read = {path for path in web.paths if path.endswith(".tar")}
    loader.close()
    assert 1 <= len(read) <= 200 // 100
    assert (tmp_path / "here").exists() == (mirror == "here")
    assert not Path("none").exists()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("workers", [{}, {"num_workers": 2, "workers": "processes"}], ids=["threads", "processes"])
def test_a_run_goes_on_with_the_very_next_batch_and_decodes_none_before_it(
    workers: dict[str, Any], shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves = ModelCheckpoint(tmp_path / "all", every_n_train_steps=1, save_top_k=-1)
    unbroken = fit(streamed(shards, 11, **workers), tmp_path, callbacks=(saves,), max_epochs=2)
    assert [step[0] for step in unbroken] == [0] * 11 + [1] * 11
    for path in (tmp_path / "all").glob("*.ckpt"):
        step = int(path.stem.partition("step=")[2])
        if step in (1, 4, 10, 11, 12, 17):
            assert fit(streamed(shards, 11, **workers), tmp_path, path, max_epochs=2) == unbroken[step:], step
    if workers:
        return
    from inpaint_data.pipeline import stages

    decoded: list[str] = []
    decode = stages.prepare
    monkeypatch.setattr(stages, "prepare", lambda sample, *rest: decoded.append(sample.key) or decode(sample, *rest))
    last = next(path for path in (tmp_path / "all").glob("*.ckpt") if path.stem.endswith("step=10"))
    fit(streamed(shards, 11), tmp_path, last, max_epochs=1)
    assert not {key for step in unbroken[:10] for key in step[1]} & set(decoded)


@pytest.mark.parametrize("given", [{}, {"epoch_batches": 8}], ids=["indexed", "streamed"])
def test_a_fit_that_max_steps_ended_goes_on_with_the_very_next_batch(given: dict[str, Any], tmp_path: Path) -> None:
    """Lightning counts the epoch as done, in its middle and at its end."""
    shards = put(tmp_path / "in", 4)

    def steps(count: int, checkpoint: Path | None = None, save: Path | None = None) -> list[Any]:
        recorder = Recorder()
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = Trainer(max_steps=count, max_epochs=-1, accelerator="cpu", enable_model_summary=False, **quiet)
        data = data_module(shards, batch_size=2, vae=Autoencoder(Pooling()), **SMALL | given)
        trainer.fit(recorder, datamodule=data, ckpt_path=checkpoint, weights_only=False)
        if save:
            trainer.save_checkpoint(save)
        return recorder.seen

    whole = steps(12)
    assert [step[0] for step in whole] == [0] * 8 + [1] * 4
    for count in (3, 8):
        first = steps(count, save=tmp_path / "a.ckpt")
        assert first + steps(12, tmp_path / "a.ckpt") == whole, count


def test_other_readers_go_on_with_shards_that_were_not_begun(
    shards: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saves = ModelCheckpoint(tmp_path / "all", every_n_train_steps=6, save_top_k=-1)
    before = fit(streamed(shards, 10), tmp_path, callbacks=(saves,), max_epochs=1)[:6]
    path = next((tmp_path / "all").glob("*step=6.ckpt"))
    processes = {"num_workers": 2, "workers": "processes"}
    more = ModelCheckpoint(tmp_path / "more", every_n_train_steps=1, save_top_k=-1)
    after = fit(streamed(shards, 10, **processes), tmp_path, path, callbacks=(more,), max_epochs=1)
    assert len(after) == 4
    assert "goes on with the shards that were not begun" in caplog.text

    def shards_in(steps: Any) -> set[str]:
        return {key.split("_")[0] for step in steps for key in step[1]}

    assert not shards_in(before) & shards_in(after)
    again = next((tmp_path / "more").glob("*step=8.ckpt"))
    assert fit(streamed(shards, 10, **processes), tmp_path, again, max_epochs=1) == after[2:]


RANKS = """
    import os, sys, warnings
    sys.path.insert(0, {tests!r})
    warnings.filterwarnings("ignore")
    import torch
    torch.set_num_threads(1)
    from lightning.pytorch import Trainer
    from test_streaming import Recorder, streamed

    model = Recorder()
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0,
    )
    trainer.fit(model, datamodule=streamed({shards!r}, 9))
    with open({out!r} + "-" + os.environ.get("LOCAL_RANK", "0"), "w") as file:
        for epoch, keys, _ in model.seen:
            print(epoch, *keys, file=file)
"""


def test_two_ranks_make_equally_many_steps_and_share_no_sample(shards: str, tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    names = {"tests": str(Path(__file__).parent), "shards": shards, "out": str(tmp_path / "seen")}
    script.write_text(textwrap.dedent(RANKS.format(**names)))
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    subprocess.run([sys.executable, str(script)], check=True, env=environment, capture_output=True, timeout=300)
    shares = [(tmp_path / f"seen-{rank}").read_text().splitlines() for rank in range(2)]
    for epoch in "01":
        keys = [[key for line in share if line[0] == epoch for key in line.split()[1:]] for share in shares]
        assert [len(each) for each in keys] == [18, 18]
        assert len({*keys[0], *keys[1]}) == 36


def test_a_shard_that_stays_unreadable_is_named_and_the_others_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "in", 6)
    names = [f"file://{tmp_path}/in/{number:03}.tar" for number in range(6)]
    data = streamed(names, 10, mirror="none")
    data.setup("fit")
    loader = data.train_dataloader()
    os.remove(tmp_path / "in" / "002.tar")
    keys = [tuple(batch["__key__"]) for batch in loader]
    assert {key.split("_")[0] for batch in keys for key in batch} == set("01345")
    assert "002.tar" in caplog.text
    assert "the rest of it is left out" in caplog.text
    for number in (0, 1, 3, 4, 5):
        os.remove(tmp_path / "in" / f"{number:03}.tar")
    with pytest.raises(ShardError, match=r"no sample that can be used in any shard"):
        list(loader)


def test_a_damaged_picture_makes_its_batch_smaller_and_moves_no_other(tmp_path: Path) -> None:
    whole = keys_of(streamed(put(tmp_path / "in", 4), 8))
    samples = {f"2_{key}": members for key, members in small_samples(4, 2).items()}
    victim = sorted(samples)[1]
    samples[victim]["jpg" if "jpg" in samples[victim] else "png"] = b"\xff\xd8\xff not a picture"
    write_shard(tmp_path / "in" / "002.tar", samples)
    damaged = keys_of(streamed(str(tmp_path / "in"), 8))
    assert [tuple(key for key in batch if key != victim) for batch in whole] == damaged


def test_fewer_shards_than_readers_and_an_epoch_of_nothing_are_refused(shards: str) -> None:
    with pytest.raises(UsageError, match="12 shards are fewer than the 16 that would read them"):
        keys_of(streamed(shards, 4, num_workers=16, workers="processes"))
    with pytest.raises(UsageError, match="epoch_batches"):
        streamed(shards, 0)


def test_a_cache_or_samples_of_ones_own_are_not_streamed(shards: str, tmp_path: Path) -> None:
    cache_latents(shards, str(tmp_path / "cache"), vae=Autoencoder(Pooling()), **SMALL)
    for source in (str(tmp_path / "cache"), [{"__key__": "a"}]):
        with pytest.raises(UsageError, match="epoch_batches: is for image shards"):
            data_module(source, epoch_batches=3)


@pytest.mark.parametrize("way", ["plain", "Fabric", "Accelerate"])
def test_loops_without_a_trainer_get_the_same_batches_and_resume(way: str, shards: str) -> None:
    def made() -> InpaintDataModule:
        data = streamed(shards, 10)
        data.setup("fit")
        return data

    whole = keys_of(streamed(shards, 10))
    loader = made().train_dataloader()
    if way == "Fabric":
        loader = Fabric(accelerator="cpu", devices=1).setup_dataloaders(loader)
    elif way == "Accelerate":
        loader = Accelerator(cpu=True).prepare(loader)
    assert [tuple(batch["__key__"]) for batch in loader] == whole
    data, again = made(), made()
    taken = [tuple(batch["__key__"]) for batch in islice(data.train_dataloader(), 4)]
    again.load_state_dict(data.state_dict())
    assert taken + [tuple(batch["__key__"]) for batch in again.train_dataloader()] == whole
    assert [tuple(batch["__key__"]) for batch in again.train_dataloader()] != whole
