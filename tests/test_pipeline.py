"""The stages between anybody's own: the same values as the DataModule and the cache, and every sample accounted for."""

import io
import json
import logging
import pickle
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds
from conftest import Pooling, small_samples, write_shard
from flat import cache_latents, data_module
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch.utils.data import IterableDataset

import inpaint_data.pipeline as ip
from inpaint_data import (
    Autoencoder,
    CacheError,
    Encoder,
    EncodeSettings,
    LatentCache,
    MaskSettings,
    PictureSettings,
    SampleError,
    UsageError,
    verify_cache,
)
from inpaint_data.batch import is_batch
from inpaint_data.pictures.settings import ExampleSettings
from inpaint_data.pipeline import stages
from inpaint_data.shards.reading import Fault, ShardEnd
from inpaint_data.training.sources import OwnSource

SMALL: dict[str, Any] = {"resolution": 16, "masks": "boxes", "upscale": True}

PICTURES = PictureSettings(resolution=64)
MASKS = MaskSettings(source="mixture", offset=(-8, 24))
FLAT: dict[str, Any] = {"resolution": 64, "masks": "mixture", "mask_offset": (-8, 24)}
SEED = 3


@pytest.fixture
def encoder(vae: Autoencoder) -> Encoder:
    return Encoder(MASKS, EncodeSettings(posterior="sample"), vae, SEED)


def urls(shards: str) -> Any:
    return wds.SimpleShardList(ip.expand(shards))


def pictures(shards: str, batch_size: int = 4, threads: int = 0) -> wds.DataPipeline:
    return wds.DataPipeline(
        urls(shards),
        wds.split_by_node,
        wds.split_by_worker,
        ip.read_shards(),
        ip.examples(PICTURES, MASKS, seed=SEED, threads=threads),
        ip.bucketed(batch_size),
    )


def by_key(batches: Iterable[Any]) -> dict[str, dict[str, Any]]:
    """Every sample's own row of every entry."""
    rows = {}
    for batch in batches:
        for row, key in enumerate(batch["__key__"]):
            assert key not in rows
            rows[key] = {name: value[row] for name, value in batch.items() if name not in ("seed", "variants")}
    return rows


def assert_same(left: dict[str, dict[str, Any]], right: dict[str, dict[str, Any]]) -> None:
    assert left.keys() == right.keys()
    for key, row in left.items():
        assert row.keys() == right[key].keys()
        for name, value in row.items():
            other = right[key][name]
            same = torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
            assert same, (key, name)


def encoded_one_by_one(batches: Iterable[Any], encoder: Encoder) -> dict[str, dict[str, Any]]:
    """Encoding is not batch-invariant: what is compared over other batches is encoded in batches of one."""
    return by_key(encoder.encode(batch) for batch in batches)


def test_stages_datamodule_and_cache_give_the_same_batch(
    shards: str, tmp_path: Path, vae: Autoencoder, encoder: Encoder
) -> None:
    staged = encoded_one_by_one(pictures(shards, 1), encoder)

    data = data_module(shards, vae=vae, batch_size=1, seed=SEED, posterior="sample", **FLAT)
    data.setup("fit")
    live = by_key(data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader())
    assert_same(staged, live)

    cache_latents(shards, str(tmp_path / "cache"), vae=vae, seed=SEED, batch_size=1, storage="float32", **FLAT)
    cached = wds.WebDataset(ip.expand(str(tmp_path / "cache")), shardshuffle=False).compose(
        ip.cached(variant=0, posterior="sample", seed=SEED), ip.bucketed(1)
    )
    assert_same(staged, by_key(cached))
    read = LatentCache(tmp_path / "cache", posterior="sample", variant=0, seed=SEED)
    assert_same(staged, by_key(read[index] for index in range(len(read))))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_any_number_of_workers_gives_the_same_batches(
    shards: str, workers: int, context: str, encoder: Encoder
) -> None:
    here = by_key(pictures(shards, 1))
    loader = wds.WebLoader(pictures(shards, 1), batch_size=None, num_workers=workers, multiprocessing_context=context)
    assert_same(here, by_key(loader))
    if workers == 3 and context == "fork":
        assert_same(
            encoded_one_by_one(pictures(shards, 1), encoder),
            by_key(loader.compose(ip.encode(encoder))),
        )


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing_not_even_the_order(shards: str, threads: int) -> None:
    plain, threaded = list(pictures(shards)), list(pictures(shards, threads=threads))
    assert [batch["__key__"] for batch in plain] == [batch["__key__"] for batch in threaded]
    assert_same(by_key(plain), by_key(threaded))


