"""How a job scales from one GPU to hundreds: measured costs of images and shards, and a simulation with them.

    python benchmarks/scale_sim.py [--short] [--plan 100e6 --gpus 64] [--encodes_per_second 390]

Three kinds of figures, and each table says which it has:

    measured    by `scale_costs.py`, with the real job on this machine: CPU time and bytes of an image, a shard, a start
    assumed     what cannot be measured here, each a flag: how fast a GPU encodes, stores, stragglers, failures, prices
    simulated   events in the order of their time (simpy): processes that take shards from a list, read, decode, encode,
                write and commit them, share a store, fail and start again

The simulation is compared with real processes on this machine first. Seeded: the same flags and costs give the same
figures; `--costs '{"decode_seconds": 0.01, …}'` takes costs that were printed before, and runs nothing real.
"""

import argparse
import heapq
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import scale_costs
import simpy
from scale_costs import Costs

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
ENOUGH = 0.9  # of what as many GPUs could do
GB = 1e9


@dataclass(frozen=True)
class Setup:
    """A job and where it runs. What is not measured is assumed; the sources are in docs/scale.md."""

    costs: Costs
    resolution: int = 512
    images: float = 100e6
    per_shard: int = 10_000  # images
    spread: float = 0.3  # of the shards' sizes, sigma of a log-normal distribution; 0 makes all alike
    workers: int = 1  # processes, each with a GPU
    dealing: str = "claim"  # one at a time from a common list, largest first; "static" deals every Nth beforehand
    variants: int = 1  # K; an image takes K + 1 encodes
    encodes_per_second: float = 390.0  # of one GPU
    overhead: float = 1.1  # of the device's time over its encodes alone: the masks, the copies
    num_workers: int = 4  # threads that decode
    cores: float = 6.0  # for each GPU; infinite where `shared_cores` counts
    shared_cores: float = 0.0  # of one machine that all processes share; 0: each has its own
    host_transform: bool = False  # the transform is on the CPU too, as here
    storage: float = 1.0  # bytes of latents, with moments in float16 as the unit: means alone are 0.5
    store_gb: float = 20.0  # GB/s of the store, both directions together; 0 is a store without limit
    client_gb: float = 1.25  # GB/s of one process: 10 Gbit/s
    latency: float = 0.03  # seconds of a request
    requests: int = 6  # of a shard, one after another: size, read, claim, tar, sidecar, check
    slow_gpus: float = 0.05  # share of them
    slow_factor: float = 0.8  # their speed
    slow_shards: float = 0.01  # share of them
    slow_shard_factor: float = 3.0  # times as long
    mtbf_hours: float = 50_000.0  # between two failures of one GPU
    restart: float = 120.0  # seconds until a failed process is there again
    lease: float = 300.0  # seconds until others may take the shard that it had
    seed: int = 0

    @property
    def image_seconds(self) -> float:
        """Of the GPU, for an image."""
        transform = self.costs.transform_seconds if self.host_transform else 0.0
        return (self.variants + 1) / self.encodes_per_second * self.overhead + transform

    @property
    def host_seconds(self) -> float:
        """By the clock, for an image, where only the CPU counts: threads decode, another one writes."""
        cpu = self.costs.decode_seconds + self.costs.write_seconds * self._written
        slowest = max(self.costs.decode_seconds / self.num_workers, self.costs.write_seconds * self._written)
        return slowest if self.shared_cores else max(slowest, cpu / self.cores)

    @property
    def cpu_seconds(self) -> float:
        transform = self.costs.transform_seconds if self.host_transform else 0.0
        return self.costs.decode_seconds + transform + self.costs.write_seconds * self._written

    @property
    def _written(self) -> float:
        """Of an image, with the bytes at K = 1 in float16 moments as the unit."""
        return self.tar_bytes / self.costs.bytes_out if self.costs.bytes_out else 1.0

    @property
    def tar_bytes(self) -> float:
        """Of an image: latents, and K times masked latents, a mask and headers."""
        moments = 8 * (self.resolution // 8) ** 2 * 2  # float16
        latents = min(moments, self.costs.bytes_out / 2)
        others = self.costs.bytes_out - 2 * latents
        return (self.variants + 1) * latents * self.storage + self.variants * others

    @property
    def bytes_in(self) -> float:
        return self.costs.bytes_in

    @property
    def bytes_out(self) -> float:
        return self.tar_bytes + self.costs.sidecar_bytes

    @property
    def start_seconds(self) -> float:
        """Of each process, before its first shard: imports, the list and what is there of it."""
        shards = len(self.sizes())
        return self.costs.start_seconds + self.costs.plan_seconds * shards + math.ceil(shards / 1000) * self.latency

    def sizes(self) -> list[int]:
        """Images of each shard."""
        count = max(1, round(self.images / self.per_shard))
        rng = random.Random(f"{self.seed} sizes")
        weights = [rng.lognormvariate(0, self.spread) for _ in range(count)]
        unit = self.images / sum(weights)
        return [max(1, round(weight * unit)) for weight in weights]


@dataclass
class Result:
    """What came of a simulated job. Seconds of processes are summed over all of them."""

    setup: Setup
    images: int
    seconds: float
    busy: float = 0.0  # of GPUs, with shards that were encoded to their end
    lost: dict[str, float] = field(default_factory=dict)  # why a GPU did not encode -> seconds
    failures: int = 0

    @property
    def rate(self) -> float:
        return self.images / self.seconds

    @property
    def efficiency(self) -> float:
        """Of what as many GPUs could encode if nothing else took time."""
        return self.images * self.setup.image_seconds / (self.setup.workers * self.seconds)

    @property
    def busy_share(self) -> float:
        return self.busy / (self.setup.workers * self.seconds)

    @property
    def reason(self) -> str:
        """What most of the lost time went to."""
        return max(self.lost, key=lambda name: self.lost[name]) if self.lost else ""


class Link:
    """Whatever flows share: `total` a second of it, and no flow more than `each`; all flows get the same.

    Work is counted for a flow that never leaves; one that comes is through when that count has grown by its size.
    """

    def __init__(self, env: simpy.Environment, total: float, each: float) -> None:
        self._env, self._total, self._each = env, total, each
        self._count, self._at, self._alarm = 0.0, 0.0, 0
        self._waiting: list[tuple[float, int, simpy.Event]] = []
        self._flows: set[simpy.Event] = set()
        self._number = 0
        self.carried = 0.0

    def flow(self, size: float) -> simpy.Event:
        """An event that comes when `size` is through."""
        event = self._env.event()
        self._advance()
        self._number += 1
        heapq.heappush(self._waiting, (self._count + size, self._number, event))
        self._flows.add(event)
        self.carried += size
        self._schedule()
        return event

    def stop(self, event: simpy.Event) -> None:
        """End a flow before it is through."""
        if event in self._flows:
            self._advance()
            self._flows.discard(event)
            self._schedule()

    @property
    def _rate(self) -> float:
        return min(self._each, self._total / len(self._flows)) if self._flows else 0.0

    def _advance(self) -> None:
        self._count += (self._env.now - self._at) * self._rate
        self._at = self._env.now

    def _schedule(self) -> None:
        while self._waiting and self._waiting[0][2] not in self._flows:
            heapq.heappop(self._waiting)
        self._alarm += 1
        if self._waiting:
            due = max(0.0, self._waiting[0][0] - self._count) / self._rate
            number, timeout = self._alarm, self._env.timeout(due)
            timeout.callbacks.append(lambda _: self._ring(number))

    def _ring(self, number: int) -> None:
        if number != self._alarm:  # a flow came or went meanwhile
            return
        self._advance()
        size, _, event = heapq.heappop(self._waiting)
        self._count = max(self._count, size)  # rounding
        self._flows.discard(event)
        event.succeed()
        self._schedule()


class Job:
    """A simulated job: its list of shards, its store, its processes."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.env = setup, simpy.Environment()
        store = setup.store_gb * GB or math.inf
        self.store = Link(self.env, store, setup.client_gb * GB)
        slowest = max(setup.host_seconds, setup.costs.transform_seconds if setup.host_transform else 0.0)
        self.cores = Link(self.env, setup.shared_cores, setup.cpu_seconds / slowest if slowest else math.inf)
        sizes = setup.sizes()
        rng = random.Random(f"{setup.seed} shards")
        self.shards = [(size, rng.random() < setup.slow_shards) for size in sizes]
        self.lists = self._deal()
        self.done = 0
        self.result = Result(setup, sum(sizes), 0.0, lost=dict.fromkeys(REASONS, 0.0))

    def _deal(self) -> list[list[tuple[int, bool]]]:
        """The list that each process takes from, at its end: one for all, or one for each."""
        if self.setup.dealing == "claim":
            common = sorted(self.shards)
            return [common] * self.setup.workers
        return [self.shards[rank :: self.setup.workers][::-1] for rank in range(self.setup.workers)]

    def run(self) -> Result:
        start = self.setup.start_seconds
        processes = [Process(self, rank, start) for rank in range(self.setup.workers)]
        self.env.run(self.env.all_of([process.ended for process in processes]))
        self.result.seconds = max(process.at_end for process in processes)
        self.result.lost["tail"] += sum(self.result.seconds - process.at_end for process in processes)
        return self.result


REASONS = ("store", "cores", "commit", "start", "tail", "requests", "stragglers", "failures")


class Process:
    """One process with its GPU: it takes a shard, works on it, hands it to its writer, and takes the next one."""

    def __init__(self, job: Job, rank: int, start: float) -> None:
        self.job, self.env, self.setup, self.rank, self.start = job, job.env, job.setup, rank, start
        self.rng = random.Random(f"{job.setup.seed} process {rank}")
        self.speed = job.setup.slow_factor if self.rng.random() < job.setup.slow_gpus else 1.0
        self.in_hand: list[tuple[int, bool]] = []  # taken and not committed
        self.flows: list[tuple[Link, simpy.Event]] = []
        self.returning = 0  # shards of its own that come back to the list
        self.at_end = 0.0
        self.writing: simpy.Process | None = None
        self.slow_in_writing = "store"  # of the last shard: its bytes, or its commit
        self.life = self.env.process(self._live())
        self.ended = self.life
        if job.setup.mtbf_hours:
            self.env.process(self._fail())

    def _live(self) -> Iterator[Any]:
        while True:
            began = self.env.now
            try:
                yield from self._work()
                self.at_end = self.env.now
                return
            except simpy.Interrupt:
                yield from self._die(began)

    def _work(self) -> Iterator[Any]:
        lost = self.job.result.lost
        yield self.env.timeout(self.start)
        lost["start"] += self.start
        shards = self.job.lists[self.rank]
        while shards or self.returning:
            if not shards:  # its own lost shard may be taken again in a while
                yield self.env.timeout(1.0)
                lost["failures"] += 1.0
                continue
            shard = shards.pop()
            self.in_hand.append(shard)
            yield from self._encode(*shard)
            before = self.env.now
            if self.writing is not None and self.writing.is_alive:
                yield self.writing
            lost[self.slow_in_writing] += self.env.now - before
            self.writing = self.env.process(self._write(shard))
        if self.writing is not None and self.writing.is_alive:
            yield self.writing

    def _encode(self, size: int, is_slow: bool) -> Iterator[Any]:
        """Read, decode and encode a shard, all at the same time, as its batches come."""
        setup, lost = self.setup, self.job.result.lost
        wait = setup.latency * setup.requests / 2  # the other half belongs to the writer
        yield self.env.timeout(wait)
        more = setup.slow_shard_factor if is_slow else 1.0
        gpu = size * setup.image_seconds
        device = gpu * more / self.speed
        host = size * setup.host_seconds * more
        waits = [self.env.timeout(max(device, host)), self._flow(self.job.store, size * setup.bytes_in)]
        if setup.shared_cores:
            waits.append(self._flow(self.job.cores, size * setup.cpu_seconds * more))
        yield waits[0]
        before = self.env.now
        yield waits[1]
        lost["store"] += self.env.now - before
        before = self.env.now
        if setup.shared_cores:
            yield waits[2]
        lost["cores"] += self.env.now - before + max(0.0, host - device)
        lost["stragglers"] += device - gpu
        lost["requests"] += wait
        self.flows.clear()
        self.job.result.busy += device

    def _write(self, shard: tuple[int, bool]) -> Iterator[Any]:
        setup, link, began = self.setup, self.job.store, self.env.now
        flow = link.flow(shard[0] * setup.bytes_out + setup.costs.sidecar_fixed)
        try:
            yield flow
            commit = setup.costs.shard_seconds + setup.latency * setup.requests / 2
            self.slow_in_writing = "store" if self.env.now - began > commit else "commit"
            yield self.env.timeout(commit)
        except simpy.Interrupt:
            link.stop(flow)
            return
        self.in_hand.remove(shard)
        self.job.done += 1

    def _flow(self, link: Link, size: float) -> simpy.Event:
        event = link.flow(size)
        self.flows.append((link, event))
        return event

    def _fail(self) -> Iterator[Any]:
        while self.life.is_alive:
            yield self.env.timeout(self.rng.expovariate(1 / (self.setup.mtbf_hours * 3600)))
            if self.life.is_alive and self.life.target is not None:
                self.life.interrupt()

    def _die(self, began: float) -> Iterator[Any]:
        """Lose what is in hand, which comes back to the list, and start again."""
        self.job.result.failures += 1
        for link, event in self.flows:
            link.stop(event)
        self.flows.clear()
        if self.writing is not None and self.writing.is_alive:
            self.writing.interrupt()
        self.writing = None
        for shard in self.in_hand:
            self.returning += 1
            self.env.process(self._return(shard))
        self.in_hand = []
        before = self.env.now
        while self.env.now < before + self.setup.restart:
            try:
                yield self.env.timeout(before + self.setup.restart - self.env.now)
            except simpy.Interrupt:
                before = self.env.now
        self.job.result.lost["failures"] += self.env.now - max(before, began)

    def _return(self, shard: tuple[int, bool]) -> Iterator[Any]:
        """Others may take it when its claim is out; dealt beforehand, it waits for this process."""
        yield self.env.timeout(self.setup.lease if self.setup.dealing == "claim" else 0.0)
        self.job.lists[self.rank].append(shard)
        self.returning -= 1


def simulated(setup: Setup) -> Result:
    """Run a simulated job to its end."""
    return Job(setup).run()


def table_of_workers(setup: Setup, workers: Sequence[int]) -> str:
    """How the same job goes on more and more GPUs."""
    lines = [
        f"{'GPUs':>6} {'images/s':>10} {'efficiency':>11} {'GPU busy':>9} {'hours':>9} {'failed':>7}  most lost to"
    ]
    for count in workers:
        result = simulated(replace(setup, workers=count))
        lines.append(
            f"{count:>6} {result.rate:>10,.0f} {result.efficiency:>10.1%} {result.busy_share:>9.1%} "
            f"{result.seconds / 3600:>9.2f} {result.failures:>7}  {result.reason}"
        )
    return "\n".join(lines)


def where_it_stops(setup: Setup, rows: dict[str, dict[str, Any]], workers: Sequence[int]) -> str:
    """For each change of the setup: the most GPUs that are still used well, and what the next ones are lost to."""
    lines = [f"{'setting':<38} {f'GPUs at {ENOUGH:.0%}':>12} {'images/s':>10}  above that, most lost to"]
    for name, changes in rows.items():
        best, beyond = None, None
        for count in workers:
            result = simulated(replace(setup, workers=count, **changes))
            if result.efficiency < ENOUGH:
                beyond = result
                break
            best = result
        most = "none" if best is None else f"{best.setup.workers}" if beyond else f">= {best.setup.workers}"
        rate = best.rate if best else 0.0
        why = "" if beyond is None else f"{beyond.reason} ({beyond.efficiency:.0%} at {beyond.setup.workers})"
        lines.append(f"{name:<38} {most:>12} {rate:>10,.0f}  {why}")
    return "\n".join(lines)


def table_of_dealing(setup: Setup, workers: Sequence[int], seeds: int) -> str:
    """Shards dealt beforehand beside shards that are claimed one at a time."""
    lines = [f"{'GPUs':>6} {'claimed':>9} {'dealt beforehand':>17} {'times as long':>14}"]
    for count in workers:
        hours = {
            dealing: sum(
                simulated(replace(setup, workers=count, dealing=dealing, seed=seed)).seconds for seed in range(seeds)
            )
            / seeds
            / 3600
            for dealing in ("claim", "static")
        }
        ratio = hours["static"] / hours["claim"]
        lines.append(f"{count:>6} {hours['claim']:>7.2f} h {hours['static']:>15.2f} h {ratio:>14.2f}")
    return "\n".join(lines)


@dataclass(frozen=True)
class Prices:
    """In US dollars; assumed, see docs/scale.md."""

    gpu_hour: float = 3.0
    put: float = 0.005 / 1000  # and list
    get: float = 0.0004 / 1000
    gb_month: float = 0.023


def plan(setup: Setup, prices: Prices) -> str:
    """The arithmetic of a whole job: GPU-hours, dollars, bytes, requests, shards, starts."""
    result = simulated(setup)
    shards = len(setup.sizes())
    gpu_hours = setup.images * setup.image_seconds / 3600
    held = result.seconds / 3600 * setup.workers
    tb_in, tb_out = setup.images * setup.bytes_in / 1e12, setup.images * setup.tar_bytes / 1e12
    sidecars = setup.images * setup.costs.sidecar_bytes + shards * setup.costs.sidecar_fixed
    puts = shards * 3 + setup.workers * math.ceil(shards / 1000)  # tar, sidecar, claim; the listings
    gets = shards * 3  # size, read, check
    cores = (setup.costs.decode_seconds + setup.costs.write_seconds * setup._written) / setup.image_seconds
    rows = [
        ("images, shards", f"{setup.images:,.0f} images of one size, {shards:,} shards of about {setup.per_shard:,}"),
        ("a GPU", f"{1 / setup.image_seconds:,.0f} images/s, K = {setup.variants}: {setup.variants + 1} encodes each"),
        ("encoding alone", f"{gpu_hours:,.0f} GPU-hours, {gpu_hours * prices.gpu_hour:,.0f} $"),
        ("simulated", f"{setup.workers} GPUs, {result.seconds / 3600:,.2f} hours, {result.failures} failures"),
        ("held", f"{held:,.0f} GPU-hours, {held * prices.gpu_hour:,.0f} $, {gpu_hours / held:.0%} of it encoding"),
        ("read", f"{tb_in:,.2f} TB"),
        ("written", f"{tb_out:,.2f} TB, {tb_out * 1000 * prices.gb_month:,.0f} $ a month to keep"),
        ("the store", f"{result.rate * (setup.bytes_in + setup.bytes_out) / GB:,.2f} GB/s, both ways, on average"),
        ("requests", f"{puts:,} PUT and LIST, {gets:,} GET: {puts * prices.put + gets * prices.get:,.2f} $, "
                     f"{(puts + gets) / result.seconds:,.0f} a second"),
        ("sidecars", f"{sidecars / GB:,.2f} GB"),
        ("a start", f"{setup.start_seconds:,.0f} s of each process: {setup.costs.start_seconds:.0f} s of imports, the "
                    f"rest for {shards:,} shards; {setup.start_seconds * setup.workers / 3600:,.1f} GPU-hours for all"),
        ("cores", f"{cores:.1f} of them keep a GPU busy, as fast as those here"),
    ]  # fmt: skip
    return "\n".join(f"  {name:<15} {value}" for name, value in rows)


def real_run(processes: int, shards: str, out: Path, wait: float) -> float:
    """Seconds of real processes over real shards, from the moment when each has done a tiny job to warm up."""
    warm = out.with_name(f"{out.name}-warm")
    for rank in range(processes):
        scale_costs.write_shard(warm / f"{rank}.tar", 1, 64)
    program = (
        "import sys, json, time; from pathlib import Path; import torch; torch.set_num_threads(1); import scale_costs; "
        f"scale_costs.job({str(warm)!r}, Path({str(out)!r} + '-warm' + sys.argv[1]), 64); "
        "print('ready', flush=True); sys.stdin.readline(); started = time.time(); "
        f"scale_costs.job({shards!r}, Path({str(out)!r}), 512, {wait!r}, 2); "
        "print(json.dumps([started, time.time()]))"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    started = []
    for rank in range(processes):
        environment = scale_costs.alone(RANK=str(rank), WORLD_SIZE=str(processes), LOCAL_RANK="0", PYTHONPATH=path)
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", program, str(rank)], env=environment, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )
        )  # fmt: skip
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    answers = []
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in started:
        text, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"a real process ended with exit code {process.returncode}")
        answers.append(json.loads(text.splitlines()[-1]))
    return max(end for _, end in answers) - min(start for start, _ in answers)


def compared(costs: Costs, runs: Sequence[tuple[int, float]], shards: int, images: int) -> str:
    """Real processes beside simulated ones on as many cores: (processes, seconds that each encode waits for)."""
    lines = [
        f"{'processes':>9} {'an encode':>10} {'real':>12} {'simulated':>14} {'real/simulated':>15}  load of machine"
    ]
    with tempfile.TemporaryDirectory() as folder:
        for number, (processes, wait) in enumerate(runs):
            inputs = Path(folder) / f"in{number}"
            for shard in range(shards * processes):
                scale_costs.write_shard(inputs / f"{shard:04d}.tar", images, 512)
            load = os.getloadavg()[0]
            total = shards * processes * images
            real = total / real_run(processes, str(inputs), Path(folder) / f"out{number}", wait)
            setup = here(costs, processes, wait, total, images)
            rate = simulated(setup).rate
            lines.append(
                f"{processes:>9} {wait * 1e3:>7.0f} ms {real:>7.1f} im/s {rate:>9.1f} im/s {real / rate:>15.2f}"
                f"  {load:.1f}"
            )
    return "\n".join(lines)


def here(costs: Costs, processes: int, wait: float, images: int, per_shard: int) -> Setup:
    """This machine: its cores are shared, its store is a disk, its GPU is a wait, and the transform is on the CPU.

    A job begins with an encode by which it learns the shapes of its autoencoder.
    """
    return Setup(
        replace(costs, start_seconds=wait, plan_seconds=0.0), images=images, per_shard=per_shard, spread=0.0,
        workers=processes, encodes_per_second=1 / max(wait, 1e-9), overhead=1.0, num_workers=2,
        shared_cores=float(os.cpu_count() or 1), host_transform=True, store_gb=0.0, latency=0.0, slow_gpus=0.0,
        slow_shards=0.0, mtbf_hours=0.0,
    )  # fmt: skip


def variations(setup: Setup, short: bool) -> dict[str, dict[str, Any]]:
    """What `where_it_stops` tries, by name."""
    sizes = (3_000, 10_000, 30_000, 100_000)
    stores = (5.0, 20.0, 0.0) if short else (2.0, 5.0, 10.0, 20.0, 40.0, 0.0)
    rows: dict[str, dict[str, Any]] = {"as above": {}}
    rows |= {f"store {gb:g} GB/s" if gb else "a store without limit": {"store_gb": gb} for gb in stores}
    rows |= {f"{size:,} images a shard": {"per_shard": size} for size in (sizes[1:] if short else sizes)}
    rows |= {
        f"{cores:g} cores a GPU, {threads} decode": {"cores": cores, "num_workers": threads}
        for cores, threads in ((2.0, 2), (3.0, 2), (4.0, 4), (8.0, 8))
    }
    rows |= {f"K = {count}": {"variants": count} for count in (2, 4)}
    rows |= {
        "means alone in float16": {"storage": 0.5},
        "means alone, no limit of the store": {"storage": 0.5, "store_gb": 0.0},
        "no slow GPUs, no slow shards": {"slow_gpus": 0.0, "slow_shards": 0.0},
        "preempted every 24 hours": {"mtbf_hours": 24.0},
        "a tenth of the images": {"images": setup.images / 10},
    }
    return rows


def main() -> None:
    options, setup = read_options()
    started = time.perf_counter()
    if options.costs:
        costs = Costs(**json.loads(options.costs))
        print("given: what an image and a shard cost the host, as measured before")
    else:
        costs = scale_costs.measured(setup.resolution, *((24, 40, 1) if options.short else (96, 400, 3)))
        print(f"measured here, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}: an image and a shard at the host")
    print(costs.lines())
    print(f"  --costs '{json.dumps({name: round(value, 7) for name, value in asdict(costs).items()})}'")
    setup = replace(setup, costs=costs)
    if not options.plan and not options.costs:
        print("\nreal processes here beside simulated ones; each encode waits as a host waits for a GPU")
        runs = [(1, 0.1), (2, 0.1)] if options.short else [(1, 0.1), (2, 0.1), (4, 0.1), (8, 0.1), (1, 0.02), (2, 0.02)]
        print(compared(costs, runs, *((2, 8) if options.short else (3, 48))))
    print(f"\nassumed\n{assumptions(setup)}")
    if options.plan:
        print(f"\narithmetic, with one simulated run\n{plan(setup, prices_of(options))}")
        return
    workers = WORKERS[::3] if options.short else WORKERS
    shards = len(setup.sizes())
    print(f"\nsimulated: {setup.images:,.0f} images in {shards:,} shards, claimed largest first")
    print(table_of_workers(setup, workers))
    print("\nsimulated: dealing")
    few = replace(setup, images=setup.images / 10)
    print(f"(a tenth of the images, {len(few.sizes()):,} shards)")
    print(table_of_dealing(few, (8, 64, 256), 1 if options.short else 3))
    print(f"\nsimulated: the most GPUs of which at least {ENOUGH:.0%} is used, and what stops there")
    print(where_it_stops(setup, variations(setup, options.short), (64, 512) if options.short else WORKERS[3:]))
    print(f"\n{time.perf_counter() - started:.0f} s altogether")


def assumptions(setup: Setup) -> str:
    rows = [
        ("a GPU", f"{setup.encodes_per_second:g} encodes/s, {setup.overhead:g} times as long with the transform"),
        ("its host", f"{setup.cores:g} cores, {setup.num_workers} threads that decode"),
        ("the store", f"{setup.store_gb:g} GB/s for all, {setup.client_gb:g} GB/s for each, {setup.requests} "
                      f"requests of {setup.latency * 1e3:g} ms a shard"),
        ("stragglers", f"{setup.slow_gpus:.0%} of GPUs at {setup.slow_factor:g} of the speed, {setup.slow_shards:.0%} "
                       f"of shards take {setup.slow_shard_factor:g} times as long, sizes vary by {setup.spread:.0%}"),
        ("failures", f"one in {setup.mtbf_hours:g} hours of a GPU; back in {setup.restart:g} s, its shard free in "
                     f"{setup.lease:g} s"),
    ]  # fmt: skip
    return "\n".join(f"  {name:<15} {value}" for name, value in rows)


def prices_of(options: argparse.Namespace) -> Prices:
    return Prices(options.gpu_hour, options.put_1000 / 1000, options.get_1000 / 1000, options.gb_month)


def read_options() -> tuple[argparse.Namespace, Setup]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="fewer rows and smaller measurements, within a minute")
    parser.add_argument("--costs", default="", help="measured costs as JSON, in place of measuring them")
    parser.add_argument(
        "--plan", type=float, default=0.0, help="print the arithmetic of a job of this many images alone"
    )
    parser.add_argument("--gpus", type=int, default=64, help="of --plan")
    parser.add_argument("--gpu_hour", type=float, default=Prices.gpu_hour, help="price, in dollars")
    parser.add_argument("--put_1000", type=float, default=Prices.put * 1000, help="price of 1,000 PUT or LIST requests")
    parser.add_argument("--get_1000", type=float, default=Prices.get * 1000, help="price of 1,000 GET requests")
    parser.add_argument("--gb_month", type=float, default=Prices.gb_month, help="price of a GB for a month")
    names = (
        "resolution", "images", "per_shard", "variants", "encodes_per_second", "overhead", "num_workers", "cores",
        "storage", "store_gb", "client_gb", "latency", "requests", "slow_gpus", "slow_factor", "slow_shards",
        "slow_shard_factor", "spread", "mtbf_hours", "restart", "lease", "dealing", "seed",
    )  # fmt: skip
    for name in names:
        default = getattr(Setup, name)
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"assumed; {default} if left out")
    options = parser.parse_args()
    given = {name: getattr(options, name) for name in names}
    nothing = Costs(**dict.fromkeys(Costs.__dataclass_fields__, 0.0))
    setup = Setup(nothing, **given)
    if options.plan:
        setup = replace(setup, images=options.plan, workers=options.gpus)
    return options, setup


if __name__ == "__main__":
    main()
