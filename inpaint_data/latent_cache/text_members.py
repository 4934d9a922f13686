"""Text embeddings as members of samples, and those of the empty prompt as files beside the shards."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from inpaint_data.encoding.text import TextSettings
from inpaint_data.latent_cache.encodings import npy_bytes
from inpaint_data.latent_cache.folder import CacheFolder
from inpaint_data.shards.stores import within

if TYPE_CHECKING:
    from inpaint_data.latent_cache.settings import CacheSettings

EMPTY_PROMPT = "empty_prompt"  # a folder beside the shards


def text_members(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, bytes]:
    """Member name -> bytes, of what a text encoder gives."""
    return {f"{name}.npy": npy_bytes(array) for name, array in arrays.items()}


def write_empty_prompt(folder: CacheFolder, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write the embeddings of the empty prompt to `empty_prompt` beside shards."""
    for name, data in text_members(arrays).items():
        folder.write(f"{EMPTY_PROMPT}/{name}", data)


def settings_for_cache(given: TextSettings, root: str, cache: "CacheSettings") -> TextSettings:
    """What was given, and where it was left out the embeddings that a cache was made with, and its empty prompt."""
    if cache.text is None or given.embeddings is not None:
        return given
    folder = given.empty_prompt or within(root, EMPTY_PROMPT)
    return replace(given, embeddings=cache.text.members, empty_prompt=folder)
