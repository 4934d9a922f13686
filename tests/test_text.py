"""Carried text embeddings become padded tensors, captions give way to the empty prompt, and embed_text makes both."""

import copy
import io
import json
import os
import re
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds
from conftest import run, small_samples, write_shard
from flat import cache_latents, data_module
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_pipelines import pipeline_of
from transformers import CLIPTextModel

from inpaint_data import Autoencoder, CacheError, LatentCache, UsageError
from inpaint_data.batch import is_batch
from inpaint_data.commands.text_embedding import TextSummary, embed_text
from inpaint_data.encoding.text import Text, TextSettings
from inpaint_data.pictures.settings import ExampleSettings
from inpaint_data.pipeline.stages import image_stages
from inpaint_data.shards.reading import Sample, ShardEnd, read_shard


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array), allow_pickle=True)
    return buffer.getvalue()


def batch_of(members: dict[str, dict[str, bytes]]) -> Any:
    """Key -> carried members, as a batch of what `Text` reads, and of one tensor that it does not."""
    return {
        "latents": torch.arange(len(members)),
        "caption": [f"a photo of {key}" for key in members],
        "carried": list(members.values()),
        "__key__": list(members),
        "__shard__": ["000000.tar"] * len(members),
    }


def folder_of(path: Path, files: dict[str, bytes]) -> str:
    path.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (path / name).write_bytes(data)
    return str(path)


