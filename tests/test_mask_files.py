"""What a mask file means: what is surely meant is done, and what is in doubt is a question with its answer."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Pooling, run, write_shard
from flat import OF_JOBS, cache_latents, data_module, example_settings, grouped
from PIL import Image

from inpaint_data import Autoencoder, LatentCache, SampleError, verify_cache
from inpaint_data.commands.mask_statistics import mask_statistics
from inpaint_data.masks.settings import MaskSettings
from inpaint_data.pictures.examples import Example, prepare
from inpaint_data.pictures.images import UPRIGHT
from inpaint_data.pictures.mask_files import MaskReading, read_mask, repainted
from inpaint_data.shards.reading import Fault, Sample

Array = np.ndarray[Any, Any]
SIZE = (24, 32)
HOLE = np.zeros(SIZE, bool)
HOLE[4:12, 6:20] = True
GREY = (HOLE * 255).astype(np.uint8)
PHOTO = np.kron(np.random.default_rng(1).integers(0, 256, (6, 8, 3)), np.ones((4, 4, 1))).astype(np.uint8)


def saved(pixels: Array | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_alpha(colours: Array | int, alpha: Array) -> bytes:
    pixels = np.broadcast_to(colours, (*SIZE, 3)) if isinstance(colours, int) else colours
    return saved(np.dstack([pixels, alpha]).astype(np.uint8))


def palette(indexes: Array, *colours: tuple[int, int, int]) -> bytes:
    image = Image.fromarray(indexes.astype(np.uint8), "P")
    image.putpalette([value for colour in colours for value in colour])
    return saved(image)


def soft_edge() -> Array:
    image = Image.fromarray(GREY).resize((SIZE[1] * 3, SIZE[0] * 3), Image.Resampling.BICUBIC)
    return np.asarray(image.resize((SIZE[1], SIZE[0]), Image.Resampling.BICUBIC))


VOC = ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
SURE = {
    "black and white": saved(GREY),
    "one bit": saved(Image.fromarray(GREY).convert("1")),
    "classes 0 and 1": saved(HOLE.astype(np.uint8)),
    "classes 0 and 1 without loss": saved(HOLE.astype(np.uint8), "WEBP", lossless=True),
    "classes 0 and 1 of 16 bits": saved(HOLE.astype(np.uint16)),
    "255 of 16 bits": saved(HOLE.astype(np.uint16) * 255),
    "white of 16 bits": saved(HOLE.astype(np.uint16) * 65535),
    "the one class of a palette": palette(HOLE, *VOC),
    "another class of a palette": palette(HOLE * 3, *VOC),
    "two greys of a palette": palette(HOLE, (0, 0, 0), (255, 255, 255)),
    "a red brush": saved(np.dstack([GREY, GREY * 0, GREY * 0])),
    "soft edges": saved(soft_edge()),
    "a JPEG": saved(GREY, "JPEG", quality=95),
    "a coarse JPEG": saved(GREY, "JPEG", quality=40),
    "a PNG that was a JPEG": saved(Image.open(io.BytesIO(saved(GREY, "JPEG", quality=60)))),
    "a WEBP": saved(GREY, "WEBP", quality=80),
    "opaque colours": with_alpha(np.dstack([GREY] * 3), np.full(SIZE, 255)),
    "a white brush on nothing": with_alpha(255, GREY),
    "a white brush on nothing, soft": with_alpha(255, soft_edge()),
    "white where it was painted, black where not": with_alpha(np.dstack([GREY] * 3), GREY),
    "white where seen": with_alpha(np.dstack([np.where(soft_edge() > 0, 255, 0)] * 3), soft_edge()),
    "light with transparency": saved(Image.fromarray(np.dstack([GREY | 200, GREY]), "LA")),
}


@pytest.mark.parametrize("name", SURE)
def test_what_is_surely_meant_is_done(name: str) -> None:
    found = repainted(SURE[name], None) > 127
    assert (found != HOLE).mean() < (0.03 if "soft" in name or "JPEG" in name or "WEBP" in name else 1e-9)
    assert found.dtype == bool


LABELS = HOLE * 15 + np.flipud(HOLE) * 7
DOUBTFUL = {
    "a black brush": (with_alpha(0, GREY), "one dark colour.*repaint: opaque or transparent"),
    "ComfyUI's transparent black": (with_alpha(0, 255 - GREY), "transparent in ComfyUI"),
    "nothing but transparent black": (with_alpha(0, GREY * 0), "one dark colour"),
    "a photograph with a hole": (with_alpha(PHOTO, 255 - GREY), "an image with a hole, or a mask; say what"),
    "alpha against colours": (
        with_alpha(np.dstack([GREY] * 3), np.flipud(GREY) | 40),
        r"% of it is light and .*% opaque",
    ),
    "a label map": (saved(LABELS.astype(np.uint8)), "its values are 0, 7, 15 of 255, .*repaint: nonzero"),
    "a label map with a border": (saved((LABELS + np.eye(*SIZE) * (255 - LABELS)).astype(np.uint8)), "0, 7, 15, 255"),
    "a trimap": (
        saved((np.where(np.flipud(HOLE), 128, GREY)).astype(np.uint8)),
        "between black and white, 0, 128, 255",
    ),
    "a label map up to 150": (saved((LABELS * 10).astype(np.uint8)), "0, 70, 150"),
    "a label map of 16 bits": (saved(LABELS.astype(np.uint16)), "values of 16 bits are 0, 7, 15"),
    "a dark mask": (saved(HOLE.astype(np.uint8) * 100), "its values are 0, 100 of 255, .*dark mask"),
    "a palette of classes": (palette(HOLE + 2 * np.flipud(HOLE) * ~HOLE, *VOC), "it has 3 colours"),
    "one class and no other": (palette(np.ones(SIZE), *VOC), "it has 1 colours"),
    "a photograph": (saved(PHOTO), r"it has \d+ colours"),
}


@pytest.mark.parametrize("name", DOUBTFUL)
def test_what_is_in_doubt_is_a_question(name: str) -> None:
    data, question = DOUBTFUL[name]
    with pytest.raises(SampleError, match=rf"mask\.png: .*{question}"):
        read_mask("mask.png", data, MaskReading(SIZE, 1, MaskSettings()))


def test_a_setting_answers_the_question() -> None:
    for data, repaint, expected in (
        (DOUBTFUL["a black brush"][0], "opaque", HOLE),
        (DOUBTFUL["ComfyUI's transparent black"][0], "transparent", HOLE),
        (DOUBTFUL["a photograph with a hole"][0], "transparent", HOLE),
        (DOUBTFUL["alpha against colours"][0], "light", HOLE),
        (DOUBTFUL["a label map"][0], "nonzero", LABELS > 0),
        (DOUBTFUL["a label map of 16 bits"][0], "nonzero", LABELS > 0),
        (DOUBTFUL["a label map up to 150"][0], "nonzero", LABELS > 0),
        (DOUBTFUL["a label map up to 150"][0], "light", LABELS == 15),
        (DOUBTFUL["a dark mask"][0], "nonzero", HOLE),
        (DOUBTFUL["a dark mask"][0], "light", HOLE & ~HOLE),
    ):
        found = read_mask("mask.png", data, MaskReading(SIZE, 1, MaskSettings(repaint=repaint))) > 127  # type: ignore[arg-type]
        assert np.array_equal(found, expected)
    with pytest.raises(SampleError, match="no transparency, and repaint is opaque; set repaint to light"):
        read_mask("mask.png", saved(GREY), MaskReading(SIZE, 1, MaskSettings(repaint="opaque")))


def test_masks_of_nothing_and_of_everything_are_not_in_doubt() -> None:
    for level in (0, 255):
        for kind in ("PNG", "JPEG", "WEBP"):
            assert (repainted(saved(np.full(SIZE, level, np.uint8), kind), None) > 127).all() == (level == 255)
    assert not repainted(with_alpha(255, GREY * 0), None).any()
    assert repainted(saved(np.ones(SIZE, np.uint8)), None).all()


# ---- pictures that EXIF turns


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def example(members: dict[str, bytes], **change: Any) -> Example:
    (made,) = prepare(Sample("s.tar", "dog", members), example_settings(**{"resolution": 24} | change), [0])
    if isinstance(made, Fault):
        raise SampleError(made.reason)
    return made


def turned_sample(side: int, orientation: int, mask: Array, **options: Any) -> dict[str, bytes]:
    """A picture, red where its mask is as it is stored."""
    stored = np.zeros((24, side, 3), np.uint8)
    stored[2:10, 3:20, 0] = 255
    return {"png": saved(stored, exif=exif(orientation)), "mask.png": saved(mask, **options)}


def marked(side: int) -> Array:
    mask = np.zeros((24, side), np.uint8)
    mask[2:10, 3:20] = 255
    return mask


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("side", [24, 40])
def test_a_mask_without_exif_is_for_the_pixels_that_it_fits_or_else_it_is_asked(side: int, orientation: int) -> None:
    def follows(members: dict[str, bytes], **change: Any) -> bool:
        made = example(members, **change)
        return np.array_equal(made.masks[0], made.image[..., 0] > 127)

    stored, upright = marked(side), np.ascontiguousarray(UPRIGHT[orientation](marked(side)))
    in_doubt = side == 24 or orientation < 5
    for mask, frame, other in ((stored, "stored", "upright"), (upright, "upright", "stored")):
        members = turned_sample(side, orientation, mask)
        assert follows(members, orientation=frame)
        if in_doubt:
            with pytest.raises(SampleError, match=f"by its EXIF orientation {orientation}, and this fits it .*stored;"):
                example(members)
            assert not follows(members, orientation=other)
        else:
            assert follows(members)
            assert follows(members, orientation=other), "its size leaves no choice"
        assert follows({"mask.0.png" if name == "mask.png" else name: data for name, data in members.items()}
                       | {"txt": b""}, masks="object", orientation=frame)  # fmt: skip
    # A mask that says how it lies is asked nothing.
    assert follows(turned_sample(side, orientation, stored, exif=exif(orientation)))
    assert follows(turned_sample(side, orientation, upright, exif=exif(1)))
    # Nor is one that is the same both ways.
    assert not example(turned_sample(side, orientation, stored * 0)).masks.any()


@pytest.mark.parametrize("orientation", [3, 6])
def test_annotations_follow_the_size_that_they_state_or_are_asked_for_too(orientation: int) -> None:
    members = turned_sample(40, orientation, marked(40))
    shape = {"shape_type": "rectangle", "points": [[3, 2], [20, 10]]}
    labelme = json.dumps({"shapes": [shape], "imageHeight": 24, "imageWidth": 40}).encode()
    coco = json.dumps({"segmentation": [[3, 2, 20, 2, 20, 10, 3, 10]]}).encode()
    for content, is_known in ((labelme, orientation == 6), (coco, False)):
        given = {"png": members["png"], "json": content}
        answer = {} if is_known else {"orientation": "stored"}
        made = example(given, masks="object", **answer)
        assert np.array_equal(made.masks[0], made.image[..., 0] > 127)
        if not is_known:
            with pytest.raises(SampleError, match="say which it was drawn on with orientation"):
                example(given, masks="object")


def test_a_target_without_exif_is_turned_where_its_size_says_so_and_refused_in_doubt() -> None:
    for side, orientation in ((40, 6), (24, 6), (40, 3)):
        members = turned_sample(side, orientation, marked(side))
        target = np.repeat(marked(side)[..., None], 3, 2)
        given = {"png": members["png"], "target.png": saved(target)}
        if (side, orientation) == (40, 6):
            made = example(given, masks="full", target=True)
            assert np.array_equal(made.paired["target"][..., 0], made.image[..., 0])
        else:
            with pytest.raises(SampleError, match=r"target\.png: image is turned by .* save both upright"):
                example(given, masks="full", target=True)


# ---- one meaning, whoever reads


def test_the_job_training_fresh_masks_and_stats_see_the_same_mask_and_count_empty_and_full_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = saved(PHOTO, "JPEG", exif=exif(3))
    label = {
        "a": {"jpg": photo, "seg.png": saved(LABELS.astype(np.uint8)), "txt": b"a"},
        "b": {"jpg": photo, "seg.png": saved(GREY * 0)},
        "c": {"jpg": photo, "seg.png": saved(GREY | 255), "txt": b""},
    }
    shards, cache = str(tmp_path / "in"), str(tmp_path / "cache")
    write_shard(Path(shards) / "000.tar", label)
    masks: dict[str, Any] = {"mask": "seg.png", "repaint": "nonzero", "orientation": "stored", "mask_offset": 0}
    vae = Autoencoder(Pooling())
    summary = cache_latents(shards, cache, vae=vae, resolution=24, carry_image="original", **masks)
    table = summary.table()
    assert "empty masks  1 of 3, where nothing is to be repainted: 000/b" in table
    assert "full masks   1 of 3, where nothing is kept: 000/c" in table
    assert "no caption   2 of 3 samples: 000/b, 000/c" in table
    expected = (LABELS > 0)[::-1, ::-1][:, 4:28]
    cached = LatentCache(cache)[0]
    assert np.array_equal(cached["mask"][0, 0].numpy(), expected)
    assert verify_cache(cache, deep=True, against=shards, vae=vae).ok
    live = data_module(shards, vae=vae, batch_size=3, resolution=24, **masks)
    fresh = data_module(cache, vae=vae, batch_size=3, fresh_masks=True)
    for data in (live, fresh):
        data.setup("fit")
        [batch] = [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]
        row = batch["__key__"].index("a")
        assert np.array_equal(batch["mask"][row, 0].numpy(), expected)
        assert batch["caption"][row] == "a"
    of_shards = mask_statistics(shards, **grouped(OF_JOBS, {"resolution": 24, **masks}))
    of_cache = mask_statistics(cache)
    for found in (of_shards, of_cache):
        assert (found.masks, found.empty, found.full) == (3, 1, 1)
        assert found.named == {"empty": ["000/b"], "full": ["000/c"]}
    code, out, _ = run(capsys, "stats", cache)
    assert code == 0
    assert "3, 1 of them empty (the first: 000/b), 1 full (the first: 000/c)" in out


def test_what_is_dark_may_be_repainted_and_what_is_no_mask_is_asked_for() -> None:
    assert np.array_equal(repainted(saved(GREY), "dark") > 127, GREY < 128)
    blue = np.where(GREY[..., None] > 127, np.uint8([0, 0, 255]), np.uint8([255, 255, 255])).astype(np.uint8)
    with pytest.raises(SampleError, match="it has 2 colours"):
        repainted(saved(blue), None)
    photograph = np.random.default_rng(0).integers(30, 220, SIZE).astype(np.uint8)
    with pytest.raises(SampleError, match="is neither black nor white, as in a photograph"):
        repainted(saved(photograph), None)
