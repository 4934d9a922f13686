"""A folder of images becomes shards that read back to the same bytes, and what is left out is named."""

import errno
import io
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
import webdataset
from conftest import run
from PIL import Image

from inpaint_data.commands.packing import pack
from inpaint_data.errors import SampleError, UsageError
from inpaint_data.shards.naming import expand_shards
from inpaint_data.shards.reading import Sample, ShardEnd, read_shard


def picture(kind: str, shade: int = 90, size: tuple[int, int] = (24, 16)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (shade, 40, 20)).save(file, kind)
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


def left_out_of(out: Path) -> dict[str, str]:
    (path,) = out.glob("*-left_out.txt")
    return dict(line.split("\t") for line in path.read_text("utf-8").splitlines())


def test_what_is_packed_reads_back_byte_for_byte(photos: Path, tmp_path: Path) -> None:
    packed = pack(str(photos), str(tmp_path / "out" / "shards"))
    assert packed.shards == expand_shards(tmp_path / "out" / "shards")
    assert read_back(packed.shards) == EXPECTED
    assert (packed.images, packed.members) == (6, {"mask": 2, "caption": 1, "json": 1})
    theirs = {
        item["__key__"]: item["jpg"]
        for item in webdataset.WebDataset(packed.shards, shardshuffle=False)
        if "jpg" in item
    }
    assert theirs == {key: members["jpg"] for key, members in EXPECTED.items() if "jpg" in members}


def test_shards_hold_at_most_their_size_and_all_samples_in_the_order_of_keys(photos: Path, tmp_path: Path) -> None:
    packed = pack(str(photos), str(tmp_path / "out"), shard_size=4)
    names = ["photos-000000.tar", "photos-000001.tar"]
    assert [Path(shard).name for shard in packed.shards] == names
    assert sorted(os.listdir(tmp_path / "out")) == [*names, "photos-left_out.txt"]
    assert list(read_back(packed.shards)) == sorted(EXPECTED)
    assert [len(samples_of(shard)) for shard in packed.shards] == [4, 2]


def test_the_same_folder_gives_the_same_bytes_whenever_it_is_packed(photos: Path, tmp_path: Path) -> None:
    (first,) = pack(str(photos), str(tmp_path / "one")).shards
    for path in photos.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    (second,) = pack(str(photos), str(tmp_path / "two")).shards
    assert Path(first).read_bytes() == Path(second).read_bytes()


def both(one: str, other: str, key: str) -> str:
    return f"{one} and {other} would both be the image of {key!r}; remove one, or name a mask "


NO_MASK, NO_IMAGE = "a mask without an image: no image of its name", "no image of its name"
OWN = "is webdataset's own metadata by its name, which readers skip; rename its folder"


