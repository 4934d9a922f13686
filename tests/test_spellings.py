"""What an impatient engineer types: taken where it is clear, else one line that says what to type instead."""

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import DEMO_VAE, run

from inpaint_data import EncodeSettings, JobSettings, MaskSettings, PictureSettings, UsageError, VaeError, load_vae
from inpaint_data.commands.main import reader_of
from inpaint_data.commands.yaml_files import load_yaml
from inpaint_data.encoding.models import MODELS
from inpaint_data.encoding.recipe_rows import RECIPES
from inpaint_data.shown import meant

OWN = ["--shards", "a", "--out", "b"]


def value_of(command: str, name: str, *words: str) -> Any:
    """The value that a setting of a command has with these words."""
    reader = reader_of(command)
    place = reader.by_name[name].place
    given = reader.read(words)
    return getattr(given[place[0]], place[1]) if len(place) == 2 else given[place[0]]


TAKEN = [  # setting, as it is typed, what is meant
    ("mask_offset", "-8,24", (-8, 24)),
    ("mask_offset", "-8..24", (-8, 24)),
    ("mask_offset", "-8, 24", (-8, 24)),
    ("mask_offset", "(-8,24)", (-8, 24)),
    ("mask_offset", "-8", -8),
    ("mask_offset", "6px", 6),
    ("resolution", "1024x1024", 1024),
    ("resolution", "512px", 512),
    ("crop", "center,random+flip", ("center", "random+flip")),
    ("max_aspect", "16:9", 16 / 9),
    ("max_aspect", "4/3", 4 / 3),
    ("fill", "gray", "grey"),
    ("dtype", "fp16", "float16"),
    ("dtype", "half", "float16"),
    ("dtype", "bf16", "bfloat16"),
    ("dtype", "float", "float32"),
    ("dtype", "torch.bfloat16", "bfloat16"),
    ("storage", "fp32", "float32"),
    ("upscale", "yes", True),
    ("upscale", "1", True),
    ("upscale", "off", False),
    ("upscale", "0", False),
    ("masked_latents", "1", True),
]


@pytest.mark.parametrize(("name", "typed", "value"), TAKEN)
def test_what_is_clear_is_taken_from_a_flag_and_from_a_yaml(name: str, typed: str, value: Any, tmp_path: Path) -> None:
    assert value_of("cache", name, *OWN, f"--{name}", typed) == value
    assert value_of("cache", name, *OWN, f"--{name.replace('_', '-')}={typed}") == value
    group, field = reader_of("cache").by_name[name].place
    (tmp_path / "job.yaml").write_text(f"{group}:\n  {field}: {typed}\n")
    assert value_of("cache", name, *OWN, "--config", str(tmp_path / "job.yaml")) == value


def test_lists_are_written_behind_one_flag() -> None:
    assert value_of("cache", "shards", "--shards", "a.tar", "b.tar", "--out", "b") == ["a.tar", "b.tar"]
    assert value_of("cache", "resolution", *OWN, "--resolution", "256", "512") == (256, 512)
    assert value_of("cache", "crop", *OWN, "--crop", "center", "random") == ("center", "random")
    assert value_of("cache", "mask_offset", *OWN, "--mask_offset", "-8", "24") == (-8, 24)
    assert value_of("verify", "root", "--against", "a.tar", "cache") == "cache"
    assert value_of("verify", "against", "cache", "--against", "a.tar", "b.tar") == ["a.tar", "b.tar"]


def test_a_switch_takes_no_word_that_is_not_its_own() -> None:
    assert value_of("verify", "root", "--deep", "cache") == "cache"
    assert value_of("verify", "deep", "--deep", "cache") is True
    assert value_of("verify", "deep", "--deep", "false", "cache") is False


def test_fields_may_have_dashes_and_names_of_generators_keep_theirs() -> None:
    words = [*OWN, "--masks", "mixture", "--mixture.min-hole", "0.1", "--mixture.weights.lama-mix", "2"]
    mixture = value_of("cache", "mixture", *words)
    assert (mixture.min_hole, mixture.weights) == (0.1, {"lama-mix": 2})


