"""Training in the loops that people use: nothing is frozen before a pass begins."""

import io
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Pooling, small_samples, write_shard
from flat import cache_latents, data_module
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.tuner import Tuner
from PIL import Image

from inpaint_data import Autoencoder, ShardError, UsageError, verify_cache
from inpaint_data.ahead import ahead
from inpaint_data.pictures.filters import Filters

SMALL: dict[str, Any] = {"resolution": 16, "masks": "boxes", "upscale": True}
QUIET: dict[str, Any] = {
    "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
}  # fmt: skip


class Noting(LightningModule):
    """Notes which samples came in which epoch, in which types."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[tuple[int, tuple[str, ...]]] = []
        self.types: list[dict[str, torch.dtype]] = []

    def training_step(self, batch: Any) -> torch.Tensor:
        self.seen.append((self.current_epoch, tuple(batch["__key__"])))
        self.types.append({name: value.dtype for name, value in batch.items() if isinstance(value, torch.Tensor)})
        result: torch.Tensor = self.layer(torch.ones(1, 1, dtype=self.layer.weight.dtype)).sum()
        return result

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3)

    def epoch(self, number: int) -> list[tuple[str, ...]]:
        return [keys for epoch, keys in self.seen if epoch == number]


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """The arguments of a DataModule for shards and for a cache, of 16 samples."""
    write_shard(tmp_path / "in" / "a.tar", small_samples(16))
    vae = Autoencoder(Pooling())
    cache_latents(str(tmp_path / "in"), str(tmp_path / "cache"), vae=vae, variants=3, **SMALL)
    return {
        "cache": {"source": str(tmp_path / "cache")},
        "shards": {"source": str(tmp_path / "in"), "vae": vae, **SMALL},
    }


def fit(data: Any, **options: Any) -> Noting:
    model = Noting()
    Trainer(**(QUIET | {"max_epochs": 1, "enable_checkpointing": False} | options)).fit(model, datamodule=data)
    return model


def stopped(data: Any, folder: Path, steps: int) -> None:
    """Leave a checkpoint behind that many steps."""
    keep = ModelCheckpoint(folder, "last", every_n_train_steps=steps, save_top_k=1, enable_version_counter=False)
    Trainer(**QUIET, max_steps=steps, callbacks=[keep]).fit(Noting(), datamodule=data)


@pytest.mark.parametrize("kind", ["cache", "shards"])
def test_a_second_fit_begins_anew_also_after_a_resumed_one(kind: str, sources: Any, tmp_path: Path) -> None:
    data = data_module(batch_size=4, **sources[kind])
    first = fit(data, max_epochs=2)
    assert fit(data, max_epochs=2).seen == first.seen
    stopped(data, tmp_path, 2)
    resumed = Noting()
    Trainer(**QUIET, max_epochs=1, default_root_dir=tmp_path).fit(
        resumed, datamodule=data, ckpt_path=tmp_path / "last.ckpt"
    )
    assert resumed.seen == first.seen[2:4]
    assert fit(data, max_epochs=2).seen == first.seen


@pytest.mark.parametrize("kind", ["cache", "shards"])
def test_a_changed_batch_size_counts_from_the_next_pass(kind: str, sources: Any, tmp_path: Path) -> None:
    data = data_module(batch_size=4, **sources[kind])
    data.setup("fit")
    assert len(data.train_dataloader()) == 4
    data.batch_size = 8
    assert len(data.train_dataloader()) == 2
    assert [len(keys) for _, keys in fit(data).seen] == [8, 8]
    stopped(data, tmp_path, 1)
    state = torch.load(tmp_path / "last.ckpt", weights_only=False)["InpaintDataModule"]
    assert state == {"epoch": 0, "consumed": [[8, 1]]}


@pytest.mark.parametrize("val", [True, False])
def test_lightnings_batch_size_finder_finds(val: bool, sources: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    more = {"val_source": sources["cache"]["source"]} if val else {}
    data = data_module(batch_size=2, **sources["cache"], **more)
    model, trainer = Noting(), Trainer(**QUIET, max_epochs=1)
    size = Tuner(trainer).scale_batch_size(model, datamodule=data, max_trials=3, init_val=2, steps_per_trial=1)
    assert size == data.batch_size
    assert [len(keys) for _, keys in model.seen][:3] == [2, 4, 8]


@pytest.mark.parametrize("kind", ["cache", "shards"])
def test_overfit_batches_gives_the_same_batch_every_epoch(kind: str, sources: Any) -> None:
    model = fit(data_module(batch_size=4, **sources[kind]), max_epochs=3, overfit_batches=1)
    assert len(model.seen) == 3
    assert len({keys for _, keys in model.seen}) == 1


@pytest.mark.parametrize("kind", ["cache", "shards"])
def test_without_a_trainer_passes_are_counted(kind: str, sources: Any) -> None:
    data = data_module(batch_size=4, **sources[kind])
    data.setup("fit")
    loader = data.train_dataloader()
    passes = [[tuple(batch["__key__"]) for batch in loader] for _ in range(3)]
    trained = fit(data_module(batch_size=4, **sources[kind]), max_epochs=3)
    assert passes == [trained.epoch(number) for number in range(3)]
    data.epoch = 1
    assert [tuple(batch["__key__"]) for batch in loader] == passes[1]


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true", "bf16-mixed"])
def test_types_are_the_same_live_and_cached_under_every_precision(precision: Any, sources: Any) -> None:
    live = fit(data_module(batch_size=4, **sources["shards"]), precision=precision).types[0]
    cached = fit(data_module(batch_size=4, **sources["cache"]), precision=precision).types[0]
    assert live == cached


@pytest.mark.parametrize("strategy", ["pickled", "spawned"])
def test_without_a_val_source_validation_is_skipped_also_behind_a_pickle(strategy: str, sources: Any) -> None:
    data = data_module(batch_size=4, **sources["cache"])
    model = Validating()
    if strategy == "pickled":
        trainer = Trainer(**QUIET, max_epochs=1, enable_checkpointing=False)
        trainer.fit(model, datamodule=pickle.loads(pickle.dumps(data)))
        assert [len(keys) for _, keys in model.seen] == [4, 4, 4, 4]
    else:
        options = QUIET | {"devices": 2, "max_epochs": 1, "enable_checkpointing": False}
        Trainer(**options, strategy="ddp_spawn").fit(model, datamodule=data)


def test_settings_of_a_training_with_fresh_masks_serve_validation_alone(sources: Any) -> None:
    data = data_module(val_source=sources["cache"]["source"], batch_size=4, fresh_masks=True)
    (results,) = Trainer(**QUIET).validate(Validating(), datamodule=data)
    assert results == {}
    with pytest.raises(UsageError, match=r"fresh_masks: source '.*' is not a cache"):
        data_module(batch_size=4, fresh_masks=True, **sources["shards"])


def test_a_batch_size_set_later_is_checked_as_the_first_was(sources: Any) -> None:
    data = data_module(batch_size=4, **sources["cache"])
    data.setup("fit")
    loader = data.train_dataloader()
    data.batch_size = 0
    with pytest.raises(UsageError, match="batch_size: 0 is not a positive whole number"):
        next(iter(loader))


@pytest.mark.parametrize("kind", ["cache", "shards"])
def test_it_can_be_pickled_after_a_loader_was_made(kind: str, sources: Any) -> None:
    data = data_module(batch_size=4, **sources[kind])
    data.setup("fit")
    keys = [batch["__key__"] for batch in data.train_dataloader()]
    again = pickle.loads(pickle.dumps(data_module(batch_size=4, **sources[kind])))
    again.setup("fit")
    assert [batch["__key__"] for batch in again.train_dataloader()] == keys
    pickle.loads(pickle.dumps(data))


RANKS = """
    import os, sys, warnings
    sys.path.insert(0, {tests!r})
    warnings.filterwarnings("ignore")
    import torch
    torch.set_num_threads(1)
    from inpaint_data import Autoencoder, InpaintDataModule
    from conftest import Pooling

    SMALL = dict(pictures=dict(resolution=16, upscale=True), masks=dict(source="boxes"))
    SOURCES = dict(
        cache=dict(source={cache!r}),
        shards=dict(source={shards!r}, encode=dict(vae=Autoencoder(Pooling())), **SMALL),
    )

    def keys(loader):
        return [key for batch in loader for key in batch["__key__"]]

    def say(name, rank, *words):
        with open(name + "-" + str(rank), "w") as file:  # a pipe would mix the lines of two ranks
            file.write(" ".join(words))
