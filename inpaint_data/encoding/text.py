"""The text of a batch: carried embeddings as tensors, and captions that give way to the empty prompt.

Shapes: B batch, L tokens (L_i of one sample, L the longest in the batch), D width.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from inpaint_data.batch import KEYS, AnyBatch, Carried
from inpaint_data.errors import CacheError, UsageError
from inpaint_data.seeding import generator_for, sample_id
from inpaint_data.shards.stores import is_url, local_path, read_folder

_COMMAND = "inpaint-data text"


@dataclass(frozen=True)
class TextSettings:
    """Settings of captions and their embeddings.

    Args:
        embeddings: names of the carried members that hold them, such as `prompt_embeds.npy`; left out, those that the
            job of a cache made with its text encoders.
        dropout: share of the captions that are replaced by the empty prompt, drawn from (seed, sample, epoch).
        empty_prompt: folder with the empty prompt's embeddings, a file for each name in `embeddings`, as
            `inpaint-data text` writes it; left out, the cache's own. Read only where `dropout` needs it.

    Raises:
        UsageError: a dropout outside of 0...1, a name that cannot be a key of the batch, or no `empty_prompt`.
    """

    embeddings: list[str] | tuple[str, ...] | None = None
    dropout: float = 0.0
    empty_prompt: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.dropout <= 1:
            raise UsageError(f"dropout: {self.dropout} is not a share of the captions; give 0 to 1, such as 0.1")
        keys = set(KEYS)
        for name in self.embeddings or ():
            if not name.endswith(".npy") or name == ".npy" or "/" in name or name != name.lower():
                examples = "such as [prompt_embeds.npy], in lower case and without the sample's key"
                raise UsageError(
                    f"embeddings: {name!r} in {self.embeddings!r} is not a member's name; list names {examples}"
                )
            # A 1-D embedding has no mask, but which of these are 1-D only the samples know.
            new_keys = {_stem(name), f"{_stem(name)}_mask"}
            if clash := sorted(keys & new_keys):
                raise UsageError(f"embeddings: {name}: the batch has another {clash[0]!r} already; rename the member")
            keys |= new_keys
        if self.embeddings and self.dropout and not self.empty_prompt:
            needed = f"dropout {self.dropout} needs the empty prompt's {', '.join(self.embeddings)}"
            raise UsageError(f"empty_prompt: {needed}; name the folder that has them, `{_COMMAND}` writes it")


class Text:
    """Makes a batch's carried embeddings into tensors, and drops captions.

    Attributes:
        empty: the empty prompt's embeddings by key of the batch, (L, D) or (D,) float32; none without dropout.

    Raises:
        UsageError: a file of the empty prompt is missing or is not an embedding.
    """

    def __init__(self, settings: TextSettings) -> None:
        self.settings = settings
        self.empty: dict[str, Tensor] = {}
        if not settings.dropout:
            return
        folder = settings.empty_prompt
        stored = read_folder(folder, ".npy") if is_url(folder) else {}
        for name in settings.embeddings or ():
            path = local_path(folder) / name
            try:
                self.empty[_stem(name)] = _embedding(stored[name] if is_url(folder) else path.read_bytes())
            except (OSError, ValueError, KeyError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                raise UsageError(f"empty_prompt: {folder}/{name}: {reason}; make it with `{_COMMAND}`") from None

    def __call__(self, batch: AnyBatch, seed: int, epoch: int | Sequence[int]) -> AnyBatch:
        """A new batch with its text as tensors; the one that is passed stays as it is.

        Args:
            batch: from images or from a cache, on the CPU.
            seed, epoch: of the dropout, which does not depend on what else is in the batch; the epoch of all samples,
                or of each.

        Returns:
            The batch, where each name of `embeddings` is no longer in `carried` but, without `.npy`, is a key:
            for arrays (L_i, D) a tensor (B, L, D) float32, zero behind the tokens, with `NAME_mask` (B, L) bool,
            True = a token; for arrays (D,) a tensor (B, D) float32, or bool where they are masks.
            Where a caption is dropped it is "" and the
            embeddings are the empty prompt's.

        Raises:
            CacheError: a member is missing or damaged, or its rank or width is not that of the others.
        """
        names, share = self.settings.embeddings or (), self.settings.dropout
        samples = list(map(sample_id, batch["__shard__"], batch["__key__"]))
        epochs = [epoch] * len(samples) if isinstance(epoch, int) else epoch
        dropped = [
            share > 0 and generator_for(seed, sample, number, "caption").random() < share
            for sample, number in zip(samples, epochs, strict=True)
        ]
        kind: Any = type(batch)  # which may know how it is moved to a device
        result: dict[str, Any] = kind(batch)
        result["caption"] = ["" if drop else text for drop, text in zip(dropped, batch["caption"], strict=True)]
        result["carried"] = Carried(
            {name: data for name, data in members.items() if name not in names} for members in batch["carried"]
        )
        for name in names:
            stem = _stem(name)
            embeddings = self._read(batch, name)
            rows = [self.empty[stem] if drop else row for drop, row in zip(dropped, embeddings, strict=True)]
            if rows[0].ndim == 1:
                result[stem] = torch.stack(rows)
            else:
                result[stem], result[f"{stem}_mask"] = pad(rows)
        return cast(AnyBatch, result)

    def _read(self, batch: Mapping[str, Any], name: str) -> list[Tensor]:
        """Every sample's own embedding, dropped or not, so that a bad one is found in the first epoch."""
        rows: list[Tensor] = []
        reference = self.empty.get(_stem(name))
        owner = "the empty prompt's"
        for shard, key, members in zip(batch["__shard__"], batch["__key__"], batch["carried"], strict=True):
            place = f"{shard}, sample {key!r}: {name}"
            try:
                row = _embedding(members[name])
            except KeyError:
                raise CacheError(
                    f"{place} is missing; add it with `{_COMMAND}`, or take it out of embeddings"
                ) from None
            except ValueError as error:
                raise CacheError(f"{place} {error}; make it again with `{_COMMAND}`") from None
            if reference is None:
                reference = row
                owner = f"sample {key!r}'s"
            if row.ndim != reference.ndim or row.shape[-1] != reference.shape[-1]:
                shapes = f"is {tuple(row.shape)}, but {owner} is {tuple(reference.shape)}"
                raise CacheError(f"{place} {shapes}; make all of them with one text encoder")
            rows.append(row)
        return rows


