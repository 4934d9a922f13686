"""Any bytes end in one of three ways: cached, named with a reason, or refused in one line.

What is tried, and what must hold then, stands in `fuzzing.py`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Figure


def fuzz(folder: Path, *runs: str) -> list[int]:
    """How many seeds of each run were tried."""
    script = Path(__file__).with_name("fuzzing.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore", str(script), str(folder), *runs]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    return [int(number) for number in re.findall(r"^\w+: (\d+)$", done.stdout, re.MULTILINE)]


def test_strange_shards_and_caches_are_read_or_refused_in_a_line(memory_path: Path, record_figure: Figure) -> None:
    shards, caches, killers = fuzz(memory_path, "shards,0,1000,4", "cache,0,1000,3", "killers,0,7,60")
    record_figure(f"fuzzing: {shards} strange shards, {caches} strange caches and {killers} killers: none got through")
    assert min(shards, caches) > 3
    assert killers == 7


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["shards,0,100000,600", "cache,0,100000,600", "killers,0,11,600"])
def test_long_fuzzing_finds_nothing(kind: str, memory_path: Path, record_figure: Figure) -> None:
    (tried,) = fuzz(memory_path, kind)
    record_figure(f"fuzzing: {kind.partition(',')[0]} {tried}")
