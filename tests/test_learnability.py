"""A model learns to inpaint from the cache, and learns it worse from conditioning that is broken."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import Figure

from inpaint_data import LatentCache, load_vae

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "learnability.py"
SEED = 2
LEAD = 0.3  # dB over any control: a third of what was measured, since rounding differs between machines


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    """The benchmark as a module; it sets torch to one thread, which the other tests must not inherit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("learnability", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["learnability"] = module  # where dataclasses look their own module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["learnability"]
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cache(bench: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bench.make_cache(tmp_path_factory.mktemp("learnability"), short(bench))


def short(bench: ModuleType, steps: int = 300) -> Any:  # its Settings, of a module that is loaded by its path
    return bench.Settings(steps=steps, crops=64, variants=2)


def lead(bench: ModuleType, cache: Path, settings: Any, controls: tuple[str, ...], record: Figure) -> dict[str, float]:
    figures: dict[int, dict[str, float]] = bench.run(cache, settings, [SEED], (bench.OURS, *controls))
    told = ", ".join(f"{name} {figures[SEED][name]:.2f}" for name in (bench.OURS, *controls, bench.MEAN))
    record(f"learnability, {settings.steps} steps, PSNR under the mask in dB: {told}")
    for control in controls:
        assert figures[SEED][bench.OURS] > figures[SEED][control] + LEAD, control
    assert figures[SEED][bench.OURS] > figures[SEED][bench.GREY]
    return figures[SEED]


def test_a_model_learns_from_the_cache_and_from_no_broken_conditioning(
    bench: ModuleType, cache: Path, record_figure: Figure
) -> None:
    lead(bench, cache, short(bench, steps=150), (bench.SHUFFLED, bench.INVERTED), record_figure)


@pytest.mark.slow
def test_in_twice_as_many_steps_a_shift_of_the_mask_shows_too(
    bench: ModuleType, cache: Path, record_figure: Figure
) -> None:
    figures = lead(bench, cache, short(bench), bench.CONTROLS, record_figure)
    assert f"| {figures[bench.OURS]:.2f} |" in bench.table({SEED: figures})


def test_no_crop_of_a_held_out_photograph_is_trained_on(bench: ModuleType, cache: Path) -> None:
    source = LatentCache(cache)
    keys = [key for _, key in source.places()]
    ever_held_out = set()
    for seed in range(bench.FOLDS):
        training, testing, held_out = bench.split(source, seed, tested=8)
        assert {keys[index].split("/")[0] for index in testing} == set(held_out)
        assert not {keys[index].split("/")[0] for index in training} & set(held_out)
        assert (len(training), len(testing)) == (9 * 64, 3 * 8)
        ever_held_out |= set(held_out)
    assert len(ever_held_out) == 12


def test_each_control_breaks_what_it_says_and_nothing_else(bench: ModuleType, cache: Path) -> None:
    vae, batch = load_vae("demo"), LatentCache(cache, variant=0).batch([0, 70, 140])
    right, *broken = (bench.conditioning(batch, vae, arm) for arm in (bench.OURS, *bench.CONTROLS))
    zeroed, shuffled, inverted, shifted = broken
    mask = right[:, :1]
    assert 0 < mask.mean() < 0.5
    assert not zeroed.any()
    assert torch.equal(shuffled, right[[2, 0, 1]])
    assert torch.equal(inverted[:, :1], 1 - mask)
    assert torch.equal(shifted[:, :1], mask.roll((2, 2), (-2, -1)))  # 16 pixels are two latents
    for each in (inverted, shifted):
        assert torch.equal(each[:, 1:], right[:, 1:])
