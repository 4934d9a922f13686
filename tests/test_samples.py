"""One sample becomes one example: image and mask through the same box, every fault named."""

import io
import struct

import numpy as np
import pytest
from conftest import PHOTOS
from diffusers.image_processor import VaeImageProcessor
from flat import example_settings
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from inpaint_data import SampleError, UsageError
from inpaint_data.masks.edits import Origin
from inpaint_data.pictures import examples
from inpaint_data.pictures.examples import Example, prepare
from inpaint_data.pictures.settings import ExampleSettings
from inpaint_data.shards.reading import Fault, Sample


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def example_of(given_sample: Sample, settings: ExampleSettings, variants: list[int]) -> Example:
    """The one view of a sample; what is wrong with it as the error it was."""
    (made,) = prepare(given_sample, settings, variants)
    if isinstance(made, Fault):
        raise SampleError(made.reason)
    return made


def sample(members: dict[str, bytes], key: str = "dog") -> Sample:
    return Sample("shards/0.tar", key, members)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(24, 90),
    width=st.integers(24, 90),
    resolution=st.sampled_from([8, 16, 24]),
    crop=st.sampled_from(["center", "random"]),
    seed=st.integers(0, 1000),
)
def test_a_mask_painted_into_the_picture_is_found_there_to_the_pixel(
    height: int, width: int, resolution: int, crop: str, seed: int
) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.3
    mask = np.kron(mask[::4, ::4], np.ones((4, 4), bool))[:height, :width]
    picture = np.repeat((mask * 255).astype(np.uint8)[..., None], 3, 2)
    given_sample = sample({"png": png(picture), "mask.png": png((mask * 255).astype(np.uint8))})
    example = example_of(given_sample, example_settings(resolution=resolution, crop=crop, seed=seed), [0])
    assert example.image.shape == (resolution, resolution, 3)
    assert np.array_equal(example.masks[0], example.image[..., 0] > 127)


def test_a_picture_of_the_right_size_comes_through_untouched() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    example = example_of(sample({"png": png(pixels)}), example_settings(resolution=32, masks="full"), [0])
    assert np.array_equal(example.image, pixels)
    assert example.geometry.original_size == example.geometry.target_size == (32, 32)


def test_the_random_crop_depends_on_seed_and_key_alone() -> None:
    data = (PHOTOS / "rocket.jpg").read_bytes()

    def top_left(key: str, seed: int) -> tuple[int, int]:
        chosen = example_settings(resolution=64, crop="random", masks="full", seed=seed)
        return example_of(sample({"jpg": data}, key), chosen, [0, 1]).geometry.crop_top_left

    assert top_left("a", 0) == top_left("a", 0)
    assert len({top_left(key, seed) for key in "abcd" for seed in (0, 1)}) > 4


def test_masks_come_from_the_member_from_alpha_or_from_a_generator() -> None:
    half = np.zeros((16, 16), np.uint8)
    half[:, 8:] = 255
    colours = np.full((16, 16, 3), 90, np.uint8)
    cutout = np.dstack([colours, 255 - half])
    by_member = example_of(
        sample({"png": png(colours), "mask.png": png(half)}), example_settings(resolution=16), [0, 1]
    )
    by_alpha = example_of(sample({"png": png(cutout)}), example_settings(resolution=16, masks="alpha"), [0])
    opaque = example_settings(resolution=16, masks="alpha", repaint="opaque")
    by_opaque = example_of(sample({"png": png(cutout)}), opaque, [0])
    drawn = example_of(sample({"png": png(colours)}), example_settings(resolution=16, masks="boxes"), [0, 1])
    assert np.array_equal(by_member.masks, np.stack([half > 0] * 2))
    assert np.array_equal(by_alpha.masks[0], half > 0)  # transparent = repaint
    assert np.array_equal(by_opaque.masks[0], half == 0)
    with pytest.raises(UsageError, match="repaint: light is of mask files, and masks is alpha; give opaque or"):
        example_settings(masks="alpha", repaint="light")
    assert by_member.origins == (Origin("sample"), Origin("sample"))
    assert by_alpha.origins == (Origin("alpha"),)
    assert drawn.origins == (Origin("boxes"), Origin("boxes"))
    assert not np.array_equal(drawn.masks[0], drawn.masks[1])


def test_caption_and_other_members_are_carried_and_the_picture_as_asked() -> None:
    picture = png(np.full((20, 16, 3), 7, np.uint8))
    masks = {"mask.png": picture, "mask.0.png": picture}
    members = {"png": picture, "txt": "ein Café\n".encode(), "json": b"{}", "clip.npy": b"123"} | masks
    for carry, extra in (("none", set()), ("original", {"png", *masks}), ("crop", {"crop.png"})):
        example = example_of(sample(members), example_settings(resolution=16, masks="full", carry_image=carry), [0])
        assert example.caption == "ein Café"
        assert set(example.carried) == {"txt", "json", "clip.npy"} | extra
    assert np.array_equal(np.array(Image.open(io.BytesIO(example.carried["crop.png"]))), example.image)


