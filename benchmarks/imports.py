"""What a person waits for before anything happens: imports, help, and a flag that is misspelt, each a fresh process."""

import os
import subprocess
import sys
from collections.abc import Iterator

from table import Row, script, side_by_side, spread

COMMAND = [sys.executable, "-c", "import sys; from inpaint_data.commands.main import main; sys.exit(main())"]


def rows(full: bool) -> Iterator[Row]:
    spread()
    programs = {
        "torch": [sys.executable, "-c", "import torch"],
        "package": [sys.executable, "-c", "import inpaint_data"],
        "cache": [sys.executable, "-c", "from inpaint_data import LatentCache"],
        "help": [*COMMAND, "--help"],
        "misspelt": [*COMMAND, "cache", "--hlep"],
    }
    times = side_by_side(
        {name: (lambda run=run: started(run)) for name, run in programs.items()}, 7 if full else 3, cpu
    )
    yield Row("import inpaint_data, over import torch", "2.6x", times["package"] / times["torch"], 1.1)
    yield Row("from inpaint_data import LatentCache, over import torch", "2.6x", times["cache"] / times["torch"], 1.1)
    yield Row("inpaint-data --help", "4.2 s", times["help"], 0.2, " s")
    yield Row("inpaint-data cache --hlep, a misspelt flag", "4.2 s", times["misspelt"], 0.2, " s")


def started(program: list[str]) -> None:
    subprocess.run(program, capture_output=True, check=False)


def cpu() -> float:
    """Seconds of all processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system


if __name__ == "__main__":
    script(rows, __doc__)
