"""CLIP text embeddings for the captions of shards. Heavy imports (webdataset's too) are late: `--help` is fast."""

import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inpaint_data.durable import name_of_leftover, new_file, write_file
from inpaint_data.errors import SampleError, ShardError, UsageError
from inpaint_data.pictures.captions import caption_of
from inpaint_data.shards.naming import expand_shards, shard_stem
from inpaint_data.shards.reading import Fault, Sample, ShardEnd, read_shard
from inpaint_data.shards.stores import local_path
from inpaint_data.shards.streams import anew_if_replaced
from inpaint_data.shards.writing import tar_writer
from inpaint_data.shown import shown

if TYPE_CHECKING:
    import torch

LIST = ".left_out.txt"
CLIPS = {"CLIPTextModel", "CLIPTextModelWithProjection"}  # of transformers


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
    shards: str | list[str], out: str, model: str, batch_size: int = 32, device: str = "auto", caption: str = "txt"
) -> TextSummary:
    """Add CLIP text embeddings to shards; `TextSettings.embeddings` then makes them tensors of the batch.

    Each sample keeps its members and gets what the diffusers pipeline would compute for its caption, in float16:
    `prompt_embeds.npy` (77, D), and for Stable Diffusion XL `pooled_prompt_embeds.npy` (D,). OUT/empty_prompt has the
    same for the empty prompt: what the pipeline takes without a negative prompt, which for XL is usually zeros.

    A shard appears whole, so a killed run resumes where it stopped; delete a shard of OUT to have it made again.
    Samples that cannot be used are listed in OUT/SHARD.left_out.txt.

    Args:
        shards: the shards with the captions: a folder, a glob, a brace pattern, a URL, or a list of these.
        out: folder for the new shards, other than that of the old ones; created if missing.
        model: a CLIP text model or a pipeline of Stable Diffusion 1, 2 or XL, by hub name or folder.
        batch_size: captions encoded at a time.
        device: where they are encoded: auto, cpu, cuda, cuda:1, mps.
        caption: the member that is the caption, or a field of one: json:prompt.

    Returns:
        What was written and what was left out.

    Raises:
        UsageError: an argument cannot work, transformers is missing, `out` cannot be written, its shards were made with
            another model, or a sample has embeddings already.
    """
    from inpaint_data.encoding.device import choose_device

    if batch_size < 1:
        raise UsageError(f"batch_size: {batch_size} leaves nothing to encode; give 1 or more")
    paths = {shard: local_path(out) / f"{shard_stem(shard)}.tar" for shard in expand_shards(shards)}
    record = json.dumps({"model": model} | ({} if caption == "txt" else {"caption": caption}))
    try:
        _check_folder(local_path(out), paths, record)
        encoders = TextEncoders(os.path.expanduser(model), choose_device(device))
        _prepare_folder(local_path(out), paths, record, encoders)
        return _write_shards(paths, encoders, batch_size, caption)
    except OSError as error:
        reason = f"{error.filename or out}: {error.strerror or error}"
        raise UsageError(f"out: cannot write to {out} ({reason}); fix it or choose another folder") from error


class TextEncoders:
    """The text side of a pipeline: one CLIP, or XL's two, whose widths lie side by side."""

    def __init__(self, name: str, device: "torch.device") -> None:
        try:
            import transformers  # noqa: F401 - the error of diffusers is less clear
        except ModuleNotFoundError:
            raise UsageError("embed-text needs transformers: pip install 'inpaint_data[text]'") from None
        pipeline, kinds = _text_side(name)
        title = pipeline["_class_name"]
        if not re.match("StableDiffusion[A-Z]", title) or not kinds or set(kinds.values()) - CLIPS:
            raise UsageError(f"model: {name} is a {title}; give a CLIP text model or Stable Diffusion 1, 2 or XL")
        self.device = device
        self.xl = title.startswith("StableDiffusionXL")
        self.zero_empty = self.xl and pipeline.get("force_zeros_for_empty_prompt", True)
        try:
            self.parts = [_load_clip(name, part, kind, device) for part, kind in kinds.items()]
        except (OSError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"model: {name} cannot be loaded ({reason}); check the name or the folder") from None

    def encode(self, captions: list[str]) -> dict[str, "np.ndarray[Any, Any]"]:
        """Member name -> (B, L, D) or (B, D) float16."""
        import torch

        states = []
        with torch.inference_mode():
            for tokenizer, model in self.parts:
                ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
                output = model(ids.to(self.device), output_hidden_states=True)
                states.append(output.hidden_states[-2] if self.xl else output.last_hidden_state)
            embeddings = {"prompt_embeds.npy": torch.cat(states, -1)}
            if self.xl:
                embeddings["pooled_prompt_embeds.npy"] = output.text_embeds
            return {name: value.half().cpu().numpy() for name, value in embeddings.items()}

    def too_long(self, caption: str) -> bool:
        """True if the encoders see only the caption's beginning."""
        tokenizer = self.parts[0][0]
        return len(tokenizer(caption, verbose=False).input_ids) > int(tokenizer.model_max_length)


