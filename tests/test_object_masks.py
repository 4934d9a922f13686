"""Object masks that come with a sample: the pixels of pycocotools, and every fault named."""

import io
import json
import tracemalloc
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco
import pytest
from conftest import write_shard
from flat import cache_latents, example_settings
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from inpaint_data import MaskMixture, SampleError
from inpaint_data.masks.edits import Origin
from inpaint_data.pictures.examples import prepare
from inpaint_data.pictures.mask_files import MaskReading
from inpaint_data.pictures.object_masks import decode_rle, fill_polygon, find_objects
from inpaint_data.seeding import generator_for
from inpaint_data.shards.reading import Fault, Sample

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SIDES = st.integers(1, 60)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


PICTURE = png(np.full((32, 48, 3), 90, np.uint8))


def band(left: int, right: int) -> np.ndarray:
    mask = np.zeros((32, 48), np.uint8)
    mask[:, left:right] = 255
    return mask


def json_of(*annotations: dict[str, Any]) -> bytes:
    return json.dumps({"image": {"width": 48}, "annotations": annotations}).encode()


def made(members: dict[str, bytes], size: tuple[int, int] = (32, 48)) -> list[np.ndarray]:
    return [make() > 127 for make in find_objects(members, MaskReading(size))]


def prepared(members: dict[str, bytes], key: str = "dog", **change: Any) -> Any:
    chosen = example_settings(**{"resolution": 32, "masks": "object"} | change)
    (made,) = prepare(Sample("shards/0.tar", key, {"png": PICTURE} | members), chosen, [0, 1, 2])
    if isinstance(made, Fault):
        raise SampleError(made.reason)
    return made


