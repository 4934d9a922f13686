"""Several sources in one training: how often each comes is what was asked for, and every run is the same run again."""

import io
import json
import os
import random
import subprocess
import sys
import textwrap
from collections import Counter
from fractions import Fraction
from itertools import islice
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import Pooling, small_samples, write_shard
from flat import cache_latents
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from test_streaming import fit

from inpaint_data import Autoencoder, InpaintDataModule, SourceSettings, UsageError
from inpaint_data.errors import SampleError

VAE = Autoencoder(Pooling())
PICTURES: dict[str, Any] = {"resolution": 16, "upscale": True}
BATCH = 4
Keys = list[tuple[str, ...]]


def samples_of(name: str, count: int, text: str = "") -> dict[str, dict[str, bytes]]:
    made = {f"{name}_{key}": members for key, members in small_samples(count, len(name)).items()}
    for members in made.values():
        members["json"] = f'{{"prompt": "{text or name}"}}'.encode()
    return made


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Shards `a` of 40 samples, `b` of 10; `ca` and `cb`, caches of them; `sa`, `sb`, each in six shards."""
    folder = tmp_path_factory.mktemp("mixing")
    for name, count in (("a", 40), ("b", 10)):
        # All shards have one name: samples are told apart by more than that.
        write_shard(folder / name / "0.tar", samples_of(name, count))
        for number in range(6):
            write_shard(folder / f"s{name}" / f"{number}.tar", samples_of(f"{name}{number}", 6))
        cache_latents(str(folder / name), str(folder / f"c{name}"), vae=VAE, masks="boxes", **PICTURES)
    return {name: str(folder / name) for name in ("a", "b", "ca", "cb", "sa", "sb")}


def mixed(*entries: Any, **more: Any) -> InpaintDataModule:
    live = {"pictures": PICTURES, "masks": {"source": "boxes"}, "encode": {"vae": VAE}}
    given = {"batch_size": BATCH} | live | more
    return InpaintDataModule(list(entries), **given)


def batches(data: InpaintDataModule, epoch: int = 0) -> list[Any]:
    """The batches of an epoch, as a step gets them."""
    data.setup("fit")
    data.epoch = epoch
    return [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]


def keys(data: InpaintDataModule, epoch: int = 0) -> Keys:
    data.setup("fit")
    data.epoch = epoch
    return [tuple(batch["__key__"]) for batch in data.train_dataloader()]


def counted(seen: Keys) -> Counter[str]:
    """How many samples of each source."""
    return Counter(key.rstrip("0123456789").split("_")[0].rstrip("0123456789") for batch in seen for key in batch)


def binomial_bounds(count: int, share: Fraction, risk: float = 1e-6) -> tuple[int, int]:
    """The numbers between which a binomial one lies but for `risk` on each side, by its exact distribution."""
    chances = [comb(count, hits) * share**hits * (1 - share) ** (count - hits) for hits in range(count + 1)]
    low = next(hits for hits in range(count + 1) if sum(chances[: hits + 1]) > risk)
    high = next(hits for hits in range(count, -1, -1) if sum(chances[hits:]) > risk)
    return low, high


@pytest.mark.parametrize("kind", ["a", "ca"], ids=["pictures", "caches"])
def test_the_shares_of_weights_lie_within_binomial_bounds_from_the_first_batches_on(
    kind: str, where: dict[str, str]
) -> None:
    other = {"a": "b", "ca": "cb"}[kind]
    data = mixed({"source": where[kind], "weight": 3}, {"source": where[other], "weight": 1})
    for epoch in range(4):
        seen = keys(data, epoch)
        assert counted(seen) == {"a": 40, "b": 13} or counted(seen) == {"a": 40, "b": 14}
        for first in (5, 10):
            low, high = binomial_bounds(first * BATCH, Fraction(3, 4))
            assert low <= counted(seen[:first])["a"] <= high
        assert any(len({key[0] for key in batch}) == 2 for batch in seen), "samples of both come in one batch"


def test_streamed_samples_are_drawn_by_weight(where: dict[str, str]) -> None:
    loading = {"epoch_batches": 50, "shuffle_buffer": 6}
    data = mixed({"source": where["sa"], "weight": 4}, {"source": where["sb"]}, loading=loading)
    shares = [counted(keys(data, epoch)) for epoch in range(2)]
    low, high = binomial_bounds(200, Fraction(4, 5))
    assert all(low <= share["a"] <= high and sum(share.values()) == 200 for share in shares)
    assert len({share["a"] for share in shares}) > 1, "drawn, not dealt"


def test_every_sample_comes_once_for_each_repeat_and_with_another_mask(where: dict[str, str]) -> None:
    for a, b in (("a", "b"), ("ca", "cb"), ("a", "cb")):
        masks: dict[str, set[bytes]] = {}
        for epoch in (0, 1):
            seen = batches(mixed(where[a], {"source": where[b], "repeats": 3}), epoch)
            often = Counter(key for batch in seen for key in batch["__key__"])
            assert sorted(often.values()) == [1] * 40 + [3] * 10
            for batch in seen:
                for key, mask in zip(batch["__key__"], batch["mask"].numpy(), strict=True):
                    masks.setdefault(key, set()).add(mask.tobytes())
        if b == "b":
            # Small boxes may be equal by chance.
            assert np.mean([len(different) for key, different in masks.items() if key.startswith("b_")]) > 5


def test_of_a_share_every_sample_comes_equally_often(where: dict[str, str]) -> None:
    data = mixed({"source": where["a"], "repeats": 0.25}, {"source": where["b"], "repeats": 1.3})
    epochs = [Counter(key for batch in keys(data, epoch) for key in batch) for epoch in range(20)]
    for epoch in epochs:
        assert sum(count for key, count in epoch.items() if key[0] == "a") == 10
        assert {count for key, count in epoch.items() if key[0] == "a"} == {1}
        assert sum(count for key, count in epoch.items() if key[0] == "b") == 13
        assert {count for key, count in epoch.items() if key[0] == "b"} == {1, 2}
    assert epochs[0].keys() != epochs[1].keys()
    total = sum(epochs, Counter[str]())
    assert {count for key, count in total.items() if key[0] == "a"} == {5}
    assert {count for key, count in total.items() if key[0] == "b"} == {26}


def test_an_exhausted_source_repeats_or_ends_the_epoch(where: dict[str, str]) -> None:
    entries = {"source": where["a"], "weight": 1}, {"source": where["b"], "weight": 1}
    assert counted(keys(mixed(*entries))) == {"a": 40, "b": 40}
    ends = mixed(*entries, loading={"exhausted": "end"})
    assert counted(keys(ends)) == {"a": 10, "b": 10}
    of_a = [key for epoch in range(4) for batch in keys(ends, epoch) for key in batch if key[0] == "a"]
    assert len(set(of_a)) == 40, "the next epoch goes on with the others"
    half = {"source": where["b"], "repeats": 0.5}
    assert counted(keys(mixed({"source": where["a"], "weight": 3}, half, loading={"exhausted": "end"}))) == {
        "a": 15,
        "b": 5,
    }


def test_what_comes_again_in_an_epoch_is_drawn_anew(where: dict[str, str]) -> None:
    """Captions drop out of some repeats alone; streamed samples that come again have other masks."""
    data = mixed({"source": where["b"], "repeats": 8}, loading={"text": {"dropout": 0.5}})
    dropped: dict[str, list[bool]] = {}
    for batch in batches(data):
        for key, caption in zip(batch["__key__"], batch["caption"], strict=True):
            dropped.setdefault(key, []).append(not caption)
    assert all(len(each) == 8 for each in dropped.values())
    assert sum(len(set(each)) == 2 for each in dropped.values()) > 5
    streamed = {"epoch_batches": 54, "shuffle_buffer": 6}
    data = mixed({"source": where["sa"], "weight": 1}, {"source": where["sb"], "weight": 5}, loading=streamed)
    masks: dict[str, set[bytes]] = {}
    for batch in batches(data):
        for key, mask in zip(batch["__key__"], batch["mask"].numpy(), strict=True):
            masks.setdefault(key, set()).add(mask.tobytes())
    assert np.mean([len(different) for key, different in masks.items() if key[0] == "b"]) > 3


def test_streams_of_other_readers_go_on_with_shards_of_each_source_that_were_not_begun(
    where: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def made(**workers: Any) -> InpaintDataModule:
        loading = {"epoch_batches": 8, "shuffle_buffer": 2} | workers
        entries = {"source": where["sa"], "weight": 1}, {"source": where["sb"], "weight": 1}
        return mixed(*entries, batch_size=2, loading=loading)

    saves = ModelCheckpoint(tmp_path / "all", every_n_train_steps=4, save_top_k=-1)
    before = fit(made(), tmp_path, callbacks=(saves,))[:4]
    path = next((tmp_path / "all").glob("*step=4.ckpt"))
    after = fit(made(num_workers=2, workers="processes"), tmp_path, path)
    assert "goes on with the shards that were not begun" in caplog.text
    assert len(after) == 4

    def begun(steps: Any) -> set[str]:
        return {key.split("_")[0] for step in steps for key in step[1]}

    assert not begun(before) & begun(after)
    alone = InpaintDataModule(
        where["sa"], batch_size=2, pictures=PICTURES, masks={"source": "boxes"}, encode={"vae": VAE},
        loading={"epoch_batches": 8},
    )  # fmt: skip
    with pytest.raises(UsageError, match="the checkpoint is of 2 sources, and these are 1"):
        fit(alone, tmp_path, path)


@pytest.mark.parametrize("streamed", [False, True], ids=["indexed", "streamed"])
def test_a_mixture_is_a_function_of_seed_and_epoch_alone(streamed: bool, where: dict[str, str]) -> None:
    loading = {"epoch_batches": 12, "shuffle_buffer": 6} if streamed else {}
    a, b = ("sa", "sb") if streamed else ("a", "b")

    def made(seed: int = 0) -> InpaintDataModule:
        entries = {"source": where[a], "weight": 2}, {"source": where[b], "weight": 1, "masks": {"source": "strokes"}}
        return mixed(*entries, loading=loading | {"seed": seed})

    def states() -> list[Any]:
        return [random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()]

    before = states()
    seen = keys(made())
    assert states() == before, "the global generators are nobody's to draw from"
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    data = made()
    assert keys(data, 1) != seen
    assert keys(data, 0) == seen
    assert keys(made(seed=1)) != seen


def test_a_sample_is_the_same_sample_as_from_its_source_alone(where: dict[str, str]) -> None:
    strokes: dict[str, Any] = {"source": "strokes", "offset": 3}
    mixture = batches(mixed(where["a"], {"source": where["b"], "masks": strokes}), 1)
    alone = batches(mixed(where["a"]), 1) + batches(mixed(where["b"], masks=strokes), 1)

    def rows(seen: list[Any]) -> dict[str, list[Any]]:
        names = ("latents", "masked_latents", "mask", "offset", "generator", "caption")
        return {key: [batch[name][i] for name in names] for batch in seen for i, key in enumerate(batch["__key__"])}

    ours, theirs = rows(mixture), rows(alone)
    assert ours.keys() == theirs.keys()
    for key, values in ours.items():
        for mine, other in zip(values, theirs[key], strict=True):
            assert torch.equal(mine, other) if isinstance(mine, torch.Tensor) else mine == other


def test_pictures_have_masks_and_captions_of_their_own_in_one_batch(where: dict[str, str]) -> None:
    seen = batches(mixed(where["a"], {"source": where["b"], "masks": {"source": "strokes"}, "captions": "json:prompt"}))
    assert any(len({key[0] for key in batch["__key__"]}) == 2 for batch in seen)
    for batch in seen:
        for key, generator, caption in zip(batch["__key__"], batch["generator"], batch["caption"], strict=True):
            assert generator == {"a": "boxes", "b": "strokes"}[key[0]]
            assert caption.startswith("number ") if key[0] == "a" else caption == "b"


def test_offsets_and_fills_of_their_own_come_in_batches_of_their_own(where: dict[str, str]) -> None:
    for loading in ({}, {"epoch_batches": 12}):
        a, b = ("sa", "sb") if loading else ("a", "b")
        entries = {"source": where[a], "weight": 1}, {"source": where[b], "masks": {"offset": 3, "fill": "black"}}
        data = mixed(*entries, loading=loading, masks={"source": "boxes", "offset": 1})
        seen = batches(data)
        assert {len({key[0] for key in batch["__key__"]}) for batch in seen} == {1}
        assert {(batch["__key__"][0][0], offset) for batch in seen for offset in batch["offset"].tolist()} == {
            ("a", 1),
            ("b", 3),
        }
        assert data.encoder is not None
        assert [transform.fill for transform in data.encoder.transforms] == ["grey", "black"]


def test_pictures_and_caches_in_one_mixture_give_a_step_the_same_keys(where: dict[str, str]) -> None:
    seen = batches(mixed(where["a"], {"source": where["cb"], "repeats": 2}))
    assert {len({key[0] for key in batch["__key__"]}) for batch in seen} == {1}
    assert len({frozenset(batch) for batch in seen}) == 1
    assert counted([tuple(batch["__key__"]) for batch in seen]) == {"a": 40, "b": 20}


def test_fresh_masks_are_drawn_over_each_cache_with_masks_of_its_own(where: dict[str, str], tmp_path: Path) -> None:
    for name in ("a", "b"):
        settings = PICTURES | {"masks": "boxes", "carry_image": "crop"}
        cache_latents(where[name], str(tmp_path / name), vae=VAE, **settings)
    entries = [str(tmp_path / "a"), {"source": str(tmp_path / "b"), "repeats": 2, "masks": {"source": "strokes"}}]
    data = InpaintDataModule(entries, batch_size=BATCH, encode={"vae": VAE}, loading={"fresh_masks": True})
    seen = batches(data)
    kinds = {(key[0], made) for batch in seen for key, made in zip(batch["__key__"], batch["generator"], strict=True)}
    assert kinds == {("a", "boxes"), ("b", "strokes")}
    assert counted([tuple(batch["__key__"]) for batch in seen]) == {"a": 40, "b": 20}


@pytest.fixture(scope="module")
def oblong(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Shards `x` and `y` of pictures of many sizes."""
    folder, rng = tmp_path_factory.mktemp("oblong"), np.random.default_rng(0)
    for name, count in (("x", 37), ("y", 21)):
        samples = {}
        for number in range(count):
            file = io.BytesIO()
            sides = *rng.integers(24, 49, 2), 3
            Image.fromarray(rng.integers(0, 256, sides, np.uint8)).save(file, "PNG")
            samples[f"{name}_{number}"] = {"png": file.getvalue()}
        write_shard(folder / name / "0.tar", samples)
    return {name: str(folder / name) for name in "xy"}