# Text


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    width=st.integers(1, 5),
    dtype=st.sampled_from(["<f2", "<f4", ">f4", "<f8"]),
    order=st.sampled_from("CF"),
    seed=st.integers(0, 99),
)
def test_embeddings_of_any_lengths_are_padded_with_zeros_and_masked(
    lengths: list[int], width: int, dtype: str, order: Any, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    tokens = [rng.standard_normal((length, width)).astype(dtype, order) for length in lengths]
    pooled = [rng.standard_normal(width).astype(dtype) for _ in lengths]
    batch = batch_of(
        {f"k{i}": {"e.npy": npy(t), "p.npy": npy(p)} for i, (t, p) in enumerate(zip(tokens, pooled, strict=True))}
    )
    made: Any = Text(TextSettings(["e.npy", "p.npy"]))(batch, seed, 0)

    expected = torch.zeros(len(lengths), max(lengths), width)
    mask = torch.zeros(len(lengths), max(lengths), dtype=torch.bool)
    for i, array in enumerate(tokens):
        for j in range(len(array)):
            mask[i, j] = True
            for k in range(width):
                expected[i, j, k] = float(np.float32(array[j, k]))
    assert made["e"].dtype == torch.float32
    assert made["e"].is_contiguous()
    assert torch.equal(made["e"], expected)
    assert made["e_mask"].dtype == torch.bool
    assert torch.equal(made["e_mask"], mask)
    assert torch.equal(made["p"], torch.tensor(np.stack(pooled).astype(np.float32)))
    assert "p_mask" not in made


@pytest.fixture
def thousand(tmp_path: Path) -> tuple[Any, TextSettings]:
    members = {f"k{i}": {"e.npy": npy(np.full((1 + i % 3, 2), i / 8)), "json": b"{}"} for i in range(1000)}
    folder = folder_of(tmp_path / "empty", {"e.npy": npy(np.full((4, 2), -1, "float16"))})
    return batch_of(members), TextSettings(["e.npy"], dropout=0.1, empty_prompt=folder)


def test_a_dropped_caption_is_empty_and_its_embedding_the_empty_prompts(thousand: tuple[Any, TextSettings]) -> None:
    batch, dropping = thousand
    made: Any = Text(dropping)(batch, 0, 0)
    dropped = [caption == "" for caption in made["caption"]]
    assert 60 <= sum(dropped) <= 140  # binomial: 100 with a standard deviation of 9.5
    for row, (key, drop) in enumerate(zip(made["__key__"], dropped, strict=True)):
        own = torch.full((1 + row % 3, 2), row / 8)
        assert torch.equal(made["e"][row][made["e_mask"][row]], torch.full((4, 2), -1.0) if drop else own)
        assert made["caption"][row] == ("" if drop else f"a photo of {key}")
    assert made["carried"] == [{"json": b"{}"}] * 1000
    assert made["latents"] is batch["latents"]


def test_which_captions_are_dropped_depends_on_seed_key_and_epoch_alone(thousand: tuple[Any, TextSettings]) -> None:
    batch, dropping = thousand

    def dropped(rows: Any, seed: int, epoch: int) -> set[str]:
        part = {name: [batch[name][row] for row in rows] for name in ("caption", "carried", "__key__", "__shard__")}
        made: Any = Text(dropping)(part, seed, epoch)
        return {key for key, caption in zip(made["__key__"], made["caption"], strict=True) if not caption}

    whole = dropped(range(1000), 3, 5)
    assert set().union(*(dropped(range(first, 1000, 7)[::-1], 3, 5) for first in range(7))) == whole
    for seed, epoch in ((3, 6), (4, 5)):
        assert len(whole & dropped(range(1000), seed, epoch)) < 30  # independent: 10 in common


def test_every_epoch_drops_others_so_that_each_caption_has_its_turn() -> None:
    text, batch = Text(TextSettings(dropout=0.5)), batch_of({f"k{i}": {} for i in range(50)})
    ever = [any(text(batch, 0, epoch)["caption"][row] == "" for epoch in range(12)) for row in range(50)]
    assert all(ever)


@pytest.mark.parametrize(("share", "captions"), [(0.0, ["a photo of a"]), (1.0, [""])])
def test_no_caption_and_all_captions_can_be_dropped(share: float, captions: list[str]) -> None:
    assert Text(TextSettings(dropout=share))(batch_of({"a": {}}), 0, 0)["caption"] == captions


def test_the_batch_that_is_given_stays_as_it_is(thousand: tuple[Any, TextSettings]) -> None:
    batch, dropping = thousand
    before = copy.deepcopy({name: value for name, value in batch.items() if name != "latents"})
    Text(dropping)(batch, 0, 0)
    assert {name: value for name, value in batch.items() if name != "latents"} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dropout": 1.1}, "dropout: 1.1 is not a share"),
        ({"dropout": -0.1}, "dropout: -0.1 is not a share"),
        ({"dropout": float("nan")}, "dropout: nan is not a share"),
        ({"embeddings": ["prompt_embeds"]}, "'prompt_embeds' in .* is not a member's name"),
        ({"embeddings": "prompt_embeds.npy"}, "'p' in 'prompt_embeds.npy' is not a member's name"),
        ({"embeddings": [".npy"]}, "'.npy' in .* is not a member's name"),
        ({"embeddings": ["Clip.npy"]}, "'Clip.npy' in .* is not a member's name"),
        ({"embeddings": ["../clip.npy"]}, "'../clip.npy' in .* is not a member's name"),
        ({"embeddings": ["a.npy", "a.npy"]}, "a.npy: the batch has another 'a' already"),
        ({"embeddings": ["a.npy", "a_mask.npy"]}, "a_mask.npy: the batch has another 'a_mask' already"),
        ({"embeddings": ["latents.npy"]}, "latents.npy: the batch has another 'latents' already"),
        ({"embeddings": ["image.npy"]}, "image.npy: the batch has another 'image' already"),
        ({"embeddings": ["a.npy"], "dropout": 0.1}, r"empty_prompt: dropout 0.1 needs the empty prompt's a.npy; name"),
    ],
)
def test_settings_that_cannot_work_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"^[^\n]*{message}[^\n]*$"):
        TextSettings(**arguments)