@settings(max_examples=200, deadline=None)
@given(height=SIDES, width=SIDES, share=st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]), seed=st.integers(0, 9999))
def test_run_lengths_decode_to_the_pixels_of_pycocotools(height: int, width: int, share: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    packed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    packed["counts"] = packed["counts"].decode()
    columns = mask.T.ravel()
    ends = np.flatnonzero(np.diff(np.concatenate([[False], columns]).astype(np.int8)))
    runs = np.diff(np.concatenate([[0], ends, [columns.size]])).tolist()
    for rle in (packed, {"size": [height, width], "counts": runs}):
        decoded = decode_rle(json.loads(json.dumps(rle)), (height, width))
        assert np.array_equal(decoded, mask)
        assert np.array_equal(decoded, coco.decode(packed).astype(bool))
    assert coco.frPyObjects({"size": [height, width], "counts": runs}, height, width)["counts"] == (
        packed["counts"].encode()
    )


@settings(max_examples=300, deadline=None)
@given(
    size=st.tuples(SIDES, SIDES),
    corners=st.integers(3, 12),
    seed=st.integers(0, 9999),
    kind=st.sampled_from(["inside", "beyond", "whole", "half"]),
)
def test_polygons_fill_the_pixels_of_pycocotools(size: tuple[int, int], corners: int, seed: int, kind: str) -> None:
    """Self-crossing ones, those that the frame cuts, and those whose corners lie on pixels or between them."""
    rng = np.random.default_rng(seed)
    points = rng.random((corners, 2)) * (size[1], size[0])
    if kind == "beyond":
        points = points * 2 - (size[1] / 2, size[0] / 2)
    elif kind != "inside":
        points = np.round(points) + (0.5 if kind == "half" else 0)
    expected = coco.decode(coco.frPyObjects([points.ravel().tolist()], *size))[..., 0].astype(bool)
    assert np.array_equal(fill_polygon(points, size), expected)


@settings(max_examples=100, deadline=None)
@given(size=st.tuples(SIDES, SIDES), seed=st.integers(0, 9999))
def test_several_polygons_are_one_object_and_a_box_alone_is_its_box(size: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [(rng.random(8) * np.tile((size[1], size[0]), 4)).tolist() for _ in range(3)]
    left, top, wide, high = (rng.random(4) / 2 * (size[1], size[0], size[1], size[0])).tolist()
    members = {"json": json_of({"segmentation": parts}, {"segmentation": [], "bbox": [left, top, wide, high]})}
    polygons = coco.decode(coco.merge(coco.frPyObjects(parts, *size))).astype(bool)
    box = coco.decode(coco.frPyObjects(np.array([[left, top, wide, high]]), *size))[..., 0].astype(bool)
    if not polygons.any() and not box.any():
        with pytest.raises(SampleError, match="every object mask is empty"):
            made(members, size)
        return
    by_polygons, by_box = made(members, size)
    assert np.array_equal(by_polygons, polygons)
    assert np.array_equal(by_box, box)


def test_a_diagonal_and_a_triangle_are_what_pycocotools_wrote_once() -> None:
    assert np.array_equal(decode_rle({"size": [5, 5], "counts": "0150000000"}, (5, 5)), np.eye(5, dtype=bool))
    triangle = fill_polygon(np.array([[0, 0], [5, 0], [0, 5]], float), (5, 5))
    assert np.packbits(triangle, axis=1).ravel().tolist() == [240, 224, 192, 128, 0]


def test_mask_members_come_in_the_order_of_their_numbers_and_before_json() -> None:
    members = {
        "mask.10.png": png(band(10, 11)),
        "mask.2.png": png(band(2, 3)),
        "mask.png": png(band(0, 1)),
        "json": json_of({"bbox": [0, 0, 9, 9]}),
        "mask.01.jpg": jpeg(band(1, 2)),
        "masks.jpg": b"",
        "depth.png": b"",
    }
    assert [int(mask.any(0).argmax()) for mask in made(members)] == [0, 1, 2, 10]


def test_json_may_be_one_annotation_a_list_or_hold_a_list() -> None:
    one = {"bbox": [4, 0, 8, 32]}
    for content in (one, [one], {"annotations": [one, {"caption": "no shape"}], "caption": "a dog"}):
        (mask,) = made({"json": json.dumps(content).encode()})
        assert np.array_equal(mask, band(4, 12) > 0)


def test_each_variant_draws_one_of_the_samples_objects_and_records_it() -> None:
    """The picture is 48 wide and cut to the middle 32: an object at column 12 is found at column 4."""
    members = {f"mask.{i}.png": png(band(12 + 4 * i, 16 + 4 * i)) for i in range(4)}
    found: Counter[int] = Counter()
    for i in range(100):
        example = prepared(members, str(i))
        assert example.origins == (Origin("object"),) * 3
        assert all(mask.sum() == 4 * 32 for mask in example.masks)
        found.update(int(mask[0].argmax()) for mask in example.masks)
        assert np.array_equal(example.masks, prepared(members, str(i)).masks)
    assert set(found) == {4, 8, 12, 16}
    assert all(abs(count - 75) < 4 * (300 * 0.25 * 0.75) ** 0.5 for count in found.values())


def test_objects_that_the_crop_cuts_away_are_passed_over_while_others_are_left() -> None:
    members = {"mask.0.png": png(band(0, 8)), "mask.1.png": png(band(20, 24)), "mask.2.png": png(band(0, 0))}
    for i in range(20):
        assert {int(mask[0].argmax()) for mask in prepared(members, str(i)).masks} == {12}


def test_a_mixture_draws_objects_beside_generators() -> None:
    mixture = MaskMixture({"object": 1.0, "boxes": 1.0}, invert=0.5)
    names: Counter[str] = Counter()
    for i in range(200):
        example = prepared({"mask.png": png(band(16, 32))}, str(i), masks="mixture", mixture=mixture)
        names.update(map(str, example.origins))
    assert set(names) == {"object", "object+inverted", "boxes", "boxes+inverted"}
    assert all(abs(count - 150) < 4 * (600 * 0.25 * 0.75) ** 0.5 for count in names.values())


RLE = {"size": [32, 48], "counts": [100, 1436]}
SQUARE = [0, 0, 9, 0, 9, 9]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        (
            {"txt": b"a dog"},
            r"no object mask: the sample has png, txt; add mask.png or mask.0.png, or annotations of COCO",
        ),
        ({"json": b"{}"}, "no object mask"),
        ({"json": b"7"}, "no object mask"),
        ({"json": json_of({"segmentation": []})}, "no object mask"),
        ({"json": b'{"bbox": [1'}, "json: it cannot be read .* save it as JSON"),
        ({"json": b"\xff\xfe\xfd"}, "json: it cannot be read"),
        ({"json": b"[" * 100_000}, "json: it cannot be read"),
        ({"mask.0.png": b"nonsense"}, r"mask\.0\.png: image is none of AVIF"),
        ({"mask.0.png": png(band(0, 9)[:, :40])}, r"mask\.0\.png is 32 high and 40 wide, but image is 32 high and 48"),
        ({"mask.png": png(band(0, 0))}, "every object mask is empty; give objects that show"),
        ({"mask.png": png(band(0, 8))}, "every object mask is empty, in itself or where the image is cut"),
        ({"json": json_of({"segmentation": {"size": [32, 48], "counts": [1536]}})}, "every object mask is empty"),
        (
            {"json": json_of({"segmentation": RLE | {"size": [48, 32]}})},
            "json: segmentation of annotation 0: it is 48 high and 32 wide, but image is 32 high and 48 wide",
        ),
        ({"json": json_of({"segmentation": {"counts": [1]}})}, r"its size is None and not \[height, width\]"),
        ({"json": json_of({"segmentation": RLE | {"size": [32.0, 48]}})}, "its size is"),
        ({"json": json_of({"segmentation": {"size": [32, 48]}})}, "its counts are not run lengths"),
        ({"json": json_of({"segmentation": RLE | {"counts": [-100, 1636]}})}, "its counts are not run lengths"),
        (
            {"json": json_of({"segmentation": RLE | {"counts": [100, 1437]}})},
            "counts cover 1537 pixels instead of 1536",
        ),
        ({"json": json_of({"segmentation": RLE | {"counts": "0 0"}})}, "its counts are not a COCO string"),
        ({"json": json_of({"segmentation": RLE | {"counts": "o" * 10_000}})}, "its counts are not a COCO string"),
        ({"json": json_of({"segmentation": RLE | {"counts": "o"}})}, "end in the middle of a run"),
        ({"json": json_of({"segmentation": "mask"})}, "neither an RLE with size and counts nor a list of polygons"),
        ({"json": json_of({"segmentation": SQUARE})}, "a polygon is not a list of numbers"),
        ({"json": json_of({"segmentation": [SQUARE[:4]]})}, "a polygon has 4 numbers; give x and y of three corners"),
        ({"json": json_of({"segmentation": [[*SQUARE, 1]]})}, "a polygon has 7 numbers"),
        ({"json": json_of({"segmentation": [[*SQUARE, 1, float("nan")]]})}, "a polygon is not a list of numbers"),
        ({"json": json_of({"segmentation": [[*SQUARE, 1, 300]]})}, "a polygon lies far outside the image of 32x48"),
        ({"json": json_of({"bbox": [1, 2, 3]})}, r"json: bbox of annotation 0: the box is \[1, 2, 3\] and not"),
        ({"json": json_of({"bbox": [1, 2, -3, 4]})}, "the box is"),
        ({"json": json_of({"bbox": [1, 2, 3, 4000]})}, "the box lies far outside the image"),
    ],
)
def test_a_sample_whose_objects_cannot_be_used_says_why(members: dict[str, bytes], reason: str) -> None:
    with pytest.raises(SampleError, match=reason):
        prepared(members)


