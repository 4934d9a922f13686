"""Text embeddings for the captions of shards. Heavy imports (webdataset's too) are late: `--help` is fast."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inpaint_data.durable import name_of_leftover, new_file, write_file
from inpaint_data.encoding.settings import TextModelSettings
from inpaint_data.errors import SampleError, ShardError, UsageError
from inpaint_data.latent_cache.folder import CacheFolder
from inpaint_data.latent_cache.text_members import text_members, write_empty_prompt
from inpaint_data.pictures.captions import caption_of
from inpaint_data.settings import group_of
from inpaint_data.shards.naming import expand_shards, shard_stem
from inpaint_data.shards.reading import Fault, Sample, ShardEnd, read_shard
from inpaint_data.shards.stores import local_path
from inpaint_data.shards.streams import anew_if_replaced
from inpaint_data.shards.writing import tar_writer
from inpaint_data.shown import shown

if TYPE_CHECKING:
    from inpaint_data.encoding.text_encoder import TextEncoder

LIST = ".left_out.txt"


@dataclass(frozen=True)
class TextSummary:
    """Counts of a run, and what was left out."""

    shards: int  # all shards that were named
    written: int
    unreadable: tuple[str, ...]  # the error of each shard
    samples: int  # of the shards written
    without_caption: int
    with_long_caption: int
    left_out: tuple[str, ...]  # "key: reason" of each sample, by this run or an earlier one
    lists: tuple[str, ...]  # the files with these lines

    @property
    def ok(self) -> bool:
        """True if every shard was read and every sample has its embeddings."""
        return not self.left_out and not self.unreadable

    def table(self) -> str:
        present = self.shards - self.written - len(self.unreadable)
        captions = f"{self.without_caption} without caption, {self.with_long_caption} with one that is too long"
        shards = f"shards    {self.written} written, {present} were there, {len(self.unreadable)} unreadable"
        left_out = " ".join([f"left out  {len(self.left_out)}", *self.lists])
        lines = [shards, f"samples   {self.samples} written, {captions}", left_out, *self.unreadable]
        return "\n".join(map(shown, lines))


def embed_text(
    shards: str | list[str],
    out: str,
    text: TextModelSettings | Mapping[str, Any],
    device: str = "auto",
    caption: str = "txt",
) -> TextSummary:
    """Add text embeddings to shards; `TextSettings.embeddings` then makes them tensors of the batch.

    Each sample keeps its members and gets what the pipeline's own `encode_prompt` makes of its caption, a member for
    each of its arguments: `prompt_embeds.npy` (L, D), for some also `pooled_prompt_embeds.npy` (D,) or
    `prompt_attention_mask.npy` (L,). OUT/empty_prompt has the same for the empty prompt: what the pipeline takes
    without a negative prompt, which for XL is usually zeros.

    A shard appears whole, so a killed run resumes where it stopped; delete a shard of OUT to have it made again.
    Samples that cannot be used are listed in OUT/SHARD.left_out.txt.

    Args:
        shards: the shards with the captions: a folder, a glob, a brace pattern, a URL, or a list of these.
        out: folder for the new shards, other than that of the old ones; created if missing.
        text: the pipeline, and how its text encoders run.
        device: where they are encoded: auto, cpu, cuda, cuda:1, mps.
        caption: the member that is the caption, or a field of one: json:prompt.

    Returns:
        What was written and what was left out.

    Raises:
        UsageError: an argument cannot work, transformers is missing, `out` cannot be written, its shards were made with
            another model, or a sample has embeddings already.
    """
    from inpaint_data.encoding.device import choose_device
    from inpaint_data.encoding.text_encoder import TextEncoder

    settings = group_of(TextModelSettings, text)
    if not settings.model:
        raise UsageError("text_model: must be given; name a diffusers pipeline, such as the model that is trained")
    paths = {shard: local_path(out) / f"{shard_stem(shard)}.tar" for shard in expand_shards(shards)}
    try:
        _check_names(local_path(out), paths)
        encoder = TextEncoder(settings, choose_device(device))
        if encoder.needs_picture:
            raise UsageError(
                f"text_model: {encoder.kind} encodes captions with their pictures as they are cut; give --text_model "
                "to cache, which cuts them"
            )
        record = json.dumps(encoder.fingerprint() | {"caption": caption}, sort_keys=True)
        _prepare_folder(local_path(out), paths, record, encoder)
        return _write_shards(paths, encoder, caption)
    except OSError as error:
        reason = f"{error.filename or out}: {error.strerror or error}"
        raise UsageError(f"out: cannot write to {out} ({reason}); fix it or choose another folder") from error


def _check_names(folder: Path, paths: dict[str, Path]) -> None:
    """Raises UsageError where the output would replace the input."""
    if same := [shard for shard, path in paths.items() if os.path.realpath(shard) == os.path.realpath(path)]:
        raise UsageError(f"out: {folder}: the input {same[0]} lies there; choose another folder")


def _prepare_folder(folder: Path, paths: dict[str, Path], record: str, encoder: "TextEncoder") -> None:
    """Write all files but the shards, and remove the temporary files of a killed run.

    Raises:
        UsageError: it has shards of another model.
    """
    made_with = folder / "text.json"
    previous = made_with.read_text("utf-8", "replace") if made_with.exists() else "an unknown model"
    if previous != record and any(path.exists() for path in paths.values()):
        raise UsageError(f"out: {folder}: its shards were made with {previous}, not {record}; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    names = {path.name for path in paths.values()}
    for file in folder.iterdir():
        if name_of_leftover(file.name) in names:
            file.unlink(missing_ok=True)
    write_file(made_with, record.encode())
    write_empty_prompt(CacheFolder(folder), encoder.empty())


def _write_shards(paths: dict[str, Path], encoder: "TextEncoder", caption: str) -> TextSummary:
    counts, unreadable = Counter[str](), list[str]()
    for shard, path in paths.items():
        try:
            if not path.exists():
                counts += anew_if_replaced(partial(_write_shard, shard, path, encoder, caption))
        except ShardError as error:
            unreadable.append(str(error))
    lists = [path.with_suffix(LIST) for path in paths.values() if path.with_suffix(LIST).exists()]
    left_out = tuple(line for path in lists for line in path.read_text("utf-8").splitlines())
    return TextSummary(
        shards=len(paths), written=counts["shards"], unreadable=tuple(unreadable),
        samples=counts["samples"], without_caption=counts["empty"], with_long_caption=counts["long"],
        left_out=left_out, lists=tuple(map(str, lists)),
    )  # fmt: skip


def _write_shard(shard: str, path: Path, encoder: "TextEncoder", named: str) -> Counter[str]:
    """Write `path`: the samples of `shard` in their order, each with its embeddings among its members."""
    counts, left_out = Counter(shards=1), list[str]()
    with new_file(path) as file:
        with tar_writer(file) as tar:
            for sample, caption in _usable_samples(shard, left_out, named):
                new = text_members(encoder.encode(caption))
                if existing := sorted(new.keys() & sample.members.keys()):
                    raise UsageError(f"{shard}, sample {sample.key!r}: has a {existing[0]}; give shards without it")
                counts.update(samples=1, empty=not caption, long=encoder.is_too_long(caption))
                tar.write({"__key__": sample.key, **sample.members, **new})
        path.with_suffix(LIST).unlink(missing_ok=True)
        if left_out:  # written before the shard gets its name, so that no shard appears without its list
            write_file(path.with_suffix(LIST), "".join(left_out).encode("utf-8", "backslashreplace"))
    return counts


def _usable_samples(shard: str, left_out: list[str], caption: str) -> Iterator[tuple[Sample, str]]:
    """The samples with their captions; those that cannot be used are added to `left_out`, a line each."""
    for item in read_shard(shard):
        if isinstance(item, ShardEnd):
            continue
        try:
            yield _captioned(item, caption)
        except SampleError as error:
            left_out.append(shown(f"{item.key}: {error}") + "\n")


def _captioned(item: Sample | Fault, caption: str) -> tuple[Sample, str]:
    """Raises SampleError where the sample cannot be used."""
    if isinstance(item, Fault):
        raise SampleError(item.reason)
    if "__key__" in item.members:
        raise SampleError("member __key__: webdataset keeps the key under this name; rename the member")
    return item, caption_of(item.members, caption)