archive = io.BytesIO()
np.savez(archive, a=np.ones((3, 4)))
DAMAGED = [
    (archive.getvalue(), r"cannot be read \(ValueError: the magic string"),
    (b"", "cannot be read"),
    (b"junk", "cannot be read"),
    (npy(np.ones((3, 4)))[:-1], "cannot be read"),
    (npy(np.ones((3, 4)))[:40], "cannot be read"),
    (npy(np.ones((3, 4))).replace(b"(3, 4)", b"(3, 4 "), "cannot be read"),
    (npy(np.ones((3, 4))).replace(b"(3, 4), }     ", b"(9999999999,)}"), "cannot be read"),
    (npy(np.array([{"a": 1}], dtype=object)), r"cannot be read \(ValueError: .*pickle"),
    (npy(np.ones((3, 4), np.int64)), "is an array of int64, not of floats"),
    (npy(np.float32(1)), r"has the shape \(\) instead of \(tokens, width\) or \(width,\)"),
    (npy(np.ones((1, 3, 4))), r"has the shape \(1, 3, 4\)"),
    (npy(np.ones((0, 4))), r"has the shape \(0, 4\)"),
    (npy([[np.nan]]), "has NaN or infinity"),
    (npy([1e300]), "has NaN or infinity"),
]


@pytest.mark.parametrize(("data", "message"), DAMAGED)
def test_a_damaged_embedding_is_named(data: bytes, message: str, tmp_path: Path) -> None:
    batch = batch_of({"dog": {"e.npy": data}})
    with pytest.raises(CacheError, match=f"^000000.tar, sample 'dog': e.npy {message}[^\n]*; make it again[^\n]*$"):
        Text(TextSettings(["e.npy"]))(batch, 0, 0)
    empty = folder_of(tmp_path / "empty", {"e.npy": data})
    with pytest.raises(UsageError, match=rf"^empty_prompt: {re.escape(empty)}/e.npy: {message}[^\n]*$"):
        Text(TextSettings(["e.npy"], 0.5, empty))


@pytest.mark.parametrize(
    ("cat", "message"),
    [
        ({"txt": b""}, "e.npy is missing; add it"),
        ({"e.npy": npy(np.ones((3, 5)))}, r"e.npy is \(3, 5\), but sample 'dog''s is \(2, 4\); make all"),
        ({"e.npy": npy(np.ones(4))}, r"e.npy is \(4,\), but sample 'dog''s is \(2, 4\); make all"),
    ],
)
def test_a_sample_unlike_the_others_is_named(cat: dict[str, bytes], message: str) -> None:
    batch = batch_of({"dog": {"e.npy": npy(np.ones((2, 4)))}, "cat": cat})
    with pytest.raises(CacheError, match=f"^000000.tar, sample 'cat': {message}[^\n]*$"):
        Text(TextSettings(["e.npy"]))(batch, 0, 0)


def test_an_empty_prompt_of_another_encoder_or_nowhere_is_refused(tmp_path: Path) -> None:
    empty = folder_of(tmp_path / "empty", {"e.npy": npy(np.ones((2, 5)))})
    batch = batch_of({"dog": {"e.npy": npy(np.ones((2, 4)))}})
    with pytest.raises(CacheError, match=r"'dog': e.npy is \(2, 4\), but the empty prompt's is \(2, 5\)"):
        Text(TextSettings(["e.npy"], 1e-9, empty))(batch, 0, 0)
    with pytest.raises(UsageError, match=r"^empty_prompt: .*/f.npy: No such file or directory; make it with"):
        Text(TextSettings(["f.npy"], 0.5, empty))


# embed_text


@pytest.fixture
def pipeline(tmp_path: Path) -> tuple[Any, Path]:
    """A pipeline of a tiny CLIP of random weights, and the folder that it is saved in."""
    (tmp_path / "pipeline").mkdir()
    return pipeline_of("StableDiffusionPipeline", tmp_path / "pipeline"), tmp_path / "pipeline"


def add(shards: Any, out: Path, model: Path, **settings: Any) -> TextSummary:
    return embed_text(str(shards), str(out), {"model": str(model)}, device="cpu", **settings)


def refusal(shards: Any, out: Path, model: Path) -> str:
    """The one line that a run ends with."""
    with pytest.raises(UsageError) as error:
        add(shards, out, model)
    assert len(str(error.value).splitlines()) == 1
    assert error.value.exit_code == 2
    return str(error.value)


