"""Which member of a sample is its image, its mask and its caption, and what a caption may be stored as."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Pooling, small_samples, write_shard
from flat import cache_latents, data_module, example_settings

from inpaint_data import Autoencoder, LatentCache, MaskSettings, PictureSettings, SampleError, UsageError, verify_cache
from inpaint_data.pictures.captions import caption_of
from inpaint_data.pictures.examples import prepare
from inpaint_data.pictures.images import encode_png
from inpaint_data.shards.reading import Fault, Sample, ShardEnd, image_member, read_shard

JPEG = small_samples(1)["sample_0"]["jpg"]
MASK = np.zeros((24, 20), np.uint8)
MASK[4:9, 3:12] = 255
PNG = encode_png(MASK)


def read(tmp_path: Path, members: list[str], key: str = "cat") -> list[Sample | Fault]:
    shard = write_shard(tmp_path / "0.tar", {key: dict.fromkeys(members, b"x")})
    return [item for item in read_shard(str(shard)) if not isinstance(item, ShardEnd)]


# ---- members with dots


@pytest.mark.parametrize(
    "members",
    [
        ["input.jpg", "mask.png", "txt"],
        ["input.jpg"],
        ["input.jpg", "output.jpg", "prompt.txt"],
        ["input.jpg", "input.json", "mask.png"],
        ["jpg", "depth.png", "seg.0.npy", "input.jpg", "txt"],
        ["jpg", "mask.0.jpg", "mask.1.webp", "mask.jpg"],
        ["1.jpg", "txt"],
        ["seg.png", "seg.0.png", "image.webp", "json"],
    ],
)
def test_a_member_with_dots_is_a_member(members: list[str], tmp_path: Path) -> None:
    (sample,) = read(tmp_path, members)
    assert isinstance(sample, Sample)
    assert set(sample.members) == set(members)


@pytest.mark.parametrize(
    ("members", "keys"),
    [
        (["v1.jpg", "v2.jpg"], ["cat.v1", "cat.v2"]),
        (["2024.jpg"], ["cat.2024"]),
        (["v2.jpg", "v2.txt"], ["cat.v2"]),
        (["v2.jpg", "v2.mask.webp"], ["cat.v2"]),
        (["jpg", "txt", "v2.jpg", "v2.json"], ["cat", "cat.v2"]),
    ],
)
def test_a_key_with_dots_is_a_key_with_dots(members: list[str], keys: list[str], tmp_path: Path) -> None:
    faults = read(tmp_path, members)
    assert [fault.key for fault in faults] == keys
    assert all(isinstance(fault, Fault) and "a key cannot contain dots" in fault.reason for fault in faults)


def test_a_sample_without_an_image_says_what_it_has_and_how_to_name_it() -> None:
    def sample(*members: str) -> Sample:
        return Sample("s", "cat", dict.fromkeys(members, b""))

    with pytest.raises(
        SampleError, match=r"no image: it has input\.jpg, mask\.png, txt; name it with image: input\.jpg"
    ):
        image_member(sample("input.jpg", "mask.png", "txt"))
    with pytest.raises(SampleError, match=r"image: a\.png or b\.webp"):
        image_member(sample("a.png", "b.webp", "mask.3.jpg"))
    with pytest.raises(SampleError, match=r"no image: it has jpg, txt, and not input\.jpg"):
        image_member(sample("jpg", "txt"), "input.jpg")
    assert image_member(sample("jpg", "png", "input.jpg"), "png") == "png"
    assert image_member(sample("jpg", "picture"), "picture") == "picture"


# ---- members with other names


@pytest.mark.parametrize("source", ["sample", "object"])
def test_foreign_names_go_the_same_way_live_cached_and_masked_anew(source: str, tmp_path: Path) -> None:
    shards, cache = str(tmp_path / "in"), str(tmp_path / "cache")
    members = {
        "input.jpg": JPEG,
        "jpg": small_samples(1, seed=9)["sample_0"]["jpg"],  # a thumbnail, say
        "seg.png" if source == "sample" else "seg.0.png": PNG,
        "mask.png": encode_png(MASK.T),
        "meta.json": json.dumps({"texts": ["no", {"en": "a cat"}]}).encode(),
        "txt": b"\xff not a text",
    }
    write_shard(Path(shards) / "0.tar", {"a": members, "b": members})
    vae = Autoencoder(Pooling())
    settings: dict[str, Any] = {
        "resolution": 16, "mask_offset": 0, "image": "input.jpg", "caption": "meta.json:texts.1.en",
        "masks": source, "mask": "seg.png",
    }  # fmt: skip
    assert cache_latents(shards, cache, vae=vae, carry_image="original", **settings).cached == 2
    assert verify_cache(cache, deep=True, against=shards, vae=vae).ok
    cached = LatentCache(cache).batch([0, 1])
    live = data_module(shards, vae=vae, batch_size=2, **settings)
    fresh = data_module(cache, vae=vae, batch_size=2, fresh_masks=True)
    for data in (live, fresh):
        data.setup("fit")
        [batch] = [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]
        assert batch["caption"] == cached["caption"] == ["a cat"] * 2
        for name in ("mask", "latents", "masked_latents"):
            assert (batch[name].float() - cached[name].float()).abs().max() < 1e-3
    assert cached["mask"].any()
    with pytest.raises(UsageError, match=r"image: .*cache has \"input\.jpg\", this run null|image"):
        cache_latents(shards, cache, vae=vae, carry_image="original", **settings | {"image": None})


def test_what_is_image_or_mask_by_name_is_not_carried() -> None:
    members = {"input.jpg": JPEG, "seg.png": PNG, "seg.0.png": PNG, "mask.jpg": b"", "depth.png": PNG, "txt": b"a"}
    chosen = example_settings(resolution=16, image="input.jpg", mask="seg.png", masks="sample")
    (made,) = prepare(Sample("0.tar", "a", members), chosen, [0])
    assert not isinstance(made, Fault)
    assert set(made.carried) == {"depth.png", "txt"}


@pytest.mark.parametrize("extension", ["jpg", "jpeg", "webp", "png"])
def test_a_mask_may_be_any_image_and_two_are_a_question(extension: str) -> None:
    def reason(members: dict[str, bytes], **change: Any) -> str | None:
        (made,) = prepare(Sample("0.tar", "a", members), example_settings(resolution=16, **change), [0])
        return made.reason if isinstance(made, Fault) else None

    both = {"jpg": JPEG, f"mask.{extension}": PNG}
    assert reason(both) is None
    assert reason({"jpg": JPEG, f"mask.2.{extension}": PNG}, masks="object") is None
    if extension != "png":
        assert "several masks: the sample has jpg, mask." in str(reason(both | {"mask.png": PNG}))
        assert reason(both | {"mask.png": b""}, mask=f"mask.{extension}") is None
    assert "add a.mask.png, name it with mask: seg.png, or draw masks" in str(reason({"jpg": JPEG, "seg.png": PNG}))


@pytest.mark.parametrize(
    ("kind", "setting", "value"),
    [
        (PictureSettings, "image", ""),
        (PictureSettings, "image", "a/b.jpg"),
        (PictureSettings, "caption", "json:"),
        (PictureSettings, "caption", ""),
        (PictureSettings, "caption", 3),
        (MaskSettings, "mask", 3),
        (MaskSettings, "repaint", "darker"),
        (MaskSettings, "orientation", "sideways"),
    ],
)
def test_names_that_cannot_be_are_refused(kind: Any, setting: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"^{setting}: "):
        kind(**{setting: value})


def test_names_are_taken_as_samples_have_them() -> None:
    assert PictureSettings(image=".Input.JPG", caption="Meta.JSON:Prompt").image == "input.jpg"
    assert PictureSettings(caption="Meta.JSON:Prompt").caption == "meta.json:Prompt"


# ---- captions


@pytest.mark.parametrize(
    "data",
    [
        b"a cat",
        b"\xef\xbb\xbfa cat\r\n",
        b"a cat\0\0",
        b"\xef\xbb\xbf\xef\xbb\xbfa cat\0\n\0",
        "a cat".encode("utf-16"),
        b"\xfe\xff" + "a cat\0".encode("utf-16-be"),
        b"\xff\xfe" + "a cat\n".encode("utf-16-le"),
    ],
)
def test_a_caption_is_read_whatever_windows_wrote_around_it(data: bytes) -> None:
    assert caption_of({"txt": data}) == "a cat"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("a cat".encode("utf-16-be"), "zero bytes in it, as UTF-16 without its mark; save it as UTF-8"),
        ("a cat".encode("utf-16-le"), "zero bytes in it"),
        (b"a\0cat", "zero bytes in it"),
        (b"\xff\xfea", r"txt: the caption is not UTF-16, as it begins \(truncated data at byte 2\)"),
        ("Café".encode("latin-1"), r"txt: the caption is not UTF-8 \(.* at byte 3\); save it as UTF-8"),
    ],
)
def test_what_is_not_a_text_is_no_caption(data: bytes, reason: str) -> None:
    with pytest.raises(SampleError, match=reason):
        caption_of({"txt": data})


def test_a_caption_may_be_a_field_of_json() -> None:
    content = {
        "caption": " a cat\n",
        "a": {"b": ["x", {"c": "deep"}]},
        "n": 3,
        "none": None,
        "half": "\ud83d",
        "z": "\0a",
    }
    members = {"json": json.dumps(content).encode(), "other.json": b"\xef\xbb\xbf" + b'{"t": "o"}', "txt": b"the text"}
    for caption, text in {
        "txt": "the text", "json:caption": "a cat", "json:a.b.1.c": "deep", "json:a.b.0": "x", "other.json:t": "o",
        "json:absent": "", "json:a.b.9": "", "json:a.x.y": "", "json:none": "", "caption": "", "absent.json:x": "",
    }.items():  # fmt: skip
        assert caption_of(members, caption) == text
    for caption, reason in {
        "json:n": "json:n: the caption is 3 and not a text", "json:a.b": "and not a text", "json:half": "halves",
        "json:z": "zero bytes", "txt:a": "txt: it cannot be read .* save it as JSON",
    }.items():  # fmt: skip
        with pytest.raises(SampleError, match=reason):
            caption_of(members, caption)


def test_a_sample_that_was_never_downloaded_is_counted_as_such(tmp_path: Path) -> None:
    def status(name: str, **more: Any) -> bytes:
        return json.dumps({"status": name, "caption": "a cat", **more}).encode()

    samples = {
        "good": {"jpg": JPEG, "json": status("success")},
        "gone": {"json": status("failed_to_download", error_message="HTTP Error 404"), "txt": b"a cat"},
        "bare": {"json": status("success")},
    }
    shard = write_shard(tmp_path / "in" / "00000.tar", samples)
    summary = cache_latents(
        str(shard), str(tmp_path / "cache"), vae=Autoencoder(Pooling()), resolution=16, masks="boxes",
        caption="json:caption", max_bad_fraction=1.0,
    )  # fmt: skip
    assert [entry.reason for _, entry in summary.filtered] == [
        "status: its json says that it was not downloaded, failed_to_download: HTTP Error 404"
    ]
    assert [entry.key for _, entry in summary.quarantined] == ["bare"]
    assert "filtered     1: 1 by status" in summary.table()
    assert "no caption" not in summary.table()
    assert LatentCache(tmp_path / "cache")[0]["caption"] == ["a cat"]
