"""How time and memory grow with the data: the job and training reads at 1, 4 and 16 times as much, as exponents.

Each size runs in a process of its own. An exponent of 1 is proportional, of 0 constant; both are taken from 4 to 16
times the data, where what does not grow counts least.
"""

import json
import math
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

from jobs import MEMORY, write_shards
from table import Row, script, spread

STEPS = (1, 4, 16)
MOST = """
    import contextlib, io, json, re, sys, time
    sys.path.insert(0, {benchmarks!r})
    import torch
    torch.set_num_threads(1)
    def most():
        return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1e3
"""
JOB = """
    from inpaint_data import Autoencoder, cache_latents
    from jobs import Free
    started = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):
        cache_latents({shards!r}, {cache!r}, {{"resolution": 64}}, {{"source": "boxes"}},
                      {{"vae": Autoencoder(Free())}}, {{"device": "cpu"}})
    print(json.dumps([time.perf_counter() - started, most()]))
"""
READS = """
    from inpaint_data import InpaintDataModule
    data = InpaintDataModule({cache!r}, batch_size=32, encode={{"masked_latents": True}})
    data.setup("fit")
    started = time.perf_counter()
    for batch in data.train_dataloader():
        pass
    print(json.dumps([time.perf_counter() - started, most()]))
"""


def rows(full: bool) -> Iterator[Row]:
    spread()
    base = 1024 if full else 128
    figures: dict[str, list[list[float]]] = {"the job": [], "training reads": []}
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        for step in STEPS:
            shards, cache = str(Path(name) / f"shards{step}"), str(Path(name) / f"cache{step}")
            write_shards(Path(shards), 64, base * step)
            figures["the job"].append(measured(JOB.format(shards=shards, cache=cache)))
            figures["training reads"].append(measured(READS.format(cache=cache)))
    for what, sizes in figures.items():
        told = "; ".join(
            f"{base * step}: {wall:.2f} s, {rss:.0f} MB" for step, (wall, rss) in zip(STEPS, sizes, strict=True)
        )
        print(f"{what}, images: {told}", file=sys.stderr)
        for name, column, reach in (("time", 0, 1.1), ("memory", 1, 0.1)):
            exponent = math.log(sizes[2][column] / sizes[1][column]) / math.log(STEPS[2] / STEPS[1])
            yield Row(f"{what}: exponent of {name}, from 4 to 16 times the data", "-", exponent, reach, "")


def measured(code: str) -> list[float]:
    """Seconds, and the most megabytes that the process ever had."""
    whole = textwrap.dedent(MOST.format(benchmarks=str(Path(__file__).parent))) + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, check=True)
    figures: list[float] = json.loads(done.stdout.splitlines()[-1])
    return figures


if __name__ == "__main__":
    script(rows, __doc__)
