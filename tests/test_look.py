"""Looking before anything is encoded: `look` and the dry run, from headers alone."""

import io
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Pooling, run, write_shard
from flat import cache_latents, example_settings
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from inpaint_data import Autoencoder, CacheError, LatentCache
from inpaint_data.pictures.examples import Example, prepare
from inpaint_data.pipeline.survey import NO_IMAGE, NO_MASK, NO_PAIR, TOO_SMALL, survey_shards
from inpaint_data.shards.reading import Sample, read_shard


def image(height: int, width: int, kind: str = "JPEG", orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 255, np.uint8)).save(file, kind, exif=exif)
    return file.getvalue()


def mixed(folder: Path) -> str:
    """Seven samples in two shards: fine, turned by EXIF, small, without a mask, damaged header, without an image."""
    mask = image(64, 64, "PNG")
    write_shard(
        folder / "0.tar",
        {
            "fine": {"jpg": image(64, 64), "mask.png": mask, "txt": b"a caption"},
            "turned": {"jpg": image(64, 96, orientation=6), "mask.png": image(96, 64, "PNG")},
            "small": {"png": image(40, 100, "PNG"), "mask.png": mask, "txt": b"another"},
        },
    )
    write_shard(
        folder / "1.tar",
        {
            "bare": {"jpg": image(80, 64)},
            "broken": {"jpg": b"not an image", "mask.png": mask},
            "lone": {"mask.png": mask},
            "wide": {"webp": image(64, 200, "WEBP"), "mask.png": image(64, 200, "PNG")},
        },
    )
    return str(folder)


def test_a_survey_knows_by_headers_what_becomes_of_every_sample(tmp_path: Path) -> None:
    folder = mixed(tmp_path / "in")
    shards = sorted(map(str, (tmp_path / "in").glob("*.tar")))
    survey = survey_shards(shards, example_settings(resolution=64, masks="sample"))
    assert (survey.shards, survey.samples, survey.is_whole) == (2, 7, True)
    assert survey.unusable == Counter({TOO_SMALL: 1, NO_IMAGE: 2, NO_MASK: 1})
    assert survey.targets == Counter({(64, 64): 3})
    assert survey.sizes[96, 64] == 1  # upright
    assert survey.captions == 2
    with pytest.raises(CacheError, match=r"4 of the 7 samples that were looked at would be quarantined"):
        cache_latents(folder, str(tmp_path / "out"), vae=Autoencoder(Pooling()), resolution=64, dry_run=True)
    assert not (tmp_path / "out").exists()
    with pytest.raises(CacheError, match="4 of 7 samples are quarantined"):
        cache_latents(folder, str(tmp_path / "out"), vae=Autoencoder(Pooling()), resolution=64)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(20, 120), st.integers(20, 120)), min_size=1, max_size=6),
    st.sampled_from([{}, {"upscale": True}, {"small": "bucket"}, {"max_aspect": 2.0}, {"resolution": (32, 64)}]),
)
def test_the_views_that_a_survey_expects_are_those_that_are_made(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[tuple[int, int]], some: dict[str, Any]
) -> None:
    shard = tmp_path_factory.mktemp("in") / "a.tar"
    write_shard(shard, {f"s{number}": {"png": image(*size, "PNG")} for number, size in enumerate(sizes)})
    chosen = example_settings(**({"resolution": 64, "masks": "boxes", "bucket_step": 16} | some))
    survey = survey_shards([str(shard)], chosen)
    made: Counter[tuple[int, int]] = Counter()
    quarantined = 0
    for sample in read_shard(str(shard)):
        if isinstance(sample, Sample):
            results = prepare(sample, chosen, [0])
            made.update(result.size for result in results if isinstance(result, Example))
            quarantined += not any(isinstance(result, Example) for result in results)
    assert survey.targets == made
    assert survey.unusable.total() == quarantined


def test_of_many_shards_some_are_looked_at_and_the_rest_is_estimated(tmp_path: Path) -> None:
    for number in range(20):
        write_shard(tmp_path / f"{number:02d}.tar", {f"k{k}": {"png": image(64, 64, "PNG")} for k in range(5)})
    survey = survey_shards(
        sorted(map(str, tmp_path.glob("*.tar"))), example_settings(resolution=64, masks="boxes"), samples=12
    )
    assert survey.samples == 15
    assert survey.samples * survey.times == pytest.approx(100)


def test_filters_and_own_stages_count_in_a_survey(tmp_path: Path) -> None:
    folder = mixed(tmp_path / "in")
    shards = sorted(map(str, Path(folder).glob("*.tar")))
    chosen = example_settings(resolution=32, masks="boxes", filters={"caption": True})
    assert survey_shards(shards, chosen).filtered == Counter({"caption": 3})
    chosen = example_settings(resolution=32, masks="boxes")

    def not_small(samples: Any) -> Any:
        return (sample for sample in samples if sample["__key__"] != "small")

    survey = survey_shards(shards, chosen, [not_small])
    assert survey.filtered == Counter({"stages": 1})
    assert survey.targets.total() == 4


