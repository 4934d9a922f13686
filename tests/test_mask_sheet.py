"""The sheet of masks: what is drawn on it, and that docs/masks.md agrees."""

import io
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run, write_shard
from flat import OF_JOBS, grouped
from PIL import Image

from inpaint_data import mask_sheet as sheet_of_groups
from inpaint_data.commands.main import reader_of
from inpaint_data.commands.mask_sheet import HOLE, MARGIN, SIDE, TILE
from inpaint_data.masks.drawn import hole_ratio
from inpaint_data.masks.generators import GENERATORS
from inpaint_data.seeding import generator_for

ROOT = Path(__file__).parents[1]
DOCS = (ROOT / "docs" / "masks.md").read_text()
COMMANDS = re.findall(r"^`?\$ inpaint-data (.*?)`?$", DOCS, re.MULTILINE)
CONFIGS = sorted([*(ROOT / "configs").glob("masks_*.yaml"), *(ROOT / "configs").glob("cache_*.yaml")])


def mask_sheet(out: str, **flat: Any) -> str:
    return sheet_of_groups(out, **grouped(OF_JOBS, flat))


def first_tile(sheet: str | Path) -> np.ndarray:
    pixels = np.asarray(Image.open(sheet)).astype(int)
    return pixels[MARGIN : MARGIN + TILE, MARGIN : MARGIN + TILE]


def test_the_hole_is_coloured_where_the_mask_is(tmp_path: Path) -> None:
    tile = first_tile(mask_sheet(str(tmp_path / "sheet.png"), masks="center", mask_offset=0, resolution=64))
    red = tile[..., 0] - tile[..., 2]
    quarter = TILE // 4
    assert (red[quarter + 2 : -quarter - 2, quarter + 2 : -quarter - 2] > 0.6 * (HOLE[0] - HOLE[2])).all()
    red[quarter - 2 : -quarter + 2, quarter - 2 : -quarter + 2] = 0
    assert (red == 0).all()


