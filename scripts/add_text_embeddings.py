"""Add CLIP text embeddings to shards; `TextSettings.embeddings` then makes them tensors of the batch.

    pip install transformers
    python scripts/add_text_embeddings.py --shards shards --out shards_text --model openai/clip-vit-large-patch14

Each sample keeps its members and gets what the diffusers pipeline would compute for its `txt`, in float16:
`prompt_embeds.npy` (77, D), and for Stable Diffusion XL `pooled_prompt_embeds.npy` (D,). OUT/empty_prompt has the
same for the empty prompt: what the pipeline takes without a negative prompt, which for XL is usually zeros.

A shard appears whole, so a killed run goes on where it stopped; delete a shard of OUT to have it made again.
Samples that cannot be used are listed in OUT/SHARD.left_out.txt. While there are any, the exit code is 1.
"""

import argparse
import io
import json
import os
import re
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from inpaint_data import InpaintDataError, ShardError, UsageError
from inpaint_data.job.caching import fabric_for
from inpaint_data.latent_cache.format import npy_bytes
from inpaint_data.latent_cache.writer import commit_bytes, sync_folder
from inpaint_data.shards.reading import Sample, expand_shards, read_shard, shard_stem

LIST = ".left_out.txt"
CLIPS = {"CLIPTextModel": CLIPTextModel, "CLIPTextModelWithProjection": CLIPTextModelWithProjection}


class TextEncoders:
    """The text side of a pipeline: one CLIP, or XL's two, whose widths lie side by side."""

    def __init__(self, name: str, device: torch.device) -> None:
        try:
            pipeline = DiffusionPipeline.load_config(name)
            kinds = {part: kind[1] for part, kind in sorted(pipeline.items()) if re.match(r"text_encoder(_\d)?$", part)}
            kinds = {part: kind for part, kind in kinds.items() if kind is not None}
        except OSError:  # no model_index.json, so this is a text model alone
            pipeline, kinds = {"_class_name": "StableDiffusionPipeline"}, {"": "CLIPTextModel"}
        title = pipeline["_class_name"]
        if not re.match("StableDiffusion[A-Z]", title) or not kinds or set(kinds.values()) - set(CLIPS):
            raise UsageError(f"--model {name}: is a {title}; give a CLIP text model or Stable Diffusion 1, 2 or XL")
        self.device, self.xl = device, title.startswith("StableDiffusionXL")
        self.zero_empty = self.xl and pipeline.get("force_zeros_for_empty_prompt", True)
        try:
            self.parts = [load_clip(name, part, kind, device) for part, kind in kinds.items()]
        except (OSError, RuntimeError, ValueError) as error:
            raise UsageError(f"--model {name}: cannot be loaded ({error}); check the name or the folder") from None

    @torch.inference_mode()
    def encode(self, captions: list[str]) -> dict[str, np.ndarray]:
        """Member name -> (B, L, D) or (B, D) float16."""
        states = []
        for tokenizer, model in self.parts:
            ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
            output = model(ids.to(self.device), output_hidden_states=True)
            states.append(output.hidden_states[-2] if self.xl else output.last_hidden_state)
        embeddings = {"prompt_embeds.npy": torch.cat(states, -1)}
        if self.xl:
            embeddings["pooled_prompt_embeds.npy"] = output.text_embeds
        return {name: value.half().cpu().numpy() for name, value in embeddings.items()}

    def too_long(self, caption: str) -> bool:
        """Whether the encoders see only the caption's beginning."""
        tokenizer = self.parts[0][0]
        return len(tokenizer(caption, verbose=False).input_ids) > tokenizer.model_max_length


def load_clip(name: str, part: str, kind: str, device: torch.device) -> tuple[CLIPTokenizer, CLIPTextModel]:
    """transformers makes up what a folder lacks: weights at random, a tokenizer of two words. Here that is an error."""
    tokenizer = CLIPTokenizer.from_pretrained(name, subfolder=part.replace("text_encoder", "tokenizer"))
    model, found = CLIPS[kind].from_pretrained(name, subfolder=part, output_loading_info=True)
    if found["missing_keys"]:
        raise ValueError(f"it has no {', '.join(sorted(found['missing_keys'])[:3])}")
    if len(tokenizer) != model.config.vocab_size:
        raise ValueError(f"its tokenizer has {len(tokenizer)} tokens, its text model {model.config.vocab_size}")
    tokenizer.model_max_length = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    return tokenizer, model.float().eval().to(device)  # transformers 5 keeps half precision, which would round twice


