"""Settings of encoding: which autoencoder encodes, and what is taken from it."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from inpaint_data.batch import PIXELS, PixelsOf, Posterior
from inpaint_data.encoding.models import MODELS
from inpaint_data.errors import UsageError
from inpaint_data.settings import Choices, Count, Flag, Settings, checked, spelled

Dtype = Literal["float32", "bfloat16", "float16"]
DtypeChoice = Literal["float32", "bfloat16", "float16", "auto"]
DTYPES = {  # other spellings of it
    spelling: name
    for name, short in (("float32", "fp32 f32 float full"), ("float16", "fp16 f16 half"), ("bfloat16", "bf16"))
    for spelling in (f"torch.{name}", *short.split())
}


def _vae(value: Any) -> Any:
    """A name, or an `Autoencoder`, which is not imported to look: it would load diffusers."""
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str) or hasattr(value, "encode"):
        return value
    raise UsageError(f"vae: {value!r} is not an autoencoder; give a folder, a .safetensors file, a Hub name, or demo")


def _pixels(value: Any) -> Any:
    """One name or several, each once and in one order."""
    names = re.split(r"\s*,\s*", value.strip("[] ")) if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        return names
    return tuple(sorted(set(names)))


class EncodeSettings(Settings):
    """Settings of encoding: which autoencoder encodes, and what is taken from it."""

    group = "encode"

    vae: Annotated[Any, checked(_vae, str)] = None
    """A Hub name, a folder or a .safetensors file; in Python also an Autoencoder. Needed where anything is encoded;
    "demo" is the demo's toy, whose latents no trained model reads."""

    dtype: Annotated[DtypeChoice, spelled(DTYPES)] = "float32"
    """Precision that the autoencoder computes in; "auto" is bfloat16 where the device computes in it, else float32. A
    dry run prints how far from float32 it is."""

    recipe: Annotated[str | None, Choices(tuple(MODELS))] = None
    """The row of RECIPES that batches are to feed. Checked; decides fill, posterior and whether there are
    masked_latents, where these are left out."""

    posterior: Posterior | None = None
    """How latents come from the autoencoder: "mode" (ComfyUI), "sample" (diffusers; noise from seed, sample, variant)
    or "moments". Left out, the recipe's, else "mode". A cache always has moments."""

    masked_latents: bool | None = None
    """Encode the images with their holes too; not needed to train models that only blend, or with fresh masks. Left
    out, as the recipe needs it, else true."""

    hole_latents: bool | None = None
    """Encode what the hole hides too, with grey around it, as wan-vace is fed it. Left out, as the recipe needs it."""

    pixels: Annotated[tuple[PixelsOf, ...] | None, checked(_pixels, str | list[str] | None), Choices(PIXELS)] = None
    """Pictures that batches and caches have as they are, uint8, beside latents, for models that read those: "image" or
    "control". Left out, as the recipe needs it."""

    channels_last: bool | None = None
    """Lay pixels out as pipelines do that are given PIL pictures, so that latents are equal to theirs to the last bit;
    left out, contiguously, which is nearer to exact on CPUs."""

    compile: bool = False
    """Compile the autoencoder's encoder: twice as fast on a GPU, after half a minute for each size of pictures; its
    results then differ in the last bits."""


class TextModelSettings(Settings):
    """Which text encoders turn captions into embeddings, and how."""

    group = "text"

    model: Annotated[str, Flag("text_model")] = ""
    """The diffusers pipeline whose text encoders are taken, by Hub name or folder; "" for no embeddings."""

    dtype: Annotated[Dtype, spelled(DTYPES), Flag("text_dtype")] = "float32"
    """Precision that they compute in and that is stored; bfloat16 as the bits of it, in uint16."""

    max_length: Annotated[Count | None, Flag("text_length")] = None
    """Tokens of a caption that are looked at, where the pipeline takes such a limit; left out, its own."""
