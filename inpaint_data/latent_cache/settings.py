"""Everything that decides the values in a cache: what its fingerprint covers."""

import platform
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from inpaint_data.batch import PAIRED
from inpaint_data.encoding.encoder import Encoder
from inpaint_data.encoding.settings import Dtype, EncodeSettings
from inpaint_data.encoding.vae import Autoencoder
from inpaint_data.errors import CacheError, UsageError
from inpaint_data.latent_cache.format import FORMAT, fingerprint
from inpaint_data.latent_cache.members import (
    LATENTS,
    MASK,
    MASKED_LATENTS,
    RECORD,
    SOFT_MASK,
    Expected,
)
from inpaint_data.masks.offsets import check_offset, windows_of
from inpaint_data.masks.presets import Preset
from inpaint_data.masks.settings import MaskSettings
from inpaint_data.pictures.settings import Carry, ExampleSettings, PictureSettings
from inpaint_data.settings import Count, Settings

Storage = Literal["float16", "float32"]
# Packages whose versions decide pixels or latents.
PACKAGES = ("torch", "diffusers", "numpy", "pillow", "opencv-python-headless", "simplejpeg")


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
    has_posterior: bool
    """Whether latents are moments: mean, then log-variance."""
    factor: Count
    """Pixels per latent along each side."""

    @classmethod
    def of(cls, autoencoder: Autoencoder) -> "VaeRecord":
        return cls(**autoencoder.fingerprint())


class FoundInTars(Settings):
    """What is known of a cache whose tars were indexed, and not made here."""

    sizes: Annotated[list[Annotated[list[Count], Field(min_length=2, max_length=2)]], Field(min_length=1)]
    """(height, width) of its pictures."""
    low: int
    high: int
    """The offsets are within these."""
    windows: list[str]
    soft: bool
    paired: list[str]
    """Pictures beside the image whose latents there are."""
    carry_image: Carry


class CacheSettings(Settings):
    """Everything that decides the values in a cache."""

    vae: VaeRecord
    variants: Count
    storage: Storage
    masked_latents: bool
    seed: int | None = None
    batch_size: int | None = None
    """Encoding is not batch-invariant."""
    pictures: PictureSettings | None = None
    masks: MaskSettings | None = None
    """With its offset, fill and preset as they were chosen; like `pictures` None where tars were indexed."""
    indexed: FoundInTars | None = None
    stages: list[str] = Field(default_factory=list)
    """Names of the user's own functions between reading and examples."""
    device: str | None = None
    """Kernels differ between kinds of device."""
    threads: int | None = None
    """On a CPU kernels split their sums by thread."""
    machine: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def of(
        cls,
        examples: ExampleSettings,
        encoder: Encoder,
        variants: int,
        batch_size: int,
        storage: Storage,
        device: torch.device,
        stages: list[str],
    ) -> "CacheSettings":
        """Of a job on this machine."""
        transform = encoder.transform
        preset = Preset(transform.preset.growth, transform.preset.threshold, transform.fill)
        return cls(
            vae=VaeRecord.of(encoder.autoencoder),
            variants=variants,
            storage=storage,
            masked_latents=transform.masked_latents,
            seed=examples.seed,
            batch_size=batch_size,
            pictures=examples.pictures,
            masks=examples.masks.but(offset=transform.mask_offset, fill=transform.fill, preset=preset),
            stages=stages,
            device=device.type,
            threads=torch.get_num_threads() if device.type == "cpu" else None,
            machine=platform.machine(),
            versions={name: version(name) for name in PACKAGES},
        )

    @property
    def examples(self) -> ExampleSettings | None:
        """What decided its pixels; None where tars were indexed."""
        if self.pictures is None or self.masks is None:
            return None
        return ExampleSettings(self.pictures, self.masks, self.seed or 0)

    @property
    def encode(self) -> EncodeSettings:
        """What its latents were encoded with, but for the autoencoder itself."""
        return EncodeSettings(
            dtype=self.vae.dtype,
            posterior="moments",
            masked_latents=self.masked_latents,
            compile=self.vae.compiled,
        )

    @property
    def carry_image(self) -> Carry:
        """What its samples carry of their pictures."""
        if self.indexed is not None:
            return self.indexed.carry_image
        return "none" if self.pictures is None else self.pictures.carry_image

    @property
    def soft(self) -> bool:
        """Whether its masks are soft."""
        if self.indexed is not None:
            return self.indexed.soft
        return self.masks is not None and self.masks.soft is not None

    @property
    def expected(self) -> Expected:
        """What they say of every sample. Raises CacheError where they contradict themselves."""
        found = self.indexed
        if found is None and (self.pictures is None or self.masks is None):
            raise CacheError("its settings are not those of a cache: they say nothing of pictures and masks")
        if found is not None:
            sizes, paired = [(height, width) for height, width in found.sizes], found.paired
            offsets, windows = (found.low, found.high), tuple(found.windows)
        else:
            assert self.pictures is not None
            assert self.masks is not None
            sizes, paired = self.pictures.views.sizes(), self.pictures.paired
            offsets = check_offset(self.masks.chosen_offset)
            windows = tuple(windows_of(self.masks.chosen_offset))
        if min(side // self.vae.factor for size in sizes for side in size) < 1:
            raise CacheError(f"its settings are not those of a cache: no latents are left of pictures of {sizes}")
        members = {
            RECORD: True,
            LATENTS: True,
            SOFT_MASK if self.soft else MASK: True,
            MASKED_LATENTS: self.masked_latents,
            **{f"{key}.npy": name in paired for name, key in PAIRED.items()},
        }
        return Expected(
            variants=self.variants,
            sizes=frozenset(sizes),
            factor=self.vae.factor,
            storage=self.storage,
            has_posterior=self.vae.has_posterior,
            offsets=offsets,
            windows=windows,
            members=frozenset(name for name, there in members.items() if there),
        )

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """As `cache.json` has it: a setting that cannot matter is left out, so that it is no reason to refuse."""
        content: dict[str, Any] = {"format": FORMAT} | plain(self)
        pictures, masks = content["pictures"], content["masks"]
        if self.pictures is not None:
            for name in ("resolution", "crop"):
                if not isinstance(pictures[name], list):
                    pictures[name] = [pictures[name]]
            if self.pictures.max_aspect == 1:
                del pictures["bucket_step"]
            if not any(crop.startswith("mask") for crop in self.pictures.views.crops):
                del pictures["mask_padding"]
        if self.masks is not None and self.masks.drawn_from is None:
            del masks["mixture"]
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "CacheSettings":
        """What `to_json` made.

        Raises:
            CacheError: it did not.
        """
        try:
            given = {name: value for name, value in content.items() if name != "format"}
            return cls(**given)
        except (UsageError, TypeError, KeyError, ValueError, AttributeError, ArithmeticError) as error:
            raise CacheError(f"its settings are not those of a cache ({type(error).__name__}: {error})") from None


def plain(value: Any) -> Any:
    """Settings and dataclasses as JSON has them: mappings, and lists in place of tuples."""
    if isinstance(value, Settings):
        return {name: plain(getattr(value, name)) for name in type(value).model_fields}
    if is_dataclass(value):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value
