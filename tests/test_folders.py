"""Folders as people have them: what belongs together is found, and a mask is never taken for a photograph."""

import json
import os
import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from inpaint_data.errors import UsageError
from inpaint_data.folders.layouts import LAYOUTS
from inpaint_data.folders.pairing import Pairing, pair_folder
from inpaint_data.pictures.annotations import annotations_of

Files = dict[str, bytes]


def put(folder: Path, files: "str | Files") -> Path:
    """Files by their names, separated by spaces where they are empty."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in (dict.fromkeys(files.split(), b"") if isinstance(files, str) else files).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def samples_of(pairing: Pairing, folder: Path) -> dict[str, dict[str, str]]:
    """Key -> member -> the file it is from, or its text."""
    return {
        key: {
            name: member.decode() if isinstance(member, bytes) else os.path.relpath(member, folder)
            for name, member in members.items()
        }
        for key, members in pairing.samples.items()
    }


def reasons_of(pairing: Pairing) -> dict[str, str]:
    return {left.name: left.reason for left in pairing.left_out}


MASKS = {  # layout -> files, and what pairs: image -> member -> file
    "beside": [
        ("a.jpg a_mask.png b.jpg", {"a": {"mask.png": "a_mask.png"}}),
        ("a.jpg a.mask.png", {"a": {"mask.png": "a.mask.png"}}),
        ("a.jpg a_mask.jpg b.png b-mask.webp", {"a": {"mask.jpg": "a_mask.jpg"}, "b": {"mask.webp": "b-mask.webp"}}),
        ("A.JPG A_MASK.PNG A.TXT", {"A": {"mask.png": "A_MASK.PNG", "txt": "A.TXT"}}),
        ("a1.jpg a1Mask.png", {"a1": {"mask.png": "a1Mask.png"}}),
        ("a.jpg a_mask_0.png a_mask_1.png", {"a": {"mask.0.png": "a_mask_0.png", "mask.1.png": "a_mask_1.png"}}),
        ("v.2.jpg v.2.mask.3.png v.2_mask.png", {"v_2": {"mask.3.png": "v.2.mask.3.png", "mask.png": "v.2_mask.png"}}),
        ("1/image.jpg 1/mask.png 2/image.png 2/mask.png", {
            "1/image": {"mask.png": "1/mask.png"}, "2/image": {"mask.png": "2/mask.png"}
        }),
        ("image_7.jpg mask_7.png", {"image_7": {"mask.png": "mask_7.png"}}),
        ("x/a.jpg y/a.jpg y/a_mask.png", {"y/a": {"mask.png": "y/a_mask.png"}}),
        ("a.jpg a_target.webp targets.jpg", {"a": {"target.webp": "a_target.webp"}}),
        ("a.jpg a.jpg.txt", {"a": {"txt": "a.jpg.txt"}}),
    ],
    "folders": [
        ("images/a.jpg masks/a.png", {"images/a": {"mask.png": "masks/a.png"}}),
        ("a.jpg mask/a.webp", {"a": {"mask.webp": "mask/a.webp"}}),
        ("img/a.jpg Masks/a_mask.PNG", {"img/a": {"mask.png": "Masks/a_mask.PNG"}}),
        ("train/images/a.jpg train/masks/a.png val/images/a.jpg val/masks/a.png", {
            "train/images/a": {"mask.png": "train/masks/a.png"}, "val/images/a": {"mask.png": "val/masks/a.png"}
        }),
        ("images/train/a.jpg masks/train/a.png images/val/a.jpg masks/val/a.png", {
            "images/train/a": {"mask.png": "masks/train/a.png"}, "images/val/a": {"mask.png": "masks/val/a.png"}
        }),
        ("train/a_01.jpg train_masks/a_01_mask.gif", {"train/a_01": {"mask.gif": "train_masks/a_01_mask.gif"}}),
        ("images/x/a.jpg images/y/b.jpg masks/a.png masks/b.png", {
            "images/x/a": {"mask.png": "masks/a.png"}, "images/y/b": {"mask.png": "masks/b.png"}
        }),
        ("images/train/a.jpg annotations/train/a.png", {"images/train/a": {"mask.png": "annotations/train/a.png"}}),
        ("JPEGImages/a.jpg SegmentationClass/a.png", {"JPEGImages/a": {"mask.png": "SegmentationClass/a.png"}}),
        ("images/image_1.jpg masks/mask_1.png", {"images/image_1": {"mask.png": "masks/mask_1.png"}}),
        ("images/a.jpg masks/a.jpg.png", {"images/a": {"mask.png": "masks/a.jpg.png"}}),
        ("images/a.jpg masks/a/0.png masks/a/1.png", {
            "images/a": {"mask.0.png": "masks/a/0.png", "mask.1.png": "masks/a/1.png"}
        }),
        ("images/a.jpg masks/a_0.png masks/a_1.png", {
            "images/a": {"mask.0.png": "masks/a_0.png", "mask.1.png": "masks/a_1.png"}
        }),
        ("images/a.jpg masks/a.png targets/a.jpg captions/a.txt", {
            "images/a": {"mask.png": "masks/a.png", "target.jpg": "targets/a.jpg", "txt": "captions/a.txt"}
        }),
    ],
    "kohya": [
        ("10_cat/a.png 10_cat/a.caption mask/a.png", {
            "10_cat/a": {"mask.png": "mask/a.png", "txt": "10_cat/a.caption"}
        }),
        ("img/10_cat/a.png mask/10_cat/a.png", {"img/10_cat/a": {"mask.png": "mask/10_cat/a.png"}}),
        ("10_cat/a.png 10_cat_mask/a.png", {"10_cat/a": {"mask.png": "10_cat_mask/a.png"}}),
        ("10_cat/a.png conditioning/a.png", {"10_cat/a": {"mask.png": "conditioning/a.png"}}),
    ],
    "onetrainer": [
        ("a.jpg a-masklabel.png a-condlabel.png a.txt", {
            "a": {"mask.png": "a-masklabel.png", "control.png": "a-condlabel.png", "txt": "a.txt"}
        }),
    ],
    "simpletuner": [
        ("a.png a.txt conditioning_data/a.png", {"a": {"mask.png": "conditioning_data/a.png", "txt": "a.txt"}}),
        ("x/a.png masks/x/a.png", {"x/a": {"mask.png": "masks/x/a.png"}}),
    ],
    "lama": [
        ("a.png a_mask000.png", {"a": {"mask.png": "a_mask000.png"}}),
        ("a_crop000.png a_crop000_mask000.png", {"a_crop000": {"mask.png": "a_crop000_mask000.png"}}),
        ("a.png a_mask000.png a_mask001.png", {"a": {"mask.0.png": "a_mask000.png", "mask.1.png": "a_mask001.png"}}),
    ],
}  # fmt: skip
CASES = [(layout, files, expected) for layout, rows in MASKS.items() for files, expected in rows]


@pytest.mark.parametrize(
    ("layout", "files", "expected"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_belongs_to_an_image_is_found(
    layout: str, files: str, expected: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    put(tmp_path, files)
    given = pair_folder(tmp_path, layout)
    assert given.layout == layout
    is_asked = "conditioning" in files
    for pairing in [given] if is_asked else [given, pair_folder(tmp_path)]:
        samples = samples_of(pairing, tmp_path)
        companions = {file for members in expected.values() for file in members.values()}
        assert pairing.left_out == []
        assert len(samples) == len(set(files.split()) - companions)  # all else are images
        for key, members in samples.items():
            _, *others = members.items()  # the image is the first
            assert dict(others) == expected.get(key, {})
    if not is_asked and layout not in ("beside", "simpletuner"):
        assert pair_folder(tmp_path).layout == layout


def test_every_layout_is_tested() -> None:
    assert {"auto", "imagefolder", "coco", *MASKS} == set(LAYOUTS)


def test_every_layout_is_in_the_docs() -> None:
    text = (Path(__file__).parents[1] / "docs" / "layouts.md").read_text("utf-8")
    for layout in LAYOUTS.keys() - {"auto"}:
        assert f"\n## {layout}\n```\n" in text


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ("images/0.jpg masks/a.png", r"masks/ looks like masks, but none .* \(masks/a.png\); name them after"),
        ("masks/a.png", "all pictures look like masks"),
        ("a_mask.png", "all pictures look like masks"),
        ("a.jpg a_mask.png masks/a.png", "two masks, .*--masks_from masks or --layout beside"),
        (
            "JPEGImages/a.jpg SegmentationClass/a.png SegmentationObject/a.png",
            "--masks_from SegmentationObject or --masks_from SegmentationClass",
        ),
        ("input/a.jpg gt/a.png", "gt/ may hold masks or targets .*--masks_from gt; targets: --targets_from gt"),
        ("a.jpg conditioning_data/a.png", "--masks_from conditioning_data; conditioning pictures: --layout folders"),
        ("a.jpg target/a.png a_target.png", "two targets, .*--targets_from target or --layout beside"),
        ("", "has no jpg"),
        ("README.txt", "has no jpg"),
        ("a.tar b.tar", "shards; it is packed already: give it to cache --shards"),
        (".hidden/a.jpg @eaDir/a.jpg", "has no jpg"),
    ],
    ids=lambda value: value if " " not in value else "",
)
def test_a_folder_with_two_readings_or_none_is_refused_in_one_line(files: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        pair_folder(put(tmp_path, files))
    assert "\n" not in str(caught.value)


def test_what_a_refusal_asks_for_decides(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg a_mask.png masks/a.png gt/a.png conditioning/a.png")
    pairing = pair_folder(tmp_path, "folders", masks_from="masks", targets_from="gt")
    assert samples_of(pairing, tmp_path) == {
        "a": {"jpg": "a.jpg", "control.png": "conditioning/a.png", "mask.png": "masks/a.png", "target.png": "gt/a.png"}
    }
    assert reasons_of(pairing) == {"a_mask.png": "it looks like a mask but lies outside --masks_from"}
    pairing = pair_folder(tmp_path, "beside")
    assert samples_of(pairing, tmp_path) == {"a": {"jpg": "a.jpg", "mask.png": "a_mask.png"}}
    assert set(reasons_of(pairing)) == {"masks/a.png", "gt/a.png", "conditioning/a.png"}


def test_masks_may_lie_outside_the_folder(tmp_path: Path) -> None:
    put(tmp_path, "photos/x/a.jpg photos/b.jpg elsewhere/x/a.png elsewhere/b_mask.png elsewhere/c.png")
    pairing = pair_folder(tmp_path / "photos", masks_from=str(tmp_path / "elsewhere"))
    assert samples_of(pairing, tmp_path / "photos") == {
        "b": {"jpg": "b.jpg", "mask.png": "../elsewhere/b_mask.png"},
        "x/a": {"jpg": "x/a.jpg", "mask.png": "../elsewhere/x/a.png"},
    }
    assert reasons_of(pairing) == {f"{tmp_path}/elsewhere/c.png": "a mask without an image: no image of its name"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"masks_from": "nowhere"}, "masks_from: there is no folder nowhere"),
        ({"masks_from": "."}, "masks_from: . holds the images too"),
        ({"masks_from": "empty"}, "masks_from: .*empty has no jpg"),
        ({"targets_from": "others"}, "--targets_from others looks like targets, but none of its pictures"),
        ({"layout": "foldrs"}, "there is no 'foldrs'; .*did you mean folders"),
        ({"captions_from": "list.csv"}, "captions_from: there is no file list.csv"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be_are_refused(options: dict[str, str], says: str, tmp_path: Path) -> None:
    put(tmp_path, "a.jpg others/b.jpg empty/readme.md")
    with pytest.raises(UsageError, match=says):
        pair_folder(tmp_path, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "name", ["a_mask", "a.mask", "a-masklabel", "a_mask000", "a mask", "mask_a", "masks/a", "_mask"]
)
def test_a_mask_is_no_photograph_in_any_layout(name: str, layout: str, tmp_path: Path) -> None:
    put(tmp_path, {"a.jpg": b"", f"{name}.png": b"", "b.jpg": b""})
    try:
        pairing = pair_folder(tmp_path, layout)
    except UsageError:
        return
    assert set(pairing.samples) == {"a", "b"}
    paired = [str(member) for members in pairing.samples.values() for member in members.values()]
    assert (str(tmp_path / f"{name}.png") in paired) != (f"{name}.png" in reasons_of(pairing))


def test_what_cannot_be_paired_is_left_out_with_its_reason(tmp_path: Path) -> None:
    files = "a.jpg x/c.jpg y/c.jpg d.jpg d_mask.png d.mask.png masks/a.png masks/c.png masks/e.png f_target.jpg a.npz"
    pairing = pair_folder(put(tmp_path, f"{files} labels/a.txt README.txt LICENSE dead_mask.png"))
    assert set(pairing.samples) == {"a", "x/c", "y/c"}
    two = "d.mask.png and d_mask.png would both be its mask; rename or remove one"
    alone = "a mask without an image: no image of its name"
    assert reasons_of(pairing) == {
        **dict.fromkeys(["d.jpg", "d_mask.png", "d.mask.png"], two),
        **dict.fromkeys(["masks/e.png", "dead_mask.png"], alone),
        "masks/c.png": "it may belong to x/c.jpg or y/c.jpg; put it beside its image, such as x/c_mask.png",
        "f_target.jpg": "a target without an image: no image of its name",
        "labels/a.txt": "a text in a folder of labels, as YOLO has them: not a caption; convert labels to COCO",
        "README.txt": "no image of its name",
        "LICENSE": "neither an image nor a caption nor json",
        "a.npz": "neither an image nor a caption nor json",
    }
    bad = {left.name for left in pairing.left_out if left.is_bad}
    assert bad == set(reasons_of(pairing)) - {"labels/a.txt", "README.txt", "LICENSE", "a.npz"}


def test_the_systems_own_files_are_passed_over(tmp_path: Path) -> None:
    files = "a.jpg @eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg .thumbnails/a.jpg __MACOSX/._a.jpg x/Thumbs.db .DS_Store"
    pairing = pair_folder(put(tmp_path, f"{files} #recycle/b.jpg $RECYCLE.BIN/c.jpg ._a.jpg"))
    assert samples_of(pairing, tmp_path) == {"a": {"jpg": "a.jpg"}}
    assert pairing.left_out == []
    assert len(pairing.passed_over) == 8


def test_linked_folders_are_read_once_and_loops_end(tmp_path: Path) -> None:
    put(tmp_path, "photos/x/a.jpg elsewhere/b.jpg")
    root = tmp_path / "photos"
    for link, target in [("loop", "."), ("x/up", ".."), ("again", "x"), ("far", "../elsewhere"), ("y.jpg", "x/a.jpg")]:
        (root / link).symlink_to(target)
    (root / "gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(root / "pipe.jpg")
    pairing = pair_folder(root)
    assert samples_of(pairing, root) == {
        "far/b": {"jpg": "far/b.jpg"},
        "x/a": {"jpg": "x/a.jpg"},
    }
    again = "a link to a folder that is read already"
    assert reasons_of(pairing) == {
        **dict.fromkeys(["again/", "loop/", "x/up/"], again),
        "y.jpg": "the same file as x/a.jpg",
        "gone.jpg": "a link to nothing",
        "pipe.jpg": "neither a file nor a folder",
    }


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_in_either_unicode_form_are_one(form: Any, tmp_path: Path) -> None:
    other = "NFD" if form == "NFC" else "NFC"
    names = [
        (form, "é.jpg"),
        (other, "é_mask.png"),
        (other, "é.txt"),
        (form, "ü/É.webp"),
        (other, "ü/É.txt"),
    ]
    pairing = pair_folder(put(tmp_path, {unicodedata.normalize(how, name): b"" for how, name in names}))
    assert {key: sorted(members) for key, members in pairing.samples.items()} == {
        unicodedata.normalize("NFC", "ü/É"): ["txt", "webp"],
        unicodedata.normalize("NFC", "é"): ["jpg", "mask.png", "txt"],
    }
    put(tmp_path, {unicodedata.normalize(other, "é.jpg"): b""})
    assert len(pair_folder(tmp_path).samples) == 1


METADATA = rb"""{"file_name": "a.jpg", "text": "a cat", "mask_file_name": "m/1.png", "width": 3}
{"file_name": "sub\\b.jpg", "text": "a dog", "target_file_name": "t.png", "conditioning_image_file_name": "c.png"}
{"file_name": "gone.jpg", "text": "x"}
{"file_name": "../../etc/passwd.jpg", "text": "x"}
not json