def read_back(*shards: Path | str) -> dict[str, dict[str, bytes]]:
    items = [item for shard in shards for item in read_shard(str(shard))]
    assert all(isinstance(item, Sample | ShardEnd) for item in items)
    return {str(item.key): item.members for item in items if isinstance(item, Sample)}


def array(data: bytes) -> torch.Tensor:
    return torch.from_numpy(np.load(io.BytesIO(data), allow_pickle=False))


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


@torch.inference_mode()
def test_from_captions_to_tensors_of_a_batch(
    pipeline: tuple[Any, Path], shards: str, tmp_path: Path, vae: Autoencoder
) -> None:
    own, folder = pipeline
    out = tmp_path / "out"
    summary = add(shards, out, folder)
    assert (summary.ok, summary.written) == (True, 2)
    assert summary.table().split()[:3] == ["shards", "2", "written,"]
    assert "12 written, 0 without caption, 3 with one that is too long" in summary.table()
    assert sorted(os.listdir(out)) == ["000000.tar", "000001.tar", "empty_prompt", "text.json"]

    def encode(caption: str) -> torch.Tensor:
        embeddings, _ = own.encode_prompt(caption, "cpu", 1, False)
        return embeddings[0]

    before, after = read_back(*sorted(Path(shards).glob("*.tar"))), read_back(*sorted(out.glob("*.tar")))
    expected = {key: encode(members["txt"].decode()) for key, members in before.items()}
    assert list(after) == list(before)
    for key, members in after.items():
        assert array(members["prompt_embeds.npy"]).dtype == torch.float32
        assert torch.equal(array(members["prompt_embeds.npy"]), expected[key])
        assert {name: data for name, data in members.items() if name != "prompt_embeds.npy"} == before[key]
    empty = array((out / "empty_prompt" / "prompt_embeds.npy").read_bytes())
    assert torch.equal(empty, encode(""))
    assert not torch.equal(expected["cat"], expected["coffee"])

    common = {"vae": vae, "resolution": 64, "masks": "mixture", "batch_size": 4}
    cache_latents(str(out), str(tmp_path / "cache"), **common)
    text = Text(TextSettings(["prompt_embeds.npy"], 0.3, str(out / "empty_prompt")))
    cached: Any = text(LatentCache(tmp_path / "cache").batch(range(12)), 7, 2)
    dropped = [caption == "" for caption in cached["caption"]]
    assert 0 < sum(dropped) < 12
    for key, drop, row in zip(cached["__key__"], dropped, cached["prompt_embeds"], strict=True):
        assert torch.equal(row, empty if drop else expected[key])
    assert cached["prompt_embeds_mask"].all()
    assert cached["carried"] == [{"txt": before[key]["txt"]} for key in before]

    module = data_module(str(out), **common)
    module.setup()
    assert module.encoder is not None
    examples = ExampleSettings(module.pictures, module.masks)
    stages = image_stages(sorted(tars_of(out)), examples, (), module.batch_size, variants=[0], threads=2)
    batches = filter(is_batch, wds.DataPipeline(*stages))
    live: list[Any] = [module.encoder.encode(text(batch, 7, 2)) for batch in batches]
    assert torch.equal(torch.cat([batch["prompt_embeds"] for batch in live]), cached["prompt_embeds"])
    assert [caption for batch in live for caption in batch["caption"]] == cached["caption"]


def tars_of(folder: Path) -> list[str]:
    return [str(path) for path in folder.glob("*.tar")]