ADVICE = [  # what is typed, how the line begins, how it ends
    (["--mask_ofset", "3"], "there is no flag --mask_ofset", "did you mean --mask_offset?"),
    (["--masks.ofset", "3"], "there is no flag --masks.ofset", "did you mean --masks.offset?"),
    (["--output", "x"], "there is no flag --output", "did you mean --out?"),
    (["-shards", "x"], "there is no flag -shards", "did you mean --shards?"),
    (["--no-upscale"], "there is no flag --no-upscale", "write --upscale false"),
    (["--seed"], "seed: nothing stands behind --seed", "write its value there"),
    (["--seed", "--upscale"], "seed: nothing stands behind --seed", "write its value there"),
    (["--resolution", "1", "--resolution", "2"], "resolution: is given twice", "behind one --resolution"),
    (["--mixture.fulll", "1"], "mixture: there is no setting 'fulll'", "did you mean full?"),
    (["--soft.raduis", "1"], "soft: there is no setting 'raduis'", "did you mean radius?"),
    (["--filters.min_sde", "1"], "filters: there is no setting 'min_sde'", "did you mean min_side?"),
    (["--filters", "min_side=400"], "filters: 'min_side=400'", "write {min_side: 400}"),
    (["--resolution", "1024x768"], "resolution: '1024x768'",
     "it is the side of a square; write 1024, with max_aspect 2 for buckets of other aspects and about that area, or "
     "[768, 1024] for views at both"),
    (["--resolution", "1024,768"], "resolution: '1024,768'", "or [768, 1024] for views at both"),
    (["--crop", "centre"], "crop: 'centre' is unknown", "did you mean center?"),
    (["--masks", "box"], "masks: 'box' is unknown", "did you mean boxes?"),
    (["--masks", "lama_thick"], "masks: 'lama_thick' is unknown", "did you mean lama-thick?"),
    (["--preset", "ComfyUI"], "preset: 'ComfyUI' is unknown", "did you mean comfy?"),
    (["--fill", "gery"], "fill: 'gery' is unknown", "did you mean grey?"),
    (["--seed", "1e3"], "seed: 1000.0 is not a whole number", "write 1000"),
    (["--seed", "1,000"], "seed: '1,000' is not a whole number", "write 1000"),
    (["--mask_padding", "32px"], "mask_padding: '32px' is not a whole number", "write 32"),
    (["--max_bad_fraction", "5%"], "max_bad_fraction: '5%' is not a number", "write 0.05"),
    (["--exact", "maybe"], "exact: 'maybe' is neither true nor false", "write true or false"),
    (["--mask_offset", "[-8:24]"], "mask_offset: ['-8:24'] is neither", "write 6 or [-8, 24]"),
    (["--for", "sdxl"], "for: 'sdxl' is unknown", "did you mean sdxl-inpaint?"),
    (["extra"], "'extra' stands behind no flag", "see --help"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "start", "end"), ADVICE)
def test_what_is_not_clear_is_one_line_that_says_what_to_type(
    words: list[str], start: str, end: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "cache", *OWN, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"inpaint-data cache: {start}")
    assert err.endswith(f"{end}\n")


@pytest.mark.parametrize(
    ("content", "end"),
    [
        ("pictures: {resolution: 1024x768}", "or [768, 1024] for views at both"),
        ("pictures: {resolutoin: 64}", "did you mean resolution?"),
        ("job: {batch-size: 4}", "did you mean batch_size?"),
        ("pictrues: {resolution: 64}", "did you mean pictures?"),
        ("masks: {source: mixture, mixture: {weights: {boxs: 1}}}", "did you mean boxes?"),
        ("masks: {source: mixture, mixture: {parameters: {outpaint: {dept: 1}}}}", "did you mean depth?"),
        ("masks: {soft: {kind: gausian}}", "did you mean gaussian?"),
        ("masks: {preset: {fill: gray}}", "did you mean grey?"),
        ("pictures: {filters: {minside: 3}}", "did you mean min_side?"),
        ("job: {on_bad: quarentine}", "did you mean quarantine?"),
        ("for: sdxl_inpaint", "did you mean sdxl-inpaint?"),
    ],
)
def test_a_yaml_gets_the_same_advice(
    content: str, end: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "job.yaml"
    config.write_text(content)
    code, _, err = run(capsys, "cache", *OWN, "--config", str(config))
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"inpaint-data cache: {config}: ")
    assert err.endswith(f"{end}\n")


def test_python_takes_the_same_spellings() -> None:
    assert MaskSettings(offset="-8,24").offset == (-8, 24)  # type: ignore[arg-type]
    assert EncodeSettings(dtype="fp16").dtype == "float16"  # type: ignore[arg-type]
    assert JobSettings(storage="half").storage == "float16"  # type: ignore[arg-type]
    assert PictureSettings(resolution="512x512").resolution == 512  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="give the lower number first"):
        MaskSettings(offset="24,-8")  # type: ignore[arg-type]


