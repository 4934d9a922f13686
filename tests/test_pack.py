"""A folder of images becomes shards that read back to the same bytes, or an error that names the file."""

import errno
import io
import json
import os
from pathlib import Path

import pytest
import webdataset
from PIL import Image

from inpaint_data.commands.packing import pack
from inpaint_data.errors import SampleError, UsageError
from inpaint_data.shards.naming import expand_shards
from inpaint_data.shards.reading import Sample, ShardEnd, read_shard


def picture(kind: str, shade: int = 90) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (24, 16), (shade, 40, 20)).save(file, kind)
    return file.getvalue()


JPEG, PNG, WEBP = picture("JPEG"), picture("PNG"), picture("WEBP")


def put(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return put(
        tmp_path / "photos",
        {
            "cat.jpg": JPEG,
            "cat_mask.png": PNG,
            "cat.txt": b"a cat",
            "cat.json": json.dumps({"licence": "CC0"}).encode(),
            "IMG.2024.05.JPEG": JPEG,
            "IMG.2024.05_mask.PNG": PNG,
            "sub.folder/deep/bird.webp": WEBP,
            "sub.folder/cat.png": PNG,
            "ünïcode name.jpg": JPEG,
            "long " * 30 + ".jpg": JPEG,
            ".DS_Store": b"junk",
            "._cat.jpg": b"junk",
            ".git/cat.jpg": b"junk",
            "list.csv": b"stays out",
        },
    )


EXPECTED = {
    "cat": {"jpg": JPEG, "mask.png": PNG, "txt": b"a cat", "json": b'{"licence": "CC0"}'},
    "IMG_2024_05": {"jpeg": JPEG, "mask.png": PNG},
    "sub.folder/deep/bird": {"webp": WEBP},
    "sub.folder/cat": {"png": PNG},
    "ünïcode name": {"jpg": JPEG},
    "long " * 30: {"jpg": JPEG},
}


def samples_of(shard: str) -> list[Sample]:
    *samples, end = read_shard(shard)
    assert all(isinstance(item, Sample) for item in samples)
    assert isinstance(end, ShardEnd)
    assert (end.shard, end.keys) == (shard, len(samples))
    return samples


def read_back(shards: list[str]) -> dict[str, dict[str, bytes]]:
    items = [item for shard in shards for item in samples_of(shard)]
    assert len({item.key for item in items}) == len(items)
    return {item.key: item.members for item in items}


def test_what_is_packed_reads_back_byte_for_byte(photos: Path, tmp_path: Path) -> None:
    shards = pack(str(photos), str(tmp_path / "out" / "shards"))
    assert shards == expand_shards(tmp_path / "out" / "shards")
    assert read_back(shards) == EXPECTED
    theirs = {
        item["__key__"]: item["jpg"] for item in webdataset.WebDataset(shards, shardshuffle=False) if "jpg" in item
    }
    assert theirs == {key: members["jpg"] for key, members in EXPECTED.items() if "jpg" in members}


def test_shards_hold_at_most_their_size_and_all_samples_in_the_order_of_keys(photos: Path, tmp_path: Path) -> None:
    shards = pack(str(photos), str(tmp_path / "out"), shard_size=4)
    assert [Path(shard).name for shard in shards] == ["000000.tar", "000001.tar"]
    assert sorted(os.listdir(tmp_path / "out")) == ["000000.tar", "000001.tar"]
    assert list(read_back(shards)) == sorted(EXPECTED)
    assert [len(samples_of(shard)) for shard in shards] == [4, 2]


def test_the_same_folder_gives_the_same_bytes_whenever_it_is_packed(photos: Path, tmp_path: Path) -> None:
    (first,) = pack(str(photos), str(tmp_path / "one"))
    for path in photos.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    (second,) = pack(str(photos), str(tmp_path / "two"))
    assert Path(first).read_bytes() == Path(second).read_bytes()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"cat_mask.png": PNG}, r"cat_mask\.png has no image"),
        ({"_mask.png": PNG}, r"_mask\.png has no image"),
        ({"dog.txt": b""}, r"dog\.txt has no image"),
        ({"sub/cat.txt": b""}, r"sub/cat\.txt has no image"),
        ({"cat.png": PNG}, r"cat\.jpg and .*cat\.png would both"),
        ({"cat.JPG": JPEG}, r"cat\.JPG and .*cat\.jpg would both"),
        ({"a.b.jpg": JPEG, "a_b.jpg": JPEG}, "'a.b' and 'a_b' would both get the key 'a_b'"),
        ({"a.b.jpg": JPEG, "a_b.txt": b""}, "'a.b' and 'a_b' would both get the key 'a_b'"),
        ({"cat_mask.jpg": JPEG}, r"cat_mask\.jpg is a mask but not a PNG"),
        ({"dog.jxl": b""}, r"dog\.jxl is of a format that is not decoded"),
        ({"__own__/dog.jpg": JPEG}, "dog.jpg is webdataset's own"),
    ],
)
def test_what_is_in_the_way_is_named_and_nothing_is_written(
    files: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    folder = put(tmp_path / "photos", {"ant.jpg": JPEG, "cat.jpg": JPEG, **files})
    if set(files) & {"cat_mask.png"} and "no image" in message:
        (folder / "cat.jpg").unlink()
    with pytest.raises(UsageError, match=message) as caught:
        pack(str(folder), str(tmp_path / "out"), shard_size=1)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists() or os.listdir(tmp_path / "out") == []


def test_all_images_that_cannot_be_read_are_named_at_once(tmp_path: Path) -> None:
    files = {"cat.jpg": JPEG, "cat_mask.png": PNG[:20], "dog.jpg": b"8BPS", "eel.jpg": b"", "ok.jpg": JPEG}
    folder = put(tmp_path / "photos", files)
    with pytest.raises(SampleError) as caught:
        pack(str(folder), str(tmp_path / "out"))
    for named in (
        "cat_mask.png: image is damaged",
        "dog.jpg: image is a Photoshop document",
        "eel.jpg: image is empty",
    ):
        assert named in str(caught.value)
    assert "ok.jpg" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_folders_that_cannot_be_used_are_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no folder .*nowhere"):
        pack(str(tmp_path / "nowhere"), str(tmp_path / "out"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty has no jpg"):
        pack(str(tmp_path / "empty"), str(tmp_path / "out"))
    with pytest.raises(UsageError, match="shard_size is 0"):
        pack(str(photos), str(tmp_path / "out"), shard_size=0)
    with pytest.raises(UsageError, match=r"cat\.jpg"):
        pack(str(photos), str(photos / "cat.jpg"))
    pack(str(photos), str(tmp_path / "out"))
    with pytest.raises(UsageError, match=r"already has shards \(000000\.tar\)"):
        pack(str(photos), str(tmp_path / "out"))


def test_a_full_disk_leaves_no_shard_behind(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def full_at_the_third(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full_at_the_third)
    with pytest.raises(UsageError, match="No space left on device"):
        pack(str(photos), str(tmp_path / "out"), shard_size=1)
    assert os.listdir(tmp_path / "out") == []
