"""A folder of images given where shards are expected is read as the shards that `pack` would make of it."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Pooling, run
from flat import cache_latents, data_module
from hypothesis import given, settings
from hypothesis import strategies as st

from inpaint_data import Autoencoder, InpaintDataModule, ShardError, UsageError, pack, verify_cache
from inpaint_data.shards.folder_shards import SHARD_SIZE
from inpaint_data.shards.naming import expand_shards, shard_identity, shard_size, shard_stem
from inpaint_data.shards.reading import Sample, locate_samples, read_shard
from inpaint_data.shards.streams import read_range

PHOTOS = Path(__file__).parents[1] / "inpaint_data" / "demo" / "photos"
SMALL: dict[str, Any] = {"resolution": 16, "masks": "boxes", "upscale": True}


def contents(cache: Path) -> dict[str, bytes]:
    """The files of a cache."""
    return {path.name: path.read_bytes() for path in cache.iterdir() if path.suffix in (".tar", ".json")}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photographs in two folders, one with a caption, with names that a tar has to stretch for."""
    folder = tmp_path / "my photos"
    deep = folder / ("deep" * 30)
    deep.mkdir(parents=True)
    for number, path in enumerate(sorted(PHOTOS.glob("*.jpg"))[:3]):
        shutil.copy(path, (deep if number == 2 else folder) / f"{'é' * 60}{number}.jpg")
    (folder / f"{'é' * 60}0.txt").write_text("a caption")
    return folder