{"file_name": "d.jpg", "mask_file_name": "gone.png"}
{"file_name": "e.jpg", "text": "from the table"}
"""


def test_a_metadata_jsonl_gives_captions_and_masks_and_names_what_is_missing(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg m/1.png sub/b.jpg t.png c.png d.jpg e.jpg")
    pairing = pair_folder(put(tmp_path, {"metadata.jsonl": METADATA, "e.txt": b"its own"}))
    assert pairing.layout == "imagefolder"
    assert samples_of(pairing, tmp_path) == {
        "a": {"jpg": "a.jpg", "mask.png": "m/1.png", "txt": "a cat"},
        "e": {"jpg": "e.jpg", "txt": "e.txt"},
        "sub/b": {"jpg": "sub/b.jpg", "target.png": "t.png", "control.png": "c.png", "txt": "a dog"},
    }
    assert reasons_of(pairing) == {
        "metadata.jsonl, line 3: gone.jpg": "there is no such image",
        "metadata.jsonl, line 4: ../../etc/passwd.jpg": "there is no such image",
        "metadata.jsonl, line 5": "a line that is not a json object",
        "metadata.jsonl, line 7: gone.png": "a mask that is not there",
        "d.jpg": "its mask is not there, metadata.jsonl, line 7",
        "metadata.jsonl, line 8": "a second caption: the first counts; .txt goes before .caption, and both before a "
        "table",
    }
    assert pairing.notes == ["metadata.jsonl: these columns are not packed: width"]


@pytest.mark.parametrize(
    ("name", "table", "captions_from"),
    [
        ("metadata.csv", '\ufefffile_name,text\na.jpg,"a cat, sitting"\n', None),
        ("metadata.csv", 'file_name;text\r\na.jpg;"a cat, sitting"\r\n', None),
        ("metadata.csv", 'file_name,words\na.jpg,"a cat, sitting"\n', None),
        ("metadata.csv", 'file_name,de,en\na.jpg,eine Katze sitzt,"a cat, sitting"\n', "en"),
        ("captions.csv", 'image,description\na.jpg,"a cat, sitting"\n', "captions.csv"),
        ("captions.jsonl", '{"image_path": "a.jpg", "caption": "a cat, sitting"}\n', "captions.jsonl"),
        ("meta_cap.json", '{"a": {"caption": "a cat", "tags": "sitting"}}', None),
        ("captions.json", '{"a.jpg": "a cat, sitting"}', None),
        ("list.json", '[{"file_name": "a.jpg", "caption": "a cat, sitting"}]', "list.json"),
        ("a.json", '{"key": "a", "caption": "a cat, sitting"}', None),
    ],
)
def test_captions_come_from_the_tables_of_other_tools(
    name: str, table: str, captions_from: str | None, tmp_path: Path
) -> None:
    pairing = pair_folder(put(tmp_path, {"a.jpg": b"", name: table.encode()}), captions_from=captions_from)
    assert pairing.samples["a"]["txt"] == b"a cat, sitting"
    assert pairing.left_out == []


@pytest.mark.parametrize(
    ("table", "captions_from", "says"),
    [
        (b"file_name,de,en\na.jpg,eine Katze,a cat\n", None, "de or en may be the captions; .*--captions_from de"),
        (b"file_name,text\na.jpg,a c\xe4t\n", None, "not UTF-8 at byte 24; save it as UTF-8"),
        (b"picture,text\na.jpg,a cat\n", None, "no column names the images; call one file_name"),
        (b"file_name,text\na.jpg,a cat\n", "txt", "has no column 'txt'; it has text"),
        (b'file_name,text\na.jpg,"' + b"x" * (2**24 + 1) + b'"\n', None, "line . is not csv"),
    ],
    ids=["two columns", "Latin-1", "no names", "no such column", "a field of 16 MB"],
)
def test_tables_that_cannot_be_read_are_refused(
    table: bytes, captions_from: str | None, says: str, tmp_path: Path
) -> None:
    put(tmp_path, {"a.jpg": b"", "metadata.csv": table})
    with pytest.raises(UsageError, match=rf"metadata\.csv:? .*{says}|metadata\.csv: {says}"):
        pair_folder(tmp_path, captions_from=captions_from)


def test_of_two_captions_the_first_is_taken_and_the_other_named(tmp_path: Path) -> None:
    put(
        tmp_path, {"a.jpg": b"", "a.txt": b"one", "a.caption": b"two", "b.jpg": b"", "b.txt": b"x", "b.caption": b"x\n"}
    )
    pairing = pair_folder(tmp_path)
    assert samples_of(pairing, tmp_path)["a"] == {"jpg": "a.jpg", "txt": "a.txt"}
    assert list(reasons_of(pairing)) == ["a.caption"]  # the other one says the same


def test_a_mask_that_a_table_names_for_no_image_is_left_out(tmp_path: Path) -> None:
    line = b'{"file_name": "gone.jpg", "mask_file_name": "x.png"}\n{"file_name": "a.jpg", "mask_file_name": "m/a.png"}'
    put(tmp_path, "a.jpg x.png m/a.png other/a.png")
    pairing = pair_folder(put(tmp_path, {"metadata.jsonl": line}))
    assert reasons_of(pairing)["x.png"] == "a mask without an image: there is no such image"
    assert samples_of(pairing, tmp_path)["a"] == {"jpg": "a.jpg", "mask.png": "m/a.png"}
    pairing = pair_folder(tmp_path, masks_from="m")  # which goes before any table
    assert samples_of(pairing, tmp_path)["a"] == {"jpg": "a.jpg", "mask.png": "m/a.png"}


def test_a_table_may_lie_outside_the_folder(tmp_path: Path) -> None:
    put(tmp_path, "photos/a.jpg photos/x/b.jfif")
    root = tmp_path / "photos"
    content = {"a": {"caption": "a cat"}, str(root / "x" / "b"): {"caption": "a dog"}}
    put(tmp_path, {"meta_cap.json": json.dumps(content).encode()})
    pairing = pair_folder(root, captions_from=str(tmp_path / "meta_cap.json"))
    assert samples_of(pairing, root) == {
        "a": {"jpg": "a.jpg", "txt": "a cat"},
        "x/b": {"jpg": "x/b.jfif", "txt": "a dog"},
    }


def test_several_masks_of_a_table_are_several_masks(tmp_path: Path) -> None:
    lines = "".join(f'{{"file_name": "a.jpg", "mask": "{name}.png"}}\n' for name in "xyx")
    pairing = pair_folder(put(tmp_path, {"a.jpg": b"", "x.png": b"", "y.png": b"", "metadata.jsonl": lines.encode()}))
    assert samples_of(pairing, tmp_path) == {"a": {"jpg": "a.jpg", "mask.0.png": "x.png", "mask.1.png": "y.png"}}


def coco(**extra: Any) -> dict[str, Any]:
    box = {"id": 5, "image_id": 1, "bbox": [1, 2, 3, 4], "category_id": 7}
    crowd = {"id": 6, "image_id": 1, "segmentation": {"counts": "04", "size": [2, 2]}, "iscrowd": 1, "category_id": 9}
    images = [{"id": number, "file_name": f"{name}.jpg"} for number, name in enumerate("abx", 1)]
    return {"images": images, "annotations": [box, crowd], "categories": [{"id": 7, "name": "cat"}], **extra}


def test_each_image_gets_its_annotations_of_coco(tmp_path: Path) -> None:
    captions = [{"id": number, "image_id": 1, "caption": f" a cat {number} "} for number in (1, 2)]
    files = {
        "annotations/captions_train2017.json": coco(annotations=captions),
        "annotations/instances_train2017.json": coco(),
        "annotations/person_keypoints_train2017.json": coco(),
    }
    images = dict.fromkeys(["train2017/a.jpg", "train2017/b.jpg"], b"")
    put(tmp_path, images | {name: json.dumps(content).encode() for name, content in files.items()})
    pairing = pair_folder(tmp_path)
    assert pairing.layout == "coco"
    box, crowd = coco()["annotations"]
    annotations = json.loads(bytes(pairing.samples["train2017/a"]["json"]))  # type: ignore[arg-type]
    assert annotations == [box | {"category_name": "cat"}, crowd]
    assert pairing.samples["train2017/a"]["txt"] == b"a cat 1"
    assert pairing.samples["train2017/b"]["json"] == b"[]"
    assert set(pairing.samples["train2017/b"]) == {"jpg", "json"}
    assert {f"{name}: x.jpg" for name in files} == set(reasons_of(pairing))
    assert pairing.notes == ["1 images have several captions in COCO's files; the first of each is packed"]


def test_files_of_coco_speak_of_the_images_beside_them(tmp_path: Path) -> None:
    train = coco()
    valid = coco(annotations=[{"id": 5, "image_id": 1, "bbox": [9, 9, 9, 9]}])
    files = {
        "train/_annotations.coco.json": json.dumps(train).encode(),
        "valid/_annotations.coco.json": json.dumps(valid).encode(),
    }
    put(tmp_path, files | dict.fromkeys(["train/a.jpg", "train/b.jpg", "valid/a.jpg"], b""))
    samples = samples_of(pair_folder(tmp_path), tmp_path)
    assert json.loads(samples["valid/a"]["json"]) == valid["annotations"]
    assert len(json.loads(samples["train/a"]["json"])) == 2
    assert samples["train/b"]["json"] == "[]"


@pytest.mark.parametrize(
    "content",
    [
        {"images": [], "annotations": []},
        {"images": [{"id": [], "file_name": "a.jpg"}], "annotations": [{"image_id": {}}, 3, {"image_id": 1}]},
        coco(categories={"7": "cat"}, annotations=["x"]),
    ],
)
def test_a_file_of_coco_that_says_nothing_is_named(content: Any, tmp_path: Path) -> None:
    put(tmp_path, {"cat.jpg": b"", "instances.json": json.dumps(content).encode(), "README.txt": b"CC0"})
    pairing = pair_folder(tmp_path)
    assert samples_of(pairing, tmp_path) == {"cat": {"jpg": "cat.jpg"}}
    assert reasons_of(pairing)["instances.json"] == "nothing in it belongs to an image here"
    assert "README.txt" in reasons_of(pairing)


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b"\xff", b"null", b"[1]", b'{"a": 1}'])
def test_json_of_any_kind_stops_nothing(data: bytes, tmp_path: Path) -> None:
    put(tmp_path, {"a.jpg": b"", "a.json": data, "other.json": data})
    pairing = pair_folder(tmp_path)
    assert samples_of(pairing, tmp_path) == {"a": {"jpg": "a.jpg", "json": "a.json"}}
    assert reasons_of(pairing) == {"other.json": "no image of its name"}


def test_repeats_of_kohya_are_said_and_not_packed(tmp_path: Path) -> None:
    pairing = pair_folder(put(tmp_path, "10_cat/a.png 1_dog/b.png 2024_trip/c.png"))
    assert list(pairing.samples) == ["10_cat/a", "1_dog/b", "2024_trip/c"]
    assert pairing.notes[0] == "repeats are not packed, each image is in the shards once: 10_cat"


UNSURE = (
    "a_mask (1) a(mask) a_mask_inv a_mask~1 a_mask.copy a_maskA amask a_masked masked_a a_seg a_matte a_alpha a.jpg "
    "A_Masked masked.a 3_mask_final"
)


@pytest.mark.parametrize("layout", ["auto", "beside", "folders", "lama", "coco"])
def test_what_may_be_a_mask_by_its_name_is_left_out_with_what_to_do(layout: str, tmp_path: Path) -> None:
    names = [f"{name}.png" for name in UNSURE.replace("a_mask (1)", "a_mask_(1)").split()]
    put(tmp_path, dict.fromkeys(["a.jpg", "b.jpg", *names], b""))
    put(tmp_path, {"a_mask (1).png": b"", "a_mask copy.png": b""})
    pairing = pair_folder(tmp_path, layout)
    assert samples_of(pairing, tmp_path) == {"a": {"jpg": "a.jpg"}, "b": {"jpg": "b.jpg"}}
    left_out = reasons_of(pairing)
    assert set(left_out) == {*names, "a_mask (1).png", "a_mask copy.png"}
    assert all("rename it or name it in a metadata.jsonl" in reason for reason in left_out.values())


def test_a_photograph_of_something_masked_is_packed_and_said(tmp_path: Path) -> None:
    put(tmp_path, "unmasked_portrait.jpg masked_man.jpg damask.jpg woman.jpg masked_woman.jpg")
    pairing = pair_folder(tmp_path)
    assert set(pairing.samples) == {"unmasked_portrait", "masked_man", "damask", "woman"}
    assert list(reasons_of(pairing)) == ["masked_woman.jpg"]
    assert pairing.notes == [
        "3 have names as masks may have (damask.jpg, masked_man.jpg, unmasked_portrait.jpg), but no image has the rest "
        "of their names: packed as images"
    ]
    put(tmp_path, {"metadata.jsonl": b'{"file_name": "masked_woman.jpg", "text": "a woman"}'})
    assert "masked_woman" in pair_folder(tmp_path).samples


def test_thumbnails_and_what_is_made_of_images_are_left_out(tmp_path: Path) -> None:
    kept = "img/1_x/a.jpg cache/z.jpg"
    gone = "img/1_x/thumbs/a.jpg thumbnails/q.jpg _thumbs/a_mask.png cache/a.jpg previews/a.png img/1_x/preview/a.jpg"
    pairing = pair_folder(put(tmp_path, f"{kept} {gone}"))
    assert set(pairing.samples) == {"img/1_x/a", "cache/z"}
    assert set(reasons_of(pairing)) == set(gone.split())
    assert set(pair_folder(tmp_path / "thumbnails").samples) == {"q"}


def test_a_folder_of_one_image_gives_one_sample(tmp_path: Path) -> None:
    put(tmp_path, "1/image.png 1/mask.png 1/target.png 1/control.png 1/caption.txt 2/original.jpg 2/mask.png")
    put(tmp_path, "2/result.jpg 3/gt.jpg 3/mask.png 3/masked.jpg target.jpg result.jpg")
    pairing = pair_folder(tmp_path)
    members = {"mask.png": "1/mask.png", "target.png": "1/target.png", "control.png": "1/control.png"}
    assert samples_of(pairing, tmp_path) == {
        "1/image": {"png": "1/image.png", **members, "txt": "1/caption.txt"},
        "2/original": {"jpg": "2/original.jpg", "mask.png": "2/mask.png"},
        "result": {"jpg": "result.jpg"},
        "target": {"jpg": "target.jpg"},
    }
    assert set(reasons_of(pairing)) == {"2/result.jpg", "3/gt.jpg", "3/mask.png", "3/masked.jpg"}


@pytest.mark.parametrize(
    ("files", "asked"),
    [
        ("images/a.jpg images/b.jpg bw/a.png bw/b.png", "bw"),
        ("images/a.jpg data_x/a.jpg", "data_x"),
        ("img/10_x/a.png img/10_x/a.txt Masken/10_x/a.png Masken/10_x/a.txt", "Masken"),
        ("img/10_x/a.jpg img_m/10_x/a.png", "img_m"),
        ("photos/a.jpg photos/Masken/a.png", "photos/Masken"),
        ("images/cat/a.jpg images/cat/bw/a.jpg", "images/cat/bw"),
        ("img/10_dog/a.jpg img/Masken/a.png", "img/Masken"),
        ("img/10_dog/a.jpg img/Masken/10_dog/a.png", "img/Masken"),
        ("img/10_dog/a.jpg img/10_dog/bw/a.png", "img/10_dog/bw"),
        ("img/10_dog/a.png img/10_dog_labels/a.png", "img/10_dog_labels"),
        ("10_x/a.png 10_x/b.png Masken/a.png", "Masken"),
        ("img/10_x/a.png Masken/10_x/a.png", "Masken"),
        ("a.jpg b.jpg Masken/a.png", "Masken"),
        ("raw/a.jpg Masken/a.png", "Masken"),
        ("raw/x/a.jpg Masken/x/a.png", "Masken"),
        ("images/a.png images/b.png Masken/a_hole.png Masken/b_hole.png", "Masken"),
        ("raw/a.jpg raw/b.jpg Masken/a_loch.png Masken/b_loch.png", "Masken"),
    ],
)
def test_a_folder_of_pictures_that_are_named_as_the_images_is_asked_for(files: str, asked: str, tmp_path: Path) -> None:
    put(tmp_path, files)
    with pytest.raises(
        UsageError, match=f"^{asked}/ may hold .*masks: --masks_from {asked}; .*images: --layout beside"
    ):
        pair_folder(tmp_path)
    pictures = [name for name in files.split() if not name.endswith(".txt")]
    assert len(pair_folder(tmp_path, "beside").samples) == len(pictures)
    masked = pair_folder(tmp_path, masks_from=asked)
    assert any("mask.png" in members or "mask.jpg" in members for members in masked.samples.values())
    assert len(masked.samples) == sum(asked not in name for name in pictures)


@pytest.mark.parametrize(
    ("files", "note"),
    [
        ("cats/1.jpg cats/2.jpg dogs/1.jpg dogs/2.jpg", "packed as images: cats/, dogs/; masks: --masks_from DIR"),
        ("10_cat/1.png 20_dog/1.png", ""),
        ("img/train/1.png img/val/1.png", ""),
        ("images/a.jpg other/a.jpg other/a.txt", ""),
    ],
)
def test_images_of_one_name_in_several_folders_are_images(files: str, note: str, tmp_path: Path) -> None:
    pairing = pair_folder(put(tmp_path, files))
    assert len(pairing.samples) == sum(name.endswith((".jpg", ".png")) for name in files.split()) - ("masks/" in files)
    assert note in "".join(pairing.notes)
    assert bool(note) == ("named as those" in "".join(pairing.notes))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        # A mask of the exact name goes before one of another class or another case.
        ("img/10_cat/a.png mask/10_cat/a.png mask/5_cat/a.png", {"img/10_cat/a": {"mask.png": "mask/10_cat/a.png"}}),
        ("a.jpg a_mask.png A_MASK.png", {"a": {"mask.png": "a_mask.png"}}),
        # The one picture beside a mask without a name is its image.
        ("1/scene.jpg 1/mask.png", {"1/scene": {"mask.png": "1/mask.png"}}),
        (
            "1/before.jpg 1/mask.png 1/target.jpg",
            {"1/before": {"mask.png": "1/mask.png", "target.jpg": "1/target.jpg"}},
        ),
    ],
)
def test_the_nearest_name_decides(files: str, expected: dict[str, dict[str, str]], tmp_path: Path) -> None:
    pairing = pair_folder(put(tmp_path, files))
    for key, members in expected.items():
        assert members.items() <= samples_of(pairing, tmp_path)[key].items()
    assert set(pairing.samples) == set(expected)
    packed = sum(map(len, pairing.samples.values()))
    assert packed + len(pairing.left_out) == len(files.split())


@pytest.mark.parametrize(
    ("layout", "files", "masked", "alone"),
    [
        # What lies in a folder of masks is a mask, whatever its inner folders are called.
        ("auto", "img/10_photo girl/1.png, mask/10_photo girl/1.png", ["img/10_photo girl/1"], []),
        ("auto", "img/10_image/1.png, mask/1_image/1.png", ["img/10_image/1"], []),
        ("auto", "img/10_girl/1.png, mask/img/10_girl/1.png", ["img/10_girl/1"], []),
        ("auto", "images/1.jpg, image_alpha/1.png", ["images/1"], []),
        ("folders", "images/1.jpg, conditioning_images/images/1.jpg", [], ["images/1"]),
        # But a folder around images and their masks is none of them.
        ("auto", "dog masks/images/1.jpg, dog masks/masks/1.png", ["dog masks/images/1"], []),
        ("auto", "segmentation/images/1.jpg", [], ["segmentation/images/1"]),
        ("auto", "ski mask/1.jpg, ski mask/1-masklabel.png, reg/2.jpg", ["ski mask/1"], []),
        ("onetrainer", "ski mask/1.jpg, ski mask/1-masklabel.png", ["ski mask/1"], []),
        # Classes of kohya's have all the words of their names.
        ("auto", "img/5_girl/1.png, img/5_girl photo/1.png, mask/5_girl/1.png", [
            "img/5_girl/1"
        ], ["img/5_girl photo/1"]),
        ("kohya", "img/10_girl/1.png, img/1_girl_mask/1.png", ["img/10_girl/1"], []),
        ("kohya", "img/10_photo girl/1.png, img/10_photo girl_mask/1.png", ["img/10_photo girl/1"], []),
        ("kohya", "img/5_oni/1.png, img/5_oni mask/1.png, img/5_oni mask/1.txt", [], [
            "img/5_oni mask/1", "img/5_oni/1"
        ]),
        ("kohya", "img/10_image/1.png, img/10_mask/1.png, mask/10_image/1.png, mask/10_mask/1.png", [
            "img/10_image/1", "img/10_mask/1"
        ], []),
        ("auto", "dataset/img/10_a/1.png, dataset/mask/1.png", ["dataset/img/10_a/1"], []),
        ("auto", "c1/a.jpg, c1/a-masklabel.png, samples/0 - x/1.png, workspace/run/s/2.png", ["c1/a"], []),
        ("auto", "DSC_1.jpg, DSC_2.jpg, DSC_3.jpg, DSC_4.jpg, photo.jpg, final.jpg", [], [
            "DSC_1", "DSC_2", "DSC_3", "DSC_4", "final", "photo"
        ]),
        # Numbers, and folders that are before and after.
        ("auto", "img0.jpg, img1.jpg, mask0.png, mask1.png", ["img0", "img1"], []),
        ("auto", "before/1.jpg, after/1.jpg, mask/1.png", ["before/1"], []),
        ("auto", "sets/my/1.png, sets/my-masks/1.png, sets/my-depth/1.png", ["sets/my/1"], []),
    ],
)  # fmt: skip
def test_folders_say_what_their_pictures_are(
    layout: str, files: str, masked: list[str], alone: list[str], tmp_path: Path
) -> None:
    pairing = pair_folder(put(tmp_path, dict.fromkeys(files.split(", "), b"")), layout)
    has_mask = {key: any(name.startswith("mask") for name in members) for key, members in pairing.samples.items()}
    assert has_mask == dict.fromkeys(masked, True) | dict.fromkeys(alone, False)


def test_masks_with_captions_and_a_class_called_like_masks_are_asked_for(tmp_path: Path) -> None:
    put(tmp_path, "img/10_oni/1.png img/5_oni_mask/1.png img/5_oni_mask/1.txt")
    with pytest.raises(UsageError, match=r"^img/5_oni_mask/ may hold masks or images .*; a class of kohya's: --layout"):
        pair_folder(tmp_path)
    assert set(pair_folder(tmp_path, "kohya").samples) == {"img/10_oni/1", "img/5_oni_mask/1"}
    assert set(pair_folder(tmp_path, masks_from="img/5_oni_mask").samples) == {"img/10_oni/1"}


@pytest.mark.parametrize(
    "files",
    [
        "0_before.jpg 0_after.jpg 0_mask.png",
        "img1_input.png img1_output.png img1.txt",
        "7_src.jpg 7_tgt.png",
        "a.jpg a_inpainted.png",
        "a.jpg inpainted/a_inpainted.png",
        "3/img.png 3/label.png 3/label_viz.png",
    ],
)
def test_what_is_made_of_an_image_is_no_other_image(files: str, tmp_path: Path) -> None:
    pairing = pair_folder(put(tmp_path, files))
    assert len(pairing.samples) == 1
    assert any(left.is_bad for left in pairing.left_out)


def test_a_word_more_in_a_few_names_is_said(tmp_path: Path) -> None:
    pairing = pair_folder(put(tmp_path, "foto.jpg foto_mascara.jpg b.jpg c.jpg"))
    assert len(pairing.samples) == 4
    assert "1 have the name of another image and a word more (foto_mascara.jpg, foto.jpg): packed as images" in (
        pairing.notes
    )


def test_links_to_classes_count_as_kohya_names_them(tmp_path: Path) -> None:
    put(tmp_path, "data/raw/batch1/1.png data/mask/10_girl/1.png data/img/x.txt outside/2.png data/reg/y.txt")
    (tmp_path / "data/img/10_girl").symlink_to("../raw/batch1")
    (tmp_path / "data/reg/1_x").symlink_to("../../outside")
    (tmp_path / "data/train").mkdir()
    (tmp_path / "data/train/10_x").symlink_to("../../outside")
    pairing = pair_folder(tmp_path / "data")
    assert {key: sorted(members) for key, members in pairing.samples.items()} == {
        "img/10_girl/1": ["mask.png", "png"],
        "train/10_x/2": ["png"],
    }


def test_captions_of_a_table_may_be_several_and_must_be_texts(tmp_path: Path) -> None:
    rows = [{"file_name": "0.jpg", "text": ["a0", "b0"]}, {"file_name": "1.jpg", "text": {"en": "x"}}]
    table = "\n".join(map(json.dumps, rows)).encode()
    pairing = pair_folder(put(tmp_path, {"metadata.jsonl": table, "0.jpg": b"", "1.jpg": b""}))
    assert samples_of(pairing, tmp_path) == {"0": {"jpg": "0.jpg", "txt": "a0"}, "1": {"jpg": "1.jpg"}}
    assert reasons_of(pairing) == {"metadata.jsonl, line 2": """its text is no text: "{'en': 'x'}\""""}