def test_look_says_what_is_there_what_would_be_cached_and_the_command_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "look", mixed(tmp_path / "in"), "--resolution", "64")
    assert code == 0
    lines = out.splitlines()

    def told(name: str) -> list[str]:
        return [line.split(maxsplit=1)[1] for line in lines if line.split()[0] == name]

    assert told("samples") == ["7"]
    assert told("captions") == ["2 of 7"]
    assert told("usable") == ["3 of 7 samples, by their headers"]
    assert told("unusable")[0] == "4: 2 without an image that can be read, 1 too small, 1 without a mask that fits"
    assert told("views") == ["64x64 3"]
    assert len(told("cache")) == 2
    assert "on cpu" in told("time")[0] or "on cuda" in told("time")[0]
    assert told("next")[0].startswith("1 images are too small; --small bucket, --upscale")
    command = f"inpaint-data cache --shards {tmp_path / 'in'} --out cache --resolution 64 --masks sample --vae "
    assert told("next")[-1].startswith(command)


def test_the_command_that_look_names_does_what_was_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three commands from a folder of images and masks to a cache that was looked at."""
    folder = tmp_path / "my photos"
    for name, size in (("a", (64, 64)), ("b", (40, 100)), ("c", (90, 64))):
        for place, kind in (("images", "JPEG"), ("masks", "PNG")):
            (folder / place).mkdir(parents=True, exist_ok=True)
            (folder / place / f"{name}.{kind.lower()}").write_bytes(image(*size, kind))
    out = str(tmp_path / "cache")
    settings = ["--vae", "demo", "--resolution", "64", "--small", "bucket", "--bucket_step", "8", "--variants", "2"]
    code, printed, _ = run(capsys, "look", str(folder), *settings, "--mask_offset", "[-2,2]")
    assert code == 0
    assert "images/a.jpeg, mask.png masks/a.png" in printed
    words = shlex.split(printed.splitlines()[-1])[1:]
    assert words[:2] == ["inpaint-data", "cache"]
    words[words.index("cache", 2)] = out
    code, _, err = run(capsys, *words[1:])
    assert code == 0, err
    cache = LatentCache(out)
    assert len(cache) == 3
    assert cache.variants == 2
    assert cache.settings.pictures is not None
    assert cache.settings.pictures.small == "bucket"
    assert run(capsys, "sheet", "--cache", out, "--shards", str(folder), "--out", str(tmp_path / "sheet.png"))[0] == 0


def test_look_refuses_a_cache_and_what_is_not_there(
    tmp_path: Path, vae: Autoencoder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no such file" in run(capsys, "look", str(tmp_path / "nowhere"))[2]
    assert "samples: 0 is too small" in run(capsys, "look", str(tmp_path), "--samples", "0")[2]
    write_shard(tmp_path / "in" / "a.tar", {"a": {"png": image(64, 64, "PNG")}})
    cache_latents(str(tmp_path / "in"), str(tmp_path / "out"), vae=vae, resolution=64, masks="boxes")
    assert "is a latent cache and not image shards" in run(capsys, "look", str(tmp_path / "out"))[2]


@pytest.mark.parametrize(
    ("content", "masks"),
    [
        (b'{"shapes": [{"label": "x", "points": [[1, 1], [9, 1], [9, 9]]}]}', "object"),
        (b'{"caption": "a cat"}', "mixture"),
    ],
)
def test_annotations_are_proposed_as_masks(
    content: bytes, masks: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shard(tmp_path / "in" / "0.tar", {key: {"png": image(64, 64, "PNG"), "json": content} for key in "ab"})
    code, text, _ = run(capsys, "look", str(tmp_path / "in"), "--resolution", "64")
    assert code == 0
    assert f"--masks {masks}" in text or (masks == "mixture" and "--masks object" not in text)


def test_alpha_odd_sides_and_failed_downloads_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((80, 80, 4), 90, np.uint8)).save(file, "PNG")
    failed = b'{"key": "c", "status": "failed_to_download", "error_message": "404"}'
    samples = {"a": {"png": file.getvalue()}, "b": {"jpg": image(80, 80)}, "c": {"json": failed}}
    write_shard(tmp_path / "in" / "0.tar", samples)
    code, text, _ = run(capsys, "look", str(tmp_path / "in"), "--resolution", "76")
    assert code == 0
    assert "transparency  1 have an alpha channel, which is dropped; --masks alpha" in text
    assert "sides of 76 are no multiples of 8, which autoencoders take; --resolution 80 is one" in text
    assert "filtered      1: 1 status" in text


def test_samples_without_the_pictures_that_belong_to_them_are_known_beforehand(tmp_path: Path) -> None:
    whole = {"jpg": image(64, 64), "control.png": image(64, 64, "PNG"), "reference.0.jpg": image(30, 50)}
    samples = {"whole": whole}
    for name in ("control.png", "reference.0.jpg"):
        samples[f"no_{name[:4]}"] = {member: data for member, data in whole.items() if member != name}
    write_shard(tmp_path / "0.tar", samples)
    asked = example_settings(resolution=64, masks="boxes", control=True, references=1)
    assert survey_shards([str(tmp_path / "0.tar")], asked).unusable == {NO_PAIR: 2}
    write_shard(tmp_path / "1.tar", {"twice": whole | {"reference.0.png": image(30, 50, "PNG")}})
    survey = survey_shards([str(tmp_path / "1.tar")], example_settings(resolution=64, masks="boxes", references=2))
    assert "two references of one number" in survey.examples[NO_PAIR][0]