def test_no_more_bytes_wait_for_the_decoders_than_there_may(shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def counted(items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            read.append(item)
            yield item

    def read_before_the_first(limit: int) -> int:
        read.clear()
        monkeypatch.setattr(stages, "MAX_WAITING_BYTES", limit)
        items = ip.examples(PICTURES, MASKS, threads=4)(counted(ip.read_shards()(urls(shards))))
        next(items)
        items.close()
        return len(read)

    assert read_before_the_first(2**30) == 9
    assert read_before_the_first(0) == 1


def test_webdatasets_own_reader_in_front_gives_the_same(shards: str) -> None:
    strict = by_key(pictures(shards))
    plain = wds.WebDataset(ip.expand(shards), shardshuffle=False).compose(
        ip.examples(PICTURES, MASKS, seed=SEED), ip.bucketed(4)
    )
    assert_same(strict, by_key(plain))


def test_a_cache_is_shuffled_and_batched_by_webdataset(shards: str, tmp_path: Path, vae: Autoencoder) -> None:
    cache_latents(shards, str(tmp_path / "cache"), vae=vae, variants=3, **FLAT)
    cached = wds.WebDataset(ip.expand(str(tmp_path / "cache")), shardshuffle=100).compose(
        wds.shuffle(100), ip.cached(variant="draw", posterior="sample", epoch=5), ip.bucketed(8)
    )
    rows = by_key(cached)
    read = LatentCache(tmp_path / "cache", posterior="sample")
    read.epoch = 5
    assert_same(rows, by_key(read[index] for index in range(len(read))))
    assert {int(row["variant"]) for row in rows.values()} == {0, 1, 2}


def keep(word: str, sample: dict[str, Any]) -> bool:
    return word in sample["txt"].decode()


def without_cats(samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for sample in samples:
        if sample["__key__"] != "cat":
            yield sample


def twice(samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for sample in samples:
        for number in range(2):
            yield sample | {"__key__": f"{sample['__key__']}_{number}", "number.txt": str(number).encode()}


def broken(samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for sample in samples:
        if sample["__key__"] == "rocket":
            raise ValueError("no rockets")
        yield sample


def grey(sample: dict[str, Any]) -> dict[str, Any]:
    image = Image.open(io.BytesIO(sample["jpg"])).convert("L").convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {name: value for name, value in sample.items() if name != "jpg"} | {"png": buffer.getvalue()}


class Counting(LightningModule):
    """Notes what comes, and learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.keys: list[str] = []
        self.types: set[Any] = set()

    def training_step(self, batch: Any) -> torch.Tensor:
        self.keys += batch["__key__"]
        self.types |= {(batch["latents"].dtype, batch["mask"].dtype)}
        result: torch.Tensor = self.layer(batch["masked_latents"].mean().view(1, 1)).sum()
        return result

    def validation_step(self, batch: Any) -> None:
        self.keys += batch["__key__"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3)


def fit(data: Any, epochs: int = 1) -> Counting:
    model = Counting()
    Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(model, datamodule=data)  # fmt: skip
    return model


STAGES: list[Callable[..., Any]] = [wds.select(partial(keep, "photo")), without_cats, wds.map(grey)]


@pytest.mark.parametrize("workers", ["threads", "processes"])
def test_stages_of_ones_own_train_and_cache_alike(
    workers: str, shards: str, tmp_path: Path, vae: Autoencoder, photo_bytes: dict[str, bytes]
) -> None:
    data = data_module(shards, vae=vae, batch_size=1, workers=workers, stages=STAGES, **FLAT)
    model = fit(data)
    assert sorted(model.keys) == sorted(set(photo_bytes) - {"cat"})
    summary = cache_latents(
        shards, str(tmp_path / "cache"), vae=vae, batch_size=1, storage="float32", stages=STAGES, **FLAT
    )
    assert (summary.samples_in, summary.cached, len(summary.quarantined)) == (12, 11, 0)
    assert [(entry.key, entry.reason) for _, entry in summary.filtered] == [
        ("cat", "stages: a stage of yours leaves it out")
    ]
    data = data_module(shards, vae=vae, batch_size=1, workers=workers, stages=STAGES, **FLAT)
    data.setup("fit")
    live = by_key(data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader())
    read = LatentCache(tmp_path / "cache", variant=0)
    assert_same(live, by_key(read[index] for index in range(len(read))))
    one = next(iter(live.values()))
    assert one["caption"].startswith("a photo")
    assert verify_cache(tmp_path / "cache", deep=True, against=shards, vae=vae, stages=STAGES).ok
    with pytest.raises(UsageError, match="was made with stages"):
        verify_cache(tmp_path / "cache", deep=True, against=shards, vae=vae)
    with pytest.raises(UsageError, match="stages"):
        cache_latents(shards, str(tmp_path / "cache"), vae=vae, batch_size=1, storage="float32", **FLAT)


def test_a_stage_may_make_several_samples_and_may_fail(shards: str, tmp_path: Path, vae: Autoencoder) -> None:
    summary = cache_latents(
        shards, str(tmp_path / "cache"), vae=vae, stages=[broken, twice], max_bad_fraction=1.0, **FLAT
    )
    assert (summary.samples_in, summary.cached) == (12, 22)
    assert [(entry.key, entry.reason) for _, entry in summary.quarantined] == [
        ("rocket", "stages: ValueError: no rockets")
    ]
    assert verify_cache(tmp_path / "cache", against=shards).ok
    cache = LatentCache(tmp_path / "cache")
    assert {key for _, key in cache.places()} == {
        f"{key}_{number}" for key in by_key(pictures(shards)) if key != "rocket" for number in range(2)
    }
    assert cache[1]["carried"][0]["number.txt"] == b"1"
    model = fit(data_module(shards, vae=vae, batch_size=2, stages=[broken, twice], **FLAT))
    assert len(model.keys) == len(set(model.keys)) == 22


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([3], "3 cannot be called"),
        (["no.such.module"], "there is no 'no.such.module' to import"),
        ("abc", "'abc' is not a list of functions"),
    ],
)
def test_stages_that_cannot_be_are_refused(stages: Any, message: str, shards: str) -> None:
    with pytest.raises(UsageError, match=f"stages: {message}"):
        data_module(shards, stages=stages, **FLAT)


@pytest.mark.parametrize(
    ("stage", "reason"),
    [
        (lambda samples: [3 for _ in samples], "a stage made int and not a sample"),
        (lambda samples: [{"jpg": b""} for _ in samples], "a stage made dict and not a sample"),
        (lambda samples: [s for sample in samples for s in (sample, sample)], "a stage made two samples with the key"),
        (
            lambda samples: [sample | {"__key__": "same"} for sample in samples],
            "two samples with the key 'same' in one",
        ),
        (lambda samples: [sample | {"__key__": ""} for sample in samples], "with the key ''; give one without dots"),
        (lambda samples: [sample | {"__key__": "v1.0"} for sample in samples], "with the key 'v1.0'; give one without"),
        (lambda samples: [sample | {"__key__": "../a"} for sample in samples], "with the key '../a'"),
        (lambda samples: [sample | {"extra": 3} for sample in samples], "a stage made extra of sample"),
        (lambda sample: sample["__key__"] != "cat", "put a function of one sample into wds.map or wds.select"),
    ],
)
def test_what_a_stage_makes_is_looked_at(
    stage: Any, reason: str, shards: str, tmp_path: Path, vae: Autoencoder
) -> None:
    summary = cache_latents(shards, str(tmp_path / "c"), vae=vae, stages=[stage], max_bad_fraction=1.0, **FLAT)
    assert {entry.key for _, entry in summary.quarantined} >= {"cat"}
    assert summary.cached + len(summary.quarantined) >= 12
    assert all(reason in entry.reason for _, entry in summary.quarantined)


def test_stages_of_dotted_paths_are_found_and_a_cache_takes_none(shards: str, tmp_path: Path, vae: Autoencoder) -> None:
    model = fit(data_module(shards, vae=vae, batch_size=4, stages=["test_pipeline.without_cats"], **FLAT))
    assert "cat" not in model.keys
    cache_latents(shards, str(tmp_path / "cache"), vae=vae, **FLAT)
    with pytest.raises(UsageError, match="stages: source is a cache"):
        data_module(str(tmp_path / "cache"), stages=[without_cats])


def own_sources(shards: str) -> dict[str, Any]:
    return {
        "a WebDataset": wds.WebDataset(ip.expand(shards), shardshuffle=False),
        "a pipeline of samples": wds.DataPipeline(
            urls(shards), wds.split_by_worker, ip.read_shards(), wds.shuffle(100)
        ),
        "a pipeline of batches": pictures(shards),
        "a list of samples": list(wds.WebDataset(ip.expand(shards), shardshuffle=False)),
    }


@pytest.mark.parametrize("kind", [
    "a WebDataset", "a pipeline of samples", "a pipeline of batches", "a list of samples",
])  # fmt: skip
@pytest.mark.parametrize("workers", ["threads", "processes"])
def test_a_source_of_ones_own_trains(
    kind: str, workers: str, shards: str, vae: Autoencoder, photo_bytes: dict[str, bytes]
) -> None:
    source = own_sources(shards)[kind]
    model = fit(data_module(source, vae=vae, batch_size=4, workers=workers, seed=SEED, **FLAT), epochs=2)
    assert sorted(model.keys) == sorted([*photo_bytes, *photo_bytes])
    assert model.types == {(torch.float32, torch.bool)}


def test_a_source_of_ones_own_gives_the_batches_of_the_stages(shards: str, vae: Autoencoder, encoder: Encoder) -> None:
    source = wds.WebDataset(ip.expand(shards), shardshuffle=False)
    data = data_module(source, vae=vae, batch_size=1, seed=SEED, posterior="sample", **FLAT)
    data.setup("fit")
    live = by_key(data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader())
    assert_same(encoded_one_by_one(pictures(shards, 1), encoder), live)


def test_a_pipeline_that_gives_all_ranks_the_same_is_refused(shards: str) -> None:
    from inpaint_data.pictures.settings import ExampleSettings
    from inpaint_data.training.sources import OwnSource

    settings = ExampleSettings(PICTURES, MASKS)
    whole = wds.DataPipeline(urls(shards), ip.read_shards())
    with pytest.raises(UsageError, match=r"has no wds.split_by_node, so all 2 ranks"):
        OwnSource(whole, settings, [], 4, 0, 0, (0, 2))
    OwnSource(wds.DataPipeline(urls(shards), wds.split_by_node, ip.read_shards()), settings, [], 4, 0, 0, (0, 2))
    listed = own_sources(shards)["a list of samples"]
    shares = [by_key(OwnSource(listed, settings, [], 4, 0, 0, (rank, 2))) for rank in range(2)]
    assert not shares[0].keys() & shares[1].keys()
    assert len(shares[0]) == len(shares[1]) == 6


def test_what_a_source_of_ones_own_gives_is_looked_at(vae: Autoencoder) -> None:
    data = data_module([{"__key__": "a", "jpg": Image.new("RGB", (64, 64))}], vae=vae, **FLAT)
    data.setup("fit")
    with pytest.raises(UsageError, match="sample 'a': jpg is Image, not bytes; put this stage before decode"):
        list(data.train_dataloader())
    data = data_module([{"jpg": b""}], vae=vae, **FLAT)
    data.setup("fit")
    with pytest.raises(UsageError, match="a sample has no __key__, only jpg"):
        list(data.train_dataloader())


def with_bad_ones(folder: Path, photo_bytes: dict[str, bytes]) -> str:
    samples = {key: {"jpg": photo_bytes[key]} for key in ("cat", "coffee")}
    samples |= {"torn": {"jpg": photo_bytes["cat"][:2000]}, "words": {"txt": b"no image"}}
    return str(write_shard(folder / "bad.tar", samples))


def test_faults_are_said_kept_passed_on_or_end_the_run(
    tmp_path: Path, photo_bytes: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    shard = with_bad_ones(tmp_path, photo_bytes)

    def run(on_fault: Any) -> list[Any]:
        return list(
            wds.DataPipeline(
                urls(shard), ip.read_shards(on_fault=on_fault, ends=True),
                ip.examples(PICTURES, MASKS, on_fault=on_fault), ip.bucketed(8),
            )
        )  # fmt: skip

    with caplog.at_level(logging.WARNING):
        batch, end = run(ip.warn)
    assert batch["__key__"] == ["cat", "coffee"]
    assert isinstance(end, ShardEnd)
    assert end.keys == 4
    assert "sample 'torn' is left out" in caplog.text
    assert "sample 'words' is left out" in caplog.text
    kept: list[Fault] = []
    assert [is_batch(item) for item in run(kept)] == [True, False]
    assert [fault.key for fault in kept] == ["torn", "words"]
    passed = [item for item in run(None) if isinstance(item, Fault)]
    assert passed == kept
    with pytest.raises(SampleError, match=r"bad.tar, sample 'torn': jpg: image is damaged"):
        run(ip.stop)


def test_stages_in_the_wrong_order_and_sources_without_a_batch_are_refused(
    shards: str, tmp_path: Path, vae: Autoencoder
) -> None:
    with pytest.raises(UsageError, match=r"came to bucketed\(\) as it was read; put examples\(\) before it"):
        list(wds.DataPipeline(urls(shards), ip.read_shards(), ip.bucketed(4)))
    with pytest.raises(UsageError, match="batch_size: 0 is not a positive whole number"):
        list(wds.DataPipeline(urls(shards), ip.read_shards(), ip.examples(PICTURES, MASKS), ip.bucketed(0)))
    with pytest.raises(UsageError, match="variant: 'all' is neither a number nor \"draw\""):
        list(wds.DataPipeline(urls(shards), ip.read_shards(), ip.cached(variant="all")))
    with pytest.raises(UsageError, match="source: 3 is neither a path nor samples"):
        data_module(3)
    cache_latents(shards, str(tmp_path / "cache"), vae=vae, **FLAT)
    forgotten = wds.WebDataset(ip.expand(str(tmp_path / "cache")), shardshuffle=False)
    data = data_module(forgotten, vae=vae, **FLAT)
    data.setup("fit")
    with pytest.raises(SampleError, match="source: yours gave no batch that can be used"):
        list(data.train_dataloader())


def test_a_cache_that_lost_a_sidecar_is_refused(shards: str, tmp_path: Path, vae: Autoencoder) -> None:
    cache_latents(shards, str(tmp_path / "cache"), vae=vae, **FLAT)
    (tmp_path / "cache" / "000001.json").unlink()
    with pytest.raises(CacheError, match=r"its sidecars have 5 samples, but cache.json counts 12"):
        LatentCache(tmp_path / "cache")


def test_every_stage_can_be_pickled() -> None:
    for stage in (
        ip.read_shards(on_fault=ip.warn), ip.own_stages([without_cats]), ip.examples(PICTURES, MASKS), ip.bucketed(8),
        ip.cached(variant=1), ip.in_pinned_memory(),
    ):  # fmt: skip
        assert repr(pickle.loads(pickle.dumps(stage))) == repr(stage)


def test_cached_says_what_is_not_of_a_cache(shards: str, tmp_path: Path, vae: Autoencoder) -> None:
    def run(source: str, **options: Any) -> list[Any]:
        stages = ip.cached(**options), ip.bucketed(4)
        return list(wds.WebDataset(ip.expand(source), shardshuffle=False).compose(*stages))

    with pytest.raises(UsageError, match=r"has no inpaint.json, so it is not of a latent cache"):
        run(shards)
    cache_latents(shards, str(tmp_path / "cache"), vae=vae, variants=2, **FLAT)
    with pytest.raises(UsageError, match=r"variant: 2 is not in the cache, which has 0\.\.\.1"):
        run(str(tmp_path / "cache"), variant=2)
    with pytest.raises(UsageError, match="posterior: 'modus' is unknown"):
        run(str(tmp_path / "cache"), posterior="modus")


def test_a_batch_of_a_cache_only_goes_to_the_device(shards: str, tmp_path: Path, vae: Autoencoder) -> None:
    cache_latents(shards, str(tmp_path / "cache"), vae=vae, **FLAT)
    stages = ip.cached(), ip.bucketed(4), ip.encode(Encoder(MASKS, EncodeSettings(), vae))
    batches = list(wds.WebDataset(ip.expand(str(tmp_path / "cache")), shardshuffle=False).compose(*stages))
    assert [len(batch["__key__"]) for batch in batches] == [4, 4, 4]


def test_several_caches_of_one_kind_are_one_source_and_others_are_refused_by_name(
    tmp_path: Path, vae: Autoencoder
) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        write_shard(tmp_path / name / f"{name}.tar", {f"{name}{k}": m for k, m in small_samples(4, seed).items()})
    small: dict[str, Any] = {"resolution": 16, "masks": "boxes", "upscale": True, "vae": vae}
    for name in "ab":
        cache_latents(str(tmp_path / name), str(tmp_path / f"cache_{name}"), **small)
    cache_latents(str(tmp_path / "b"), str(tmp_path / "other"), **(small | {"resolution": 24}))
    both = [str(tmp_path / "cache_a"), str(tmp_path / "cache_b")]
    model = fit(data_module(both, batch_size=3))
    assert sorted(key[:1] for key in model.keys) == ["a"] * 4 + ["b"] * 4
    data = data_module([both[0], str(tmp_path / "other")])
    with pytest.raises(UsageError, match=r"other was made with other settings than .*cache_a"):
        data.train_dataloader()
    with pytest.raises(UsageError, match=r"source: '.*/b' is not a cache, though others in the list are"):
        data_module([both[0], str(tmp_path / "b")])


def test_json_beside_shards_is_nothing_special_but_a_lost_cache_file_is_named(tmp_path: Path, vae: Autoencoder) -> None:
    small: dict[str, Any] = {"resolution": 16, "masks": "boxes", "upscale": True, "vae": vae}
    write_shard(tmp_path / "in" / "x.tar", small_samples(4))
    (tmp_path / "in" / "x.json").write_text(json.dumps({"downloaded": 4}))
    summary = cache_latents(str(tmp_path / "in"), str(tmp_path / "cache"), **small)
    assert summary.cached == 4
    assert len(fit(data_module(str(tmp_path / "in"), batch_size=2, **small)).keys) == 4
    for given in (str(tmp_path / "cache"), str(tmp_path / "cache" / "x.tar")):
        with pytest.raises(UsageError, match="is a latent cache and not image shards"):
            cache_latents(given, str(tmp_path / "again"), **small)
    data = data_module(str(tmp_path / "cache" / "x.tar"), **small)
    with pytest.raises(UsageError, match=r"x.tar lies in a cache"):
        data.setup("fit")
    (tmp_path / "cache" / "cache.json").unlink()
    for refused in (
        lambda: data_module(str(tmp_path / "cache")),
        lambda: LatentCache(tmp_path / "cache"),
    ):
        with pytest.raises(CacheError, match=r"has the tars and sidecars of a cache, but no cache.json"):
            refused()
    with pytest.raises(UsageError, match=r"has the tars and sidecars of a cache, but no cache\.json"):
        cache_latents(str(tmp_path / "cache"), str(tmp_path / "again"), **small)


def test_recipe_and_config_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vae: Autoencoder) -> None:
    write_shard(tmp_path / "in" / "x.tar", small_samples(4))
    cache_latents(str(tmp_path / "in"), str(tmp_path / "cache"), resolution=16, masks="boxes", upscale=True, vae=vae)
    data = data_module(str(tmp_path / "cache"), recipe="sd15-inpaint", batch_size=2)
    data.setup("fit")
    data.train_dataloader()
    reads: list[Any] = []
    original = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: (reads.append(self), original(self))[1])
    for _ in range(3):
        assert data.recipe.channels == 9
        assert data.vae_config["latent_channels"] == 4
    assert reads == []


def test_only_what_was_left_out_is_the_caches_own(tmp_path: Path, vae: Autoencoder) -> None:
    write_shard(tmp_path / "in" / "x.tar", small_samples(4))
    cache_latents(
        str(tmp_path / "in"),
        str(tmp_path / "cache"),
        resolution=16,
        masks="boxes",
        upscale=True,
        crop="random",
        vae=vae,
    )
    data_module(str(tmp_path / "cache"), resolution=16).train_dataloader()
    with pytest.raises(UsageError, match='crop: the cache has "random", this run "center"'):
        data_module(str(tmp_path / "cache"), resolution=16, crop="center").train_dataloader()


def test_the_encoder_gives_masks_without_an_autoencoder(shards: str, encoder: Encoder) -> None:
    batch = next(iter(pictures(shards, 4)))
    alone = Encoder(MASKS, EncodeSettings(), None, SEED)
    (masked,), encoded = alone.masks(batch), encoder.encode(batch)
    assert "latents" not in masked
    for name in masked.keys() - {"carried"}:
        value: Any = masked[name]  # type: ignore[literal-required]
        other: Any = encoded[name]  # type: ignore[literal-required]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
    with pytest.raises(UsageError, match="has 2 variants of masks; encode them with variants"):
        encoder.encode(batch | {"variants": [0, 1]})


def test_variants_share_one_encode_of_the_picture(shards: str, encoder: Encoder) -> None:
    stages = ip.read_shards(), ip.examples(PICTURES, MASKS, seed=SEED, variants=(0, 1)), ip.bucketed(3)
    batch = next(iter(wds.DataPipeline(urls(shards), *stages)))
    assert batch["masks"].shape == (3, 2, 64, 64)
    first, second = encoder.variants(batch)
    assert first["latents"] is second["latents"]
    assert first["mask"].shape == second["mask"].shape == (3, 1, 64, 64)
    assert [int(v) for v in second["variant"]] == [1, 1, 1]
    assert not torch.equal(first["mask"], second["mask"])
    assert np.isfinite(second["masked_latents"].numpy()).all()


def keep_all(samples: Iterator[Any]) -> Iterator[Any]:
    yield from samples


@pytest.fixture
def twins(tmp_path: Path) -> list[str]:
    """Two shards whose keys are the same."""
    return [str(write_shard(tmp_path / "twins" / f"{name}.tar", small_samples(6))) for name in ("a", "b")]


@pytest.mark.parametrize("more", ["once", "repeated"])
def test_stages_take_equal_keys_of_other_shards_and_of_other_passes(more: str, twins: list[str]) -> None:
    source = wds.WebDataset(twins, shardshuffle=False)
    source = source.repeat(2) if more == "repeated" else source
    data = data_module(source, vae=Autoencoder(Pooling()), batch_size=4, stages=[keep_all], **SMALL)
    data.setup("fit")
    count = sum(len(batch["__key__"]) for batch in data.train_dataloader())
    assert count == (24 if more == "repeated" else 12)


@pytest.mark.parametrize("made", ["examples", "batches", "cached"])
def test_stages_behind_what_is_made_already_are_refused(made: str, twins: list[str], tmp_path: Path) -> None:
    source = wds.WebDataset(twins, shardshuffle=False)
    if made == "cached":
        cache_latents(twins, str(tmp_path / "c"), vae=Autoencoder(Pooling()), **SMALL)
        source = wds.WebDataset(sorted(map(str, (tmp_path / "c").glob("*.tar"))), shardshuffle=False)
        source = source.compose(ip.cached())
    else:
        source = source.compose(ip.examples(PictureSettings(resolution=16, upscale=True), MaskSettings("boxes")))
        source = source.compose(ip.bucketed(4)) if made == "batches" else source
    data = data_module(source, vae=Autoencoder(Pooling()), batch_size=4, stages=[keep_all], **SMALL)
    data.setup("fit")
    with pytest.raises(UsageError, match=r"stages: \w+ comes to them, and they take samples"):
        list(data.train_dataloader())


class Torchs(IterableDataset[Any]):
    """A dataset that does not split itself."""

    def __init__(self, shards: list[str]) -> None:
        self.shards = shards

    def __iter__(self) -> Iterator[Any]:
        return iter(wds.WebDataset(self.shards, shardshuffle=False))


@pytest.mark.parametrize(
    ("source", "splits"),
    [
        (Torchs, False),
        (lambda shards: wds.RandomMix([Torchs(shards)]), False),
        (lambda shards: wds.WebDataset(shards, shardshuffle=False), False),
        (lambda shards: wds.WebDataset(shards, shardshuffle=False, nodesplitter=lambda urls: urls), True),
        (lambda shards: wds.DataPipeline(wds.ResampledShards(shards), wds.tarfile_to_samples()), True),
    ],
    ids=str.split("torchs mix plain own resampled"),
)
def test_what_does_not_split_itself_is_refused_to_several_ranks(source: Any, splits: bool, twins: list[str]) -> None:
    settings = ExampleSettings(PictureSettings(resolution=16, upscale=True), MaskSettings("boxes"))
    arguments: Any = (source(twins), settings, (), 4, 0, 0)
    OwnSource(*arguments, (0, 1))
    if splits:
        OwnSource(*arguments, (0, 2))
        return
    with pytest.raises(UsageError, match=r"no wds\.split_by_node, so all 2 ranks would train on the same samples"):
        OwnSource(*arguments, (0, 2))


def test_an_error_in_a_worker_process_is_one_line(twins: list[str]) -> None:
    workers: Any = {"workers": "processes", "num_workers": 2}
    data = data_module(Torchs(twins), vae=Autoencoder(Pooling()), batch_size=4, **workers, **SMALL)
    data.setup("fit")
    with pytest.raises(UsageError, match=r"no wds\.split_by_worker, so all 2 workers") as caught:
        list(data.train_dataloader())
    assert len(str(caught.value).splitlines()) == 1


def test_a_loop_without_a_trainer_is_given_no_batch_of_nothing(tmp_path: Path) -> None:
    write_shard(tmp_path / "in" / "a.tar", small_samples(2) | {"bad": {"jpg": b"no picture"}})
    data = data_module(str(tmp_path / "in"), vae=Autoencoder(Pooling()), batch_size=1, **SMALL)
    data.setup("fit")
    assert sorted(batch["__key__"][0] for batch in data.train_dataloader()) == sorted(small_samples(2))