def test_a_killed_run_leaves_no_half_shard_and_goes_on_to_the_same_bytes(
    pipeline: tuple[Any, Path], shards: str, tmp_path: Path
) -> None:
    _, folder = pipeline
    assert add(shards, tmp_path / "whole", folder).ok
    calls, forward = [], CLIPTextModel.forward

    def killed(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(0)
        if len(calls) == 10:  # the empty prompt, five captions of the first shard, four of the second
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CLIPTextModel, "forward", killed)
        with pytest.raises(KeyboardInterrupt):
            add(shards, tmp_path / "out", folder)
    assert list(tars(tmp_path / "out")) == ["000000.tar"]
    # As kill -9 leaves one, by a process that no longer runs.
    (tmp_path / "out" / ".000001.tar.99999999.tmp").write_bytes(b"half")
    summary = add(shards, tmp_path / "out", folder)
    assert summary.ok
    assert "1 written, 1 were there" in summary.table()
    assert tars(tmp_path / "out") == tars(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path / "out")) == sorted(os.listdir(tmp_path / "whole"))


def test_what_is_left_out_is_listed_and_remembered(pipeline: tuple[Any, Path], tmp_path: Path) -> None:
    _, folder = pipeline
    samples = small_samples(4)
    samples["sample_1"]["txt"] = b"\xff\x80"
    del samples["sample_2"]["txt"]
    write_shard(tmp_path / "shards" / "a.tar", samples)
    cut = write_shard(
        tmp_path / "shards" / "b.tar", {f"b{i}": each for i, each in enumerate(samples.values()) if i != 1}
    )
    cut.write_bytes(cut.read_bytes()[:-3000])
    (tmp_path / "shards" / "c.tar").symlink_to("nowhere")
    out = tmp_path / "out"

    for expected in ("2 written, 0 were there, 1 unreadable", "0 written, 2 were there, 1 unreadable"):
        summary = add(tmp_path / "shards", out, folder)
        assert not summary.ok
        assert expected in summary.table()
        assert "left out  2 " in summary.table()
        (unreadable,) = summary.unreadable
        assert "c.tar: No such file or directory; see that" in unreadable
        assert summary.table().splitlines()[3:] == [unreadable]
    lost = "".join(path.read_text() for path in sorted(out.glob("*.left_out.txt")))
    assert re.fullmatch("sample_1: txt: the caption is not UTF-8.*\nb3: the zero block .*\n", lost)
    assert list(summary.left_out) == lost.splitlines()
    kept = read_back(*tars_of(out))
    assert sorted(kept) == ["b0", "b2", "sample_0", "sample_2", "sample_3"]
    empty = (out / "empty_prompt" / "prompt_embeds.npy").read_bytes()
    assert kept["sample_2"]["prompt_embeds.npy"] == empty  # a sample without a caption has the empty one