@pytest.mark.parametrize("name", ["../imgs/0.jpg", "d4/imgs/0.jpg", "C:\\data\\imgs\\0.jpg", "/mnt/x/imgs/0.jpg"])
def test_paths_of_another_machine_are_known_by_their_ends(name: str, tmp_path: Path) -> None:
    coco = {"images": [{"id": 1, "file_name": name}], "annotations": [{"image_id": 1, "bbox": [0, 0, 1, 1]}]}
    put(tmp_path, {"ann/instances.json": json.dumps(coco).encode(), "imgs/0.jpg": b"", "imgs/1.jpg": b""})
    captions = {name: "a cat"} if not name.startswith("..") else {"imgs/0": "a cat"}
    put(tmp_path, {"meta_cap.json": json.dumps(captions).encode()})
    pairing = pair_folder(tmp_path)
    assert set(pairing.samples["imgs/0"]) == {"jpg", "json", "txt"}
    assert pairing.left_out == []


def test_two_images_beside_a_mask_without_a_name_have_none(tmp_path: Path) -> None:
    pairing = pair_folder(put(tmp_path, "1/scene.jpg 1/other.jpg 1/mask.png"))
    assert reasons_of(pairing) == {"1/mask.png": "a mask without an image: no image of its name"}


@pytest.mark.parametrize(
    "files",
    [
        "cat.jpg dog.jpg cat_msq.png dog_msq.png",
        "cat.jpg dog.jpg owl.jpg variant-cat.jpg variant-dog.jpg",
        "x/cat.png x/cat.txt x/dog.png x/dog.txt x/cat_layer.png x/dog_layer.png",
        "cat/cat.jpg cat/cat_msq.png dog/dog.jpg dog/dog_msq.png",
    ],
)
def test_a_word_that_most_names_have_twice_is_no_image(files: str, tmp_path: Path) -> None:
    pairing = pair_folder(put(tmp_path, files))
    made = {name for name in files.split() if any(word in name for word in ("msq", "variant", "layer"))}
    assert set(reasons_of(pairing)) == made
    assert all("as masks and targets have; say which: --masks_from '" in why for why in reasons_of(pairing).values())
    pattern = next(iter(reasons_of(pairing).values())).split("--masks_from '")[1].split("'")[0]
    masked = pair_folder(tmp_path, masks_from=pattern)
    assert set(masked.samples) == set(pairing.samples)
    assert sum("mask.png" in members or "mask.jpg" in members for members in masked.samples.values()) == len(made)
    with_targets = pair_folder(tmp_path, targets_from=pattern)
    assert sum(any(name.startswith("target") for name in each) for each in with_targets.samples.values()) == len(made)