@cache
def _is_offline(name: str) -> bool:
    """True if the model is a folder, or the Hub does not answer: each download would retry for minutes."""
    from inpaint_data.encoding.vae_loading import hub_answers

    return local_path(name).is_dir() or not hub_answers()


def _text_side(name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The configuration of a pipeline, and the class of each of its text encoders by subfolder."""
    from diffusers import DiffusionPipeline

    try:
        pipeline: dict[str, Any] = DiffusionPipeline.load_config(name, local_files_only=_is_offline(name))
    except OSError:  # no model_index.json, so this is a text model alone
        return {"_class_name": "StableDiffusionPipeline"}, {"": "CLIPTextModel"}
    kinds = {part: kind[1] for part, kind in sorted(pipeline.items()) if re.match(r"text_encoder(_\d)?$", part)}
    return pipeline, {part: kind for part, kind in kinds.items() if kind is not None}


def _load_clip(name: str, part: str, kind: str, device: "torch.device") -> tuple[Any, Any]:
    """Load a CLIP. What a folder lacks is an error; transformers would make up weights or a tokenizer."""
    import transformers

    local: Any = {"local_files_only": _is_offline(name)}
    tokenizer = transformers.CLIPTokenizer.from_pretrained(
        name, subfolder=part.replace("text_encoder", "tokenizer"), **local
    )
    model, loading = getattr(transformers, kind).from_pretrained(
        name, subfolder=part, output_loading_info=True, **local
    )
    if loading["missing_keys"]:
        raise ValueError(f"it has no {', '.join(sorted(loading['missing_keys'])[:3])}")
    if len(tokenizer) != model.config.vocab_size:
        raise ValueError(f"its tokenizer has {len(tokenizer)} tokens, its text model {model.config.vocab_size}")
    tokenizer.model_max_length = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    return tokenizer, model.float().eval().to(device)  # transformers 5 keeps half precision, which would round twice


def _check_folder(folder: Path, paths: dict[str, Path], record: str) -> None:
    """Raises UsageError where the output would replace the input, or join shards of another model."""
    if same := [shard for shard, path in paths.items() if os.path.realpath(shard) == os.path.realpath(path)]:
        raise UsageError(f"out: {folder}: the input {same[0]} lies there; choose another folder")
    made_with = folder / "text.json"
    previous = made_with.read_text("utf-8", "replace") if made_with.exists() else "an unknown model"
    if previous != record and any(path.exists() for path in paths.values()):
        raise UsageError(f"out: {folder}: its shards were made with {previous}, not {record}; choose another folder")


def _prepare_folder(folder: Path, paths: dict[str, Path], record: str, encoders: TextEncoders) -> None:
    """Write all files but the shards, and remove the temporary files of a killed run."""
    (folder / "empty_prompt").mkdir(parents=True, exist_ok=True)
    names = {path.name for path in paths.values()}
    for file in folder.iterdir():
        if name_of_leftover(file.name) in names:
            file.unlink(missing_ok=True)
    write_file(folder / "text.json", record.encode())
    for name, values in encoders.encode([""]).items():
        if encoders.zero_empty:
            values.fill(0)
        write_file(folder / "empty_prompt" / name, _npy_bytes(values[0]))


def _write_shards(paths: dict[str, Path], encoders: TextEncoders, batch_size: int, caption: str) -> TextSummary:
    counts, unreadable = Counter[str](), list[str]()
    for shard, path in paths.items():
        try:
            if not path.exists():
                counts += anew_if_replaced(partial(_write_shard, shard, path, encoders, batch_size, caption))
        except ShardError as error:
            unreadable.append(str(error))
    lists = [path.with_suffix(LIST) for path in paths.values() if path.with_suffix(LIST).exists()]
    left_out = tuple(line for path in lists for line in path.read_text("utf-8").splitlines())
    return TextSummary(
        shards=len(paths), written=counts["shards"], unreadable=tuple(unreadable),
        samples=counts["samples"], without_caption=counts["empty"], with_long_caption=counts["long"],
        left_out=left_out, lists=tuple(map(str, lists)),
    )  # fmt: skip


def _write_shard(shard: str, path: Path, encoders: TextEncoders, batch_size: int, named: str) -> Counter[str]:
    """Write `path`: the samples of `shard` in their order, each with its embeddings among its members."""
    counts, left_out = Counter(shards=1), list[str]()
    samples = _usable_samples(shard, left_out, named)
    with new_file(path) as file:
        with tar_writer(file) as tar:
            while batch := list(islice(samples, batch_size)):
                embeddings = encoders.encode([caption for _, caption in batch])
                for row, (sample, caption) in enumerate(batch):
                    if existing := sorted(embeddings.keys() & sample.members.keys()):
                        raise UsageError(f"{shard}, sample {sample.key!r}: has a {existing[0]}; give shards without it")
                    counts.update(samples=1, empty=not caption, long=encoders.too_long(caption))
                    new = {name: _npy_bytes(values[row]) for name, values in embeddings.items()}
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


def _npy_bytes(array: "np.ndarray[Any, Any]") -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()