def test_the_command_prints_the_summary_and_exits_by_it(
    pipeline: tuple[Any, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = pipeline
    samples = small_samples(3)
    write_shard(tmp_path / "good" / "a.tar", samples)
    samples["sample_1"]["txt"] = b"caf\xe9"
    write_shard(tmp_path / "bad" / "a.tar", samples)
    for name, code, counts in (("good", 0, "samples   3 written"), ("bad", 1, "samples   2 written")):
        arguments = [
            "--shards",
            str(tmp_path / name),
            "--out",
            str(tmp_path / f"{name}_out"),
            "--text_model",
            str(folder),
        ]
        got, out, _ = run(capsys, "text", *arguments, "--device", "cpu")
        assert got == code
        assert out.splitlines()[0] == "shards    1 written, 0 were there, 0 unreadable"
        assert counts in out
    for flag, value, message in (
        ("--text_model", str(tmp_path / "nowhere"), "cannot be loaded"),
        ("--text_model", "", "text_model: must be given"),
        ("--text_length", "two", "text_length: 'two' is not a whole number"),
        ("--device", "abacus", "device: 'abacus' cannot be used"),
        ("--shards", "[]", "shards: "),
    ):
        code, out, err = run(capsys, "text", *arguments, "--out", str(tmp_path / "new"), flag, value)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert err.startswith("inpaint-data text: ")
        assert message in err
    assert not (tmp_path / "new").exists()


def test_names_that_webdataset_keeps_for_itself_do_not_lose_a_member(
    pipeline: tuple[Any, Path], tmp_path: Path
) -> None:
    _, folder = pipeline
    shard = tmp_path / "shards" / "a.tar"
    shard.parent.mkdir()
    with tarfile.open(shard, "w") as tar:
        for name in ("a.jpg", "a._notes", "b.jpg", "b.__key__"):
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(b"x"))
    summary = add(shard, tmp_path / "out", folder)
    assert {key: sorted(members) for key, members in read_back(*tars_of(tmp_path / "out")).items()} == {
        "a": ["_notes", "jpg", "prompt_embeds.npy"]
    }
    assert [line.split(": ")[0] for line in summary.left_out] == ["b"]


def test_embed_text_refuses_what_would_mix_embeddings(pipeline: tuple[Any, Path], shards: str, tmp_path: Path) -> None:
    own, folder = pipeline
    out = tmp_path / "out"
    assert add(shards, out, folder).ok
    before = tars(out)
    with torch.no_grad():
        next(own.text_encoder.parameters()).add_(1)
    own.save_pretrained(tmp_path / "other")
    shutil.copytree(folder, tmp_path / "without_tokenizer")
    shutil.rmtree(tmp_path / "without_tokenizer" / "tokenizer")
    cases = {
        (shards, out, tmp_path / "other"): "its shards were made with",
        (shards, Path(shards), folder): "lies there; choose another folder",
        (out, tmp_path / "twice", folder): "has a prompt_embeds.npy; give shards without it",
        (shards, tmp_path / "new", tmp_path / "without_tokenizer"): "cannot be loaded",
        (shards, tmp_path / "new", tmp_path / "nowhere"): "cannot be loaded",
    }
    for arguments, message in cases.items():
        assert message in refusal(*arguments)
    assert tars(out) == before
    assert not tars(tmp_path / "twice")
    assert not (tmp_path / "new").exists()


def test_what_cannot_work_is_refused_before_anything_is_written(
    pipeline: tuple[Any, Path], shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = pipeline
    with pytest.raises(UsageError, match=r"^device: 'abacus' cannot be used"):
        embed_text(shards, str(tmp_path / "out"), {"model": str(folder)}, device="abacus")
    (tmp_path / "file").touch()
    assert refusal(shards, tmp_path / "file" / "out", folder).startswith("out: cannot write to ")
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert refusal(shards, tmp_path / "out", folder).endswith("needs transformers: pip install 'inpaint_data[text]'")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_missing_are_not_drawn_at_random(
    pipeline: tuple[Any, Path], shards: str, tmp_path: Path
) -> None:
    _, folder = pipeline
    index = json.loads((folder / "model_index.json").read_text())
    index["text_encoder"][1] = "CLIPTextModelWithProjection"
    (folder / "model_index.json").write_text(json.dumps(index))
    assert "it has no text_projection.weight" in refusal(shards, tmp_path / "out", folder)


def test_embeddings_are_of_the_caption_that_is_named(pipeline: tuple[Any, Path], tmp_path: Path) -> None:
    _, folder = pipeline
    (picture,) = small_samples(1).values()
    named = {"jpg": picture["jpg"], "json": b'{"prompt": "a cat"}', "txt": b"a dog"}
    write_shard(tmp_path / "named" / "a.tar", {"a": named})
    write_shard(tmp_path / "plain" / "a.tar", {"a": {"jpg": picture["jpg"], "txt": b"\xef\xbb\xbfa cat"}})
    embed_text(str(tmp_path / "named"), str(tmp_path / "0"), {"model": str(folder)}, caption="json:prompt")
    embed_text(str(tmp_path / "plain"), str(tmp_path / "1"), {"model": str(folder)})
    with pytest.raises(UsageError, match="its shards were made with"):
        embed_text(str(tmp_path / "named"), str(tmp_path / "0"), {"model": str(folder)})
    [one], [other] = (list(read_shard(str(tmp_path / number / "a.tar")))[:-1] for number in "01")
    assert one.members["prompt_embeds.npy"] == other.members["prompt_embeds.npy"]