@pytest.mark.parametrize(
    "files",
    [
        "cat.jpg cat_1.jpg cat_2.jpg dog.jpg dog_1.jpg",
        "cat.jpg cat_sleeping.jpg dog.jpg dog_running.jpg",
        "cat.jpg cat_flip.jpg cat_flip.txt dog.jpg dog_flip.jpg dog_flip.txt",
        "cat.jpg cat_crop.jpg a.jpg b.jpg c.jpg d.jpg e.jpg",
    ],
)
def test_words_of_a_few_names_or_with_captions_are_images(files: str, tmp_path: Path) -> None:
    pairing = pair_folder(put(tmp_path, files))
    assert len(pairing.samples) == files.count(".jpg")


@pytest.mark.parametrize("name", ["cat_msk", "cat_cutout", "cat_nobg", "cat_no_bg", "cat-foreground", "cat_segm"])
def test_what_is_called_as_made_of_an_image_is_asked_for(name: str, tmp_path: Path) -> None:
    pairing = pair_folder(put(tmp_path, f"cat.jpg dog.jpg {name}.png"))
    assert set(pairing.samples) == {"cat", "dog"}
    assert "it may be a mask of cat.jpg" in reasons_of(pairing)[f"{name}.png"]


def test_a_table_says_that_a_mask_by_name_is_an_image(tmp_path: Path) -> None:
    table = b'{"file_name": "gas_mask.jpg", "text": "a gas mask"}\n{"file_name": "cat.jpg", "text": "a cat"}\n'
    put(tmp_path, {"metadata.jsonl": table, "gas_mask.jpg": b"", "cat.jpg": b"", "cat_mask.png": b""})
    assert samples_of(pair_folder(tmp_path), tmp_path) == {
        "cat": {"jpg": "cat.jpg", "mask.png": "cat_mask.png", "txt": "a cat"},
        "gas_mask": {"jpg": "gas_mask.jpg", "txt": "a gas mask"},
    }
    put(tmp_path, {"metadata.jsonl": table + b'{"file_name": "cat_mask.png", "text": "black and white"}\n'})
    pairing = pair_folder(tmp_path)  # a tool that captions all there is
    assert set(pairing.samples) == {"cat"}
    assert "gas_mask.jpg" in reasons_of(pairing)


