"""Every command and every piece of Python in the README does what it says there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from inpaint_data.commands.main import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"^\$ (inpaint-data .*)$", README, re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the README's commands have been run, in their order."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "inpaint_data").symlink_to(ROOT / "inpaint_data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in COMMANDS:
            main(shlex.split(command)[1:])
    return folder


def test_the_commands_make_a_cache_and_a_contact_sheet(folder: Path) -> None:
    assert len(COMMANDS) == 4
    assert (folder / "cache" / "cache.json").is_file()
    assert (folder / "sheet.png").is_file()


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_the_python_runs(number: int, folder: Path) -> None:
    subprocess.run([sys.executable, "-c", PYTHON[number]], cwd=folder, check=True, capture_output=True, text=True)


def test_the_make_targets_exist() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"^\$ make ([a-z]+)", README, re.MULTILINE)
    assert named == ["demo", "test"]
    assert set(named) <= set(targets)


def test_every_file_it_names_is_there() -> None:
    for name in re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(
        r"`((?:configs|benchmarks|scripts)/[\w./]+)`", README
    ):
        assert (ROOT / name).exists(), name