@pytest.mark.parametrize(
    ("members", "change", "reason"),
    [
        ({"jpg": b"\xff\xd8\xff\xe0 not a picture"}, {}, "jpg: image is damaged"),
        ({"png": png(np.zeros((32, 32, 3), np.uint8))}, {}, r"no mask: the sample has png; add dog\.mask\.png"),
        (
            {"png": png(np.zeros((32, 32, 3), np.uint8)), "mask.0.png": b""},
            {},
            r"add dog\.mask\.png, or take its objects with source: object",
        ),
        ({"png": png(np.zeros((32, 32, 3), np.uint8))}, {"masks": "alpha"}, "no alpha channel"),
        (
            {"png": png(np.zeros((32, 32, 3), np.uint8)), "mask.png": png(np.zeros((32, 31), np.uint8))},
            {},
            "mask.png is 32 high and 31 wide, but image is 32 high and 32 wide; give masks",
        ),
        ({"png": png(np.zeros((32, 32, 3), np.uint8)), "mask.png": b"nonsense"}, {}, r"mask\.png: "),
        (
            {"png": png(np.zeros((8, 32, 3), np.uint8))},
            {"masks": "full"},
            "image is 8 high and 32 wide, smaller",
        ),
        ({"png": png(np.zeros((32, 32, 3), np.uint8)), "txt": b"\xff\x80"}, {"masks": "full"}, "not UTF-8"),
        ({"txt": b"words"}, {}, "txt"),
    ],
)
def test_a_sample_that_cannot_be_used_says_why(members: dict[str, bytes], change: dict, reason: str) -> None:
    with pytest.raises(SampleError, match=reason):
        example_of(sample(members), example_settings(**{"resolution": 16} | change), [0])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"resolution": 0}, "resolution: 0"),
        ({"crop": "middle"}, "choose from center, random"),
        ({"masks": "drawn"}, "choose from sample, alpha, mixture, strokes, boxes, full"),
        ({"carry_image": "yes"}, "choose from none, original, crop"),
    ],
)
def test_unknown_settings_are_named(change: dict, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        example_settings(**change)


@pytest.mark.parametrize(
    "error",
    [
        RecursionError("too deep"),
        OverflowError("too large"),
        MemoryError(),
        ZeroDivisionError("division by zero"),
        struct.error("unpack requires 4 bytes"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        KeyError("x"),
        OSError("broken"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_decoder_raises_is_a_fault_of_that_sample(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(_: bytes, __: object) -> None:
        raise error

    monkeypatch.setattr(examples, "decode_image", decode)
    (fault,) = prepare(sample({"jpg": b""}), example_settings(resolution=32, masks="full"), [0])
    assert isinstance(fault, Fault)
    assert "memory" in fault.reason if isinstance(error, MemoryError) else type(error).__name__ in fault.reason
    assert "\n" not in fault.reason


@pytest.mark.parametrize("repaint", ["light", "dark", "opaque"])
@pytest.mark.parametrize("size", [(96, 96), (100, 140), (33, 64)])
def test_a_soft_mask_is_resized_before_it_is_made_hard_as_pipelines_do(size: tuple[int, int], repaint: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    noise[0, 0], noise[0, 1] = 0, 255
    mask = np.dstack([np.full((*size, 3), 255, np.uint8), noise]) if repaint == "opaque" else noise
    chosen = example_settings(resolution=32, repaint=repaint)
    members = {"png": png(np.full((*size, 3), 90, np.uint8)), "mask.png": png(mask)}
    example = example_of(sample(members), chosen, [0])
    box = example.geometry
    (top, left), scale = box.crop_top_left, [old / new for old, new in zip(size, box.resized_size, strict=True)]
    cut = (left * scale[1], top * scale[0], (left + 32) * scale[1], (top + 32) * scale[0])
    resized = Image.fromarray(noise).resize((32, 32), Image.Resampling.LANCZOS, box=cut)
    processor = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    if repaint == "dark":
        noise = 255 - noise
        resized = Image.fromarray(noise).resize((32, 32), Image.Resampling.LANCZOS, box=cut)
    assert np.array_equal(example.masks[0], processor.preprocess(resized)[0, 0].numpy() == 1)
    if size == (96, 96):  # nothing is cut: the processor itself resizes
        own = processor.preprocess(Image.fromarray(noise), height=32, width=32)
        assert np.array_equal(example.masks[0], own[0, 0].numpy() == 1)
