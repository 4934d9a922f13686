"""The command: every setting by flag or by YAML, and one clear line for each thing that can be wrong."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import DEMO_VAE, PHOTOS, run, write_shard
from flat import OF_JOBS, grouped
from PIL import Image

from inpaint_data import LatentCache, UsageError, verify_cache
from inpaint_data.commands.main import main, reader_of

ROOT = Path(__file__).parents[1]


def in_groups(text: str) -> str:
    """A YAML of settings by their short names, each below its group; what is no such YAML stays as it is."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return yaml.safe_dump(grouped(OF_JOBS, content), sort_keys=False) if isinstance(content, dict) else text


def test_every_setting_by_flag(shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = tmp_path / "cache"
    code, out, err = run(
        capsys, "cache", "--shards", shards, "--out", str(cache), "--vae", "demo", "--resolution", "64",
        "--masks", "mixture", "--mask_offset", "[-8,24]", "--variants", "2", "--seed", "3", "--batch_size", "4",
        "--device", "cpu", "--dtype", "bfloat16",
    )  # fmt: skip
    assert code == 0
    settings = json.loads((cache / "cache.json").read_bytes())["settings"]
    assert settings["masks"]["offset"] == [-8, 24]
    assert settings["masks"]["source"] == "mixture"
    assert settings["pictures"]["resolution"] == [64]
    assert settings["variants"] == 2
    assert settings["seed"] == 3
    assert json.loads((cache / "000000.json").read_bytes())["made_with"]["batch_size"] == 4
    assert settings["vae"]["dtype"] == "bfloat16"
    for row in ("samples in   12", "cached       12", "quarantined  0", "decoding", "encoding", "writing", "MB"):
        assert row in out
    assert "shard 2/2 000001.tar: 7 cached, 0 quarantined" in err
    assert len(LatentCache(cache)) == 12


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("cache_*.yaml")), ids=lambda path: path.name)
def test_every_cache_config_runs_on_the_demo_images(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "pack", str(PHOTOS), "--out", "demo_out/shards", "--shard_size", "6")[0] == 0
    code, out, _ = run(capsys, "cache", "--config", str(config), "--resolution", "64")
    assert code == 0
    assert "samples in   12" in out


