"""The scripts of configs/ for clusters: sound, with flags that there are, starting the job as it needs to be."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import small_samples, write_shard

from inpaint_data.commands.main import reader_of

ROOT = Path(__file__).parents[1]
SLURM, RAY, DOCKER = (ROOT / "configs" / name for name in ("slurm.sbatch", "ray_job.sh", "Dockerfile"))
# As srun starts the tasks of a step on one node, one after the other.
SRUN = """\
#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_STEP_NUM_TASKS=2 "$@" || code=$?
done
exit "${code:-0}"
"""


@pytest.mark.parametrize("script", [SLURM, RAY], ids=lambda path: path.name)
def test_the_scripts_are_bash_and_say_how_they_are_called(script: Path, tmp_path: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode != 0
    assert f"usage: {'sbatch ' if script is SLURM else ''}configs/{script.name} job.yaml" in done.stderr


def test_the_slurm_script_gives_flags_that_the_job_takes() -> None:
    (command,) = re.findall(r"^ *inpaint-data cache (.*)$", SLURM.read_text(), re.MULTILINE)
    flags = set(re.findall(r"--(\w+)", command))
    assert flags
    assert flags <= {"config"} | {setting.name for setting in reader_of("cache").settings}


def test_the_image_has_the_versions_of_the_constraints_and_extras_that_there_are() -> None:
    text = DOCKER.read_text()
    (extras,) = re.findall(r"^ARG EXTRAS=(.*)$", text, re.MULTILINE)
    assert set(extras.split(",")) <= set(
        re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    )
    assert '-c constraints.txt ".[$EXTRAS]"' in text
    assert re.findall("^torch==.*$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE):
        assert all((ROOT / name).exists() for name in line.split()), line


@pytest.mark.slow
def test_the_tasks_of_the_slurm_script_share_the_shards(tmp_path: Path) -> None:
    for number in range(4):
        samples = {f"{number}_{key}": members for key, members in small_samples(2, number).items()}
        write_shard(tmp_path / "in" / f"{number}.tar", samples)
    (tmp_path / "job.yaml").write_text(
        "shards: in\nout: out\npictures: {resolution: 64, upscale: true}\nmasks: {source: boxes}\n"
        "encode: {vae: demo}\njob: {device: cpu}\n"
    )
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (
        ("srun", SRUN),
        ("inpaint-data", f'#!/bin/bash\nexec {sys.executable} -m inpaint_data "$@"\n'),
    ):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment |= {"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}
    done = subprocess.run(
        ["bash", str(SLURM), "job.yaml"], env=environment, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.tar")) == ["0", "1", "2", "3"]
    ranks = [line for line in (tmp_path / "inpaint-data-7.jsonl").read_text().splitlines() if '"start"' in line]
    assert len(ranks) == 2
    assert '"world": 2' in ranks[0]