def of_many_sizes(oblong: dict[str, str], **more: Any) -> InpaintDataModule:
    cuts = {"resolution": 32, "upscale": True, "max_aspect": 2.0, "bucket_step": 8}
    entries = {"source": oblong["x"], "repeats": 0.3}, {"source": oblong["y"], "repeats": 1.7}
    return mixed(*entries, pictures=cuts, **more)


def test_samples_of_two_sources_and_one_size_come_together_and_all_epochs_are_as_long(oblong: dict[str, str]) -> None:
    data = of_many_sizes(oblong)
    assert len({tuple(batch["mask"].shape[-2:]) for batch in batches(data)}) > 2
    epochs = [keys(data, epoch) for epoch in range(10)]
    assert {len(epoch) for epoch in epochs} == {len(data.train_dataloader())}
    assert any(len({key[0] for key in batch}) == 2 for epoch in epochs for batch in epoch)
    total = Counter(key for epoch in epochs for batch in epoch for key in batch)
    assert len(total) == 37 + 21, "no bucket is so small that it never comes"
    # A few odd batches of each epoch wait for another one.
    for name, expected in (("x", 10 * 0.3 * 37), ("y", 10 * 1.7 * 21)):
        assert 0.85 < sum(count for key, count in total.items() if key[0] == name) / expected <= 1.01


