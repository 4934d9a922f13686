"""What a rank waits for the first batch of a large cache, and what it keeps in memory, in a process of its own.

The cache has a million samples in a thousand shards (100,000 in 100 without `--full`), whose sidecars and tars our own
writer code makes; the tars are sparse, so only the samples of the first batch are real. Both figures are beside what
`import torch` alone takes in a process like it.
"""

import json
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from reads import SIDE, members, settings_of
from table import Row, script

from inpaint_data.latent_cache.folder import CacheFolder
from inpaint_data.latent_cache.format import Sidecar, write_cache_file
from inpaint_data.latent_cache.index import Place, ShardIndex
from inpaint_data.latent_cache.merged_file import INDEX_FILE
from inpaint_data.latent_cache.record_columns import RecordColumns

SAMPLES = 1000  # in a shard
FIRST = """
    import json, re, time
    import torch
    def most():
        return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1e3
    before = most()
    from inpaint_data import LatentCache
    started, cpu = time.perf_counter(), time.process_time()
    cache = LatentCache({cache!r}, check={check!r})
    opened = time.perf_counter()
    rows = next(iter(cache.batches(32)))
    drawn = time.perf_counter()
    batch = cache.batch(rows)
    ended = time.perf_counter()
    parts = [opened - started, drawn - opened, ended - drawn]
    print(json.dumps([ended - started, most() - before, *parts, time.process_time() - cpu]))
"""


def rows(full: bool) -> Iterator[Row]:
    shards = 1000 if full else 100
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        write_cache(cache, shards)
        first = measured(cache)
        figures = sorted(measured(cache) for _ in range(5))[2]
        (cache / INDEX_FILE).unlink()
        yield from table(shards, figures, first)


def table(shards: int, figures: list[float], first: list[float]) -> Iterator[Row]:
    seconds, megabytes, opened, drawn, read, _ = figures
    count = shards * SAMPLES
    parts = f"opened {opened:.2f}, order {drawn:.2f}, batch {read:.2f} s"
    made = f"without an index {first[0]:.1f} s, CPU {first[-1]:.1f} s"
    print(f"{count:,} samples in {shards} shards: {parts}; {made}", file=sys.stderr)
    yield Row(f"first batch of {count:,} samples", "19-36 s of 1 M", seconds, 1, " s")
    yield Row(f"its memory above import torch, {count:,} samples", "730 MB of 1 M", megabytes, 150, " MB")
    before = f"{19 * count / 1e6:.0f}-{36 * count / 1e6:.0f} s"  # of every start
    yield Row(f"the one start that makes the index, CPU, {count:,} samples", before, first[-1], 40 * count / 1e6, " s")


def measured(cache: Path) -> list[float]:
    code = textwrap.dedent(FIRST.format(cache=str(cache), check="never"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    figures: list[float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def write_cache(root: Path, shards: int) -> None:
    """Sidecars and `cache.json` as the writer has them, of tars of which every sample has the same bytes."""
    root.mkdir(parents=True)
    settings = settings_of(1)
    contents = members(np.random.default_rng(0), 1, "a photo")
    del contents["txt"]
    records = RecordColumns.of([contents["inpaint.json"]] * SAMPLES)
    sidecars = [write_shard(root, number, contents, records, settings.fingerprint) for number in range(shards)]
    write_cache_file(CacheFolder(root), settings.to_json(), sidecars)


def write_shard(
    root: Path, number: int, contents: dict[str, bytes], records: RecordColumns | None, fingerprint: str
) -> Sidecar:
    """Every sample of it lies at the same place; a tar of no bytes but those is as long as one of all of them."""
    places, at = {}, 512
    tar = root / f"{number:06d}.tar"
    with tar.open("wb") as file:
        for name, data in sorted(contents.items()):
            file.seek(at)
            file.write(data)
            places[name] = Place.of(at, data)
            at += len(data) + -len(data) % 512 + 512
        file.truncate(SAMPLES * at)
    size = SAMPLES * at
    sidecar = Sidecar(
        shard=tar.name,
        fingerprint=fingerprint,
        input={"name": tar.name, "size": 1, "sha256": "0" * 64},
        output={"size": size, "sha256": f"{number:064x}"},
        variants=1,
        made_with={},
        index=ShardIndex.of([f"{row:08d}" for row in range(SAMPLES)], [places] * SAMPLES, [(SIDE, SIDE)] * SAMPLES),
        records=records,
    )
    (root / f"{number:06d}.json").write_bytes(sidecar.to_bytes())
    return sidecar


if __name__ == "__main__":
    script(rows, __doc__)
