"""Settings of a cache: everything that decides its values, which its fingerprint covers."""

import inspect
import json
import platform
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from typing import Annotated, Any

import torch
from pydantic import Field

from inpaint_data.batch import PAIRED, PixelsOf
from inpaint_data.encoding.encoder import Encoder
from inpaint_data.encoding.settings import Dtype, EncodeSettings
from inpaint_data.encoding.vae import Autoencoder
from inpaint_data.errors import CacheError, UsageError
from inpaint_data.latent_cache.codec import Expected
from inpaint_data.latent_cache.format import FORMAT, differences, fingerprint
from inpaint_data.latent_cache.members import (
    HOLE_LATENTS,
    LATENTS,
    MASK,
    MASKED_LATENTS,
    SOFT_MASK,
    pixels_name,
    scales_name,
)
from inpaint_data.latent_cache.record import RECORD
from inpaint_data.latent_cache.storage import Storage
from inpaint_data.masks.offsets import check_offset, windows_of
from inpaint_data.masks.presets import Preset
from inpaint_data.masks.settings import MaskSettings
from inpaint_data.pictures.settings import Carry, ExampleSettings, PictureSettings
from inpaint_data.settings import Count, Settings

# Packages whose versions decide the last bits of pixels or latents.
PACKAGES = ("torch", "diffusers", "numpy", "pillow", "opencv-python-headless", "simplejpeg")


# Of settings that came later and change pixels: what leaves them as they were, and is not written.
USUAL_PIXELS: Mapping[str, Any] = {"reducing_gap": None, "decoder": "libjpeg", "resize": "pillow"}


class VaeRecord(Settings):
    """The autoencoder that made the latents."""

    kind: str
    """Its diffusers class."""
    config: dict[str, Any]
    """Its diffusers config, as `conditioning` takes it."""
    weights_sha256: str
    dtype: Dtype
    channels_last: bool
    compiled: bool = False
    tiling: bool = False
    """Encoded in overlapping tiles, as `enable_tiling` has it."""
    slicing: bool = False
    """Encoded one at a time, as `enable_slicing` has it."""
    has_posterior: bool
    """Latents are moments: mean, then log-variance."""
    factor: Count
    """Pixels per latent along each side."""

    @property
    def whole_config(self) -> dict[str, Any]:
        """The config, and over what it lacks the defaults of its class, to be compared across versions of diffusers."""
        import diffusers  # only where two configs are compared

        known: Any = getattr(diffusers, self.kind, None)
        parameters = inspect.signature(known.__init__).parameters if known is not None else {}
        defaults = {name: each.default for name, each in parameters.items() if each.default is not each.empty}
        return {**json.loads(json.dumps(defaults, default=str)), **self.config}

    @classmethod
    def of(cls, autoencoder: Autoencoder) -> "VaeRecord":
        return cls(**autoencoder.fingerprint())


class TextRecord(Settings):
    """The text encoders that made the embeddings of captions, see `TextEncoder.fingerprint`."""

    kind: str
    """The pipeline's diffusers class."""
    weights_sha256: dict[str, str]
    """By the pipeline's part."""
    dtype: Dtype
    max_length: Count | None = None
    versions: dict[str, str]
    """Of the packages that decide how captions are cut into tokens and encoded."""
    members: list[str]
    """What each sample has of it."""


def made_with(batch_size: int, device: torch.device) -> dict[str, Any]:
    """What moves the last bits of latents and decides nothing else, for JSON: recorded of each shard.

    Encoding is not batch-invariant, kernels differ between kinds of device, and on a CPU they split sums by thread.
    """
    return {
        "batch_size": batch_size,
        "device": device.type,
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        # Which torch uses for convolutions in float32 unless it is told otherwise: ten bits of a number in place of 23.
        "tf32": torch.backends.cudnn.allow_tf32 if device.type == "cuda" else None,
        "machine": platform.machine(),
        "versions": {name: version(name) for name in PACKAGES},
    }


