"""Folders after months of work: what is no training picture any more, or another's, is not packed in silence."""

from pathlib import Path

import pytest
from test_folders import put, reasons_of, samples_of

from inpaint_data.errors import UsageError
from inpaint_data.folders.pairing import pair_folder


def tree(folder: Path, files: str) -> Path:
    return put(folder, dict.fromkeys(files.split(", "), b""))


@pytest.mark.parametrize(
    ("images", "masks", "stale"),
    [
        ("photo photo_2 photo_3", "photo_1 photo_2 photo_3", {"photo_1": "masks of images of their whole names"}),
        ("girl girl_2", "girl_03 girl_2", {"girl_03": "masks of images of their whole names"}),
        ("portrait hat", "portrait_2 hat", {"portrait_2": "numbered from 0 or 1 on"}),
        (
            "IMG_20240105 IMG_20240106_101010",
            "IMG_20240105_123451 IMG_20240106_101010",
            {"IMG_20240105_123451": "numbered from 0 or 1 on"},
        ),
        ("a b", "a_0 a_1 b_1", {}),
    ],
)
@pytest.mark.parametrize("where", [("img/10_girl", "mask/10_girl"), ("images", "masks")])
def test_the_mask_of_a_removed_image_is_no_numbered_mask_of_another(
    images: str, masks: str, stale: dict[str, str], where: tuple[str, str], tmp_path: Path
) -> None:
    files = [f"{where[0]}/{stem}.png" for stem in images.split()] + [f"{where[1]}/{stem}.png" for stem in masks.split()]
    pairing = pair_folder(put(tmp_path, dict.fromkeys(files, b"")))
    reasons = reasons_of(pairing)
    assert set(reasons) == {f"{where[1]}/{stem}.png" for stem in stale}
    assert all(why in reasons[f"{where[1]}/{stem}.png"] for stem, why in stale.items())


def test_the_mask_of_a_moved_image_may_belong_to_either(tmp_path: Path) -> None:
    pairing = pair_folder(tree(tmp_path, "img/10_girl/girl.png, img/5_pose/girl_1.png, mask/10_girl/girl_1.png"))
    assert "img/10_girl/girl.png or img/5_pose/girl_1.png" in reasons_of(pairing)["mask/10_girl/girl_1.png"]


@pytest.mark.parametrize(
    ("original", "trained", "masks", "goes"),
    [
        ("img", "img/10_girl", "mask", False),
        ("photos", "img/10_girl", "mask", False),
        ("images", "lora/img/10_man", "lora/mask", False),
        ("photos", "train", "mask", False),
        ("photos", "train", "photos/mask", True),  # which lies with its images
        ("images", "images_small", "masks", False),
    ],
)
def test_masks_beside_originals_and_what_is_trained_on_are_given_to_neither(
    original: str, trained: str, masks: str, goes: bool, tmp_path: Path
) -> None:
    files = f"{original}/1.jpg, {trained}/1.jpg, {trained}/1.txt, {original}/2.jpg, {trained}/2.jpg, {trained}/2.txt"
    pairing = pair_folder(tree(tmp_path, f"{files}, {masks}/1.png, {masks}/2.png"))
    given = {key for key, members in samples_of(pairing, tmp_path).items() if "mask.png" in members}
    assert given == ({f"{original}/1", f"{original}/2"} if goes else set())
    assert goes or f"{original}/1.jpg or {trained}/1.jpg" in reasons_of(pairing)[f"{masks}/1.png"]


@pytest.mark.parametrize(
    "folder",
    [
        "reg2/1_girl", "reg(1)/1_girl", "regdata/1_girl", "regularizations/1_girl", "正則化画像/1_girl", "class/1_girl",
        "Stable-Diffusion-Regularization-Images-woman_ddim/woman_ddim", "prior", "prior preservation",
    ],
)  # fmt: skip
@pytest.mark.parametrize("layout", ["auto", "onetrainer"])
def test_regularisation_images_are_known_by_all_their_names(folder: str, layout: str, tmp_path: Path) -> None:
    pairing = pair_folder(tree(tmp_path, f"10_girl/1.png, 10_girl/1.txt, {folder}/21.png, register/3.png"), layout)
    assert set(pairing.samples) == {"10_girl/1", "register/3"}
    assert "regularisation" in reasons_of(pairing)[f"{folder}/21.png"]


def test_a_link_says_that_images_are_of_regularisation(tmp_path: Path) -> None:
    tree(tmp_path, "img/10_girl/1.png, img/10_girl/1.txt, sd_class_pictures/1_girl/21.png")
    (tmp_path / "reg").symlink_to("sd_class_pictures")
    assert set(pair_folder(tmp_path).samples) == {"img/10_girl/1"}