def test_names_in_a_table_may_be_of_another_case(tmp_path: Path) -> None:
    table = b'{"file_name": "Images/CAT.JPG", "text": "a cat", "mask": "MASKS/Cat.png"}\n'
    pairing = pair_folder(put(tmp_path, {"metadata.jsonl": table, "images/cat.jpg": b"", "masks/cat.png": b""}))
    assert samples_of(pairing, tmp_path) == {
        "images/cat": {"jpg": "images/cat.jpg", "mask.png": "masks/cat.png", "txt": "a cat"}
    }


def test_a_picture_in_a_column_that_nobody_knows_is_no_image(tmp_path: Path) -> None:
    table = b'{"file_name": "a.jpg", "depth": "d/1.png"}\n{"file_name": "b.jpg", "depth": "a.jpg"}\n'
    pairing = pair_folder(put(tmp_path, {"metadata.jsonl": table, "a.jpg": b"", "b.jpg": b"", "d/1.png": b""}))
    assert set(pairing.samples) == {"a", "b"}
    assert reasons_of(pairing) == {
        "d/1.png": "metadata.jsonl, line 1 names it as depth, of which nobody knows what it is; call the column "
        "mask_file_name, target_file_name, conditioning_file_name or reference_file_name"
    }


def test_an_image_may_be_its_own_target_by_a_link(tmp_path: Path) -> None:
    put(tmp_path, "images/a.jpg store/b.jpg")
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets/a.jpg").symlink_to("../images/a.jpg")
    os.link(tmp_path / "store/b.jpg", tmp_path / "targets/x.jpg")
    pairing = pair_folder(tmp_path)
    assert samples_of(pairing, tmp_path) == {"images/a": {"jpg": "images/a.jpg", "target.jpg": "targets/a.jpg"}}
    assert set(reasons_of(pairing)) == {"store/b.jpg", "targets/x.jpg"}