"""
TORCHRUN = (
    RANKS
    + """
    import torch.distributed as dist
    for name, arguments in SOURCES.items():
        data = InpaintDataModule(batch_size=2, **arguments)
        data.setup("fit")
        len(data.train_dataloader())  # a peek, before there are ranks
        if not dist.is_initialized():
            dist.init_process_group("gloo")
        say(name, dist.get_rank(), *keys(data.train_dataloader()))
    dist.destroy_process_group()
"""
)
FABRIC = (
    RANKS
    + """
    from lightning.fabric import Fabric
    if __name__ == "__main__":
        fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
        fabric.launch()
        for name, arguments in SOURCES.items():
            data = InpaintDataModule(batch_size=2, **arguments)
            data.setup("fit")
            say(name, fabric.global_rank, *keys(fabric.setup_dataloaders(data.train_dataloader())))
"""
)


@pytest.mark.parametrize("way", ["torchrun", "fabric"])
@pytest.mark.usefixtures("sources")
def test_two_ranks_without_a_trainer_share_the_samples(way: str, tmp_path: Path) -> None:
    script = {"torchrun": TORCHRUN, "fabric": FABRIC}[way]
    names = {"tests": str(Path(__file__).parent), "cache": str(tmp_path / "cache"), "shards": str(tmp_path / "in")}
    (tmp_path / "ranks.py").write_text(textwrap.dedent(script.format(**names)))
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29713"]
    command = [sys.executable, *(launcher if way == "torchrun" else []), str(tmp_path / "ranks.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("cache", "shards"):
        shares = [(tmp_path / f"{name}-{rank}").read_text().split() for rank in range(2)]
        assert [len(share) for share in shares] == [8, 8]
        assert len({*shares[0], *shares[1]}) == 16


class Validating(Noting):
    """Notes what validation_step is given."""

    def __init__(self) -> None:
        super().__init__()
        self.validated: list[str] = []

    def validation_step(self, batch: Any) -> None:
        self.validated += batch["__key__"]


def test_validation_is_never_given_a_batch_of_nothing(tmp_path: Path) -> None:
    samples = small_samples(3)
    write_shard(tmp_path / "in" / "a.tar", samples | {"bad": {"jpg": b"no picture"}, "last": samples["sample_0"]})
    model, vae = Validating(), Autoencoder(Pooling())
    data = data_module(val_source=str(tmp_path / "in"), vae=vae, batch_size=1, **SMALL)
    Trainer(**QUIET).validate(model, datamodule=data)
    assert model.validated == [*samples, "last"]


def test_what_filters_leave_out_is_known_before_batches_are_made(tmp_path: Path) -> None:
    """On several ranks a batch of nothing would end the run."""
    samples = small_samples(6)
    tall = io.BytesIO()
    Image.new("RGB", (20, 80)).save(tall, "PNG")
    bare = {key: {"jpg": members["jpg"]} for key, members in small_samples(2, 7).items()}
    others = {"tall": {"png": tall.getvalue(), "txt": b"tall"}} | {f"bare{key}": each for key, each in bare.items()}
    write_shard(tmp_path / "in" / "a.tar", samples | others)
    filters = Filters(max_aspect=1.5, caption=True)
    data = data_module(str(tmp_path / "in"), vae=Autoencoder(Pooling()), batch_size=1, filters=filters, **SMALL)
    model = fit(data, max_epochs=2)
    assert len(data.train_dataloader()) == len(samples)
    for epoch in range(2):
        assert sorted(keys for (keys,) in model.epoch(epoch)) == sorted(samples)


def test_a_process_that_the_environment_makes_one_of_several_is_told_so(
    sources: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    data = data_module(batch_size=2, **sources["cache"])
    data.setup("fit")
    assert sum(len(batch["__key__"]) for batch in data.train_dataloader()) == 4
    assert caplog.text.count("process 1 of 4, as RANK and WORLD_SIZE or Slurm's variables") == 1


def test_who_stops_early_does_not_wait_for_a_read_that_hangs() -> None:
    answers = threading.Event()

    def hanging() -> Iterator[int]:
        yield 0
        answers.wait(60)
        yield 1

    reading = ahead(hanging(), 2)
    assert next(reading) == 0
    reading.close()
    assert not answers.is_set()
    assert [thread.name for thread in threading.enumerate()].count("inpaint_data-ahead") == 1, "it hangs on"
    answers.set()


def test_a_pipe_in_place_of_a_shard_is_refused_and_not_waited_for(sources: Any, tmp_path: Path) -> None:
    (tmp_path / "in" / "a.tar").unlink()
    os.mkfifo(tmp_path / "in" / "a.tar")
    problems = verify_cache(tmp_path / "cache", against=str(tmp_path / "in")).problems
    assert [problem.problem.partition(";")[0] for problem in problems] == ["it is not a file"]
    with pytest.raises(ShardError, match=r"a\.tar: it is not a file"):
        fit(data_module(batch_size=4, **sources["shards"]))