@settings(max_examples=300, deadline=None)
@given(counts=st.text(st.characters(min_codepoint=30, max_codepoint=130), max_size=12), seed=st.integers(0, 99))
def test_any_string_of_counts_decodes_or_is_a_sample_error(counts: str, seed: int) -> None:
    rng = generator_for(seed, "", 0, "size")
    size = (int(rng.integers(1, 9)), int(rng.integers(1, 9)))
    with suppress(SampleError):
        assert decode_rle({"size": list(size), "counts": counts}, size).shape == size


def test_a_job_caches_what_has_objects_and_quarantines_the_rest(tmp_path: Path) -> None:
    members = {"png": png(np.full((32, 32, 3), 90, np.uint8))}
    samples = {
        "fine": members | {"mask.0.png": png(band(0, 9)[:, :32]), "mask.1.png": png(band(9, 20)[:, :32])},
        "coco": members | {"json": json.dumps({"segmentation": {"size": [32, 32], "counts": [24, 1000]}}).encode()},
        "other": members | {"json": json.dumps({"segmentation": RLE}).encode()},
        "empty": members | {"mask.png": png(band(0, 0)[:, :32])},
        "bare": members,
    }
    write_shard(tmp_path / "shards" / "0.tar", samples)
    cache_latents(
        str(tmp_path / "shards"), str(tmp_path / "cache"), resolution=32, masks="object", variants=2, device="cpu",
        max_bad_fraction=1.0,
    )  # fmt: skip
    sidecar = json.loads((tmp_path / "cache" / "0.json").read_text())
    assert sidecar["keys"] == ["fine", "coco"]
    assert [each["key"] for each in sidecar["quarantined"]] == ["other", "empty", "bare"]