@pytest.mark.parametrize(
    ("files", "reasons"),
    [
        ({"dog_mask.png": PNG}, [NO_MASK]),
        ({"_mask.png": PNG}, [NO_MASK]),
        ({"dog.txt": b""}, [NO_IMAGE]),
        ({"sub/cat.txt": b""}, [NO_IMAGE]),
        ({"dog.png": PNG, "dog.jpg": JPEG, "dog.txt": b""}, [both("dog.jpg", "dog.png", "dog")] * 3),
        ({"dog.JPG": JPEG, "dog.jpg": JPEG}, [both("dog.JPG", "dog.jpg", "dog")] * 2),
        ({"a.b.jpg": JPEG, "a_b.jpg": JPEG}, [both("a.b.jpg", "a_b.jpg", "a_b")] * 2),
        (
            {"a_b.txt": b"", "sub/a.b.jpg": JPEG, "sub/a.b_mask.png": PNG[:9]},
            [NO_IMAGE, "its mask cannot be packed", ""],
        ),
        ({"dog.jxl": b""}, ["an image of a kind that is not read; save it as PNG or JPEG"]),
        ({"__own__/dog.jpg": JPEG}, [OWN]),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_what_is_in_the_way_is_left_out_with_its_reason_and_the_rest_is_packed(
    files: dict[str, bytes], reasons: list[str], tmp_path: Path
) -> None:
    folder = put(tmp_path / "photos", {"ant.jpg": JPEG, "cat.jpg": JPEG, **files})
    packed = pack(str(folder), str(tmp_path / "out"))
    assert {left.name: left.reason for left in packed.left_out} == left_out_of(tmp_path / "out")
    assert {left.name for left in packed.left_out} == files.keys()
    for reason, (_, left) in zip(reasons, sorted(left_out_of(tmp_path / "out").items()), strict=True):
        assert reason in left
    assert {"ant", "cat"} <= read_back(packed.shards).keys()


BAD = {
    "cat.jpg": JPEG,
    "cat_mask.png": PNG[:20],
    "dog.jpg": b"junk",
    "eel.jpg": b"",
    "fox.HEIC": b"x" * 100,
    "gnu.jpg": JPEG,
    "gnu_mask.png": picture("PNG", size=(16, 24)),
    "ok.jpg": JPEG,
    "readme.txt": b"CC0",
}


def test_bad_files_are_listed_and_do_not_stop_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = put(tmp_path / "photos", BAD)
    code, printed, err = run(capsys, "pack", str(folder), "--out", str(tmp_path / "out"))
    assert code == 0
    assert "images        1\n" in printed
    assert "readme.txt): no image of its name" in printed
    assert "photos-000000.tar" in err
    assert [path.name for path in (tmp_path / "out").glob("*.tar")] == ["photos-000000.tar"]
    left_out = left_out_of(tmp_path / "out")
    assert left_out.keys() == BAD.keys() - {"ok.jpg"}
    assert "damaged" in left_out["cat_mask.png"]
    assert left_out["cat.jpg"] == "its mask cannot be packed"
    assert left_out["gnu_mask.png"] == "the mask has another size than its image; give it the image's size"


def test_on_bad_raise_names_all_that_is_bad_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = put(tmp_path / "photos", BAD)
    with pytest.raises(SampleError) as caught:
        pack(str(folder), str(tmp_path / "out"), on_bad="raise")
    for named in (
        "cat_mask.png: image is damaged",
        "dog.jpg: image is none of",
        "eel.jpg: image is empty",
        "gnu_mask.png",
    ):
        assert named in str(caught.value)
    assert "ok.jpg" not in str(caught.value)
    assert "readme.txt" not in str(caught.value)  # which belongs to no image
    assert not (tmp_path / "out").exists()
    assert run(capsys, "pack", str(folder), "--out", str(tmp_path / "out"), "--on_bad", "raise")[0] == 1


def test_a_folder_of_nothing_but_bad_files_exits_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = put(tmp_path / "photos", {"dog.jpg": b"junk"})
    code, printed, err = run(capsys, "pack", str(folder), "--out", str(tmp_path / "out"))
    assert code == 1
    assert "images        0" in printed
    assert "no image could be packed" in err


@pytest.mark.parametrize("kind", ["AVIF", "BMP", "GIF", "TIFF"])
def test_other_kinds_of_images_are_packed_as_they_are(kind: str, tmp_path: Path) -> None:
    data = picture(kind)
    folder = put(tmp_path / "photos", {f"cat.{kind.lower()}": data, "cat_mask.webp": WEBP})
    packed = pack(str(folder), str(tmp_path / "out"))
    assert read_back(packed.shards) == {"cat": {kind.lower(): data, "mask.webp": WEBP}}


def test_a_file_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    folder = put(tmp_path / "photos", {"ant.jpg": JPEG, "cat.jpg": JPEG})
    (folder / "dog.jpg").symlink_to("/proc/self/mem")  # opens, and cannot be read
    packed = pack(str(folder), str(tmp_path / "out"))
    assert packed.images == 2
    assert left_out_of(tmp_path / "out")["dog.jpg"].startswith("it cannot be read (Input/output error)")


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
    with pytest.raises(UsageError, match="on_bad: 'skip' is not one of quarantine, raise"):
        pack(str(photos), str(tmp_path / "out"), on_bad="skip")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"cat\.jpg is a file; name the folder that it is in"):
        pack(str(photos / "cat.jpg"), str(tmp_path / "out"))
    with pytest.raises(UsageError, match="prefix: 'a/b' is not"):
        pack(str(photos), str(tmp_path / "out"), prefix="a/b")
    with pytest.raises(UsageError, match="nothing can be written to http://"):
        pack(str(photos), "http://localhost/out")
    pack(str(photos), str(tmp_path / "out"))
    with pytest.raises(UsageError, match=r"already has shards \(photos-000000\.tar\).*--append"):
        pack(str(photos), str(tmp_path / "out"))
    with pytest.raises(UsageError, match="no images but shards; it is packed already"):
        pack(str(tmp_path / "out"), str(tmp_path / "again"))


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


def test_a_file_that_grows_too_large_for_the_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = put(tmp_path / "photos", {"cat.bmp": picture("BMP", size=(400, 400))})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, hard))
    try:
        with pytest.raises(UsageError, match=r"File too large; fix it and pack again"):
            pack(str(folder), str(tmp_path / "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path / "out") == []


def test_what_a_killed_run_left_is_cleared_away(photos: Path, tmp_path: Path) -> None:
    process = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead = int(process.stdout)
    files = {f".{name}.{number}.tmp": b"" for name in ("photos-000007.tar", "other-000000.tar") for number in (dead, 1)}
    put(tmp_path / "out", files)
    pack(str(photos), str(tmp_path / "out"))
    kept = set(files) - {f".photos-000007.tar.{dead}.tmp"}
    assert {path.name for path in (tmp_path / "out").glob(".*")} == kept


def test_two_folders_are_packed_into_one_and_used_together(tmp_path: Path) -> None:
    one = put(tmp_path / "my photos (2024)", {"cat.jpg": JPEG})
    two = put(tmp_path / "paintings", {"cat.jpg": PNG})
    pack(str(one), str(tmp_path / "out"))
    pack(str(two), str(tmp_path / "out"))
    pack(str(two), str(tmp_path / "out"), prefix="more")
    names = ["more-000000.tar", "my_photos_2024-000000.tar", "paintings-000000.tar"]
    assert [Path(shard).name for shard in expand_shards(tmp_path / "out")] == names


def test_shards_in_the_packed_folder_itself_are_not_its_files(tmp_path: Path) -> None:
    folder = put(tmp_path / "photos", {"cat.jpg": JPEG})
    pack(str(folder), str(folder / "shards"))
    packed = pack(str(folder), str(folder / "shards"), append=True)
    assert (packed.images, packed.known, packed.left_out, packed.removed) == (0, 1, [], [])


def test_shards_do_not_go_among_the_images_nor_into_a_folder_of_some(tmp_path: Path) -> None:
    folder = put(tmp_path / "photos", {"img/cat.jpg": JPEG, "dog.jpg": JPEG})
    with pytest.raises(UsageError, match=r"out: .*photos is the folder of the images; give shards a folder of"):
        pack(str(folder), str(folder))
    with pytest.raises(UsageError, match=r"out: .*photos/img is in .*photos and has pictures \(cat.jpg\)"):
        pack(str(folder), str(folder / "img"), dry_run=True)
    assert sorted(os.listdir(folder)) == ["dog.jpg", "img"]


def test_append_adds_what_is_new_and_names_what_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {
        "cat.jpg": JPEG,
        "dog.jpg": picture("JPEG", 1),
        "eel.jpg": picture("JPEG", 2),
        "fox.jpg": picture("JPEG", 3),
    }
    folder, out = put(tmp_path / "photos", files), tmp_path / "out"
    (first,) = pack(str(folder), str(out)).shards
    before = Path(first).read_bytes()
    put(folder, {"ant.jpg": picture("JPEG", 4), "dog.txt": b"a dog", "gnu.jpg": picture("JPEG", 5)})
    (folder / "eel.jpg").unlink()
    (folder / "fox.jpg").rename(folder / "hen.jpg")
    packed = pack(str(folder), str(out), shard_size=1, append=True)
    assert [Path(shard).name for shard in packed.shards] == ["photos-000001.tar", "photos-000002.tar"]
    assert list(read_back(packed.shards)) == ["ant", "gnu"]
    assert (packed.known, packed.changed, packed.removed) == (3, ["dog"], ["eel"])
    assert packed.notes == ["hen is in the shards as fox, and is not packed again"]
    assert Path(first).read_bytes() == before
    code, printed, _ = run(capsys, "pack", str(folder), "--out", str(out), "--append")
    assert code == 0
    for row in ("images        0", "there already 5", "changed       1 (dog)", "removed       1 (eel)"):
        assert row in printed
    assert len(expand_shards(out)) == 3


def test_the_list_of_what_is_left_out_is_todays(tmp_path: Path) -> None:
    folder, out = put(tmp_path / "photos", {"cat.jpg": JPEG, "dog.jpg": b"junk"}), tmp_path / "out"
    pack(str(folder), str(out))
    assert list(left_out_of(out)) == ["dog.jpg"]
    put(folder, {"dog.jpg": JPEG})
    assert pack(str(folder), str(out), append=True).images == 1
    assert sorted(os.listdir(out)) == ["photos-000000.tar", "photos-000001.tar"]


def test_append_to_damaged_shards_is_refused(tmp_path: Path) -> None:
    folder = put(tmp_path / "photos", {"cat.jpg": JPEG})
    (shard,) = pack(str(folder), str(tmp_path / "out")).shards
    Path(shard).write_bytes(Path(shard).read_bytes()[:600])
    with pytest.raises(UsageError, match=r"photos-000000\.tar: .*cut off.*pack them anew"):
        pack(str(folder), str(tmp_path / "out"), append=True)


def test_a_dry_run_tells_what_belongs_to_what_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {f"images/{number:02d}.jpg": JPEG for number in range(14)}
    masks = {f"masks/{number:02d}.png": PNG for number in range(13)}
    folder = put(tmp_path / "photos", {**files, **masks, "notes.docx": b""})
    code, printed, _ = run(capsys, "pack", str(folder), "--out", str(tmp_path / "out"), "--dry_run")
    assert code == 0
    assert "layout        folders" in printed
    assert "images/00   jpg images/00.jpg, mask.png masks/00.png\n" in printed
    assert "images/12 " not in printed
    for row in ("2 more", "images        14 would be packed", "with mask     13", "left out      1 (notes.docx)"):
        assert row in printed
    assert not (tmp_path / "out").exists()


def test_shards_go_to_s3_and_are_appended_to_there(
    photos: Path, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, _ = run(capsys, "pack", str(photos), "--out", f"{s3}/a/b", "--shard_size", "4")
    assert code == 0
    here = pack(str(photos), str(tmp_path / "out"), shard_size=4).shards
    there = expand_shards(f"{s3}/a/b")
    assert there == [f"{s3}/a/b/photos-000000.tar", f"{s3}/a/b/photos-000001.tar"]
    for one, other in zip(here, there, strict=True):
        assert fsspec.filesystem("s3").cat_file(other) == Path(one).read_bytes()
    assert b"list.csv" in fsspec.filesystem("s3").cat_file(f"{s3}/a/b/photos-left_out.txt")
    with pytest.raises(UsageError, match="already has shards"):
        pack(str(photos), f"{s3}/a/b")
    put(photos, {"new.jpg": picture("JPEG", 7)})
    packed = pack(str(photos), f"{s3}/a/b", append=True)
    assert packed.shards == [f"{s3}/a/b/photos-000002.tar"]
    assert packed.known == 6
    assert not (tmp_path / "s3:").exists()
    code, _, err = run(capsys, "pack", str(photos), "--out", "s3://no-such-bucket/x")
    assert code == 1
    assert err.strip().splitlines()[-1].startswith("inpaint-data pack: s3://no-such-bucket/x/photos-000000.tar: ")


def rows(count: int) -> dict[str, list[object]]:
    """As Hugging Face writes them."""
    return {
        "image": [{"bytes": picture("JPEG", number), "path": f"{number}.jpg"} for number in range(count)],
        "mask": [{"bytes": PNG, "path": None}] * count,
        "text": [f"number {number}" for number in range(count)],
        "score": [0.5] * count,
    }


def test_parquet_tables_are_packed_row_by_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pyarrow.table(rows(3))
    (tmp_path / "data").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "data" / "train-00000-of-00001.parquet")
    code, printed, _ = run(capsys, "pack", str(tmp_path / "data"), "--out", str(tmp_path / "out"))
    assert code == 0
    for row in ("layout        parquet", "images        3", "with mask     3", "these columns are not packed: score"):
        assert row in printed
    assert read_back(expand_shards(tmp_path / "out")) == {
        f"train-00000-of-00001/{number:07d}": {
            "jpg": picture("JPEG", number),
            "mask.png": PNG,
            "txt": f"number {number}".encode(),
        }
        for number in range(3)
    }
    code, printed, _ = run(capsys, "pack", str(tmp_path / "data"), "--out", str(tmp_path / "dry"), "--dry_run")
    assert "images        3 would be packed" in printed
    assert not (tmp_path / "dry").exists()


def test_columns_of_parquet_are_told_and_bad_rows_left_out(tmp_path: Path) -> None:
    columns = rows(4)
    columns = {"photo": columns["image"], "en": columns["text"], "seg": columns["mask"]}
    columns["photo"][1] = {"bytes": None, "path": "1.jpg"}
    columns["photo"][2] = {"bytes": JPEG[:40], "path": "1.jpg"}
    columns["seg"][3] = {"bytes": picture("PNG", size=(16, 24)), "path": None}
    file = tmp_path / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    with pytest.raises(UsageError, match=r"train\.parquet: no column is known .*photo, en, seg.*columns image=NAME"):
        pack(str(file), str(tmp_path / "out"))
    with pytest.raises(UsageError, match="has no column 'x'"):
        pack(str(file), str(tmp_path / "out"), columns="image=x")
    with pytest.raises(UsageError, match="columns: 'photo' is not one of image=NAME"):
        pack(str(file), str(tmp_path / "out"), columns="photo")
    packed = pack(str(file), str(tmp_path / "out"), columns="image=photo, caption=en,mask=seg")
    assert [Path(shard).name for shard in packed.shards] == ["train-000000.tar"]
    assert list(read_back(packed.shards)) == ["train/0000000"]
    assert {left.name for left in packed.left_out} == {f"train.parquet, row {number}" for number in (1, 2, 3)}
    reason = left_out_of(tmp_path / "out")["train.parquet, row 1"]
    assert reason.startswith("its photo holds no picture, or only the path of one; write tables that have their bytes")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UsageError, match=r"train\.parquet: not a parquet table") as caught:
        pack(str(file), str(tmp_path / "again"), columns="image=photo")
    assert "\n" not in str(caught.value)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet", raising=False)
    with pytest.raises(UsageError, match=r"pip install 'inpaint_data\[parquet\]'"):
        pack(str(tmp_path / "train.parquet"), str(tmp_path / "out"))


def test_a_file_url_is_a_folder(tmp_path: Path) -> None:
    folder = put(tmp_path / "photos", {"cat.jpg": JPEG})
    assert pack(str(folder), f"file://{tmp_path}/out").shards == [f"{tmp_path}/out/photos-000000.tar"]
    assert len(expand_shards(tmp_path / "out")) == 1


def test_a_caption_that_says_nothing_is_not_counted_as_one(tmp_path: Path) -> None:
    put(
        tmp_path / "x",
        {"a.jpg": JPEG, "a.txt": b" \n", "b.jpg": JPEG, "b.txt": b"c\xe4t", "c.jpg": JPEG, "c.txt": b"c"},
    )
    packed = pack(str(tmp_path / "x"), str(tmp_path / "out"))
    assert packed.members["caption"] == 1
    assert "captions that are empty, labels of YOLO's or not UTF-8: 2 (a, b); correct them" in packed.table()


def test_captions_of_several_lines_are_said(tmp_path: Path) -> None:
    put(
        tmp_path / "photos",
        {"a.png": picture("png"), "a.txt": b"a cat\na dog\n", "b.png": picture("png"), "b.txt": b"one\n"},
    )
    packed = pack(str(tmp_path / "photos"), str(tmp_path / "shards"))
    assert "captions of several lines, kept as one" in packed.table()
    assert "1 (a)" in packed.table()


def test_labels_of_yolo_are_no_captions(tmp_path: Path) -> None:
    lines = b"0 0.1 0.1 0.4 0.1 0.4 0.4\n2 0.5 0.5 0.2 0.2\n"
    put(tmp_path / "x", {"a.jpg": JPEG, "a.txt": lines, "b.jpg": JPEG, "b.txt": b"3 cats, 0.5 m high"})
    packed = pack(str(tmp_path / "x"), str(tmp_path / "out"))
    assert packed.members["caption"] == 1
    assert "labels of YOLO's or not UTF-8: 1 (a)" in packed.table()


def test_tars_beside_the_tables_of_img2dataset_are_shards_already(tmp_path: Path) -> None:
    put(tmp_path / "x", {"00000.tar": b"", "00000.parquet": b"PAR1"})
    with pytest.raises(UsageError, match="has tars beside its tables, as img2dataset writes them"):
        pack(str(tmp_path / "x"), str(tmp_path / "out"))