def test_the_shards_of_a_folder_are_those_that_pack_makes(photos: Path, tmp_path: Path) -> None:
    (packed,) = pack(str(photos), str(tmp_path / "shards")).shards
    (virtual,) = expand_shards(str(photos))
    assert shard_identity(virtual) == shard_identity(packed)
    assert shard_stem(virtual) == shard_stem(packed) == "my_photos-000000"
    located = [item for item in locate_samples(virtual) if isinstance(item, Sample)]
    assert [item.extent for item in located] == [item.extent for item in locate_samples(packed)]  # type: ignore[union-attr]
    assert [item.members for item in read_shard(virtual) if isinstance(item, Sample)] == [
        item.members for item in read_shard(packed) if isinstance(item, Sample)
    ]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_range_of_bytes_is_that_of_the_packed_shard(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("in") / "x"
    folder.mkdir()
    shutil.copy(PHOTOS / "cat.jpg", folder)
    (folder / "cat.txt").write_text("c" * data.draw(st.integers(0, 1100)))
    whole = Path(pack(str(folder), str(folder.parent / "out")).shards[0]).read_bytes()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    assert read_range(expand_shards(str(folder))[0], start, end) == whole[start:end]


def test_more_images_than_a_shard_holds_make_several(tmp_path: Path) -> None:
    small = (PHOTOS / "cat.jpg").read_bytes()
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(SHARD_SIZE + 1):
        (folder / f"{number:05d}.jpg").write_bytes(small[:64])
    shards = expand_shards(str(folder))
    assert [shard_stem(shard) for shard in shards] == ["many-000000", "many-000001"]
    assert sum(1 for _ in locate_samples(shards[1])) == 1


def test_a_cache_of_a_folder_is_that_of_its_shards(photos: Path, tmp_path: Path, vae: Autoencoder) -> None:
    pack(str(photos), str(tmp_path / "shards"))
    for source, out in ((photos, "a"), (tmp_path / "shards", "b")):
        assert cache_latents(str(source), str(tmp_path / out), vae=vae, **SMALL).cached == 3
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert not verify_cache(tmp_path / "a", against=str(photos)).problems
    assert cache_latents(str(photos), str(tmp_path / "a"), vae=vae, **SMALL).shards == 0
    shutil.copy(PHOTOS / "cat.jpg", photos / "new.jpg")
    summary = cache_latents(str(photos), str(tmp_path / "a"), vae=vae, **SMALL)
    assert (summary.shards, summary.in_cache["samples"]) == (1, 4)


@pytest.mark.parametrize("workers", ["threads", "processes"])
def test_training_reads_a_folder_as_its_shards(photos: Path, tmp_path: Path, workers: str) -> None:
    pack(str(photos), str(tmp_path / "shards"))
    epochs = []
    for source in (photos, tmp_path / "shards"):
        module: InpaintDataModule = data_module(
            str(source), batch_size=3, vae=Autoencoder(Pooling()), num_workers=2, workers=workers, **SMALL
        )
        module.setup("fit")
        epochs.append([module.on_after_batch_transfer(batch, 0) for batch in module.train_dataloader()])
    for one, other in zip(*epochs, strict=True):
        assert one["__key__"] == other["__key__"]
        assert torch.equal(one["latents"], other["latents"])
        assert torch.equal(one["mask"], other["mask"])


def test_what_a_folder_leaves_out_is_said(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    (photos / "orphan_mask.png").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        expand_shards(str(photos))
    assert "1 files are left out, the first orphan_mask.png: a mask without an image" in caplog.text
    assert "--out shards writes the list of all" in caplog.text


def test_a_folder_that_nobody_can_read_alone_names_the_flag_of_pack(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / "x" / folder).mkdir(parents=True)
    (tmp_path / "x" / "images" / "cat.jpg").write_bytes(b"")
    (tmp_path / "x" / "masks" / "dog.png").write_bytes(b"")
    with pytest.raises(UsageError, match=r"shards: masks/ looks like masks, but none .* flags of `inpaint-data pack`"):
        expand_shards(str(tmp_path / "x"))


def test_a_file_that_changes_size_after_the_folder_was_listed_is_named(photos: Path) -> None:
    (shard,) = expand_shards(str(photos))
    size = shard_size(shard)
    for path in photos.rglob("*.jpg"):
        path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(ShardError, match=r"\.jpg was changed while it was read; run again"):
        read_range(shard, 0, size)


def test_the_command_takes_a_folder(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "cache")
    command = ["cache", "--shards", str(photos), "--out", out, "--vae", "demo", "--resolution", "64"]
    code, text, _ = run(capsys, *command, "--masks", "boxes", "--device", "cpu")
    assert code == 0
    assert "cached       3" in text
    code, text, _ = run(capsys, "look", str(photos), "--resolution", "64")
    assert code == 0
    assert "usable        3 of 3 samples" in text


@pytest.mark.parametrize(("tar", "pattern"), [("backup.tar", "*.tar"), ("old/backup.tar", "old/*.tar")])
def test_a_folder_with_shards_and_pictures_is_refused(photos: Path, tmp_path: Path, tar: str, pattern: str) -> None:
    (packed,) = pack(str(photos), str(tmp_path / "shards")).shards
    (photos / tar).parent.mkdir(exist_ok=True)
    shutil.copy(packed, photos / tar)
    with pytest.raises(UsageError, match=r"has shards .*backup\.tar\) and pictures .*`inpaint-data pack ") as caught:
        expand_shards(str(photos))
    assert f"give the shards as {photos}/{pattern}, or" in str(caught.value)
    assert expand_shards(f"{photos}/{pattern}") == [f"{photos}/{tar}"]


def test_pictures_that_are_not_used_are_said(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    (photos / "reg" / "1_cat").mkdir(parents=True)
    shutil.copy(next(photos.rglob("*.jpg")), photos / "reg" / "1_cat" / "r.jpg")
    with caplog.at_level(logging.WARNING):
        expand_shards(str(photos))
    assert "1 pictures are not used, the first reg/1_cat/r.jpg: a regularisation image" in caplog.text


def test_shards_beside_what_is_no_picture_of_the_users_are_shards(tmp_path: Path) -> None:
    shelf, pixels = tmp_path / "shelf", next(PHOTOS.glob("*.jpg")).read_bytes()
    shard = shelf / "a.tar"
    for path in (shelf / ".thumbs" / "a.jpg", shelf / "@eaDir" / "b.jpg", shelf / "._c.jpg", shard):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pixels)
    (shelf / "folder.jpg").mkdir()
    (shelf / "gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    (shelf / "again").symlink_to(shelf)
    assert expand_shards(str(shelf)) == [str(shard)]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "d.JPE").write_bytes(pixels)
    (shelf / "linked").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"has shards .*a\.tar\) and pictures \(linked/d\.JPE\)"):
        expand_shards(str(shelf))


def test_masks_next_to_a_folder_are_said(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    (photos.parent / "masks").mkdir()
    (photos.parent / "masks" / "a.png").touch()
    with caplog.at_level(logging.WARNING):
        expand_shards(str(photos))
    assert f"masks may lie in {photos.parent}/masks: pack my photos with --masks_from" in caplog.text