def test_an_image_of_two_names_is_packed_once_unless_each_has_a_caption(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg c.jpg c.txt")
    os.link(tmp_path / "a.jpg", tmp_path / "b.jpg")
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "d.jpg").symlink_to("c.jpg")
    (tmp_path / "d.txt").write_text("d")
    pairing = pair_folder(tmp_path)
    assert set(pairing.samples) == {"b", "c", "d"}
    assert reasons_of(pairing) == {"a.jpg": "the same file as b.jpg"}


def test_masks_elsewhere_do_not_answer_for_other_folders(tmp_path: Path) -> None:
    put(tmp_path, "images/a.jpg masks/a.png renders/a.jpg")
    with pytest.raises(UsageError, match=r"^renders/ may hold .*; images: --masks_from masks"):
        pair_folder(tmp_path)
    pairing = pair_folder(tmp_path, masks_from="masks")
    assert set(pairing.samples) == {"images/a", "renders/a"}
    assert "packed as images: renders/" in "".join(pairing.notes)


def test_regularisation_images_of_kohya_are_not_trained_as_the_others(tmp_path: Path) -> None:
    pairing = pair_folder(put(tmp_path, "img/5_x/d.jpg reg/1_y/r.jpg"))
    assert set(pairing.samples) == {"img/5_x/d"}
    assert "regularisation" in reasons_of(pairing)["reg/1_y/r.jpg"]
    assert set(pair_folder(tmp_path / "reg").samples) == {"1_y/r"}
    (tmp_path / "img/5_x/d.jpg").unlink()
    with pytest.raises(UsageError, match=r"none of its 1 pictures .* reg/1_y/r.jpg: a regularisation image"):
        pair_folder(tmp_path)


def test_a_class_of_kohya_may_be_called_like_masks(tmp_path: Path) -> None:
    put(tmp_path, {"img/5_oni mask/d.jpg": b"", "mask/5_oni mask/d.png": b"", "img/1_black cat/a.jpg": b""})
    put(tmp_path, {"1_black cat_mask/a.png": b""})
    expected = {
        "img/1_black cat/a": {"jpg": "img/1_black cat/a.jpg", "mask.png": "1_black cat_mask/a.png"},
        "img/5_oni mask/d": {"jpg": "img/5_oni mask/d.jpg", "mask.png": "mask/5_oni mask/d.png"},
    }
    assert samples_of(pair_folder(tmp_path, "kohya"), tmp_path) == expected
    pairing = pair_folder(tmp_path)
    assert "--layout kohya" in reasons_of(pairing)["img/5_oni mask/d.jpg"]
    with pytest.raises(UsageError, match=r"oni mask/d.jpg: it looks like a mask .*--layout kohya if it is a class"):
        pair_folder(put(tmp_path / "only", {"img/5_oni mask/d.jpg": b"", "m/x/d.png": b""}), masks_from="m")


def test_masks_next_to_the_folder_are_named(tmp_path: Path) -> None:
    put(tmp_path, "img/a.jpg mask/a.png x_mask/a.png")
    assert f"masks may lie in {tmp_path}/mask: pack img with --masks_from" in "".join(
        pair_folder(tmp_path / "img").notes
    )
    assert pair_folder(tmp_path / "img", masks_from=str(tmp_path / "mask")).notes == []


def test_the_name_of_a_link_says_what_is_behind_it(tmp_path: Path) -> None:
    put(tmp_path, "images/a.jpg images/b.jpg real_m/a.png store/xyz.png images/c.jpg orig/m1.png loop/x.jpg")
    (tmp_path / "images/b_mask.png").symlink_to("../store/xyz.png")
    (tmp_path / "masks").symlink_to("real_m")
    (tmp_path / "real_m/c.png").symlink_to("../orig/m1.png")
    (tmp_path / "loop/mask").symlink_to(".")
    os.link(tmp_path / "real_m/a.png", tmp_path / "a_backup.png")
    pairing = pair_folder(tmp_path)
    assert samples_of(pairing, tmp_path) == {
        "images/a": {"jpg": "images/a.jpg", "mask.png": "real_m/a.png"},
        "images/b": {"jpg": "images/b.jpg", "mask.png": "images/b_mask.png"},
        "images/c": {"jpg": "images/c.jpg", "mask.png": "real_m/c.png"},
        "loop/x": {"jpg": "loop/x.jpg"},
    }
    assert reasons_of(pairing) == {
        "a_backup.png": "the same file as masks/a.png, which says what it is",
        "loop/mask/": "a link to a folder that is read already",
        "orig/m1.png": "the same file as masks/c.png, which says what it is",
        "store/xyz.png": "the same file as images/b_mask.png, which says what it is",
    }