@pytest.mark.parametrize("folder", ["SAM", "Masken", "clipseg", "maskimages"])
@pytest.mark.parametrize("within", ["man", "a/man", "man/close"])
def test_a_folder_that_mirrors_the_images_is_asked_for(folder: str, within: str, tmp_path: Path) -> None:
    files = ", ".join(f"{within}/{n}.jpg, {within}/{n}.txt, {folder}/{within}/{n}.png" for n in (1, 2))
    with pytest.raises(UsageError, match=f"^{folder}/ may hold images, masks or targets"):
        pair_folder(tree(tmp_path / "x", files))
    told = f"are packed as images: {folder}/{within}/"
    assert any(told in note for note in pair_folder(tmp_path / "x", "onetrainer").notes)
    beside = ", ".join(f"{within}/{n}-masklabel.png" for n in (1, 2))
    assert any(told in note for note in pair_folder(tree(tmp_path / "x", beside)).notes)


@pytest.mark.parametrize("folder", ["masks2", "masks(1)", "MasksNew", "Mask02"])
def test_a_folder_of_masks_may_have_a_number_or_a_word_in_its_name(folder: str, tmp_path: Path) -> None:
    pairing = pair_folder(tree(tmp_path, f"man/1.jpg, man/1.txt, {folder}/man/1.png"))
    assert samples_of(pairing, tmp_path)["man/1"]["mask.png"] == f"{folder}/man/1.png"


def test_pictures_that_all_end_alike_in_a_folder_of_their_own_are_said(tmp_path: Path) -> None:
    files = ", ".join(f"train/{n}.png, train/{n}.txt, sam2/{n}_obj_0.png, blended/{n}_0_blend.png" for n in (1, 2, 3))
    pairing = pair_folder(tree(tmp_path, files))
    assert any("are packed as images: " in note and "sam2/" in note for note in pairing.notes)
    assert any("names as masks may have (blended/1_0_blend.png" in note for note in pairing.notes)


@pytest.mark.parametrize("word", ["canny", "depth", "nobg", "before"])
def test_a_class_of_what_was_made_of_another_is_asked_for(word: str, tmp_path: Path) -> None:
    files = ", ".join(f"img/10_girl/{n}.png, img/10_girl/{n}.txt, img/10_girl_{word}/{n}.png" for n in (1, 2))
    with pytest.raises(UsageError, match=f"10_girl_{word}/ may hold"):
        pair_folder(tree(tmp_path, files))


@pytest.mark.parametrize(
    "made",
    [
        "debug/training_batches/step-500-3-noisy_image.png", "img/10_girl/girl_20230405123451_e000001_00_42.png",
        "img/10_girl/grid-0001.png", "x/xyz_grid-0001-1234.png",
    ],
)  # fmt: skip
def test_what_tools_write_is_left_out_by_its_name(made: str, tmp_path: Path) -> None:
    pairing = pair_folder(tree(tmp_path, f"img/10_girl/1.png, img/10_girl/1.txt, {made}"))
    assert set(pairing.samples) == {"img/10_girl/1"}


def test_the_preview_of_a_model_is_no_training_picture(tmp_path: Path) -> None:
    pairing = pair_folder(tree(tmp_path, "train/1.png, output/girl.safetensors, output/girl.png"))
    assert set(pairing.samples) == {"train/1"}
    assert reasons_of(pairing)["output/girl.png"] == "the preview of output/girl.safetensors"


def test_notes_speak_only_of_what_is_packed(tmp_path: Path) -> None:
    assert not any(
        "two folders" in note for note in pair_folder(tree(tmp_path / "a", "5_x/1.jpg, 5_x/1.webp, 5_x/2.jpg")).notes
    )
    pairing = pair_folder(tree(tmp_path / "b", "1.jpg, 1_mask.png, 1_mask_1.png, 1-mask.png, 2.jpg"))
    assert "1.jpg" in reasons_of(pairing)
    assert not any("without a number" in note for note in pairing.notes)


def test_what_lies_beside_a_mask_of_its_name_is_made_by_the_same_tool(tmp_path: Path) -> None:
    files = ", ".join(f"sam_out/{n}_0_{kind}.png" for n in (1, 2) for kind in ("mask", "blend", "output"))
    pairing = pair_folder(tree(tmp_path, f"10_cat/1.png, 10_cat/1.txt, 10_cat/2.png, 10_cat/2.txt, {files}"))
    assert set(pairing.samples) == {"10_cat/1", "10_cat/2"}
    assert "a mask of its name" in reasons_of(pairing)["sam_out/1_0_blend.png"]


def test_a_json_of_settings_is_one_line(tmp_path: Path) -> None:
    put(tmp_path, {"a.jpg": b"", "config.json": b'{"training_method": "LORA", "optimizer": {"lr": 1}}'})
    assert list(reasons_of(pair_folder(tmp_path))) == ["config.json"]