def test_the_script_does_what_the_command_does(shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--shards", shards, "--vae", "demo", "--resolution", "64", "--masks", "boxes", "--out"]
    run(capsys, "cache", *arguments, str(tmp_path / "command"))
    script = [sys.executable, str(ROOT / "scripts" / "cache_latents.py"), *arguments, str(tmp_path / "script")]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    assert "samples in   12" in done.stdout
    for name in ("000000.tar", "000000.json", "000001.tar", "000001.json"):
        assert (tmp_path / "command" / name).read_bytes() == (tmp_path / "script" / name).read_bytes()


def test_the_demo_packs_caches_verifies_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "demo", "--out", str(tmp_path / "demo"))
    assert code == 0
    assert "verified: 12 of 12 images" in out
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
    module = [sys.executable, "-m", "inpaint_data.commands.main"]
    command = [*module, "cache", "--shards", "none.tar", "--out", "cache", "--vae", "demo"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    toy, line = done.stderr.splitlines()
    assert "toy autoencoder" in toy
    assert "none.tar" in line


@pytest.mark.parametrize(
    ("change", "code", "named"),
    [
        ({"--shards": "missing.tar"}, 2, "missing.tar"),
        ({"--shards": "nothing-*.tar"}, 2, "nothing-*.tar"),
        ({"--shards": "empty"}, 2, "empty"),
        ({"--shards": "pipe:cat x.tar"}, 2, "pipe:"),
        ({"--vae": "no/such-vae"}, 2, "no/such-vae"),
        ({"--recipe": "sd15-inpaint"}, 2, "no model of recipe sd15-inpaint reads; name stable-diffusion-v1-5/"),
        (
            {"--recipe": "sd15-inpaint", "--vae": str(DEMO_VAE)},
            2,
            "16 latent channels instead of 4; give its own, such as that of stable-diff",
        ),
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
        ({"--out": ""}, 2, "nothing can be written to ''"),
        ({"--out": "https://host/cache"}, 2, "nothing can be written to 'https://host/cache'"),
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
    settings = {"--shards": "shards", "--out": "cache", "--resolution": "64", "--masks": "boxes", "--vae": "demo"}
    settings |= change
    got, _, err = run(capsys, "cache", *(part for pair in settings.items() for part in pair))
    assert got == code
    lines = [line for line in err.splitlines() if not line.startswith(("shard ", "vae: demo is "))]
    assert len(lines) == 1, err
    assert named in lines[0]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--sead", "1"], "there is no flag --sead; did you mean --seed?"),
        (["--config", "twice.yaml"], "twice.yaml: is not YAML: 'shards' is set twice"),
        (["--seed", "one"], "seed: 'one' is not a whole number"),
        (["--mask_offset", "a"], "mask_offset: 'a' is neither a whole number of pixels nor a range [low, high]"),
        (["--mask_offset", "[1,2,3]"], "mask_offset: [1, 2, 3] is neither a whole number of pixels nor a range"),
        (["--storage", "int4"], "storage: 'int4' is unknown; choose from float16, bfloat16, float32, int8"),
        (["--soft", "{}"], "soft: {} is empty; leave it out"),
        (["--config", "none.yaml"], "config: no such file: none.yaml; correct the name"),
        (["--config=none.yaml"], "config: no such file: none.yaml"),
        (["--config", "."], "config: cannot read '.'"),
        (["--config", "empty.yaml"], "empty.yaml: sets nothing; write a line `name: value` for each setting"),
        (["--config", "nulls.yaml"], "nulls.yaml: sets nothing"),
        (["--config", "list.yaml"], "list.yaml: sets nothing"),
        (["--config", "null_groups.yaml"], "null_groups.yaml: sets nothing"),
        (["--config", "latin.yaml"], "latin.yaml: is not YAML: 'utf-8' codec"),
        (["--config", "nested.yaml"], "nested.yaml: there is no setting 'config'"),
        (["--config", "number.yaml"], "number.yaml: there is no setting 3"),
        (["--config", "mixture.yaml"], "mixture.yaml: is a mixture, not the settings of a job; give it as --mixture"),
        (["--config", "type.yaml", "--config", "soft.yaml"], "type.yaml: resolution: 'abc'"),
        (["--config", "named.yaml"], "mixture.yaml: mixture: there is no setting 'fulll'"),
        (["--config", "typo.yaml"], "typo.yaml: pictures: there is no setting 'resolutoin'; it takes resolution, crop"),
        (["--config", "flat_typo.yaml"], "flat_typo.yaml: there is no setting 'resolutoin'; it takes pictures, masks"),
        (
            ["--config", "flat.yaml"],
            "flat.yaml: there is no setting 'mask_offset'; write it as offset below masks:",
        ),
        (
            ["--config", "flat_masks.yaml"],
            "flat_masks.yaml: masks: 'mixture' is not a mapping of settings; write it as source below masks:",
        ),
        (["--config", "flat_job.yaml"], "flat_job.yaml: job: [3] is not a mapping of settings"),
        (["--config", "broken.yaml"], "broken.yaml: is not YAML: while parsing"),
        (["--config", "type.yaml"], "type.yaml: resolution: 'abc' is not a number of pixels"),
        (["--config", "named_nowhere.yaml"], "named_nowhere.yaml: mixture: no such file: none.yaml"),
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
    (tmp_path / "typo.yaml").write_text("pictures: {resolutoin: 64}\n")
    (tmp_path / "flat_typo.yaml").write_text("resolutoin: 64\n")
    (tmp_path / "flat.yaml").write_text("mask_offset: 3\n")
    (tmp_path / "flat_masks.yaml").write_text("masks: mixture\n")
    (tmp_path / "flat_job.yaml").write_text("job: [3]\n")
    (tmp_path / "twice.yaml").write_text("shards: a\nout: b\nshards: c\n")
    (tmp_path / "broken.yaml").write_text("shards: [a\nx: }")
    (tmp_path / "type.yaml").write_text("pictures: {resolution: abc}\n")
    (tmp_path / "soft.yaml").write_text("masks: {soft: {radius: 4}}\n")
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    (tmp_path / "nulls.yaml").write_text("shards:\nout:\n")
    (tmp_path / "null_groups.yaml").write_text("pictures: {crop: }\njob:\n  seed:\nmasks:\n")
    (tmp_path / "list.yaml").write_text("[seed, 3]\n")
    (tmp_path / "latin.yaml").write_bytes(b"shards: caf\xe9\n")
    (tmp_path / "nested.yaml").write_text("config: 3\n")
    (tmp_path / "number.yaml").write_text("3: seed\n")
    (tmp_path / "mixture.yaml").write_text("weights: {boxes: 1}\nfulll: 0.1\n")
    (tmp_path / "named.yaml").write_text("masks: {source: mixture, mixture: mixture.yaml}\n")
    (tmp_path / "named_nowhere.yaml").write_text("masks: {source: mixture, mixture: none.yaml}\n")
    code, _, err = run(capsys, "cache", "--shards", "a", "--out", "b", *arguments)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert err.startswith("inpaint-data cache: ")
    assert named in err


def test_no_command_and_no_shards_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys)[0] == 2
    assert run(capsys, "cache", "--out", "b")[0] == 2
    assert run(capsys, "cache", "--shards", "[]", "--out", "b")[0] == 2


def test_the_demos_autoencoder_is_never_taken_unasked_and_is_told_of(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    arguments = ["cache", *f"--shards {shards} --out {tmp_path / 'out'} --resolution 64 --masks boxes".split()]
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert err.startswith("inpaint-data cache: vae: none is given, and images are to be encoded; name one with --vae")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert run(capsys, *arguments, "--vae", "demo", "--dry_run")[0] == 0
    (line,) = [record.getMessage() for record in caplog.records if "toy" in record.getMessage()]
    assert line.endswith("name one")
    code, _, err = run(capsys, *arguments, "--vae", "demo", "--recipe", "sd3-inpaint")
    assert code == 2
    assert "whose latents no model of recipe sd3-inpaint reads; name stabilityai/stable-diffusion-3-medium" in err


def test_a_failed_cache_stays_failed_when_the_command_is_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], photo_bytes: dict[str, bytes]
) -> None:
    write_shard(tmp_path / "a.tar", {"cat": {"jpg": photo_bytes["cat"]}, "words": {"txt": b"no picture"}})
    arguments = ["cache", "--shards", str(tmp_path / "a.tar"), "--out", str(tmp_path / "out"), "--resolution", "64"]
    for _ in range(2):
        code, out, err = run(capsys, *arguments, "--masks", "boxes", "--vae", "demo")
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
    run(capsys, "cache", *f"--shards {shards} --out {cache} --resolution 64 --masks boxes --vae demo".split())
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
    from inpaint_data.pictures.images import decode_image

    vae = load_vae("demo")
    pixels = torch.from_numpy(decode_image(photo_bytes["coffee"])[:400, :600].copy())
    image = pixels.permute(2, 0, 1)[None].float() / 127.5 - 1
    error = (vae.decode(vae.mode(vae.encode(image))) - image).div(2).square().mean()
    assert -10 * torch.log10(error) > 28


REFUSED = [  # setting, its value in YAML, what the line says of it
    ("mixture", "{precision: box}", "precision: 'box' is neither a level of 0 to 4 nor a range [low, high]"),
    (
        "mixture",
        "{weights: {boxes: many}}",
        "weights must be finite numbers, zero or more and not all zero, not {'boxes': 'many'}",
    ),
    ("mixture", "{weights: }", "weights: None is not a mapping of generators; give one"),
    ("mixture", "{weights: 3}", "weights: 3 is not a mapping of generators; give one"),
    ("mixture", "{weights: [boxes]}", "weights: ['boxes'] is not a mapping of generators; give one"),
    ("mixture", "{parameters: }", "parameters: None is not a mapping of generators; give one"),
    ("mixture", "{parameters: {boxes: 3}}", "parameters: boxes"),
    ("mixture", "{min_hole: 2}", "min_hole: 2 is not between 0 and 1"),
    ("mixture", "{min_hole: }", "min_hole: None"),
    ("mixture", "{min_hole: 0.9, max_hole: 0.1}", "min_hole 0.9 is above max_hole 0.1"),
    ("mixture", "{weights: {lama: 1}}", "no generator is called 'lama'; choose from"),
    ("mixture", "{fulll: 0.1}", "there is no setting 'fulll'; it takes weights"),
    ("mixture", "{3: 1}", "there is no setting 3; it takes weights, min_hole"),
    ("mixture", "boxes", "'boxes' is not a mapping; give some of weights, min_hole"),
    ("mask_offset", "{distribution: gauss}", "'gauss' is unknown; choose from fixed, uniform, normal, two-sided"),
    ("mask_offset", "{windows: [disc]}", "windows: ['disc'] is not a list of some of square, octagon, cross"),
    ("mask_offset", "{windows: octagon}", "windows: 'octagon' is not a list of some of square, octagon, cross"),
    ("mask_offset", "{low: 1, high: }", "high: None is not a number"),
    ("mask_offset", "{low: 3, high: 1}", "the range [3, 1] is empty; give the lower number first"),
    ("mask_offset", "{distribution: normal, value: 3}", "normal takes mean and deviation, not value"),
    ("mask_offset", "[1, 2, 3]", "[1, 2, 3] is neither a whole number of pixels nor a range [low, high]"),
    ("mask_offset", "3.5", "3.5 is neither a whole number of pixels nor a range [low, high]"),
    ("soft", "{kind: box}", "kind: 'box' is unknown; choose from gaussian, ramp"),
    ("soft", "{radius: 2.5}", "radius: 2.5 is not a whole number of 1...64 pixels"),
    ("soft", "{radius: }", "radius: None is not a whole number"),
    ("soft", "gaussian", "'gaussian' is not a border; give a SoftBorder, in YAML {kind: gaussian, radius: 4}"),
    ("filters", "{min_side: 400.5}", "min_side: 400.5 is not a number of pixels; give 0 or more"),
    ("filters", "{min_sid: 3}", "there is no setting 'min_sid'; it takes min_side"),
    ("filters", "{caption: 1}", "caption: 1 is neither true nor false"),
    ("filters", "[min_side]", "['min_side'] is not a mapping; give some of min_side, max_aspect"),
    ("preset", "{growht: square}", "there is no setting 'growht'; it takes growth"),
    ("preset", "{growth: circle}", "growth: 'circle' is unknown; choose from square, comfy, none"),
    ("preset", "{fill: [grey]}", "fill: ['grey'] is unknown"),
]


@pytest.mark.parametrize("command", ["cache", "stats", "masks"])
def test_a_field_that_cannot_be_is_one_line_that_names_its_file_setting_and_value(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "job.yaml"
    own = {"cache": ["--shards", "none", "--out", "none"], "stats": ["none"], "masks": ["--out", "none.png"]}[command]
    for setting, value, message in REFUSED:
        config.write_text(in_groups(f"variants: 1\n{setting}: {value}\n"))
        for arguments, start in ((["--config", str(config)], f"{config}: "), ([f"--{setting}", value], "")):
            code, out, err = run(capsys, command, *own, *arguments)
            assert (code, out, err.count("\n")) == (2, "", 1), err
            assert err.startswith(f"inpaint-data {command}: {start}{setting}: "), err
            assert message in err


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--mixture.precision", "box", "precision: 'box' is neither a level of 0 to 4"),
        ("--mixture.weights", "{boxes: many}", "weights must be finite numbers, zero or more"),
        ("--mask_offset.windows", "octagon", "windows: 'octagon' is not a list"),
        ("--soft.radius", "2.5", "soft: radius: 2.5 is not a whole number"),
        ("--preset.growth", "circle", "preset: growth: 'circle' is unknown"),
        ("--preset", "{growth", "preset: '{growth' is unknown; choose from was"),
        ("--filters.min_side", "400.5", "filters: min_side: 400.5 is not a number of pixels"),
    ],
)
def test_a_field_given_by_its_own_flag_is_refused_alike(
    flag: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "cache", "--shards", "none", "--out", "none", flag, value)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"inpaint-data cache: {flag[2:].partition('.')[0]}: ")
    assert message in err