def usable(shard: str, left_out: list[str]) -> Iterator[tuple[Sample, str]]:
    """The samples with their captions; those that cannot be used are added to `left_out`, a line each."""
    for item in read_shard(shard):
        try:
            if isinstance(item, Sample):
                yield item, item.members.get("txt", b"").decode("utf-8").strip()
                continue
            reason = item.reason
        except UnicodeDecodeError as error:
            reason = f"txt: the caption is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        left_out.append(" ".join(f"{item.key}: {reason}".split()) + "\n")


def add_to_shard(shard: str, path: Path, encoders: TextEncoders, batch_size: int) -> Counter[str]:
    """Write `path`: the samples of `shard` in their order, each with its embeddings behind its other members."""
    counts, left_out = Counter(written=1), list[str]()
    samples, temporary = usable(shard, left_out), path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
            while batch := list(islice(samples, batch_size)):
                embeddings = encoders.encode([caption for _, caption in batch])
                for row, (sample, caption) in enumerate(batch):
                    if taken := sorted(embeddings.keys() & sample.members.keys()):
                        raise UsageError(f"{shard}, sample {sample.key!r}: has a {taken[0]}; give shards without it")
                    counts.update(samples=1, empty=not caption, cut=encoders.too_long(caption))
                    added = {name: npy_bytes(values[row]) for name, values in embeddings.items()}
                    for name, data in {**sample.members, **added}.items():
                        member = tarfile.TarInfo(f"{sample.key}.{name}")  # its time is 0: the same bytes in every run
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
        file.flush()
        os.fsync(file.fileno())
    path.with_suffix(LIST).unlink(missing_ok=True)
    if left_out:  # written first, so that no shard is there without its list
        commit_bytes(path.with_suffix(LIST), "".join(left_out).encode("utf-8", "backslashreplace"))
    os.replace(temporary, path)
    sync_folder(path.parent)
    return counts


def main(args: argparse.Namespace) -> int:
    """The exit code: 0, or 1 where a shard or a sample was left out, by this run or an earlier one."""
    if args.batch_size < 1:
        raise UsageError(f"--batch_size {args.batch_size}: give 1 or more")
    shards = {shard: args.out / f"{shard_stem(shard)}.tar" for shard in expand_shards(args.shards)}
    if same := [shard for shard, path in shards.items() if os.path.realpath(shard) == os.path.realpath(path)]:
        raise UsageError(f"--out {args.out}: the input {same[0]} lies there; choose another folder")
    record, made_with = json.dumps({"model": args.model}), args.out / "text.json"
    before = made_with.read_text() if made_with.exists() else "nobody knows what"
    if before != record and any(path.exists() for path in shards.values()):
        raise UsageError(f"--out {args.out}: its shards were made with {before}, not {record}; choose another folder")

    encoders = TextEncoders(args.model, fabric_for(args.device).device)
    (args.out / "empty_prompt").mkdir(parents=True, exist_ok=True)
    commit_bytes(made_with, record.encode())
    for name, values in encoders.encode([""]).items():
        if encoders.zero_empty:
            values.fill(0)
        commit_bytes(args.out / "empty_prompt" / name, npy_bytes(values[0]))
    counts: Counter[str] = Counter()
    for shard, path in shards.items():
        try:
            if not path.exists():
                counts += add_to_shard(shard, path, encoders, args.batch_size)
        except ShardError as error:
            print(error, file=sys.stderr)
            counts["unreadable"] += 1

    lists = [path.with_suffix(LIST) for path in shards.values() if path.with_suffix(LIST).exists()]
    left_out = [line for path in lists for line in path.read_text("utf-8").splitlines()]
    there = len(shards) - counts["written"] - counts["unreadable"]
    print(f"shards    {counts['written']} written, {there} were there, {counts['unreadable']} unreadable")
    print(
        f"samples   {counts['samples']} written, {counts['empty']} without caption, {counts['cut']} with too long a one"
    )
    print(f"left out  {len(left_out)}", *lists)
    return int(bool(left_out or counts["unreadable"]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", nargs="+", required=True, help="a folder, a glob, a brace pattern, or tars")
    parser.add_argument("--out", type=Path, required=True, help="folder for the new shards")
    parser.add_argument(
        "--model", required=True, help="a CLIP text model or a diffusers pipeline, by hub name or folder"
    )
    parser.add_argument("--batch_size", type=int, default=32, help="captions encoded at a time")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    try:
        sys.exit(main(parser.parse_args()))
    except (InpaintDataError, OSError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