def pad(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(L_i, D) each -> (B, L, D), zero behind each one's tokens, and (B, L) bool, True = a token."""
    lengths = torch.tensor([len(row) for row in rows])
    padded = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]


def _stem(name: str) -> str:
    return name.removesuffix(".npy")


def _embedding(data: bytes) -> Tensor:
    """(L, D) or (D,) float32, of uint16 the bfloat16 whose bits they are; or a mask (L,) bool.

    Raises ValueError with what is wrong, to be said after the member's name.
    """
    try:
        # np.load would take archives too, and tell whoever loads junk that it can be unpickled.
        array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # a damaged header raises anything from EOFError to MemoryError
        raise ValueError(f"cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:200]})") from None
    if array.dtype == np.bool_ and array.ndim == 1 and array.size:
        return torch.from_numpy(array)
    if array.dtype == np.uint16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    if array.dtype.kind != "f":
        raise ValueError(f"is an array of {array.dtype}, not of floats")
    if array.ndim not in (1, 2) or not array.size:
        raise ValueError(f"has the shape {array.shape} instead of (tokens, width) or (width,)")
    with np.errstate(over="ignore"):
        embedding = torch.from_numpy(array.astype(np.float32))
    if not embedding.isfinite().all():
        raise ValueError("has NaN or infinity")
    return embedding