BAD_LINES = [  # a line of a job's YAML, and what is named
    ("crop: [a]", "crop: 'a' is unknown"),
    ("crop: 3", "crop: 3 is unknown"),
    ("crop: {center: 1}", "crop: {'center': 1} is unknown"),
    ("seed: one", "seed: 'one' is not a whole number"),
    ("seed: 1.5", "seed: 1.5 is not a whole number"),
    ("seed: true", "seed: True is not a whole number"),
    ("preset: wos", "preset: 'wos' is unknown"),
    ("preset: 3", "preset: 3 is unknown"),
    ("preset: {growht: square}", "preset: there is no setting 'growht'"),
    ("preset: {1: square}", "preset: there is no setting 1"),
    ("max_aspect: wide", "max_aspect: 'wide' is"),
    ("max_aspect: .nan", "max_aspect: nan is"),
    ("max_aspect: 0.5", "max_aspect: 0.5 is"),
    ("bucket_step: 0", "bucket_step: 0 is not a positive number of pixels"),
    ("bucket_step: a", "bucket_step: 'a' is not a positive number of pixels"),
    ("resolution: [a]", "resolution: 'a' is not a number of pixels"),
    ("resolution: []", "resolution: none is given"),
    ("resolution: {a: 1}", "resolution: {'a': 1} is not a number of pixels"),
    ("resolution: true", "resolution: True is not a number of pixels"),
    ("resolution: [128, 64]", "resolution: give [128, 64] in ascending order"),
    ("variants: 0", "variants: 0 is too small; give 1 or more"),
    ("variants: 99999", "variants: 99999 is too large; give at most 65536"),
    ("variants: [1]", "variants: [1] is not a whole number"),
    ("masks: 3", "masks: 3 is unknown"),
    ("masks: [boxes]", "masks: ['boxes'] is unknown"),
    ("masks: lama", "masks: 'lama' is unknown; choose from sample, alpha, mixture"),
    ("upscale: perhaps", "upscale: 'perhaps' is neither true nor false"),
    ("target: 3", "target: 3 is neither true nor false"),
    ("carry_image: all", "carry_image: 'all' is unknown; choose from none, original, crop"),
    ("mask_padding: -3", "mask_padding: -3 is too small; give 0 or more"),
    ("mask_padding: wide", "mask_padding: 'wide' is not a whole number"),
    ("mask_offset: a", "mask_offset: 'a' is neither"),
    ("mask_offset: [3, 1]", "mask_offset: the range [3, 1] is empty"),
    ("mask_offset: 200", "mask_offset: 200 is outside"),
    ("mask_offset: true", "mask_offset: True is neither"),
    ("mask_offset: {hihg: 3}", "mask_offset: there is no setting 'hihg'"),
    ("mixture: {weights: {}}", "mixture: weights must be finite numbers, zero or more and not all zero, not {}"),
    ("mixture: {parameters: {boxes: {depth: 1}}}", "mixture: parameters: boxes has no parameter 'depth'"),
    ("mixture: none.yaml", "mixture: no such file: "),
    ("mixture: {}", "mixture: {} is empty"),
    ("masks: sample\nmixture: {full: 0.5}", "mixture: one is given, but masks is sample"),
    ("masks: center\nmixture: {weights: {boxes: 1}}", "mixture: it has weights {'boxes': 1}, but masks is center"),
    ("soft: {radius: 99}", "soft: radius: 99 is not a whole number of 1...64 pixels"),
    ("soft: {raduis: 9}", "soft: there is no setting 'raduis'; it takes kind, radius"),
    ("soft: true", "soft: True is not a border"),
    ("filters: {min_hole: 0.9, max_hole: 0.1}", "filters: min_hole 0.9 and max_hole 0.1"),
    ("filters: 3", "filters: 3 is not a mapping"),
    ("fill: [grey]", "fill: ['grey'] is unknown; choose from grey, black"),
    ("max_bad_fraction: .nan", "max_bad_fraction: nan is not a finite number"),
    ("max_bad_fraction: 2", "max_bad_fraction: 2 is too large; give at most 1"),
    ("on_bad: no", "on_bad: False is unknown; choose from quarantine, raise"),
    ("storage: int4", "storage: 'int4' is unknown; choose from float16, bfloat16, float32, int8"),
    ("device: 3", "device: 3 is not a text"),
    ("out: 3", "out: 3 is not a text"),
    ("shards: [3]", "shards: [3] is not a text or a list of them"),
    ("dtype: int8", "dtype: 'int8' is unknown; choose from float32, bfloat16, float16"),
    ("vae: no/such-vae", "no/such-vae: "),
    ("vae: [demo]", "vae: ['demo'] is not an autoencoder"),
    ("recipe: none", "recipe: 'none' is unknown; choose from sd15-inpaint"),
    ("posterior: mode", "posterior: mode, but a cache has moments"),
    ("resolution: 100", "resolution: 100 is not a multiple of the VAE's downscale factor 8"),
    ("weights: 3", ""),
    ("sead: 3", "there is no setting 'sead'; it takes pictures, masks"),
    ("job: {sead: 3}", "job: there is no setting 'sead'; it takes variants, seed"),
    ("job: {1: 3}", "job: there is no setting 1; it takes variants, seed"),
    ("pictures: 3", "pictures: 3 is not a mapping of settings"),
    ("parameters.outpaint.depth: 3", "there is no setting 'parameters.outpaint.depth'"),
    ("seed: [", "is not YAML: while parsing"),
    ("? [a, b]\n: 3", "is not YAML: while constructing"),
    ("null: 3", "there is no setting None"),
    ("[]", "sets nothing"),
]
OF_CACHES = ("shards", "vae", "dtype", "recipe", "posterior", "out", "resolution: 100")  # means nothing elsewhere