@pytest.mark.parametrize("kind", ["pictures", "both", "streamed"])
def test_every_checkpoint_goes_on_with_the_very_next_batch(kind: str, where: dict[str, str], tmp_path: Path) -> None:
    a, b = {"pictures": ("a", "b"), "both": ("ca", "b"), "streamed": ("sa", "sb")}[kind]
    loading = {"epoch_batches": 9, "shuffle_buffer": 6} if kind == "streamed" else {"exhausted": "end"}

    def made() -> InpaintDataModule:
        entries = {"source": where[a], "weight": 3}, {"source": where[b], "weight": 1, "masks": {"source": "strokes"}}
        return mixed(*entries, loading=loading)

    saves = ModelCheckpoint(tmp_path / "all", every_n_train_steps=1, save_top_k=-1)
    unbroken = fit(made(), tmp_path, callbacks=(saves,), max_epochs=2)
    half = len(unbroken) // 2
    assert [step[0] for step in unbroken] == [0] * half + [1] * half
    for path in (tmp_path / "all").glob("*.ckpt"):
        step = int(path.stem.partition("step=")[2])
        if step in (2, half, half + 3):
            assert fit(made(), tmp_path, path, max_epochs=2) == unbroken[step:], step


@pytest.mark.parametrize("kind", ["pictures", "sizes", "streamed"])
def test_a_loop_without_a_trainer_goes_on_too(kind: str, where: dict[str, str], oblong: dict[str, str]) -> None:
    def made() -> InpaintDataModule:
        if kind == "sizes":
            return of_many_sizes(oblong)
        loading = {"epoch_batches": 9, "shuffle_buffer": 6} if kind == "streamed" else {}
        a, b = ("sa", "sb") if kind == "streamed" else ("a", "b")
        return mixed({"source": where[a], "weight": 2}, {"source": where[b], "weight": 1}, loading=loading)

    whole = keys(made())
    for stop in (1, 5):
        data, again = made(), made()
        data.setup("fit")
        taken = [tuple(batch["__key__"]) for batch in islice(data.train_dataloader(), stop)]
        again.setup("fit")
        again.load_state_dict(data.state_dict())
        assert taken + [tuple(batch["__key__"]) for batch in again.train_dataloader()] == whole