class FoundInTars(Settings):
    """Settings of a cache whose tars were indexed, as its samples show them."""

    sizes: Annotated[list[Annotated[list[Count], Field(min_length=2, max_length=2)]], Field(min_length=1)]
    """(height, width) of its images."""
    low: int
    high: int
    """The offsets are within these."""
    windows: list[str]
    soft: bool
    paired: list[str]
    """Paired pictures whose latents there are."""
    references: int = 0
    """How many references each sample has."""
    carry_image: Carry


class CacheSettings(Settings):
    """Everything that decides the values in a cache."""

    vae: VaeRecord
    variants: Count
    storage: Storage
    masked_latents: bool
    hole_latents: bool = False
    pixels: list[PixelsOf] = Field(default_factory=list)
    """Pictures that samples have as they were cut."""
    means: list[str] = Field(default_factory=list)
    """Keys of the latents that are kept as the posterior's mean alone; the others are moments."""
    seed: int | None = None
    pictures: PictureSettings | None = None
    masks: MaskSettings | None = None
    """With offset, fill, preset and soft border filled in; like `pictures` None if tars were indexed."""
    indexed: FoundInTars | None = None
    stages: list[str] = Field(default_factory=list)
    """Names of the user's own functions between reading and examples."""
    text: TextRecord | None = None
    tf32: bool = False
    """Float32 was rounded to 10 bits on a GPU's tensor cores."""

    @classmethod
    def of(
        cls,
        examples: ExampleSettings,
        encoder: Encoder,
        variants: int,
        storage: Storage,
        means: Collection[str],
        device: torch.device,
        stages: list[str],
        text: dict[str, Any] | None = None,
    ) -> "CacheSettings":
        """The settings of a cache that a job makes."""
        transform = encoder.transform
        preset = Preset(transform.preset.growth, transform.preset.threshold, transform.fill)
        return cls(
            vae=VaeRecord.of(encoder.autoencoder),
            variants=variants,
            storage=storage,
            masked_latents=transform.masked_latents,
            hole_latents=transform.hole_latents,
            pixels=list(transform.pixels),
            means=_means_of(means, encoder, examples.pictures),
            seed=examples.seed,
            pictures=examples.pictures,
            masks=examples.masks.but(
                offset=transform.mask_offset, fill=transform.fill, preset=preset, soft=transform.soft
            ),
            stages=stages,
            text=None if text is None else TextRecord(**text),
            tf32=device.type == "cuda"
            and encoder.autoencoder.dtype == torch.float32
            and (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32),
        )

    @property
    def examples(self) -> ExampleSettings | None:
        """The settings of its pixels and masks; None if tars were indexed."""
        if self.pictures is None or self.masks is None:
            return None
        return ExampleSettings(self.pictures, self.masks, self.seed or 0)

    @property
    def encode(self) -> EncodeSettings:
        """The settings of its latents, except for the autoencoder itself."""
        return EncodeSettings(
            dtype=self.vae.dtype,
            masked_latents=self.masked_latents,
            hole_latents=self.hole_latents,
            pixels=tuple(self.pixels),
            compile=self.vae.compiled,
        )

    @property
    def carry_image(self) -> Carry:
        """What its samples carry of their images."""
        if self.indexed is not None:
            return self.indexed.carry_image
        return "none" if self.pictures is None else self.pictures.carry_image

    @property
    def soft(self) -> bool:
        """True if its masks are soft."""
        if self.indexed is not None:
            return self.indexed.soft
        return self.masks is not None and self.masks.soft is not None

    @property
    def expected(self) -> Expected:
        """The values that every sample must have. Raises CacheError if the settings contradict themselves."""
        if self.indexed is not None:
            sizes = [(height, width) for height, width in self.indexed.sizes]
            paired, windows = self.indexed.paired, self.indexed.windows
            offsets, references = (self.indexed.low, self.indexed.high), self.indexed.references
        elif self.pictures is not None and self.masks is not None:
            sizes, paired = self.pictures.views.sizes(), self.pictures.paired
            offsets, references = check_offset(self.masks.chosen_offset), self.pictures.references
            windows = list(windows_of(self.masks.chosen_offset))
        else:
            raise CacheError("its settings are not those of a cache: they have no pictures or no masks")
        if min(side // self.vae.factor for size in sizes for side in size) < 1:
            raise CacheError(f"its settings are not those of a cache: images of {sizes} are too small for latents")
        arrays = [LATENTS, *([MASKED_LATENTS] if self.masked_latents else [])]
        arrays += [HOLE_LATENTS] if self.hole_latents else []
        arrays += [f"{key}.npy" for name, key in PAIRED.items() if name in paired]
        scales = map(scales_name, arrays if self.storage == "int8" else ())
        return Expected(
            variants=self.variants,
            references=references,
            sizes=frozenset(sizes),
            factor=self.vae.factor,
            storage=self.storage,
            has_posterior=self.vae.has_posterior,
            means=frozenset(self.means),
            offsets=offsets,
            windows=tuple(windows),
            members=frozenset(
                {RECORD, SOFT_MASK if self.soft else MASK, *arrays, *scales, *map(pixels_name, self.pixels)}
            ),
        )

    @property
    def fingerprint(self) -> str:
        """A name for these settings. Whether a cache may go on is for `incompatible` to say."""
        return fingerprint(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """As in `cache.json`. Settings without effect are left out, so that a cache is not refused for them."""
        content: dict[str, Any] = {"format": FORMAT} | plain(self)
        pictures, masks = content["pictures"], content["masks"]
        if self.pictures is not None:
            for name in ("resolution", "crop"):
                if not isinstance(pictures[name], list):
                    pictures[name] = [pictures[name]]
            if self.pictures.max_aspect == 1 and self.pictures.small != "bucket":
                del pictures["bucket_step"]
            if not any(crop.startswith("mask") for crop in self.pictures.views.crops):
                del pictures["mask_padding"]
            for name, usual in USUAL_PIXELS.items():
                if pictures[name] == usual:
                    del pictures[name]
        if self.masks is not None and self.masks.drawn_from is None:
            del masks["mixture"]
        if masks is not None and not masks["captions"]:
            del masks["captions"]
        if self.masks is not None and not self.masks.reads_files:
            for name in ("mask", "orientation", *(() if self.masks.source == "alpha" else ("repaint",))):
                del masks[name]
        if self.text is None:
            del content["text"]
        for name in ("means", "hole_latents", "pixels"):
            if not content[name]:
                del content[name]
        if masks is not None and isinstance(masks["offset"], list) and len(set(masks["offset"])) == 1:
            masks["offset"] = masks["offset"][0]
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "CacheSettings":
        """The settings that `to_json` encoded.

        Raises:
            CacheError: `content` is not what it encodes.
        """
        try:
            return cls(**{name: value for name, value in content.items() if name != "format"})
        except (UsageError, TypeError, KeyError, ValueError, AttributeError, ArithmeticError) as error:
            raise CacheError(f"its settings are not those of a cache ({type(error).__name__}: {error})") from None


def _means_of(keys: Collection[str], encoder: Encoder, pictures: PictureSettings) -> list[str]:
    """Of the keys that are to be kept as means those that the cache has, if they are moments at all."""
    there = {"latents", *(PAIRED[name] for name in pictures.paired)}
    there |= {key for key in ("masked_latents", "hole_latents") if getattr(encoder.transform, key)}
    return sorted(there & set(keys)) if encoder.autoencoder.has_posterior else []


def incompatible(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The settings in which a cache and a run differ, one line each.

    A setting that one of them does not have yet counts as its default, and so does a field of the autoencoder's config
    that another version of diffusers has: a later version does not refuse what an earlier one made.

    Args:
        old, new: as `CacheSettings.to_json` gives them, the first perhaps by another version.
    """
    return differences(_filled(old), _filled(new))


def _filled(settings: Mapping[str, Any]) -> dict[str, Any]:
    """With all settings of this version; those of a later one stay as they are."""
    try:
        known = CacheSettings.from_json(settings)
    except CacheError:
        return dict(settings)
    content = known.to_json() | {"vae": plain(known.vae) | {"config": known.vae.whole_config}}
    if content["pictures"] is not None:
        content["pictures"] = USUAL_PIXELS | content["pictures"]
    return content


def plain(value: Any) -> Any:
    """Settings and dataclasses as JSON: mappings, and lists in place of tuples."""
    if isinstance(value, Settings):
        return {name: plain(getattr(value, name)) for name in type(value).model_fields}
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