@pytest.mark.parametrize("command", ["cache", "stats", "masks"])
def test_no_bad_line_of_a_yaml_gives_a_traceback(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], photo_bytes: dict[str, bytes]
) -> None:
    shard = str(write_shard(tmp_path / "a.tar", {"cat": {"jpg": photo_bytes["cat"]}}))
    common = ["--masks", "mixture", "--resolution", "64"]
    own = {"cache": ["--shards", shard, "--out", str(tmp_path / "out"), "--vae", "demo"], "stats": [shard],
           "masks": ["--out", str(tmp_path / "sheet.png")]}[command]  # fmt: skip
    config = tmp_path / "job.yaml"
    for line, named in BAD_LINES:
        if command != "cache" and line.startswith(OF_CACHES):
            continue
        config.write_text(in_groups(f"{line}\n"))
        code, out, err = run(capsys, command, *common, *own, "--config", str(config))
        assert (code, out, err.count("\n")) == (2, "", 1), (line, err)
        assert err.startswith(f"inpaint-data {command}: {config}: {named}"), (line, err)


def refusal(command: str, *arguments: str) -> str:
    """Why a command does not take these settings, or nothing where it does."""
    try:
        reader_of(command).read(arguments)
    except UsageError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("command", ["cache", "stats", "masks"])
