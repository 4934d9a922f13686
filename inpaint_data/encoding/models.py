"""Models: the settings that each is trained with, by one word. Light: neither torch nor pydantic is imported.

Names and sizes are those of the examples and defaults of the pipelines in diffusers 0.42.1: `default_sample_size` times
8, or the size that the example resizes to. Only models that were trained on other aspects than the square get buckets:
those of SDXL, whose sides, multiples of 64, suit every model that packs latents.
"""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Model:
    """What a model is trained with.

    Attributes:
        name: the pipeline on the Hub whose autoencoder makes the latents.
        resolution: pixels, squared.
        max_aspect: of buckets; 1 for squares alone.
        dtype: that the autoencoder computes in: bfloat16 where the example loads the pipeline so. The half precision of
            the older ones is not used: the autoencoder of SDXL overflows in it.
        control: whether the recipe reads a conditioning picture.
        references: how many reference pictures the recipe reads.
        text: the pipeline whose text encoders are taken; None for `name`.
    """

    name: str
    resolution: int = 1024
    max_aspect: float = 2.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    control: bool = False
    references: int = 0
    text: str | None = None

    def settings(self, recipe: str) -> dict[tuple[str, ...], Any]:
        """Where each setting stands in the tree -> its value."""
        settings: dict[tuple[str, ...], Any] = {("pictures", "resolution"): self.resolution}
        if self.max_aspect > 1:
            settings |= {("pictures", "max_aspect"): self.max_aspect, ("pictures", "bucket_step"): 64}
        if self.control:
            settings["pictures", "control"] = True
        if self.references:
            settings["pictures", "references"] = self.references
        settings |= {("encode", "vae"): self.name, ("encode", "dtype"): self.dtype, ("encode", "recipe"): recipe}
        settings |= {("text", "model"): self.name if self.text is None else self.text, ("text", "dtype"): self.dtype}
        return settings | {("vae",): self.name}  # of commands without groups


_SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
_SD15_INPAINT = "stable-diffusion-v1-5/stable-diffusion-inpainting"
_SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
_SDXL_INPAINT = "diffusers/stable-diffusion-xl-1.0-inpainting-0.1"
_FLUX = "black-forest-labs/FLUX.1-dev"
_SD3 = "stabilityai/stable-diffusion-3-medium-diffusers"
_KONTEXT = "black-forest-labs/FLUX.1-Kontext-dev"
_KLEIN = "black-forest-labs/FLUX.2-klein-base-9B"
_VACE = "Wan-AI/Wan2.1-VACE-1.3B-diffusers"

# A row for each of RECIPES.
MODELS: dict[str, Model] = {
    "sd15-inpaint": Model(_SD15_INPAINT, 512, 1.0),
    "sd2-inpaint": Model("stabilityai/stable-diffusion-2-inpainting", 512, 1.0),
    "sdxl-inpaint": Model(_SDXL_INPAINT),
    "sd3-inpaint": Model(_SD3),
    "flux-fill": Model("black-forest-labs/FLUX.1-Fill-dev", dtype="bfloat16"),
    "kandinsky-inpaint": Model(
        "kandinsky-community/kandinsky-2-2-decoder-inpaint", 512, 1.0, text="kandinsky-community/kandinsky-2-2-prior"
    ),
    "sd3-controlnet-inpaint": Model(_SD3),
    "qwen-controlnet-inpaint": Model("Qwen/Qwen-Image", dtype="bfloat16"),
    "z-image-controlnet-inpaint": Model("Tongyi-MAI/Z-Image-Turbo", dtype="bfloat16", control=True),
    "sd15-controlnet-inpaint": Model(_SD15, 512, 1.0),
    "sdxl-controlnet-inpaint": Model(_SDXL, control=True),
    "sdxl-controlnet-union-inpaint": Model(_SDXL),
    "flux-control-inpaint": Model(_FLUX, dtype="bfloat16", control=True),
    "flux-controlnet-inpaint": Model(_FLUX, dtype="bfloat16", control=True),
    "flux-controlnet-rgb-inpaint": Model(_FLUX, dtype="bfloat16", control=True),
    "flux-kontext-inpaint": Model(_KONTEXT, dtype="bfloat16"),
    "flux2-klein-inpaint": Model(_KLEIN, dtype="bfloat16"),
    "flux-kontext-reference-inpaint": Model(_KONTEXT, dtype="bfloat16", references=1),
    "flux2-klein-reference-inpaint": Model(_KLEIN, dtype="bfloat16", references=1),
    "qwen-edit-inpaint": Model("Qwen/Qwen-Image-Edit", dtype="bfloat16"),
    "wan-vace": Model(_VACE, 512),
    "wan-vace-reference": Model(_VACE, 512, references=1),
    "easyanimate-inpaint": Model("alibaba-pai/EasyAnimateV5.1-12b-zh-InP", 512, dtype="bfloat16", text=""),
    "brushnet-inpaint": Model(_SD15, 512, 1.0),
    "powerpaint-inpaint": Model(_SD15_INPAINT, 512, 1.0),
    "powerpaint2-inpaint": Model(_SD15, 512, 1.0),
    "sd15-pag-inpaint": Model(_SD15_INPAINT, 512, 1.0),
    "sdxl-pag-inpaint": Model(_SDXL_INPAINT),
    "sd15-controlnet-pag-inpaint": Model(_SD15, 512, 1.0),
    "sd15-blend": Model(_SD15, 512, 1.0),
    "sd2-blend": Model("stabilityai/stable-diffusion-2-base", 512, 1.0),
    "sdxl-blend": Model(_SDXL),
    "sd3-blend": Model(_SD3),
    "flux-blend": Model(_FLUX, dtype="bfloat16"),
    "chroma-blend": Model("lodestones/Chroma1-HD", dtype="bfloat16"),
    "qwen-blend": Model("Qwen/Qwen-Image", dtype="bfloat16"),
    "z-image-blend": Model("Tongyi-MAI/Z-Image-Turbo", dtype="bfloat16"),
}