def test_numbers_in_a_yaml_have_base_ten() -> None:
    text = "[16:9, 1:30, 010, 1_000, 0x10, 1e-3, .5, 2., -7, +8, -.inf, 3.5, 2024-01-01]"
    assert load_yaml(text) == ["16:9", "1:30", "010", 1000, 16, 1e-3, 0.5, 2.0, -7, 8, -float("inf"), 3.5, "2024-01-01"]
    for number in (0, 7, -3, 10**12, 1.5, 1e-7, float("inf"), -2.5e30):
        assert load_yaml(yaml.safe_dump(number)) == number


def test_an_autoencoder_without_an_owner_is_refused_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(VaeError) as caught:
        load_vae("sdxl")
    assert time.monotonic() - started < 0.5
    assert str(caught.value) == (
        "vae: there is no folder 'sdxl', and names on the Hub are OWNER/NAME; did you mean "
        "diffusers/stable-diffusion-xl-1.0-inpainting-0.1 or stabilityai/stable-diffusion-xl-base-1.0?"
    )
    with pytest.raises(VaeError, match="write such a name, demo, or the path of a folder"):
        load_vae("nothing")


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("Comfy", ["was", "comfy"], "; did you mean comfy?"),
        ("sdxl", ["sd15-inpaint", "sdxl-inpaint", "sdxl-blend"], "; did you mean sdxl-inpaint?"),
        ("free_form", ["full", "free-form"], "; did you mean free-form?"),
        ("resume", ["preset", "seed"], ""),
        ("bs", ["soft"], ""),
        ("output", ["out", "vae"], "; did you mean out?"),
        (3, ["seed"], ""),
    ],
)
def test_what_was_meant_is_found_whatever_its_case_and_dashes(name: object, known: list[str], hint: str) -> None:
    assert meant(name, known) == hint


def test_there_is_a_model_for_each_recipe() -> None:
    assert list(MODELS) == list(RECIPES)
    for model in MODELS.values():
        assert model.name.count("/") == 1


def test_one_word_sets_what_a_model_is_trained_with(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("for: sdxl-inpaint\n")
    for words in (["--for", "sdxl-inpaint"], ["--config", str(tmp_path / "job.yaml")]):
        reader = reader_of("cache")
        given = reader.read([*OWN, *words])
        assert given["pictures"] == PictureSettings(resolution=1024, max_aspect=2.0, bucket_step=64)
        assert given["encode"].given == {
            "vae": "diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
            "dtype": "float32",
            "recipe": "sdxl-inpaint",
        }
        assert reader.note == (
            "for sdxl-inpaint: resolution 1024, max_aspect 2.0, bucket_step 64, "
            "vae diffusers/stable-diffusion-xl-1.0-inpainting-0.1, dtype float32, recipe sdxl-inpaint, "
            "text_model diffusers/stable-diffusion-xl-1.0-inpainting-0.1, text_dtype float32\n"
        )


def test_what_is_given_counts_over_what_the_model_sets(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("encode: {vae: demo}\n")
    words = ["--resolution", "512", "--config", str(tmp_path / "job.yaml"), "--for", "flux-fill"]
    given = reader_of("cache").read([*OWN, *words])
    assert given["pictures"].resolution == 512
    assert (given["encode"].vae, given["encode"].dtype) == ("demo", "bfloat16")


@pytest.mark.parametrize("name", list(MODELS))
def test_every_model_is_taken_by_every_command_that_has_its_settings(name: str) -> None:
    for command, own in (("cache", OWN), ("masks", ["--out", "a.png"]), ("stats", ["a"])):
        assert reader_of(command).read([*own, "--for", name])["pictures"].resolution == MODELS[name].resolution
    assert value_of("sheet", "vae", "--cache", "a", *OWN, "--for", name) == MODELS[name].name
    assert value_of("text", "text_model", *OWN, "--for", name) == (
        MODELS[name].name if MODELS[name].text is None else MODELS[name].text
    )
    with pytest.raises(UsageError, match="there is no flag --for"):
        reader_of("repair").read(["cache", "--for", name])


def test_a_cache_for_a_model_says_what_was_set_and_is_made(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--for",
        "sd3-inpaint",
        "--vae",
        str(DEMO_VAE),
        "--resolution",
        "64",
        "--masks",
        "boxes",
        "--text_model",
        "",
    ]
    code, out, err = run(capsys, "cache", "--shards", shards, "--out", str(tmp_path / "cache"), *words)
    assert code == 0
    assert err.startswith(
        "for sd3-inpaint: max_aspect 2.0, bucket_step 64, dtype float32, recipe sd3-inpaint, text_dtype float32\n"
        "shard 1/2"
    )
    assert "cached       12" in out