def test_whatever_a_setting_is_given_is_taken_or_refused_in_one_line(command: str, tmp_path: Path) -> None:
    own = {"cache": ["--shards", "none", "--out", "none"], "stats": ["none"], "masks": ["--out", "none.png"]}[command]
    config, refused = tmp_path / "job.yaml", set()
    reader = reader_of(command)
    settings = [each.name for each in reader.settings if each.name not in ("source", *reader.ignored)]
    for setting in settings:
        for value in ("3", "-1", "1.5", "true", "x", "[1]", "[]", "{}", "{a: 1}", "{1: 2}", ".nan", "[[1]]", "[null]"):
            config.write_text(in_groups(f"{setting}: {value}\n"))
            error = refusal(command, *own, "--config", str(config))
            assert not error or error.startswith(f"{config}: {setting}: ")
            assert "\n" not in error
            refused |= {setting} if error else set()
    assert refused == set(settings)


def test_numbers_and_names_in_a_yaml_are_what_they_look_like(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("shards: a\nout: 2024-01-01\njob: {max_bad_fraction: 1e-3}\n")
    given = reader_of("cache").read(["--config", str(tmp_path / "job.yaml"), "--mixture.weights.lama-mix", "2.5E-1",
                                     "--masks", "mixture"])  # fmt: skip
    assert given["out"] == "2024-01-01"
    assert given["job"].max_bad_fraction == 0.001
    assert given["masks"].mixture.weights == {"lama-mix": 0.25}


def test_of_flags_and_files_the_later_one_counts(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("job: {seed: 1, variants: 2}\nmasks: {source: boxes}\n")
    (tmp_path / "two.yaml").write_text("job: {seed: 3}\n")
    one, two = (["--config", str(tmp_path / f"{name}.yaml")] for name in ("one", "two"))
    flag = ["--seed", "4"]
    for arguments, seed in (((flag, one), 1), ((one, flag), 4), ((one, two), 3), ((two, one), 1)):
        words = ["--shards", "a", "--out", "b", *(word for each in arguments for word in each)]
        given = reader_of("cache").read(words)
        assert (given["job"].seed, given["job"].variants, given["masks"].source) == (seed, 2, "boxes")


def test_a_setting_left_empty_in_a_yaml_is_the_default(shards: str, tmp_path: Path) -> None:
    config, common = tmp_path / "job.yaml", ["--shards", shards, "--vae", "demo", "--masks", "boxes", "--out"]
    empty = ["crop", "seed", "preset", "max_aspect", "bucket_step", "mixture", "soft", "filters", "fill", "variants",
             "upscale", "storage", "dtype"]  # fmt: skip
    config.write_text(in_groups("resolution: 64\n" + "".join(f"{name}:\n" for name in empty)))
    main(["cache", *common, str(tmp_path / "plain"), "--resolution", "64"])
    main(["cache", *common, str(tmp_path / "empty"), "--config", str(config)])
    for name in ("cache.json", "000000.tar", "000001.tar"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "empty" / name).read_bytes()


def test_a_preset_of_ones_own_is_given_by_flag_or_yaml(shards: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("masks:\n  preset: {growth: none, fill: black, offset: 0}\n")
    given = {
        "yaml": ["--config", str(tmp_path / "job.yaml")],
        "flag": ["--preset", "{growth: none, fill: black, offset: 0}"],
    }
    for name, arguments in given.items():
        main(
            [
                "cache",
                "--shards",
                shards,
                "--masks",
                "boxes",
                "--vae",
                "demo",
                "--resolution",
                "64",
                "--out",
                str(tmp_path / name),
                *arguments,
            ]
        )
    by_yaml, by_flag = ((tmp_path / name / "cache.json").read_bytes() for name in given)
    assert by_yaml == by_flag
    masks = json.loads(by_yaml)["settings"]["masks"]
    assert (masks["preset"]["growth"], masks["fill"], masks["offset"]) == ("none", "black", 0)


def test_a_required_setting_left_empty_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "job.yaml").write_text("shards:\nout: b\n")
    code, _, err = run(capsys, "cache", "--config", str(tmp_path / "job.yaml"))
    assert (code, err) == (2, "inpaint-data cache: shards: must be given; see --help\n")


BOMB = "pictures: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 10_000, "nested too deep"),
        (BOMB, "aliases make more than 100000 values"),
        ("pictures: &a [*a]", "aliases make more than 100000 values"),
        ("pictures: {resolution: " + "9" * 5000 + "}", "4300 digits"),
        ("pictures: {resolution: 0x" + "f" * 5000 + "}", "20000 bits is too large"),
        ("pictures: !!python/object/apply:os.mkdir [made]", "could not determine a constructor"),
        ("pictures: !!python/name:antigravity.fly", "could not determine a constructor"),
    ],
    ids=str.split("deep bomb self digits hex call name"),
)
def test_a_yaml_from_a_stranger_is_data_or_one_line(
    text: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(text)
    code, _, err = run(capsys, "cache", "--config", "job.yaml")
    assert code == 2
    assert err.startswith("inpaint-data cache: job.yaml: is not YAML: ")
    assert reason in err
    assert len(err) < 500
    assert err.count("\n") == 1
    assert "antigravity" not in sys.modules
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("value", ["9" * 5000, "0x" + "f" * 5000, "[" * 10_000])
def test_a_flag_that_no_number_can_be_is_one_line(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "cache", "--shards", "x", "--out", "y", "--resolution", value)
    assert code == 2
    assert err.startswith("inpaint-data cache: resolution: ")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["cahce"], "did you mean cache?"),
        (["cache", "--config", "typo.yaml"], "did you mean resolution?"),
        (["cache", "--config", "flat_typo.yaml"], "did you mean resolution?"),
    ],
)
def test_what_was_probably_meant_is_said(
    words: list[str], hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "typo.yaml").write_text("shards: a\nout: b\npictures: {resolutoin: 64}\n")
    (tmp_path / "flat_typo.yaml").write_text("shards: a\nout: b\nresolutoin: 64\n")
    code, _, err = run(capsys, *words)
    assert code == 2
    assert err.rstrip().endswith(hint)


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"inpaint-data {version('inpaint_data')}\n", "")
