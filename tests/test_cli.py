"""The command: every setting by flag or by YAML, and one clear line for each thing that can be wrong."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PHOTOS, run, write_shard
from PIL import Image

from inpaint_data import LatentCache, verify_cache

ROOT = Path(__file__).parents[1]


def test_every_setting_by_flag(shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = tmp_path / "cache"
    code, out, err = run(
        capsys, "cache", "--shards", shards, "--out", str(cache), "--vae", "demo", "--resolution", "64",
        "--masks", "mixture", "--mask_offset", "[-8,24]", "--variants", "2", "--seed", "3", "--batch_size", "4",
        "--device", "cpu", "--dtype", "bfloat16",
    )  # fmt: skip
    assert code == 0
    settings = json.loads((cache / "cache.json").read_bytes())["settings"]
    assert settings["mask_offset"] == [-8, 24]
    assert settings["variants"] == 2
    assert settings["samples"]["seed"] == 3
    assert settings["vae"]["dtype"] == "bfloat16"
    for row in ("samples in   12", "cached       12", "quarantined  0", "decoding", "encoding", "writing", "MB"):
        assert row in out
    assert "shard 2/2 000001.tar: 7 cached, 0 quarantined" in err
    assert len(LatentCache(cache)) == 12


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("cache_*.yaml")), ids=lambda path: path.name)
def test_every_cache_config_runs_on_the_demo_photographs(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "pack", str(PHOTOS), "--out", "demo_out/shards", "--shard_size", "6")[0] == 0
    code, out, _ = run(capsys, "cache", "--config", str(config), "--resolution", "64")
    assert code == 0
    assert "samples in   12" in out


def test_the_script_does_what_the_command_does(shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--shards", shards, "--resolution", "64", "--masks", "boxes", "--out"]
    run(capsys, "cache", *arguments, str(tmp_path / "command"))
    script = [sys.executable, str(ROOT / "scripts" / "cache_latents.py"), *arguments, str(tmp_path / "script")]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    assert "samples in   12" in done.stdout
    for name in ("000000.tar", "000000.json", "000001.tar", "000001.json"):
        assert (tmp_path / "command" / name).read_bytes() == (tmp_path / "script" / name).read_bytes()


def test_the_demo_packs_caches_verifies_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "demo", "--out", str(tmp_path / "demo"))
    assert code == 0
    assert "verified: 12 of 12 photographs" in out
    assert verify_cache(tmp_path / "demo" / "cache").totals["samples"] == 12
    sheet = np.array(Image.open(tmp_path / "demo" / "contact_sheet.png"))
    assert sheet.shape[0] > 6 * 192
    assert run(capsys, "demo", "--out", str(tmp_path / "demo"))[0] == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("mine")
    code, _, err = run(capsys, "demo", "--out", str(tmp_path / "mine"))
    assert code == 2
    assert "choose another folder" in err


def test_a_fresh_process_prints_no_traceback_and_exits_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "inpaint_data.cli", "cache", "--shards", "none.tar", "--out", "cache"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0
    assert "none.tar" in done.stderr


@pytest.mark.parametrize(
    ("change", "code", "named"),
    [
        ({"--shards": "missing.tar"}, 2, "missing.tar"),
        ({"--shards": "nothing-*.tar"}, 2, "nothing-*.tar"),
        ({"--shards": "empty"}, 2, "empty"),
        ({"--shards": "pipe:cat x.tar"}, 2, "pipe:"),
        ({"--vae": "no/such-vae"}, 2, "no/such-vae"),
        ({"--vae": "./no_such_folder"}, 2, "no_such_folder"),
        ({"--resolution": "100"}, 2, "use 96 or 104"),
        ({"--resolution": "4"}, 2, "smaller than the VAE's downscale factor 8"),
        ({"--resolution": "-8"}, 2, "resolution: -8"),
        ({"--mask_offset": "[24,-8]"}, 2, "lower number first"),
        ({"--mask_offset": "129"}, 2, "outside -128...128"),
        ({"--masks": "drawn"}, 2, "choose from sample"),
        ({"--variants": "0"}, 2, "variants: 0"),
        ({"--batch_size": "0"}, 2, "batch_size: 0"),
        ({"--device": "tpu9"}, 2, "device: 'tpu9'"),
        ({"--device": "cuda:x"}, 2, "device: 'cuda:x'"),
        ({"--dtype": "int8"}, 2, "int8"),
        ({"--out": "shards/a.tar"}, 2, "cannot write"),
        ({"--out": ""}, 2, "no local folder"),
        ({"--out": "s3://bucket/cache"}, 2, "no local folder"),
        ({"--vae": ""}, 2, "the name is empty"),
        ({"--num_workers": "-1"}, 2, "num_workers: -1"),
        ({"--out": "/proc/cache"}, 2, "cannot write to /proc/cache"),
        ({"--out": "shards"}, 2, "holds 'a.tar' but no cache.json"),
        ({"--masks": "sample"}, 1, "1 of 1 samples are quarantined"),
    ],
)
def test_bad_input_is_one_clear_line(
    change: dict[str, str],
    code: int,
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    photo_bytes: dict[str, bytes],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_shard(tmp_path / "shards" / "a.tar", {"cat": {"jpg": photo_bytes["cat"]}})
    settings = {"--shards": "shards", "--out": "cache", "--resolution": "64", "--masks": "boxes"} | change
    got, _, err = run(capsys, "cache", *(part for pair in settings.items() for part in pair))
    assert got == code
    lines = [line for line in err.splitlines() if not line.startswith("shard ")]
    assert len(lines) == 1, err
    assert named in lines[0]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--sead", "1"], "unrecognized arguments: --sead 1"),
        (["--seed", "one"], "seed: 'one' is not of the type it takes: int"),
        (["--mask_offset", "a"], "mask_offset: 'a' is not of the type it takes: int, tuple[int, int]"),
        (["--mask_offset", "[1,2,3]"], "mask_offset: '[1, 2, 3]'"),
        (["--storage", "bf16"], "storage: 'bf16' is not of the type it takes: Literal['float16', 'float32']"),
        (["--config", "none.yaml"], "none.yaml"),
        (["--config", "typo.yaml"], "typo.yaml: Subcommand 'cache' does not accept option 'resolutoin'"),
        (["--config", "broken.yaml"], "broken.yaml: Problems parsing config"),
        (["--config", "type.yaml"], "type.yaml: resolution: 'abc' is not of the type it takes: int"),
    ],
)
def test_what_the_parser_refuses_is_one_line_too(
    arguments: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "typo.yaml").write_text("resolutoin: 64\n")
    (tmp_path / "broken.yaml").write_text("shards: [a\nx: }")
    (tmp_path / "type.yaml").write_text("resolution: abc\n")
    code, _, err = run(capsys, "cache", "--shards", "a", "--out", "b", *arguments)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert named in err


def test_no_command_and_no_shards_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys)[0] == 2
    assert run(capsys, "cache", "--out", "b")[0] == 2
    assert run(capsys, "cache", "--shards", "[]", "--out", "b")[0] == 2


def test_a_failed_cache_stays_failed_when_the_command_is_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], photo_bytes: dict[str, bytes]
) -> None:
    write_shard(tmp_path / "a.tar", {"cat": {"jpg": photo_bytes["cat"]}, "words": {"txt": b"no picture"}})
    arguments = ["cache", "--shards", str(tmp_path / "a.tar"), "--out", str(tmp_path / "out"), "--resolution", "64"]
    for _ in range(2):
        code, out, err = run(capsys, *arguments, "--masks", "boxes")
        assert code == 1
        assert "1 of 2 samples are quarantined" in err
        assert "1 shards, 1 samples, 1 quarantined" in out


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "cache", "--help")
    assert code == 0
    for flag in ("--shards", "--out", "--vae", "--resolution", "--mask_offset", "--variants", "--seed", "--batch_size",
                 "--device", "--dtype", "--config"):  # fmt: skip
        assert flag in out


def test_verify_exits_1_and_names_the_damaged_file(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    run(capsys, "cache", "--shards", shards, "--out", str(cache), "--resolution", "64", "--masks", "boxes")
    assert run(capsys, "verify", str(cache))[:2] == (
        0,
        "2 shards, 12 samples, 0 quarantined, 0 filtered, "
        + f"{sum(p.stat().st_size for p in cache.glob('*.tar'))} bytes\n",
    )
    (cache / "000001.tar").unlink()
    code, _, err = run(capsys, "verify", str(cache))
    assert code == 1
    assert "000001.tar: missing" in err


def test_the_demo_vae_decodes_a_photograph_it_never_saw(photo_bytes: dict[str, bytes]) -> None:
    from inpaint_data import load_vae
    from inpaint_data.images import decode_image

    vae = load_vae("demo")
    pixels = torch.from_numpy(decode_image(photo_bytes["coffee"])[:400, :600].copy())
    image = pixels.permute(2, 0, 1)[None].float() / 127.5 - 1
    error = (vae.decode(vae.mode(vae.encode(image))) - image).div(2).square().mean()
    assert -10 * torch.log10(error) > 28


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("soft: {kind: blur}", "soft: kind: 'blur' is unknown; choose from gaussian, ramp"),
        ("filters: {min_side: a}", "filters: min_side: 'a' is no number of pixels; give 0 or more"),
        ("filters: {min_sid: 3}", "filters: there is no setting 'min_sid'"),
        ("mask_offset: {distribution: unform}", "mask_offset: 'unform' is unknown; choose from fixed, uniform"),
        ("mask_offset: {low: 1, high: 3, windows: [disc]}", "is no list of some of square, octagon, cross"),
        (
            "mixture: {weights: {boxes: a}}",
            "mixture: weights must be zero or more and not all zero, not {'boxes': 'a'}",
        ),
    ],
)
def test_a_field_of_a_setting_that_cannot_be_is_named_with_its_file(
    line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "job.yaml"
    config.write_text(f"shards: none\nout: {tmp_path / 'cache'}\n{line}\n")
    code, _, err = run(capsys, "cache", "--config", str(config))
    assert code == 2
    assert err.count("\n") == 1
    assert f"{config}: " in err
    assert message in err