def test_there_are_64_tiles_and_they_show_the_masks_after_their_offset(tmp_path: Path) -> None:
    shown = {}
    for offset in (0, 16):
        sheet = mask_sheet(str(tmp_path / f"{offset}.png"), masks="center", mask_offset=offset, resolution=64)
        pixels = np.asarray(Image.open(sheet)).astype(int)
        assert pixels.shape[1] == SIDE * (TILE + MARGIN) + MARGIN
        shown[offset] = int((pixels[..., 0] - pixels[..., 2] > 60).sum())
    # The half of 64 pixels grown by 16 on each side is the whole; the rim of a tile's hole is resampled.
    assert shown[16] == SIDE * SIDE * TILE * TILE
    assert abs(shown[0] - shown[16] / 4) < SIDE * SIDE * 2 * TILE


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_every_config_of_masks_or_of_a_cache_is_drawn(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "sheet.jpg"
    assert run(capsys, "masks", f"--config={config}", "--out", str(out), "--resolution", "64")[:2] == (0, f"{out}\n")
    assert Image.open(out).format == "JPEG"


def test_a_seed_draws_the_same_sheet_and_another_seed_another(tmp_path: Path) -> None:
    sheets = [
        Path(mask_sheet(str(tmp_path / f"{name}.png"), resolution=64, seed=seed)).read_bytes()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert sheets[0] == sheets[1] != sheets[2]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--out", "sheet.gif"], "out: sheet.gif does not end in .png or .jpg"),
        (["--out", "a.png", "--masks", "sample"], "masks: sample takes the masks of your own samples"),
        (["--out", "a.png", "--masks", "lama"], "masks: 'lama' is unknown; choose from"),
        (["--out", "a.png", "--config", "none.yaml"], "config: no such file: none.yaml"),
        (["--out", "a.png", "--config", "empty.yaml"], "empty.yaml: sets nothing"),
        (["--out", "a.png", "--config", "typo.yaml"], "typo.yaml: pictures: there is no setting 'resolutoin'"),
        (["--out", "a.png", "--config", "mixture.yaml"], "mixture.yaml: mixture: there is no setting 'min_hola'"),
        (["--out", "a.png", "--mixture", "none.yaml"], "mixture: no such file: none.yaml; correct the name"),
        (["--out", "a.png", "--masks", "object", "--mixture", "{min_hole: 0.99}"], "masks: no image gives a mask"),
        (["--out", "file/a.png"], "out: cannot write file/a.png"),
        ([], "out"),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "typo.yaml").write_text("pictures: {resolutoin: 64}\n")
    (tmp_path / "mixture.yaml").write_text("weights: {boxes: 1}\nmin_hola: 0.1\n")
    (tmp_path / "empty.yaml").touch()
    (tmp_path / "file").touch()
    code, _, err = run(capsys, "masks", "--resolution", "64", *arguments)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert named in err


def test_the_cache_command_takes_a_file_as_its_mixture(tmp_path: Path) -> None:
    (tmp_path / "mixture.yaml").write_text("weights: {boxes: 1}\nmin_hole: 0.1\n")
    (tmp_path / "job.yaml").write_text("shards: a\nout: b\nmasks: {source: mixture, mixture: mixture.yaml}\n")
    by_flag = ["--shards", "a", "--out", "b", "--masks", "mixture", "--mixture", str(tmp_path / "mixture.yaml")]
    for arguments in (by_flag, ["--config", str(tmp_path / "job.yaml")]):
        mixture = reader_of("cache").read(arguments)["masks"].mixture
        assert (mixture.weights, mixture.min_hole) == ({"boxes": 1.0}, 0.1)


@pytest.mark.parametrize("content", ["full: 1.0\n", "weights: {full: 1}\n", "{weights: {boxes: 1}, min_hole: 1}\n"])
def test_a_file_of_nothing_but_a_mixture_s_fields_is_drawn(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mixture.yaml").write_text(content)
    drawn = []
    for arguments in (["--config", "{}"], ["--masks", "mixture", "--mixture", "{}"]):
        given = [each.format(tmp_path / "mixture.yaml") for each in arguments]
        out = str(tmp_path / "sheet.png")
        assert run(capsys, "masks", "--resolution", "64", "--out", out, *given)[0] == (
            2 if "min_hole" in content else 0
        )
        drawn.append(Path(out).read_bytes() if "min_hole" not in content else b"")
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_docs_is_one_that_the_program_takes(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    name, *arguments = shlex.split(command)
    reader_of(name).read(arguments)
    if "--out docs/" in command:
        out = command.rsplit(" ", 1)[1]
        assert (ROOT / out).stat().st_size < 190_000
        assert f"](masks/{Path(out).name})" in DOCS


def test_the_first_commands_of_the_docs_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("inpaint_data", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    for command in COMMANDS[:3]:
        small = [] if command.startswith("pack") else ["--resolution", "64"]
        assert run(capsys, *shlex.split(command), *small)[0] == 0
    assert (tmp_path / "sheet.png").is_file()


@pytest.mark.parametrize("name", GENERATORS)
def test_the_docs_give_the_mean_hole_ratio_of_every_generator(name: str) -> None:
    if name in ("full", "none"):
        assert f"`{name}` repaints" in DOCS or f"`{name}` nothing" in DOCS
        return
    row = re.search(rf"^\| `{name}` \| ([\d.]+) \|", DOCS, re.MULTILINE)
    assert row
    ratios = [hole_ratio(GENERATORS[name](128, 128, generator_for(1, str(i), 0, "mask"))) for i in range(300)]
    assert abs(np.mean(ratios) - float(row[1])) < 4 * np.std(ratios) / len(ratios) ** 0.5 + 0.01


def test_masks_are_drawn_over_the_users_own_images_with_the_masks_that_they_bring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], photo_bytes: dict[str, bytes]
) -> None:
    mask = io.BytesIO()
    height, width = np.asarray(Image.open(io.BytesIO(photo_bytes["cat"]))).shape[:2]
    half = np.zeros((height, width), np.uint8)
    half[:, : width // 2] = 255
    Image.fromarray(half).save(mask, "PNG")
    shard = write_shard(tmp_path / "a.tar", {"cat": {"jpg": photo_bytes["cat"], "mask.png": mask.getvalue()}})
    words = ["masks", "--out", str(tmp_path / "a.png"), "--resolution", "64", "--shards", str(shard)]
    assert run(capsys, *words, "--masks", "sample", "--mask_offset", "0")[0] == 0
    tile = first_tile(tmp_path / "a.png")
    red = tile[..., 0] - tile[..., 2]
    assert (red[:, : TILE // 2 - 2] > 0.6 * (HOLE[0] - HOLE[2])).all()
    assert (red[:, TILE // 2 + 2 :] == 0).all()
    write_shard(tmp_path / "b.tar", {"words": {"txt": b"no image"}})
    code, _, err = run(capsys, *words[:-1], str(tmp_path / "b.tar"))
    assert (code, err.count("\n")) == (2, 1)
    assert "masks: no image gives a mask; the first, words: " in err
