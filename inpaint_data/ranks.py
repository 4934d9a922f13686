"""Which process of a run this one is, as whatever started it says in the environment."""

import os
from dataclasses import dataclass

from inpaint_data.errors import UsageError

LAUNCHED = "INPAINT_DATA_LAUNCHED"  # of a process of `--devices`, whose others are known to be there


@dataclass(frozen=True)
class Part:
    """Process `rank` of `world`, on its machine process `local`."""

    rank: int = 0
    world: int = 1
    local: int = 0

    def __str__(self) -> str:
        return f"process {self.rank} of {self.world}"


def part_of_run() -> Part:
    """What this process is of its run: process 0 of 1, unless a launcher says otherwise.

    `RANK` and `WORLD_SIZE` are set by torchrun and by clusters for each of their processes. Under Slurm, srun without
    torchrun starts the tasks of a step. A shell inside an allocation (salloc, a script of sbatch) has Slurm's variables
    too, but is no task of a step, and does everything itself.

    Raises:
        UsageError: numbers that cannot be.
    """
    names = _names()
    if names is None:
        return Part(local=_number("LOCAL_RANK") or 0)
    rank, world, local = map(_number, names)
    if rank is None or world is None or rank >= world:
        raise UsageError(
            f"{names[0]}={os.environ[names[0]]} and {names[1]}={os.environ[names[1]]} in the environment do not name a "
            "process of a run; correct them, or unset both if this process runs alone"
        )
    return Part(rank, world, local or 0)


def own_gpu(count: int) -> int:
    """The number of this process's GPU of `count`; a launcher may show each process its own alone, as number 0."""
    return 0 if count == 1 else part_of_run().local


def _names() -> tuple[str, str, str] | None:
    """The variables that name this process, the number of processes, and its place on its machine."""
    if os.environ.keys() >= {"RANK", "WORLD_SIZE"}:
        return "RANK", "WORLD_SIZE", "LOCAL_RANK"
    # Slurm sets SLURM_NTASKS in an allocation's shell as well, and this one in the tasks of a step alone.
    tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_JOB_ID" in os.environ else "SLURM_NTASKS"
    if os.environ.keys() >= {"SLURM_PROCID", tasks}:
        return "SLURM_PROCID", tasks, "SLURM_LOCALID"
    return None


def _number(name: str) -> int | None:
    """The whole number, 0 or more, that a variable of the environment holds; None if it holds none."""
    value = os.environ.get(name, "").strip()
    return int(value) if value.isascii() and value.isdecimal() else None