def test_a_polygon_that_is_traced_in_many_pieces_is_that_of_pycocotools() -> None:
    points = np.random.default_rng(0).uniform(-100, 500, (600, 2))  # a million steps
    expected = coco.decode(coco.frPyObjects([points.ravel().tolist()], 400, 400))[..., 0]
    assert np.array_equal(fill_polygon(points, (400, 400)), expected.astype(bool))


ZIGZAG = [0.0, 0.0, 47.0, 31.0] * 100_000


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        ({"segmentation": [ZIGZAG]}, "200000 corners"),
        ({"segmentation": [[1, 1, 1, 1, 1, 1]] * 10_000}, "10000 polygons"),
        ({"segmentation": {"size": [32, 48], "counts": [10**4299] * 20}}, "run lengths"),
        ({"segmentation": {"size": [32, 10**4299], "counts": [1]}}, "but image is 32"),
        ({"segmentation": {"size": "x" * 10**6, "counts": [1]}}, "not .height, width."),
        ({"segmentation": {"size": [32, 48], "counts": "o" * 10**6}}, "not a COCO string"),
        ({"segmentation": [[10**4299] * 6]}, "not a list of numbers"),
        ({"bbox": [1] * 10**5}, "the box is"),
        ({"bbox": [0, 0, float("nan"), 1]}, "not a list of numbers"),
    ],
    ids=str.split("corners polygons runs size text packed numbers box nan"),
)
def test_annotations_that_ask_for_too_much_are_refused_in_a_line(annotation: dict[str, Any], reason: str) -> None:
    tracemalloc.start()
    with pytest.raises(SampleError, match=reason) as caught:
        prepared({"json": json_of(annotation)})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(str(caught.value)) < 400
    assert peak < 2**27


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"[" * 10**6, "cannot be read"),
        (b'{"bbox": [' + b"9" * 5000 + b"]}", "cannot be read"),
        (json.dumps([{"bbox": [0, 0, 1, 1]}] * 5000).encode(), "5000 objects"),
        (b'{"annotations": [' + b" " * 2**24 + b"]}", "above the limit of 16777216"),
    ],
    ids=str.split("nested digits objects bytes"),
)
def test_a_json_that_asks_for_too_much_is_refused_in_a_line(data: bytes, reason: str) -> None:
    with pytest.raises(SampleError, match=reason) as caught:
        prepared({"json": data})
    assert len(str(caught.value)) < 400


def test_masks_may_have_numbers_of_any_length() -> None:
    names = ["mask.png", "mask.0.png", "mask.02.png", "mask.10.png", f"mask.{'9' * 5000}.png"]
    columns = {name: band(place, place + 1) for place, name in enumerate(names)}
    masks = made({name: png(columns[name]) for name in reversed(names)})
    assert [int(np.flatnonzero(mask[0])[0]) for mask in masks] == [0, 1, 2, 3, 4]


