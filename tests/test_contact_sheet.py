"""The contact sheet of a cache: which samples it shows, and what is written beside them."""

from pathlib import Path

import numpy as np
import pytest
from conftest import run, write_shard
from flat import cache_latents
from PIL import Image

from inpaint_data import CacheError, LatentCache, UsageError, contact_sheet
from inpaint_data.commands import contact_sheet as module
from inpaint_data.commands.contact_sheet import spread
from inpaint_data.shown import shown


@pytest.mark.parametrize(
    ("buckets", "count", "chosen"),
    [
        ([0] * 10, 2, [0, 5]),
        ([0] * 8 + [1, 2], 4, [0, 4, 8, 9]),
        ([0, 1, 0, 1], 9, [0, 1, 2, 3]),
        ([0, 0, 0, 0, 1], 3, [0, 2, 4]),
    ],
)
def test_samples_are_spread_over_buckets_and_within_them(buckets: list[int], count: int, chosen: list[int]) -> None:
    assert spread(buckets, count) == chosen


def test_a_sheet_shows_every_bucket_and_variant_and_the_captions_harmlessly(
    tmp_path: Path, photo_bytes: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = list(photo_bytes)
    for number, part in enumerate((keys[:6], keys[6:])):
        samples = {key: {"jpg": photo_bytes[key], "txt": f"{key}\x1b[2J by night".encode()} for key in part}
        write_shard(tmp_path / "shards" / f"{number}.tar", samples)
    shards, cache = str(tmp_path / "shards"), str(tmp_path / "cache")
    cache_latents(shards, cache, resolution=64, max_aspect=2.0, bucket_step=16, upscale=True, masks="boxes", variants=3)
    written: list[str] = []
    monkeypatch.setattr(module, "draw_text", lambda *drawn: written.append(shown(drawn[2])))
    out = contact_sheet(cache, shards, str(tmp_path / "sheet.png"), count=6, tile=64)
    titles = [text for text in written if ", variant " in text]
    assert len(titles) == 6
    sizes = {title.split(": ")[1].split(",")[0] for title in titles}
    cached = LatentCache(cache)
    assert len(sizes) == min(6, len(set(cached.buckets.tolist())))
    assert {title.split("variant ")[1][0] for title in titles} == {"0", "1", "2"}
    for title in titles:
        assert f"{title.split(':')[0]}\\x1b[2J by night" in written
    assert np.array(Image.open(out)).shape[0] > 6 * 64


def test_a_row_shows_the_mask_of_its_variant(tmp_path: Path, shards: str) -> None:
    """The mask as drawn, made again from the shards, is the cached one where the offset is 0."""
    cache = str(tmp_path / "cache")
    cache_latents(shards, cache, resolution=64, masks="boxes", variants=2, mask_offset=0)
    sheet = np.asarray(Image.open(contact_sheet(cache, shards, str(tmp_path / "a.png"), count=4, tile=64))).astype(int)
    step, top, line, margin = 64 + module.MARGIN, module.LINE + module.MARGIN, module.LINE, module.MARGIN
    for row in range(4):
        y = top + row * (64 + 2 * line + margin) + 2 * line
        drawn, kept = (sheet[y : y + 64, margin + column * step :][:, :64] for column in (1, 2))
        assert (drawn == kept).all()
        index = spread([0] * 12, 4)[row]
        cached = LatentCache(cache, variant=row % 2)[index]["mask"][0, 0].numpy()
        assert ((kept[..., 0] > 128) == cached).all()


def test_shards_that_a_cache_was_not_made_from_are_named(
    tmp_path: Path, shards: str, photo_bytes: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    cache = str(tmp_path / "cache")
    cache_latents(shards, cache, resolution=64, masks="boxes")
    other = str(write_shard(tmp_path / "other.tar", {"stranger": {"jpg": photo_bytes["cat"]}}))
    with pytest.raises(CacheError, match=r"is not in .*other\.tar; name the shards that the cache was made from"):
        contact_sheet(cache, other, str(tmp_path / "a.png"))
    with pytest.raises(UsageError, match="count: 0 rows leave nothing to draw"):
        contact_sheet(cache, shards, str(tmp_path / "a.png"), count=0)
    assert run(capsys, "sheet", "--cache", cache, "--shards", other, "--out", str(tmp_path / "a.png"))[0] == 1
