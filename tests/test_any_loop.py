"""A cache in the loops that people write: each key once an epoch, other masks and noise every epoch, on any ranks."""

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_samples, write_shard
from flat import cache_latents
from torch.utils.data import ConcatDataset, DataLoader, Subset

from inpaint_data import Autoencoder, CacheError, InpaintDataModule, LatentCache, UsageError
from inpaint_data.latent_cache.folder import CacheFolder
from inpaint_data.latent_cache.format import read_cache_file, write_cache_file

SAMPLES = 16
Epoch = list[dict[str, Any]]


@pytest.fixture
def folder(tmp_path: Path, vae: Autoencoder) -> Path:
    """`cache`: of 16 samples in 2 shards, whose keys are the same, with 4 masks each."""
    for name in ("a", "b"):
        write_shard(tmp_path / "in" / f"{name}.tar", small_samples(SAMPLES // 2))
    settings: dict[str, Any] = {"resolution": 64, "masks": "boxes", "upscale": True, "variants": 4}
    cache_latents(str(tmp_path / "in"), str(tmp_path / "cache"), vae=vae, **settings)
    return tmp_path / "cache"


def places(epoch: Iterable[Any]) -> list[tuple[str, str]]:
    return [place for batch in epoch for place in zip(batch["__shard__"], batch["__key__"], strict=True)]


def column(epoch: Epoch, name: str) -> dict[tuple[str, str], list[float]]:
    values = [value.flatten().tolist() for batch in epoch for value in batch[name]]
    return dict(zip(places(epoch), values, strict=True))


def check_epochs(epochs: list[Epoch]) -> None:
    """Each sample once in each epoch, in another order, with other variants and other noise."""
    for epoch in epochs:
        assert len(places(epoch)) == len(set(places(epoch))) == SAMPLES
    for later in epochs[1:]:
        assert places(later) != places(epochs[0])
        for name in ("variant", "latents"):
            assert column(later, name) != column(epochs[0], name)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_that_is_made_once_gives_another_epoch_in_every_pass(workers: int, folder: Path) -> None:
    cache = LatentCache(folder, "sample")
    loader = DataLoader(cache, batch_sampler=cache.batches(4), num_workers=workers, persistent_workers=workers > 0)
    epochs = [list(loader) for _ in range(3)]
    check_epochs(epochs)
    cache.set_epoch(1)
    again = list(loader)
    assert places(again) == places(epochs[1])
    assert column(again, "latents") == column(epochs[1], "latents")
    assert places(list(loader)) == places(epochs[2]), "the pass after it is the next epoch"


def test_in_the_order_of_the_cache_variants_are_drawn_anew_all_the_same(folder: Path) -> None:
    cache = LatentCache(folder)
    loader = DataLoader(cache, batch_sampler=cache.batches(4, shuffle=False))
    epochs = [list(loader) for _ in range(2)]
    assert places(epochs[0]) == places(epochs[1]) == cache.places()
    assert column(epochs[0], "variant") != column(epochs[1], "variant")


def test_torchs_own_collate_joins_samples_behind_concat_and_subset(folder: Path) -> None:
    caches = [LatentCache(folder, variant=0), LatentCache(folder, variant=1)]
    whole = caches[0].batch(range(4))
    parts: list[Any] = [
        DataLoader(caches[0], batch_size=4),
        DataLoader(Subset(caches[0], range(4)), batch_size=4),
        DataLoader(ConcatDataset(caches), batch_size=4),
    ]
    for loader in parts:
        batch = next(iter(loader))
        assert batch.keys() == whole.keys()
        for name, value in whole.items():
            assert torch.equal(batch[name], value) if isinstance(value, torch.Tensor) else batch[name] == value, name
    assert len(places(DataLoader(ConcatDataset(caches), batch_size=5))) == 2 * SAMPLES


def test_batches_that_are_not_full_may_be_left_out(folder: Path) -> None:
    cache = LatentCache(folder)
    sampler = cache.batches(5, drop_last=True)
    epochs = [[tuple(rows) for rows in sampler] for _ in range(8)]
    assert len(sampler) == 3
    assert all([len(rows) for rows in epoch] == [5, 5, 5] for epoch in epochs)
    assert {row for epoch in epochs for rows in epoch for row in rows} == set(range(SAMPLES)), "others every epoch"


def test_a_rank_that_there_is_not_is_refused(folder: Path) -> None:
    cache = LatentCache(folder)
    for ranks in ({"rank": 2, "world": 2}, {"rank": 0}, {"world": 2}):
        with pytest.raises(UsageError, match="is not a process; give both"):
            cache.batches(4, **ranks)
    with pytest.raises(UsageError, match="fewer than one for each of 17 ranks"):
        len(cache.batches(1, rank=0, world=17))


RANKS = """
    import json, sys, warnings
    sys.path.insert(0, {tests!r})
    warnings.filterwarnings("ignore")
    import torch
    torch.set_num_threads(1)
    from lightning.pytorch import LightningModule, Trainer
    from torch.utils.data import DataLoader
    from inpaint_data import Autoencoder, InpaintDataModule, LatentCache, UsageError
    from conftest import Pooling

    EPOCHS = 2

    def columns(batch):
        if "masks" in batch:  # pictures, before they are encoded
            count = len(batch["__key__"])
            batch = batch | {{"variant": torch.tensor(batch["variants"] * count), "latents": batch["masks"].float()}}
        elif batch["latents"].shape[1] == 3:  # pictures, encoded without noise
            batch = batch | {{"latents": batch["mask"].float()}}
        return {{
            "__shard__": batch["__shard__"],
            "__key__": batch["__key__"],
            "variant": batch["variant"].tolist(),
            "latents": batch["latents"].flatten(1).tolist(),
        }}

    class Noting(LightningModule):
        def __init__(self, loader=None):
            super().__init__()
            self.layer, self.loader, self.epochs = torch.nn.Linear(1, 1), loader, [[] for _ in range(EPOCHS)]

        def training_step(self, batch):
            self.epochs[self.current_epoch].append(columns(batch))
            return self.layer(torch.ones(1, 1)).sum()

        def train_dataloader(self):
            cache = LatentCache({cache!r}, "sample")
            return DataLoader(cache, batch_sampler=cache.batches(4))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 1e-3)

    def passes(loader):
        return [[columns(batch) for batch in loader] for _ in range(EPOCHS)]

    def accelerate(cache):
        from accelerate import Accelerator
        return passes(Accelerator(cpu=True).prepare(DataLoader(cache, batch_sampler=cache.batches(4))))

    def accelerate_with_ranks(cache):
        from accelerate import Accelerator
        sampler = cache.batches(4, rank=torch.distributed.get_rank(), world=2)
        return passes(Accelerator(cpu=True).prepare(DataLoader(cache, batch_sampler=sampler)))

    def accelerate_tails(cache):
        from accelerate import Accelerator
        loader = Accelerator(cpu=True).prepare(DataLoader(cache, batch_sampler=cache.batches(3)))
        return [len(loader), passes(loader)]

    def accelerate_twice(cache):
        from accelerate import Accelerator
        data = InpaintDataModule({cache!r}, batch_size=4)
        try:
            passes(Accelerator(cpu=True).prepare(data.train_dataloader()))
        except UsageError as error:
            return str(error)

    def fabric(cache):
        from lightning.fabric import Fabric
        fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
        fabric.launch()
        return passes(fabric.setup_dataloaders(DataLoader(cache, batch_sampler=cache.batches(4))))

    def fit(model, **given):
        trainer = Trainer(
            accelerator="cpu", devices=2, strategy="ddp", max_epochs=EPOCHS, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )
        trainer.fit(model, **given)
        return model.epochs

    def trainer_hook(cache):
        return fit(Noting())

    def trainer_given(cache):
        model = Noting()
        model.train_dataloader = super(Noting, model).train_dataloader
        return fit(model, train_dataloaders=DataLoader(cache, batch_sampler=cache.batches(4)))

    def pictures():
        data = InpaintDataModule(
            {shards!r}, batch_size=4, pictures=dict(resolution=64, upscale=True), masks=dict(source="boxes"),
            encode=dict(vae=Autoencoder(Pooling())),
        )
        data.setup("fit")
        return data

    def pictures_own_loop(cache):
        return passes(pictures().train_dataloader())

    def pictures_fabric(cache):
        from lightning.fabric import Fabric
        fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
        fabric.launch()
        return passes(fabric.setup_dataloaders(pictures().train_dataloader()))

    def pictures_trainer(cache):
        model = Noting()
        model.train_dataloader = super(Noting, model).train_dataloader
        return fit(model, datamodule=pictures())

    def own_loop(cache):
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        return passes(DataLoader(cache, batch_sampler=cache.batches(4, rank=rank, world=world)))

    def untold(cache):
        try:
            next(iter(cache.batches(4)))
        except UsageError as error:
            return str(error)

    import torch.distributed
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    loops = [own_loop, untold, accelerate, accelerate_with_ranks, accelerate_tails, accelerate_twice, fabric]
    loops += [trainer_hook, trainer_given]
    for loop in [*loops, pictures_own_loop, pictures_fabric, pictures_trainer]:
        with open(loop.__name__ + "-" + str(rank), "w") as file:
            json.dump(loop(LatentCache({cache!r}, "sample")), file)
"""


def test_two_ranks_share_every_epoch_in_every_loop(folder: Path, tmp_path: Path) -> None:
    names = {"tests": str(Path(__file__).parent), "cache": str(folder), "shards": str(tmp_path / "in")}
    (tmp_path / "ranks.py").write_text(textwrap.dedent(RANKS.format(**names)))
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29717"]
    command = [sys.executable, *launcher, str(tmp_path / "ranks.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    from_pictures = ("pictures_own_loop", "pictures_fabric", "pictures_trainer")
    in_accelerate = ("accelerate", "accelerate_with_ranks")
    for loop in ("own_loop", *in_accelerate, "fabric", "trainer_hook", "trainer_given", *from_pictures):
        of_rank = [json.loads((tmp_path / f"{loop}-{rank}").read_text()) for rank in range(2)]
        epochs = [[*first, *second] for first, second in zip(*of_rank, strict=True)]
        assert [[len(epoch) for epoch in rank] for rank in of_rank] == [[2, 2], [2, 2]], loop
        check_epochs([[_tensors(batch) for batch in epoch] for epoch in epochs])
    of_rank = [json.loads((tmp_path / f"accelerate_tails-{rank}").read_text()) for rank in range(2)]
    for epoch in range(2):
        of_epoch = [batch for _, epochs in of_rank for batch in epochs[epoch]]
        keys = [place for batch in of_epoch for place in zip(batch["__shard__"], batch["__key__"], strict=True)]
        assert len(keys) == len(set(keys)) == 12, "five batches of 3 and one sample: two rounds of two full batches"
    assert [length for length, _ in of_rank] == [2, 2]
    for loop, named in (("untold", "give rank= and world="), ("accelerate_twice", r"without accelerator.prepare()")):
        assert all(named in json.loads((tmp_path / f"{loop}-{rank}").read_text()) for rank in range(2))


def _tensors(batch: dict[str, Any]) -> dict[str, Any]:
    return batch | {name: torch.tensor(batch[name]) for name in ("variant", "latents")}


def test_a_loader_does_not_disturb_another_one_of_its_cache(folder: Path) -> None:
    cache = LatentCache(folder, "sample")
    alone = list(DataLoader(cache, batch_sampler=cache.batches(4)))
    training = iter(DataLoader(cache, batch_sampler=cache.batches(4)))
    validation = DataLoader(cache, batch_sampler=cache.batches(4, shuffle=False))
    mixed = [next(training), next(training)]
    for _ in range(2):
        list(validation)
    mixed += training
    assert column(mixed, "latents") == column(alone, "latents")
    cache.set_epoch(5)
    list(validation)
    training_batches = cache.batches(4)
    assert next(iter(training_batches)).epoch == 5, "each of them is told"


def test_another_pass_with_the_same_draws_is_told_of(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = LatentCache(folder)
    loader = DataLoader(cache, batch_size=4, shuffle=True)
    for epoch in range(2):
        cache.set_epoch(epoch)
        list(loader)
    assert not caplog.text
    list(loader)
    list(loader)
    assert caplog.text.count("another pass with the variants and the noise of epoch 1; call set_epoch()") == 1
    frozen = LatentCache(folder, variant=0)
    for _ in range(2):
        list(DataLoader(frozen, batch_size=4))
    assert caplog.text.count("another pass") == 1


def test_several_processes_by_the_environment_alone_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="there are 2 processes, and batches"):
        list(LatentCache(folder).batches(4))


def test_an_unfinished_cache_is_told_of_and_refused_to_several_ranks(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cache_file(CacheFolder(folder), read_cache_file(folder).settings_json, None)
    (folder / "b.json").unlink()
    cache = LatentCache(folder)
    assert "its job is under way or was stopped, at 8 samples; run the cache command to its end" in caplog.text
    assert sum(map(len, cache.batches(4))) == 8
    with pytest.raises(CacheError, match="ranks may see other samples of it; run the cache command to its end"):
        list(cache.batches(4, rank=0, world=2))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    data = InpaintDataModule(str(folder), batch_size=4)
    data.setup("fit")
    with pytest.raises(CacheError, match="ranks may see other samples of it"):
        data.train_dataloader()


def test_a_loop_without_a_trainer_resumes_in_the_epoch_that_it_was_in(folder: Path) -> None:
    def places_of(data: InpaintDataModule, passes: int) -> list[list[tuple[str, str]]]:
        return [places(data.train_dataloader()) for _ in range(passes)]

    def opened() -> InpaintDataModule:
        data = InpaintDataModule(str(folder), batch_size=4)
        data.setup("fit")
        return data

    whole, stopped, resumed = places_of(opened(), 3), opened(), opened()
    list(stopped.train_dataloader())
    reading = iter(stopped.train_dataloader())
    next(reading)
    resumed.load_state_dict(stopped.state_dict())
    assert places_of(resumed, 2) == [whole[1][4:], whole[2]]


def test_what_is_no_cache_or_no_seed_is_refused_in_a_line(folder: Path) -> None:
    for root in (None, 3, [], [None]):
        with pytest.raises(UsageError, match="is not a folder; name that of a cache"):
            LatentCache(root)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="seed: 'a' is not a whole number"):
        LatentCache(folder, seed="a")  # type: ignore[arg-type]