def test_one_unusable_object_loses_no_sample_whatever_is_drawn() -> None:
    good = {"segmentation": [[20, 8, 30, 8, 30, 20, 20, 20]]}
    bad: list[Any] = [
        {"segmentation": [[26, 31, 50, 31]], "bbox": [26, 31, 24, 0]},
        {"segmentation": {"size": [9, 9], "counts": [81]}},
        {"segmentation": "mask"},
        {"bbox": [1, 2]},
    ]
    alone = prepared({"json": json_of(good)}).masks
    for number in range(10):
        found = prepared({"json": json_of(*bad, good)}, str(number)).masks
        assert np.array_equal(found, alone)
    with_file = {"mask.0.png": b"nonsense", "mask.1.png": png(band(20, 24))}
    assert {int(prepared(with_file, str(number)).masks.sum()) for number in range(10)} == {3 * 4 * 32}
    around = prepared({"json": json_of(*bad, good)}, crop="mask", resolution=16)
    assert around.masks.any()


def test_a_polygon_without_three_corners_is_passed_over_beside_others() -> None:
    square = [8, 8, 40, 8, 40, 30, 8, 30]
    (stray,) = made({"json": json_of({"segmentation": [square, [30, 30], [1, 1, 9, 1], []]})})
    (alone,) = made({"json": json_of({"segmentation": [square]})})
    assert np.array_equal(stray, alone)


def test_no_draw_decides_whether_a_sample_without_a_usable_object_is_lost() -> None:
    mixture = MaskMixture({"object": 1.0, "boxes": 1.0})
    for content, reason in (
        (json_of({"bbox": [1]}, {"segmentation": "mask"}), "json: bbox of annotation 0: the box is"),
        (json_of({"segmentation": {"size": [32, 48], "counts": [1536]}}), "every object mask is empty"),
    ):
        for key in "abcdef":
            with pytest.raises(SampleError, match=reason):
                prepared({"json": content}, key, masks="mixture", mixture=mixture)


# ---- other tools' annotations


@pytest.mark.parametrize(
    "content",
    [
        {"shapes": [{"shape_type": "linestrip", "points": [[n % 48, n % 32] for n in range(500_000)]}]},
        {"shapes": [{"shape_type": "circle", "points": [[1, 1], [2, 2]]}] * 200_000},
        {"regions": [{"shape_attributes": {"name": "circle", "cx": 1, "cy": 1, "r": 2}}] * 200_000},
    ],
)
def test_what_a_strangers_shapes_ask_for_is_bounded(content: Any) -> None:
    data = json.dumps(content).encode()
    tracemalloc.start()
    with pytest.raises(SampleError, match=r"above the limit of 4096|with 500000 points is not read"):
        made({"json": data})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * len(data)


def labelme(*shapes: dict[str, Any], size: tuple[int, int] = (32, 48)) -> bytes:
    return json.dumps({"shapes": shapes, "imageHeight": size[0], "imageWidth": size[1], "imagePath": "a.jpg"}).encode()


def shape_of(kind: str, *points: list[float], **fields: Any) -> dict[str, Any]:
    return {"label": "cat", "shape_type": kind, "points": list(points), "group_id": None} | fields


BOX = np.zeros((32, 48), bool)
BOX[8:20, 10:30] = True
BOX_POINTS = ([10, 8], [30, 8], [30, 20], [10, 20])


def test_labelmes_shapes_are_objects() -> None:
    rows, columns = np.mgrid[:32, :48]
    disc = np.hypot(columns + 0.5 - 24, rows + 0.5 - 16) < 10
    line = (abs(rows + 0.5 - 16) < 5) & (columns >= 5) & (columns < 40)
    content = labelme(
        shape_of("polygon", *BOX_POINTS),
        {"label": "old", "points": list(BOX_POINTS)},  # of the first versions, which had polygons alone
        shape_of("rectangle", [30, 20], [10, 8]),
        shape_of("circle", [24, 16], [24, 26]),
        shape_of("linestrip", [5, 16], [20, 16], [40, 16]),
        shape_of("point", [3, 3]),
        shape_of("polygon", [3, 3], [5, 5]),
    )
    polygon, old, rectangle, circle, strip, point, short = find_objects({"json": content}, MaskReading((32, 48)))
    assert all(np.array_equal(make() > 127, BOX) for make in (polygon, old, rectangle))
    assert ((circle() > 127) != disc).mean() < 0.03
    assert ((strip() > 127) != line).mean() < 0.03
    with pytest.raises(SampleError, match="annotation 5: its shape 'point' with 1 points is not read; draw a polygon"):
        point()
    with pytest.raises(SampleError, match="annotation 6: a polygon has 4 numbers"):
        short()


