"""Every command and every piece of Python in the README and the docs does what it says there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from inpaint_data.commands.main import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("pipeline", "training", "cache"))]
PYTHON = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]
COMMANDS = re.findall(
    r"^\$ (inpaint-data (?!.*s3://).*)$", README, re.MULTILINE
)  # a bucket is tests/test_cache_in_store.py's


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
    assert len(COMMANDS) == 7
    assert (folder / "cache" / "cache.json").is_file()
    assert (folder / "sheet.png").is_file()
    assert (folder / "job.yaml").is_file()


@pytest.mark.parametrize("block", PYTHON)
def test_the_python_runs(block: str, folder: Path) -> None:
    (folder / "block.py").write_text(block)  # a file, as worker processes need one
    done = subprocess.run([sys.executable, "block.py"], cwd=folder, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_make_targets_exist() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"^\$ make ([a-z]+)", README, re.MULTILINE)
    assert named == ["demo", "test"]
    assert set(named) <= set(targets)


def test_every_file_it_names_is_there() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        text = page.read_text()
        for name in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", text):
            assert (page.parent / name).exists(), (page.name, name)
        for name in re.findall(r"[` ]((?:configs|benchmarks|scripts)/[\w./]+)`", text):
            assert (ROOT / name).exists(), (page.name, name)