@pytest.mark.parametrize("kind", ["pictures", "caches", "both"])
def test_other_ranks_take_what_is_left_of_the_epoch(
    kind: str, where: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = {"pictures": ("a", "b"), "caches": ("ca", "cb"), "both": ("a", "cb")}[kind]

    def made() -> InpaintDataModule:
        data = mixed({"source": where[a], "repeats": 0.5}, {"source": where[b], "repeats": 2}, batch_size=2)
        data.setup("fit")
        return data

    whole = keys(made())
    before = made()
    taken = [tuple(batch["__key__"]) for batch in islice(before.train_dataloader(), 6)]
    shares = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        data = made()
        data.load_state_dict(before.state_dict())
        shares.append([tuple(batch["__key__"]) for batch in data.train_dataloader()])
    assert len(whole) == 20
    assert [len(share) for share in shares] == [7, 7]
    assert sorted(taken + shares[0] + shares[1]) == sorted(whole)


def test_worker_processes_give_the_batches_that_threads_give(where: dict[str, str]) -> None:
    entries = {"source": where["ca"], "repeats": 0.5}, {"source": where["b"], "repeats": 1.5}
    processes = {"num_workers": 2, "workers": "processes"}
    ours, theirs = batches(mixed(*entries)), batches(mixed(*entries, loading=processes))
    assert [batch["__key__"] for batch in ours] == [batch["__key__"] for batch in theirs]
    assert all(torch.equal(one["mask"], other["mask"]) for one, other in zip(ours, theirs, strict=True))


RANKS = """
    import os, sys, warnings
    sys.path.insert(0, {tests!r})
    warnings.filterwarnings("ignore")
    import torch
    torch.set_num_threads(1)
    from lightning.pytorch import Trainer
    from test_mixing import mixed
    from test_streaming import Recorder

    model = Recorder()
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0,
    )
    trainer.fit(model, datamodule=mixed(*{entries!r}, loading={loading!r}, batch_size=2))
    with open({out!r} + "-" + os.environ.get("LOCAL_RANK", "0"), "w") as file:
        for epoch, keys, _ in model.seen:
            print(epoch, *keys, file=file)
"""


@pytest.mark.parametrize("kind", ["both", pytest.param("streamed", marks=pytest.mark.slow)])
def test_two_ranks_make_equally_many_steps_and_share_no_sample(
    kind: str, where: dict[str, str], tmp_path: Path
) -> None:
    a, b, loading = ("sa", "sb", {"epoch_batches": 7}) if kind == "streamed" else ("ca", "b", {"exhausted": "end"})
    script = tmp_path / "ranks.py"
    names = {"tests": str(Path(__file__).parent), "out": str(tmp_path / "seen"), "loading": loading}
    entries = [{"source": where[a], "weight": 2}, {"source": where[b], "weight": 1}]
    script.write_text(textwrap.dedent(RANKS.format(entries=entries, **names)))
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    subprocess.run([sys.executable, str(script)], check=True, env=environment, capture_output=True, timeout=300)
    shares = [(tmp_path / f"seen-{rank}").read_text().splitlines() for rank in range(2)]
    for epoch in "01":
        seen = [[key for line in share if line[0] == epoch for key in line.split()[1:]] for share in shares]
        assert [len(each) for each in seen] == [14, 14]
        assert len({*seen[0], *seen[1]}) == 28


def test_a_mixture_is_written_in_yaml_and_on_the_command_line(where: dict[str, str], tmp_path: Path) -> None:
    cli = pytest.importorskip("lightning.pytorch.cli")
    from lightning.pytorch.demos.boring_classes import BoringModel

    mixture = {"weights": {"boxes": 1, "strokes": 2}}
    entries = [
        {"source": where["a"], "weight": 3},
        {"source": where["b"], "repeats": 0.5, "masks": {"source": "mixture", "mixture": mixture, "offset": [-2, 4]}},
    ]
    settings = {"source": entries, "batch_size": BATCH, "pictures": PICTURES, "masks": {"source": "boxes"}}
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump({"data": settings | {"encode": {"vae": "demo"}}}))
    flags = [f"--data.{name}={json.dumps(value)}" for name, value in settings.items()]
    whole = keys(mixed(*entries))
    for arguments in (["--config", str(tmp_path / "fit.yaml")], [*flags, '--data.encode={"vae": "demo"}']):
        data = cli.LightningCLI(
            BoringModel, InpaintDataModule, run=False, args=arguments, save_config_callback=None
        ).datamodule
        data.setup("fit")
        assert [tuple(batch["__key__"]) for batch in data.train_dataloader()] == whole