def test_labelmes_shapes_of_one_group_are_one_object_and_of_another_image_none() -> None:
    left, right = ([4, 4], [9, 4], [9, 9], [4, 9]), ([20, 4], [29, 4], [29, 9], [20, 9])
    grouped = labelme(*(shape_of("polygon", *part, group_id=1) for part in (left, right)), shape_of("polygon", *left))
    assert [int(mask.sum()) for mask in made({"json": grouped})] == [25 + 45, 25]
    with pytest.raises(SampleError, match=r"drawn on an image of \(64, 64\), but this one is 32 high and 48 wide"):
        made({"json": labelme(shape_of("polygon", *left), size=(64, 64))})


def test_vias_regions_are_objects_in_each_of_its_forms() -> None:
    xs, ys = [x for x, _ in BOX_POINTS], [y for _, y in BOX_POINTS]
    polygon = {"shape_attributes": {"name": "polygon", "all_points_x": xs, "all_points_y": ys}, "region_attributes": {}}
    rect = {"shape_attributes": {"name": "rect", "x": 10, "y": 8, "width": 20, "height": 12}}
    circle = {"shape_attributes": {"name": "circle", "cx": 24, "cy": 16, "r": 10}}
    upright = {"shape_attributes": {"name": "ellipse", "cx": 24, "cy": 16, "rx": 12, "ry": 4, "theta": np.pi / 2}}
    regions = [polygon, rect, circle, upright]
    file = {"filename": "dog.jpg", "size": 1, "regions": regions}
    old = file | {"regions": {str(number): region for number, region in enumerate(regions)}}
    other = {"filename": "cat.jpg", "size": 1, "regions": [rect]}
    for content in (
        file,
        {"dog.jpg1": file},
        {"dog.jpg1": old},
        {"cat.jpg1": other, "dog.jpg1": file},
        {"_via_settings": {}, "_via_img_metadata": {"dog.jpg1": old, "cat.jpg1": other}},
    ):
        found = [
            make() > 127
            for make in find_objects({"json": json.dumps(content).encode()}, MaskReading((32, 48)), key="a/dog")
        ]
        assert all(np.array_equal(mask, BOX) for mask in found[:2])
        assert abs(found[2].sum() - np.pi * 100) < 15
        rows, columns = np.nonzero(found[3])
        assert (np.ptp(rows), np.ptp(columns)) == (23, 7)
    for key in ("fish", "dog"):
        twice = {"a": file, "b": file} if key == "dog" else {"a": file, "b": other}
        with pytest.raises(SampleError, match=f"regions of several files, and . of them is {key}; keep one"):
            find_objects({"json": json.dumps(twice).encode()}, MaskReading((32, 48)), key=key)


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ({"xml": b"<annotation/>"}, r"annotations in xml \(Pascal VOC, CVAT\) are not read; add mask.png"),
        ({"txt": b"0 0.5 0.5 0.25 0.25\n1 0.1 0.1 0.2 0.2\n"}, "YOLO's labels in txt are not read"),
        ({"json": json.dumps({"size": {}, "objects": [{"geometryType": "polygon"}]}).encode()}, "Supervisely's"),
    ],
)
def test_annotations_that_are_not_read_are_known_by_name(members: dict[str, bytes], named: str) -> None:
    with pytest.raises(SampleError, match=named):
        prepared(members)


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-99, 10**12), st.floats(), st.sampled_from(["polygon", "rect"])
)
NAMES = st.sampled_from(
    ["shapes", "points", "shape_type", "regions", "shape_attributes", "name", "x", "y", "width", "cx", "all_points_x",
     "all_points_y", "group_id", "label", "imageHeight", "annotations", "bbox", "_via_img_metadata", "filename",
     "image", "segmentation", "size"]
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        SCALARS,
        lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(NAMES, inner, max_size=4)),
        max_leaves=20,
    )
)
def test_any_json_is_read_or_a_sample_error(content: Any) -> None:
    with suppress(SampleError):
        for make in find_objects({"json": json.dumps(content).encode()}, MaskReading((8, 8))):
            with suppress(SampleError):
                assert make().shape == (8, 8)
