"""The simulation of a job on many GPUs obeys what must be so, whatever its figures."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PLAIN: dict[str, Any] = {
    "images": 200_000, "per_shard": 1000, "store_gb": 0.0, "latency": 0.0, "requests": 0, "slow_gpus": 0.0,
    "slow_shards": 0.0, "mtbf_hours": 0.0, "overhead": 1.0,
}  # fmt: skip
MEASURED = {
    "decode_seconds": 0.012, "transform_seconds": 0.009, "write_seconds": 0.0013, "shard_seconds": 0.024,
    "plan_seconds": 0.0005, "start_seconds": 5.5, "bytes_in": 106_000.0, "bytes_out": 169_000.0, "sidecar_bytes": 133.0,
    "sidecar_fixed": 900.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def sim() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("scale_sim")
        for name in ("scale_sim", "scale_costs"):
            sys.modules.pop(name, None)


def setup_of(sim: ModuleType, costs: dict[str, float] | None = None, **changes: Any) -> Any:
    nothing = dict.fromkeys(MEASURED, 0.0)
    return sim.Setup(sim.Costs(**(nothing if costs is None else costs)), **(PLAIN | changes))


def test_one_worker_takes_the_sum_of_its_shards(sim: ModuleType) -> None:
    setup = setup_of(sim)
    assert sim.simulated(setup).seconds == pytest.approx(200_000 * 2 / 390, rel=1e-4)
    assert sim.simulated(setup).efficiency == pytest.approx(1.0, rel=1e-4)
    slow = setup_of(sim, MEASURED, images=20_000, latency=0.03, requests=6)
    fixed = 20 * 0.03 * 3 + slow.start_seconds  # the commits run beside the next shard
    assert sim.simulated(slow).seconds == pytest.approx(20_000 * 2 / 390 + fixed, rel=0.01)


@pytest.mark.parametrize("dealing", ["claim", "static"])
@pytest.mark.parametrize("workers", [3, 16, 64])
def test_nothing_is_faster_than_its_share_of_the_work_or_than_its_largest_shard(
    sim: ModuleType, workers: int, dealing: str
) -> None:
    setup = setup_of(sim, workers=workers, dealing=dealing)
    result, sizes = sim.simulated(setup), setup.sizes()
    share, largest = sum(sizes) / workers, max(sizes)
    assert result.images == sum(sizes)
    assert result.seconds >= max(share, largest) * setup.image_seconds * (1 - 1e-9)
    if dealing == "claim":  # the bound of any list that is worked off without gaps
        assert result.seconds <= (share + largest) * setup.image_seconds
    assert result.busy == pytest.approx(sum(sizes) * setup.image_seconds)


def test_the_store_carries_no_more_than_it_can(sim: ModuleType) -> None:
    costs = MEASURED | {"start_seconds": 0.0, "plan_seconds": 0.0, "shard_seconds": 0.0}
    setup = setup_of(sim, costs, workers=64, store_gb=1.0)
    result = sim.simulated(setup)
    moved = result.images * (setup.bytes_in + setup.bytes_out)
    assert moved / result.seconds <= 1e9
    assert moved / result.seconds >= 0.95e9  # which is what ends it: 64 GPUs would need three times as much
    assert result.reason == "store"
    one = replace(setup, workers=1, images=20_000, client_gb=0.01, store_gb=0.0)
    assert sim.simulated(one).seconds >= 20_000 * setup.bytes_in / 0.01e9


def test_cores_that_do_not_suffice_are_what_ends_it(sim: ModuleType) -> None:
    result = sim.simulated(setup_of(sim, MEASURED, cores=1.0, num_workers=1, images=20_000))
    assert result.reason == "cores"
    assert result.rate == pytest.approx(1 / (0.012 + 0.0013), rel=0.05)


def test_claiming_one_at_a_time_is_no_worse_than_dealing_beforehand(sim: ModuleType) -> None:
    for workers in (4, 16, 48):
        claim, static = (
            sum(
                sim.simulated(
                    setup_of(sim, workers=workers, dealing=dealing, slow_gpus=0.1, slow_shards=0.05, seed=seed)
                ).seconds
                for seed in range(5)
            )
            for dealing in ("claim", "static")
        )
        assert claim < static


def test_failures_lose_time_and_no_images(sim: ModuleType) -> None:
    setup = setup_of(sim, workers=8, restart=20.0, lease=30.0)
    calm, stormy = sim.simulated(setup), sim.simulated(replace(setup, mtbf_hours=0.02))
    assert stormy.failures > 5
    assert stormy.seconds > calm.seconds
    job = sim.Job(replace(setup, mtbf_hours=0.02))
    job.run()
    assert job.done == len(job.shards)
    assert job.result.busy >= calm.busy * (1 - 1e-9)  # what was lost is encoded again


def test_the_same_seed_gives_the_same_figures_and_another_one_others(sim: ModuleType) -> None:
    setup = setup_of(sim, MEASURED, workers=16, slow_gpus=0.2, slow_shards=0.05, mtbf_hours=1.0, store_gb=2.0)
    first, again = sim.simulated(setup), sim.simulated(setup)
    assert (first.seconds, first.lost, first.failures) == (again.seconds, again.lost, again.failures)
    assert sim.simulated(replace(setup, seed=1)).seconds != first.seconds


def test_the_arithmetic_of_a_job_adds_up(sim: ModuleType) -> None:
    setup = setup_of(sim, MEASURED, images=100e6, per_shard=10_000, workers=64, overhead=1.0)
    told = sim.plan(setup, sim.Prices(gpu_hour=3.0))
    assert f"{100e6 * 2 / 390 / 3600:,.0f} GPU-hours, {100e6 * 2 / 390 / 3600 * 3:,.0f} $" in told  # encoding alone
    assert "10,000 shards" in told
    assert "10.60 TB" in told
    assert "16.90 TB" in told