def test_one_source_may_repeat_and_settings_may_be_objects(where: dict[str, str]) -> None:
    assert counted(keys(InpaintDataModule({"source": where["cb"], "repeats": 2}, batch_size=BATCH))) == {"b": 20}
    assert counted(keys(mixed(SourceSettings(where["a"], repeats=0.5), SourceSettings(where["b"])))) == {
        "a": 20,
        "b": 10,
    }


def test_a_source_without_a_sample_that_can_be_used_ends_the_run(where: dict[str, str]) -> None:
    bad = {"source": where["sb"], "masks": {"source": "sample", "repaint": "light"}}  # they have no masks
    data = mixed({"source": where["sa"], "weight": 3}, bad)
    with pytest.raises(SampleError, match=r"source\[1\]: no sample of its first \d+ can be used; the log names each"):
        keys(data)


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"source": "B", "weight": 0}, "source[1]: weight: 0 is too small; give more than 0"),
        ({"source": "B", "weight": -1.5}, "source[1]: weight: -1.5 is too small; give more than 0"),
        ({"source": "B", "weight": float("nan")}, "source[1]: weight: nan is not a finite number"),
        ({"source": "B", "repeats": float("inf")}, "source[1]: repeats: inf is not a finite number"),
        ({"source": "B", "repeats": 0}, "source[1]: repeats: 0 is too small; give more than 0"),
        ({"source": "B", "repeats": "2"}, "source[1]: repeats: '2' is not a number; give one"),
        ({"source": "B", "wieght": 2}, "source[1]: there is no setting 'wieght'; it takes source, weight, repeats"),
        ({"weight": 2}, "source[1]: source: must be given"),
        ({"source": []}, "source[1]: source: [] is not a path or a list of paths"),
        ({"source": [{"__key__": "x"}]}, "source[1]: source: [{'__key__': 'x'}] is not a path"),
        (3, "source[1]: 3 is not a mapping of settings"),
        ({"source": "CB", "masks": {"source": "boxes"}}, "source[1]: masks: are those of the cache"),
        ({"source": "CB", "captions": "txt"}, "source[1]: captions: are those of the cache"),
        ({"source": "B", "masks": {"source": "triangles"}}, "source[1]: masks: 'triangles' is unknown"),
        ({"source": "B", "masks": {"ofset": 2}}, "source[1]: masks: there is no setting 'ofset'"),
        ({"source": "B", "captions": "json:"}, "source[1]: captions: 'json:' is not a caption"),
        ({"source": ["CB", "B"]}, "is not a cache, though others in the list are"),
    ],
    ids=str,
)
def test_an_entry_that_cannot_be_used_is_named_in_one_line(entry: Any, named: str, where: dict[str, str]) -> None:
    def placed(value: Any) -> Any:
        if isinstance(value, list):
            return [placed(each) for each in value]
        return where.get(value.lower(), value) if isinstance(value, str) and value.isupper() else value

    if isinstance(entry, dict):
        entry = {name: placed(value) for name, value in entry.items()}
    with pytest.raises(UsageError) as raised:
        mixed({"source": where["a"]}, entry)
    assert named in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_does_not_go_together_is_refused(where: dict[str, str], tmp_path: Path) -> None:
    a, b, cache = where["a"], {"source": where["b"]}, where["ca"]
    streamed = {"epoch_batches": 5}
    for made, named in (
        (lambda: mixed(a, val_source=[b]), "val_source: is of all its samples, each once"),
        (lambda: mixed(a, b, loading={"exhausted": "end"}), "exhausted: is for sources with weights"),
        (lambda: mixed(a, b, loading={"fresh_masks": True}), "fresh_masks: no source is a cache"),
        (lambda: mixed(cache, b, loading=streamed), r"epoch_batches: .* source\[0\] is a cache"),
        (lambda: mixed(a, b, loading=streamed), "source: has no weight, and nobody counts"),
        (lambda: mixed(a, b | {"repeats": 2}, loading=streamed), r"source\[1\]: repeats: nobody counts"),
        (
            lambda: keys(mixed(cache, b, encode={"vae": VAE, "hole_latents": True})),
            "hole_latents, which this cache was made without",
        ),
        (lambda: keys(mixed(a, {"source": str(tmp_path)})), r"source\[1\]"),
        (lambda: keys(mixed({"source": a, "weight": 1e9}, b)), r"source\[0\]: its 40 samples would come"),
    ):
        with pytest.raises(UsageError, match=named):
            made()


def test_caches_whose_batches_differ_are_refused_before_the_first_step(where: dict[str, str], tmp_path: Path) -> None:
    bare, foreign = str(tmp_path / "bare"), str(tmp_path / "foreign")
    cache_latents(where["b"], bare, vae=VAE, masks="boxes", masked_latents=False, **PICTURES)
    cache_latents(where["b"], foreign, vae="demo", masks="boxes", **PICTURES)
    with pytest.raises(UsageError, match="masked_latents"):
        keys(InpaintDataModule([where["ca"], {"source": bare}], batch_size=BATCH))
    with pytest.raises(UsageError, match=r"source\[1\]: its latents are of another autoencoder than those of source"):
        keys(InpaintDataModule([where["ca"], {"source": foreign}], batch_size=BATCH))