@pytest.mark.parametrize(
    "column",
    [
        *("mask", "mask_image", "mask_images", "masks", "mask_path", "mask_file", "segmentation", "mask_file_names"),
        *("inpaint_mask", "seg", "person mask path"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_column_of_masks_is_known_by_its_usual_names(column: str, kind: str, tmp_path: Path) -> None:
    put(tmp_path, "a.jpg b.jpg m/a_m.png")
    csv = f"file_name,text,{column},segmentation_id\na.jpg,one cat,m/a_m.png,x\nb.jpg,two cats,,\n"
    value = ["m/a_m.png"] if column.endswith("s") else "m/a_m.png"
    line = json.dumps({"file_name": "a.jpg", "text": "one cat", column: value})
    put(tmp_path, {f"metadata.{kind}": (csv if kind == "csv" else line).encode()})
    pairing = pair_folder(tmp_path)
    assert samples_of(pairing, tmp_path)["a"] == {"jpg": "a.jpg", "mask.png": "m/a_m.png", "txt": "one cat"}
    assert set(pairing.samples) == {"a", "b"}


def test_a_column_that_holds_no_files_names_no_masks(tmp_path: Path) -> None:
    put(tmp_path, {"a.jpg": b"", "metadata.csv": b"file_name,text,segmentation\na.jpg,one cat,1 2 3 4\n"})
    pairing = pair_folder(tmp_path)
    assert set(pairing.samples["a"]) == {"jpg", "txt"}
    assert pairing.notes == ["metadata.csv: these columns are not packed: segmentation"]


def test_a_mask_with_a_number_beside_one_without_is_said(tmp_path: Path) -> None:
    pairing = pair_folder(put(tmp_path, "two.jpg two_mask.png two_mask_2.png one.jpg one_mask_2.png"))
    assert set(pairing.samples["two"]) == {"jpg", "mask.png", "mask.2.png"}
    assert pairing.notes == [
        "1 images have a mask without a number and others with one (two.jpg): --masks sample uses the first alone"
    ]


def test_masks_of_a_class_have_its_name_whatever_its_repeats(tmp_path: Path) -> None:
    put(tmp_path, "img/20_x/a.png img/20_x/b.png img/1_y/a.png mask/10_x/a.png mask/x/b.png mask/1_z/c.png")
    pairing = pair_folder(tmp_path)
    assert samples_of(pairing, tmp_path) == {
        "img/1_y/a": {"png": "img/1_y/a.png"},
        "img/20_x/a": {"png": "img/20_x/a.png", "mask.png": "mask/10_x/a.png"},
        "img/20_x/b": {"png": "img/20_x/b.png", "mask.png": "mask/x/b.png"},
    }
    assert list(reasons_of(pairing)) == ["mask/1_z/c.png"]


def test_names_in_another_case_are_found_where_no_exact_ones_are(tmp_path: Path) -> None:
    put(
        tmp_path,
        "IMG.JPG img_mask.png b.jpg B_MASK.png c.jpg C.txt d.jpg D.jpg d_mask.png e.jpg E.jpg masks/F.png f.jpg",
    )
    put(tmp_path, {"É_mask.png": b"", "é.jpg": b"", "h.jpg": b"", "H.JPG": b"", "h.jPg.txt": b""})
    pairing = pair_folder(tmp_path)
    masks = {key: str(members["mask.png"].name) for key, members in pairing.samples.items() if "mask.png" in members}  # type: ignore[union-attr]
    assert masks == {"IMG": "img_mask.png", "b": "B_MASK.png", "d": "d_mask.png", "f": "F.png", "é": "É_mask.png"}
    assert "txt" in pairing.samples["c"]
    assert not any(name.endswith("_mask.png") for name in reasons_of(pairing))


def test_what_may_belong_to_several_says_where_to_put_it(tmp_path: Path) -> None:
    put(tmp_path, "img/10_x/a.png img/20_y/a.png mask/a.png")
    (reason,) = reasons_of(pair_folder(tmp_path)).values()
    assert reason.endswith("; put it beside its image, such as img/10_x/a_mask.png")
    (tmp_path / "mask/a.png").rename(tmp_path / "img/10_x/a_mask.png")
    assert "mask.png" in pair_folder(tmp_path).samples["img/10_x/a"]


def test_a_json_of_captions_may_have_more_than_captions_and_lie_above_its_images(tmp_path: Path) -> None:
    entries = {
        "a": {"caption": "one", "train_resolution": [64, 64]},
        "b": {"caption": ["two", "or two"]},
        "c": {"train_resolution": [64, 64]},
        "d": {"caption": "which"},
    }
    put(tmp_path, {"meta_lat.json": json.dumps(entries).encode()})
    pairing = pair_folder(put(tmp_path, "1_x/a.png 1_x/b.png 1_x/c.png 1_x/d.png 1_y/d.png"))
    captions = {key: members.get("txt") for key, members in pairing.samples.items()}
    assert captions == {"1_x/a": b"one", "1_x/b": b"two", "1_x/c": None, "1_x/d": None, "1_y/d": None}
    assert list(reasons_of(pairing).values()) == ["the name of several images; give it with its folder"]


def test_a_caption_of_the_images_stem_goes_before_one_of_its_name(tmp_path: Path) -> None:
    pairing = pair_folder(put(tmp_path, {"a.jpg": b"", "a.txt": b"one", "a.jpg.txt": b"two"}))
    assert samples_of(pairing, tmp_path)["a"]["txt"] == "a.txt"


def test_a_file_of_coco_speaks_of_the_folder_in_its_name(tmp_path: Path) -> None:
    put(tmp_path, "train2017/a.jpg val2017/a.jpg")
    for number, name in enumerate(("train2017", "val2017")):
        box = {"id": number, "image_id": 1, "bbox": [number, 2, 3, 4]}
        put(tmp_path, {f"annotations/instances_{name}.json": json.dumps(coco(annotations=[box])).encode()})
    samples = samples_of(pair_folder(tmp_path), tmp_path)
    boxes = {key: json.loads(members["json"])[0]["bbox"][0] for key, members in samples.items()}
    assert boxes == {"train2017/a": 0, "val2017/a": 1}


@pytest.mark.parametrize("is_project", [True, False])
def test_each_image_gets_its_regions_of_a_project_of_via(is_project: bool, tmp_path: Path) -> None:
    region = {"shape_attributes": {"name": "rect", "x": 1, "y": 1, "width": 2, "height": 2}, "region_attributes": {}}
    files = {f"{name}.jpg9": {"filename": f"{name}.jpg", "size": 9, "regions": [region]} for name in "abx"}
    content = {"_via_settings": {}, "_via_img_metadata": files} if is_project else files
    put(tmp_path, {"via_region_data.json": json.dumps(content).encode(), "sub/a.jpg": b"", "b.jpg": b""})
    pairing = pair_folder(tmp_path)
    samples = samples_of(pairing, tmp_path)
    assert json.loads(samples["sub/a"]["json"]) == files["a.jpg9"]
    assert json.loads(samples["b"]["json"])["filename"] == "b.jpg"
    assert reasons_of(pairing) == {"via_region_data.json: x.jpg": "there is no such image"}
    objects = annotations_of(samples["b"]["json"].encode(), "b").objects
    assert [set(entry) for entry in objects] == [{"segmentation"}]


def test_many_folders_of_the_same_names_are_looked_through_once(tmp_path: Path) -> None:
    put(tmp_path, " ".join(f"c{folder}/{number}.jpg" for folder in range(60) for number in range(60)))
    begin = time.process_time()
    assert len(pair_folder(tmp_path).samples) == 3600
    assert time.process_time() - begin < 2


@pytest.mark.parametrize(
    ("names", "doubtful", "pairs"),
    [
        (["cat.jpg", "cat2.jpg", "cat_mask2.png"], ["cat_mask2.png"], {}),
        (["cat.jpg", "cat_2.jpg", "cat_mask.png", "cat_mask_2.png"], ["cat_mask_2.png"], {"cat": "cat_mask.png"}),
        (["image.jpg", "image2.jpg", "mask.png", "mask2.png"], ["mask2.png"], {"image": "mask.png"}),
        (["cat.jpg", "cat2.jpg", "cat2_mask.png"], [], {"cat2": "cat2_mask.png"}),
        (["cat.jpg", "dog2.jpg", "cat_mask2.png"], [], {"cat": "cat_mask2.png"}),
    ],
)
def test_a_number_that_is_an_images_too_is_asked_for(
    names: list[str], doubtful: list[str], pairs: dict[str, str], tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"")
    found = pair_folder(tmp_path)
    assert [left.name for left in found.left_out] == doubtful
    assert all("it may belong to" in left.reason for left in found.left_out)
    masks = {key: str(members["mask.png"]) for key, members in found.samples.items() if "mask.png" in members}
    assert masks == {key: str(tmp_path / name) for key, name in pairs.items()}


def test_numbers_of_lossless_pictures_beside_lossy_ones_are_asked_for(tmp_path: Path) -> None:
    pairing = pair_folder(put(tmp_path, "cat.jpg cat_1.png dog.jpg dog_1.png"))
    assert set(pairing.samples) == {"cat", "dog"}
    assert "--masks_from '*_1.png'" in reasons_of(pairing)["cat_1.png"]


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("*_x*.png", r"masks_from: '\*_x\*.png' is not a folder, nor a name with one star"),
        ("m/*.png", r"is not a folder, nor a name with one star"),
        ("*_hole.png", r"masks_from: no picture is called \*_hole.png; correct the pattern"),
    ],
)
def test_a_pattern_that_names_nothing_is_refused(pattern: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        pair_folder(put(tmp_path, "a.jpg m/a.png"), masks_from=pattern)


def test_what_a_table_leaves_out_of_a_folder_of_masks_is_no_image(tmp_path: Path) -> None:
    table = b'{"file_name": "cat.jpg", "mask_file_name": "m/cat.png"}\n'
    put(tmp_path, {"metadata.jsonl": table, **dict.fromkeys(["cat.jpg", "cow.jpg", "m/cat.png", "m/cow.png"], b"")})
    pairing = pair_folder(tmp_path)
    assert set(pairing.samples) == {"cat", "cow"}
    assert reasons_of(pairing) == {
        "m/cow.png": "no table names it, and the others in its folder are masks there; name it too, or move it out"
    }


def test_what_kohyas_training_writes_is_no_training_picture(tmp_path: Path) -> None:
    put(tmp_path, "img/10_x/a.png sample/e1.png model/sample/e2.png log/x.png samples/10_y/b.png")
    pairing = pair_folder(tmp_path)
    assert set(pairing.samples) == {"img/10_x/a", "samples/10_y/b"}
    assert all("what training writes" in reason for reason in reasons_of(pairing).values())
    assert len(pair_folder(put(tmp_path / "other", "samples/1.png samples/2.png")).samples) == 2


def test_cityscapes_labels_and_files_of_one_image_are_no_images(tmp_path: Path) -> None:
    put(tmp_path, "leftImg8bit/a/x_1_leftImg8bit.png gtFine/a/x_1_gtFine_color.png gtFine/a/x_1_gtFine_labelIds.png")
    assert set(pair_folder(tmp_path, "beside").samples) <= {"leftImg8bit/a/x_1_leftImg8bit"}
    put(tmp_path / "sets", "cat/orig.png cat/hole.png dog/orig.png dog/hole.png")
    assert set(pair_folder(tmp_path / "sets").samples) == {"cat/orig", "dog/orig"}


def test_a_saved_data_set_of_hugging_face_says_how_to_give_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"saved to disk; give datasets.load_from_disk"):
        pair_folder(put(tmp_path, "state.json data-00000-of-00001.arrow"))


def test_the_json_of_a_failed_download_is_no_table_of_captions(tmp_path: Path) -> None:
    failed = json.dumps({"caption": "a cat", "key": "1", "status": "failed_to_download", "url": "x"}).encode()
    pairing = pair_folder(put(tmp_path, {"0/1.json": failed, "0/2.jpg": b"", "0/2.json": b'{"caption": "b"}'}))
    assert samples_of(pairing, tmp_path)["0/2"]["txt"] == "b"
    assert list(reasons_of(pairing)) == ["0/1.json"]


@pytest.mark.parametrize(
    ("files", "asked"),
    [
        ("apple/1.jpg, edited/1.jpg", "edited"),
        ("apple/1.jpg, label/1.jpg", "label"),
        ("day/1.jpg, day/1.txt, target/1.jpg, target/1.txt", "target"),
    ],
)
def test_a_class_that_is_called_like_what_belongs_to_images_is_asked_for(
    files: str, asked: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=rf"^{asked}/ may hold \w+s or images .*; images: rename the folder"):
        pair_folder(put(tmp_path, dict.fromkeys(files.split(", "), b"")))


@pytest.mark.parametrize("files", ["images/1.jpg edited/1.jpg", "1.jpg edited/1.jpg", "apple/1.jpg apple/edited/1.jpg"])
def test_edited_pictures_of_images_are_their_targets(files: str, tmp_path: Path) -> None:
    (members,) = pair_folder(put(tmp_path, files)).samples.values()
    assert "target.jpg" in members


@pytest.mark.parametrize(
    ("files", "keys"),
    [
        ("cat/1.jpg, cat/1_mask.jpg, cat/2.jpg, cat/2_mask.jpg", ["cat/1", "cat/2"]),
        ("train/1.png, train/1.txt, output/sample/x_1.png", ["train/1"]),
        ("concepts/a/1.jpg, workspace/run/samples/0 - x/1.png", ["concepts/a/1"]),
        ("train_data/10_x/1.png, reg_data/1_y/2.png, reg_man/3.png", ["train_data/10_x/1"]),
        ("bea.jpg, bea-masklabel.png, carla.jpg, carla_mask.jpg, carla_mask.txt, carla_mask-masklabel.png",
         ["bea", "carla", "carla_mask"]),
        ("photos/1.jpg, photos/depth of field/2.jpg", ["photos/1", "photos/depth of field/2"]),
        ("img/10_lineart style/1.png", ["img/10_lineart style/1"]),
        ("antelope-data/1.png, antelope-masks/1.png", ["antelope-data/1"]),
        ("a/image.jpg, a/image (1).jpg, b/image.jpg, b/image (1).jpg",
         ["a/image", "a/image (1)", "b/image", "b/image (1)"]),
        ("images/a.jpg, images/a_flip.jpg, images/b.jpg, images/b_flip.jpg, "
         "masks/a.png, masks/a_flip.png, masks/b.png, masks/b_flip.png",
         ["images/a", "images/a_flip", "images/b", "images/b_flip"]),
        ("concepts/model/1.jpg, concepts/model/1-masklabel.png, concepts/w/2.jpg",
         ["concepts/model/1", "concepts/w/2"]),
    ],
)  # fmt: skip
def test_ordinary_folders_of_trainers_are_packed_as_they_are_meant(files: str, keys: list[str], tmp_path: Path) -> None:
    assert list(pair_folder(put(tmp_path, dict.fromkeys(files.split(", "), b""))).samples) == keys


@pytest.mark.parametrize(
    "made",
    [
        "img/10_girl/sample/1.png",
        "training_samples/lora_e000001_00_20240105123451_42.png",
        "results/000101_01_20240105123451.png",
        "img/10_girl/2024-01-05_12-34-51-training-sample-500-5-0.png",
        "debug/dataloader/epoch-0/0-1-decoded_image.jpg",
        "debug/dataloader/epoch-0/0-1-decoded_mask.jpg",
        "debug/dataloader/epoch-0/0-1-decoded_conditioning_image.jpg",
        "woman_reg/r1.png",
    ],
)
def test_what_training_makes_is_left_out_wherever_it_lies(made: str, tmp_path: Path) -> None:
    pairing = pair_folder(put(tmp_path, {"img/10_girl/1.png": b"", "img/10_girl/1.txt": b"girl", made: b""}))
    assert set(pairing.samples) == {"img/10_girl/1"}
    assert set(reasons_of(pairing)) == {made}


def test_copies_of_a_class_are_named(tmp_path: Path) -> None:
    files = ["img/10_girl/1.png", "img/10_girl/1.txt", "backup/img/10_girl/1.png", "backup/img/10_girl/1.txt"]
    pairing = pair_folder(put(tmp_path, dict.fromkeys(files, b"")))
    named = "1 are in two folders of the same class (backup/img/10_girl/1.png, img/10_girl/1.png): both are packed"
    assert named in pairing.notes


@pytest.mark.parametrize(
    ("files", "asked"),
    [
        ("c/a.jpg, c/a-masklabel.png, c/masks/a.png, c/masks/a-masklabel.png", "c/masks"),
        ("c/a.jpg, c/b.jpg, c/masks/a.png, c/masks/b.png, c/masks/a-masklabel.png", "c/masks"),
        ("img/a.jpg, img/a-masklabel.png, mask/a.png, mask/a-masklabel.png", "mask"),
        ("x/a.jpg, x/a-masklabel.png, masks/a.png, masks/a-masklabel.png", "masks"),
        ("x/a.jpg, x/a-masklabel.png, x mask/a.png, x mask/a-masklabel.png", "x mask"),
        ("c/a.jpg, c/a-masklabel.png, c/cond/a.png, c/cond/a-masklabel.png", "c/cond"),
        ("c/a.jpg, c/a-masklabel.png, c/control/a.png, c/control/a-masklabel.png", "c/control"),
    ],
)
def test_masks_of_which_a_tool_made_masks_are_asked_for(files: str, asked: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"^{asked}/ may hold .*images: rename the folder"):
        pair_folder(put(tmp_path, dict.fromkeys(files.split(", "), b"")))


def test_copies_of_onetrainers_conditioning_pictures_are_no_images(tmp_path: Path) -> None:
    put(tmp_path, "d.jpg e.jpg e-condlabel_old.png")
    pairing = pair_folder(put(tmp_path, {"d-condlabel (1).png": b"", "d-condlabel - Copy.png": b""}))
    assert set(pairing.samples) == {"d", "e"}
    assert len(reasons_of(pairing)) == 3


def test_pictures_that_kohya_would_not_read_are_named(tmp_path: Path) -> None:
    files = ["img/10_girl/1.png", "img/10_girl/best/2.png", "img/unused/3.png", "cover.png"]
    pairing = pair_folder(put(tmp_path, dict.fromkeys(files, b"")))
    assert len(pairing.samples) == 4
    outside = "the folder itself, img/10_girl/best/, img/unused/"
    assert any(note.startswith("3 lie in no folder with repeats") and outside in note for note in pairing.notes)


def test_the_caption_of_an_images_own_name_goes_before_others(tmp_path: Path) -> None:
    put(tmp_path, {"IMG_1.jpg": b"", "IMG_1.txt": b"own", "1.txt": b"another"})
    assert pair_folder(tmp_path).samples["IMG_1"]["txt"] == tmp_path / "IMG_1.txt"
    put(tmp_path / "x", "img/10_painting/1.jpg")
    put(tmp_path / "x", {"img/10_matte painting/1.jpg": b""})
    with pytest.raises(UsageError, match=r"10_matte painting/ may hold masks or images .*--layout kohya"):
        pair_folder(tmp_path / "x")
