"""Each recipe feeds a model what the installed diffusers pipeline feeds it, from the same picture, mask and noise.

The reference is the pipeline's own `__call__` on tiny random weights: a recorder stands in the model's place.
"""

import contextlib
import copy
import inspect
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.kandinsky import pipeline_kandinsky_inpaint as kandinsky21
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_inpaint as qwen_edit
from PIL import Image
from torch import Tensor, nn

from inpaint_data.encoding.recipes import (
    RECIPES,
    Recipe,
    conditioning,
    latent_mask,
    normalise,
    pack_latents,
    size_conditioning,
)
from inpaint_data.encoding.transform import InpaintTransform, fill_hole
from inpaint_data.encoding.vae import Autoencoder
from inpaint_data.errors import UsageError

BATCH, HEIGHT, WIDTH = 2, 64, 128
DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"
SIZES = {"original_size": (111, 222), "crops_coords_top_left": (3, 5), "target_size": (64, 128)}


def kl(channels: int, scale: float, shift: float | None = None) -> nn.Module:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 16),
        down_block_types=(DOWN,) * 4,
        up_block_types=(UP,) * 4,
        norm_num_groups=4,
        latent_channels=channels,
        scaling_factor=scale,
        shift_factor=shift,
    )


def qwen_vae() -> nn.Module:
    return diffusers.AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 2, 2, 2], num_res_blocks=1)


def movq() -> nn.Module:
    return diffusers.VQModel(
        block_out_channels=(8, 8, 8, 16),
        down_block_types=(DOWN,) * 4,
        up_block_types=(UP,) * 4,
        norm_num_groups=4,
        latent_channels=4,
        num_vq_embeddings=16,
    )


def unet(channels: int, **config: Any) -> nn.Module:
    shape = {"block_out_channels": (8, 8), "norm_num_groups": 4, "cross_attention_dim": 8, "attention_head_dim": 2}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "layers_per_block": 1}
    return diffusers.UNet2DConditionModel(
        in_channels=channels, mid_block_type=None, sample_size=64, **shape, **blocks, **config
    )


def sdxl_unet(channels: int) -> nn.Module:
    times = {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + 8}
    return unet(channels, addition_embed_type="text_time", **times)


def sd3(channels: int) -> nn.Module:
    heads = {"num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 1, "caption_projection_dim": 8}
    return diffusers.SD3Transformer2DModel(
        in_channels=channels, joint_attention_dim=8, pooled_projection_dim=8, **heads
    )


ROPE = {"num_layers": 1, "attention_head_dim": 16, "num_attention_heads": 1, "axes_dims_rope": (4, 6, 6)}


def flux(channels: int) -> nn.Module:
    embeddings = {"joint_attention_dim": 8, "pooled_projection_dim": 8, "num_single_layers": 1}
    return diffusers.FluxTransformer2DModel(in_channels=channels, **embeddings, **ROPE)


def chroma() -> nn.Module:
    approximator = {"approximator_num_channels": 8, "approximator_hidden_dim": 8, "approximator_layers": 1}
    model = diffusers.ChromaTransformer2DModel(joint_attention_dim=8, num_single_layers=1, **approximator, **ROPE)
    model.register_to_config(guidance_embeds=False)  # asked for by the pipeline, though the class has none
    return model


def qwen() -> nn.Module:
    return diffusers.QwenImageTransformer2DModel(joint_attention_dim=8, **ROPE)


Z_IMAGE = {"dim": 16, "n_refiner_layers": 1, "n_heads": 1, "n_kv_heads": 1}


def z_image() -> nn.Module:
    return diffusers.ZImageTransformer2DModel(n_layers=1, cap_feat_dim=8, axes_dims=[4, 6, 6], **Z_IMAGE)


def z_image_controlnet() -> nn.Module:
    return diffusers.ZImageControlNetModel(
        control_layers_places=[0],
        control_refiner_layers_places=[0],
        control_in_dim=33,
        add_control_noise_refiner="control_noise_refiner",
        **Z_IMAGE,
    )


def sd3_controlnet() -> nn.Module:
    heads = {"num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 1, "caption_projection_dim": 8}
    return diffusers.SD3ControlNetModel(
        joint_attention_dim=8, pooled_projection_dim=8, extra_conditioning_channels=1, **heads
    )


def qwen_controlnet() -> nn.Module:
    return diffusers.QwenImageControlNetModel(joint_attention_dim=8, extra_condition_channels=4, **ROPE)


def controlnet() -> nn.Module:
    return diffusers.ControlNetModel(
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D",) * 2,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=2,
        layers_per_block=1,
        conditioning_embedding_out_channels=(8, 8),
    )


def sdxl_controlnet(kind: type = diffusers.ControlNetModel) -> nn.Module:
    return kind(
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D",) * 2,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=2,
        layers_per_block=1,
        conditioning_embedding_out_channels=(8, 8),
        transformer_layers_per_block=1,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 8,
    )


def sdxl_controlnet_union() -> nn.Module:
    return sdxl_controlnet(diffusers.ControlNetUnionModel)


def flux_controlnet(**config: Any) -> nn.Module:
    embeddings = {"joint_attention_dim": 8, "pooled_projection_dim": 8, "num_single_layers": 1}
    return diffusers.FluxControlNetModel(in_channels=64, **embeddings, **ROPE, **config)


def flux_rgb_controlnet() -> nn.Module:
    return flux_controlnet(conditioning_embedding_channels=16)


def flux2_vae() -> nn.Module:
    shape = {"block_out_channels": (8, 8, 8, 16), "down_block_types": (DOWN,) * 4, "up_block_types": (UP,) * 4}
    vae = diffusers.AutoencoderKLFlux2(**shape, layers_per_block=1, norm_num_groups=4)
    vae.bn.running_mean.uniform_(-2, 2)
    vae.bn.running_var.uniform_(0.2, 4)
    return vae


def flux2() -> nn.Module:
    heads = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 1}
    return diffusers.Flux2Transformer2DModel(
        in_channels=128, joint_attention_dim=8, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False, **heads
    )


EMBEDS = {"prompt_embeds": torch.zeros(BATCH, 4, 8)}
POOLED = {**EMBEDS, "pooled_prompt_embeds": torch.zeros(BATCH, 8)}
NO_TEXT = {"text_encoder": None, "tokenizer": None}
NO_TEXTS = {**NO_TEXT, "text_encoder_2": None, "tokenizer_2": None}
STABLE = {**NO_TEXT, "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
SD3 = {**NO_TEXTS, "text_encoder_3": None, "tokenizer_3": None}
QWEN = {**EMBEDS, "prompt_embeds_mask": torch.ones(BATCH, 4, dtype=torch.long), "true_cfg_scale": 1.0}


@dataclass(frozen=True)
class Row:
    """How the pipeline of one recipe is built and called."""

    pipeline: type
    vae: Callable[[], nn.Module]
    model: Callable[[], nn.Module]
    components: Mapping[str, Any]
    call: Mapping[str, Any]
    draws: tuple[str, ...]  # what it takes from its generator, in this order
    controlnet: Callable[[], nn.Module] | None = None
    unseeded: tuple[str, ...] = ()  # what it takes from torch's global generator instead
    channels_last: bool = True  # how the pixels lie in memory when it encodes them
    has_reference: bool = False
    takes_centred: bool = False  # tensors in [-1, 1]


CONCAT, BLEND = ("noise", "masked_latents"), ("latents", "noise", "masked_latents")


def sd_vae() -> nn.Module:
    return kl(4, 0.18215)


def sdxl_vae() -> nn.Module:
    return kl(4, 0.13025)


def sd3_vae() -> nn.Module:
    return kl(16, 1.5305, 0.0609)


def flux_vae() -> nn.Module:
    return kl(16, 0.3611, 0.1159)


Z_EMBEDS = {"prompt_embeds": [torch.zeros(4, 8)] * BATCH}
KANDINSKY = {"image_embeds": torch.zeros(BATCH, 8), "negative_image_embeds": torch.zeros(BATCH, 8)}
CHROMA = {**EMBEDS, "prompt_attention_mask": torch.ones(BATCH, 4)}

SD15_CONTROLNET = Row(
    diffusers.StableDiffusionControlNetInpaintPipeline, sd_vae, lambda: unet(4), STABLE, EMBEDS, BLEND, controlnet
)
SD15 = Row(diffusers.StableDiffusionInpaintPipeline, sd_vae, lambda: unet(9), STABLE, EMBEDS, CONCAT)
SD15_BLEND = Row(diffusers.StableDiffusionInpaintPipeline, sd_vae, lambda: unet(4), STABLE, EMBEDS, BLEND)
SDXL = diffusers.StableDiffusionXLInpaintPipeline
KONTEXT = Row(
    diffusers.FluxKontextInpaintPipeline,
    flux_vae,
    lambda: flux(64),
    NO_TEXTS | {"image_encoder": None, "feature_extractor": None},
    POOLED | {"_auto_resize": False},
    ("noise",),
)
KLEIN = Row(diffusers.Flux2KleinInpaintPipeline, flux2_vae, flux2, NO_TEXT, EMBEDS, ("noise",))
FLUX_CONTROLNET = Row(
    diffusers.FluxControlNetInpaintPipeline,
    flux_vae,
    lambda: flux(64),
    NO_TEXTS,
    POOLED,
    ("control_latents", "latents", "noise", "masked_latents"),
    flux_controlnet,
)
ROWS = {
    "sd15-inpaint": SD15,
    "sd2-inpaint": SD15,
    "sdxl-inpaint": Row(SDXL, sdxl_vae, lambda: sdxl_unet(9), NO_TEXTS, {**POOLED, **SIZES}, CONCAT),
    "sd3-inpaint": Row(diffusers.StableDiffusion3InpaintPipeline, sd3_vae, lambda: sd3(33), SD3, POOLED, CONCAT),
    "flux-fill": Row(diffusers.FluxFillPipeline, flux_vae, lambda: flux(384), NO_TEXTS, POOLED, BLEND),
    "kandinsky-inpaint": Row(
        diffusers.KandinskyV22InpaintPipeline,
        movq,
        lambda: unet(9, out_channels=8),
        {},
        KANDINSKY,
        ("noise",),
        takes_centred=True,
    ),
    # The controlnet pipelines copy their pixels with repeat_interleave, which lays them out contiguously.
    "sd3-controlnet-inpaint": Row(
        diffusers.StableDiffusion3ControlNetInpaintingPipeline,
        sd3_vae,
        lambda: sd3(16),
        SD3,
        POOLED,
        ("noise",),
        sd3_controlnet,
        ("masked_latents",),
        channels_last=False,
        takes_centred=True,
    ),
    "qwen-controlnet-inpaint": Row(
        diffusers.QwenImageControlNetInpaintPipeline,
        qwen_vae,
        qwen,
        NO_TEXT,
        QWEN,
        ("noise",),
        qwen_controlnet,
        ("masked_latents",),
        takes_centred=True,
    ),
    "z-image-controlnet-inpaint": Row(
        diffusers.ZImageControlNetInpaintPipeline,
        flux_vae,
        z_image,
        NO_TEXT,
        Z_EMBEDS,
        ("noise",),
        z_image_controlnet,
        channels_last=False,
        takes_centred=True,
    ),
    "sd15-controlnet-inpaint": SD15_CONTROLNET,
    "sdxl-controlnet-inpaint": Row(
        diffusers.StableDiffusionXLControlNetInpaintPipeline,
        sdxl_vae,
        lambda: sdxl_unet(4),
        NO_TEXTS,
        POOLED,
        BLEND,
        sdxl_controlnet,
    ),
    "sdxl-controlnet-union-inpaint": Row(
        diffusers.StableDiffusionXLControlNetUnionInpaintPipeline,
        sdxl_vae,
        lambda: sdxl_unet(4),
        NO_TEXTS,
        POOLED | {"control_mode": [5]},
        BLEND,
        sdxl_controlnet_union,
    ),
    "flux-control-inpaint": Row(
        diffusers.FluxControlInpaintPipeline,
        flux_vae,
        lambda: flux(128),
        NO_TEXTS,
        POOLED,
        ("masked_latents", "control_latents", "latents", "noise"),
    ),
    "flux-controlnet-inpaint": FLUX_CONTROLNET,
    "flux-controlnet-rgb-inpaint": replace(
        FLUX_CONTROLNET, controlnet=flux_rgb_controlnet, draws=("latents", "noise", "masked_latents")
    ),
    "flux-kontext-inpaint": KONTEXT,
    "flux2-klein-inpaint": KLEIN,
    "flux-kontext-reference-inpaint": replace(KONTEXT, has_reference=True),
    "flux2-klein-reference-inpaint": replace(KLEIN, has_reference=True),
    "qwen-edit-inpaint": Row(
        diffusers.QwenImageEditInpaintPipeline, qwen_vae, qwen, NO_TEXT | {"processor": None}, QWEN, BLEND
    ),
    "powerpaint-inpaint": SD15,  # whose pipeline is that of Stable Diffusion with prompts of its own
    "sd15-pag-inpaint": replace(SD15, pipeline=diffusers.StableDiffusionPAGInpaintPipeline),
    "sdxl-pag-inpaint": Row(
        diffusers.StableDiffusionXLPAGInpaintPipeline, sdxl_vae, lambda: sdxl_unet(9), NO_TEXTS, POOLED, CONCAT
    ),
    "sd15-controlnet-pag-inpaint": replace(
        SD15_CONTROLNET, pipeline=diffusers.StableDiffusionControlNetPAGInpaintPipeline
    ),
    "sd15-blend": SD15_BLEND,
    "sd2-blend": SD15_BLEND,
    "sdxl-blend": Row(SDXL, sdxl_vae, lambda: sdxl_unet(4), NO_TEXTS, POOLED, BLEND),
    "sd3-blend": Row(diffusers.StableDiffusion3InpaintPipeline, sd3_vae, lambda: sd3(16), SD3, POOLED, BLEND),
    "flux-blend": Row(diffusers.FluxInpaintPipeline, flux_vae, lambda: flux(64), NO_TEXTS, POOLED, BLEND),
    "chroma-blend": Row(diffusers.ChromaInpaintPipeline, flux_vae, chroma, NO_TEXT, CHROMA, BLEND),
    "qwen-blend": Row(diffusers.QwenImageInpaintPipeline, qwen_vae, qwen, NO_TEXT, QWEN, BLEND),
    "z-image-blend": Row(diffusers.ZImageInpaintPipeline, flux_vae, z_image, NO_TEXT, Z_EMBEDS, BLEND),
}
ALONE = {
    "wan-vace",
    "wan-vace-reference",
    "easyanimate-inpaint",
    "brushnet-inpaint",
    "powerpaint2-inpaint",
}  # tests of their own
SEQUENCES = [name for name, row in RECIPES.items() if row.layout == "sequence"]
BLENDING = [name for name, row in RECIPES.items() if not row.parts] + ["kandinsky-inpaint", *SEQUENCES]


class _Reached(Exception):
    """Raised by the recorder: the pipeline has prepared all that the test wants to see."""


@dataclass
class Fed:
    """What a pipeline gave to its model at the first step, and what came out if it ran on."""

    vae: nn.Module  # as it was before the pipeline used it
    config: Mapping[str, Any]  # of the model or ControlNet
    model_input: Tensor
    condition: Tensor | None
    time_ids: Tensor | None
    positions: dict[str, Any]
    output: Tensor | None


def recorded(model: nn.Module) -> list[dict[str, Any]]:
    """The arguments of the one call that this model will get, the first as "sample"."""
    calls: list[dict[str, Any]] = []

    def record(*args: Any, **kwargs: Any) -> None:
        calls.append(dict(zip(("sample",), args, strict=False)) | kwargs)
        raise _Reached

    model.forward = record
    return calls


def uint8_pictures() -> tuple[Tensor, Tensor]:
    """(B, 3, H, W) uint8 and (B, 1, H, W) bool: wide holes, some at the border, and single pixels."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (BATCH, 3, HEIGHT, WIDTH), generator=generator, dtype=torch.uint8)
    masks = torch.rand(BATCH, 1, HEIGHT, WIDTH, generator=generator) < 0.03
    masks[0, :, 5:30, 17:60] = masks[1, :, 40:, 100:] = True
    return images, masks


def control_pictures(images: Tensor) -> Tensor:
    return images.flip(-1)


def reference_pictures(images: Tensor) -> Tensor:
    return images.flip(-2)


def as_pil(images: Tensor) -> list[Image.Image]:
    arrays = images.permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array) for array in arrays]


def make_inpaint_condition(image: Image.Image, image_mask: Image.Image) -> np.ndarray:
    """What the model card of control_v11p_sd15_inpaint tells to give as the control image."""
    pixels = np.array(image.convert("RGB")).astype(np.float32) / 255.0
    pixels[np.array(image_mask.convert("L")).astype(np.float32) / 255.0 > 0.5] = -1.0
    return pixels.transpose(2, 0, 1)


def fed_by_pipeline(
    row: Row,
    masks: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    vae_dtype: torch.dtype | None = None,
    run: bool,
    given: str = "PIL",
) -> Fed:
    """Call the real pipeline for one step; with `run` it goes on with a model that predicts zeros."""
    torch.manual_seed(0)
    vae, model = row.vae().eval(), row.model().to(dtype)
    # Frozen as `Autoencoder` does it: float16 on the CPU rounds otherwise with weights that require gradients.
    frozen = copy.deepcopy(vae).to(vae_dtype or dtype).requires_grad_(False)
    components = dict(row.components) | {"movq" if "Kandinsky" in row.pipeline.__name__ else "vae": frozen}
    is_unet = isinstance(model, diffusers.UNet2DConditionModel)
    scheduler = diffusers.DDIMScheduler(steps_offset=1) if is_unet else diffusers.FlowMatchEulerDiscreteScheduler()
    components |= {"unet" if is_unet else "transformer": model, "scheduler": scheduler}
    if row.controlnet:
        components["controlnet"] = row.controlnet().to(dtype)
    pipeline = row.pipeline(**components)
    pipeline.set_progress_bar_config(disable=True)
    target = pipeline.controlnet if row.controlnet else model
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def record(*args: Any, **kwargs: Any) -> tuple[Any]:
        calls.append((args, kwargs))
        if not run:
            raise _Reached
        sample = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
        if isinstance(sample, list):
            return ([torch.zeros_like(each) for each in sample],)
        channels = model.config.out_channels if is_unet else sample.shape[1]
        return (torch.zeros_like(sample[:, :1]).expand(-1, channels, *sample.shape[2:]),)

    target.forward = record
    images, _ = uint8_pictures()
    pictures: dict[str, Any] = {"image": as_pil(images), "mask_image": as_pil(masks.to(torch.uint8) * 255)}
    pictures |= {"image_reference": as_pil(reference_pictures(images))} if row.has_reference else {}
    if given != "PIL":
        as_given = images.float() / 127.5 - 1 if given == "tensor" and row.takes_centred else images.float() / 255
        pictures |= {"image": as_given, "mask_image": masks.float()}
        if row.has_reference:
            pictures["image_reference"] = reference_pictures(images).float() / 255
    if given == "NumPy":
        pictures = {name: each.permute(0, 2, 3, 1).contiguous().numpy() for name, each in pictures.items()}
        pictures["mask_image"] = pictures["mask_image"][..., 0]
    parameters = inspect.signature(pipeline.__call__).parameters
    if "control_mask" in parameters:
        pictures = {"control_image": pictures["image"], "control_mask": pictures["mask_image"]}
    elif row.controlnet is controlnet:
        conditions = [make_inpaint_condition(*pair) for pair in zip(*pictures.values(), strict=True)]
        pictures["control_image"] = torch.from_numpy(np.stack(conditions))
    elif row.controlnet is sdxl_controlnet_union:
        # As the example of the pipeline tells, whose images are 8-bit.
        pictures["control_image"] = [as_pil(images.masked_fill(masks, 0))]
    elif "control_image" in parameters:
        pictures["control_image"] = as_pil(control_pictures(images))
    call: dict[str, Any] = {"guidance_scale": 0.0, "num_inference_steps": 1, "output_type": "latent", "strength": 1.0}
    call["pag_scale"] = 0.0
    call |= {"height": HEIGHT, "width": WIDTH, "generator": torch.Generator().manual_seed(2)} | pictures | row.call
    call = {key: each.to(dtype) if "embeds" in key and isinstance(each, Tensor) else each for key, each in call.items()}
    torch.manual_seed(3)
    output, blended = None, []
    if (
        row.pipeline is diffusers.Flux2KleinInpaintPipeline
    ):  # which gives raw latents back, so those of the step are kept
        call["callback_on_step_end"] = lambda _pipeline, _step, _t, kept: blended.append(kept["latents"]) or kept
    with contextlib.suppress(_Reached):
        output = pipeline(**{key: each for key, each in call.items() if key in parameters})[0]
        output = blended[-1] if blended else output

    args, kwargs = calls[0]
    sample = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
    condition = args[3] if len(args) > 3 else kwargs.get("controlnet_cond")
    return Fed(
        vae,
        target.config,
        torch.stack(sample) if isinstance(sample, list) else sample,
        condition[0] if isinstance(condition, list) else condition,
        (kwargs.get("added_cond_kwargs") or {}).get("time_ids"),
        {name: kwargs[name] for name in ("img_ids", "img_shapes") if name in kwargs},
        output,
    )


def batch_of_ours(
    name: str,
    row: Row,
    vae_module: nn.Module,
    masks: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    vae_dtype: torch.dtype | None = None,
    channels_last: bool | None = None,
) -> tuple[Recipe, dict[str, Any]]:
    """The same picture and mask through `InpaintTransform`, and the same noise, under "noise" what denoising starts at.

    Each noise is drawn in the dtype that the pipeline draws it in: the posterior's in the VAE's, the other in `dtype`.
    """
    layout = row.channels_last if channels_last is None else channels_last
    vae = Autoencoder(copy.deepcopy(vae_module), dtype=vae_dtype or dtype, channels_last=layout)
    recipe = conditioning(name, vae.config)
    images, _ = uint8_pictures()
    transform = InpaintTransform(vae, mask_offset=0, fill=recipe.fill or "grey", posterior="moments")
    batch: dict[str, Any] = dict(transform({"image": images, "mask": masks, "__key__": ["a", "b"]}))
    shape = (BATCH, recipe.row.latent_channels, HEIGHT // 8, WIDTH // 8)
    noise = {}
    for draws, seed in ((row.draws, 2), (row.unseeded, 3)):
        generator = torch.Generator().manual_seed(seed)
        for key in draws:
            noise[key] = torch.randn(shape, generator=generator, dtype=dtype if key == "noise" else vae.dtype)
    if recipe.row.positions == "flux2":  # which draws it in patches
        patches = noise["noise"].reshape(BATCH, 4 * shape[1], HEIGHT // 16, WIDTH // 16)
        noise["noise"] = diffusers.Flux2KleinInpaintPipeline._unpatchify_latents(patches)
    for key in ("latents", "masked_latents"):
        batch[key] = vae.sample(batch[key], noise[key].float()) if key in noise else vae.mode(batch[key])
    # Pipelines copy the pixels of conditioning pictures with repeat_interleave, which lays them out contiguously.
    contiguous = Autoencoder(copy.deepcopy(vae_module), dtype=vae.dtype, channels_last=False)
    control = contiguous.encode(control_pictures(images).float() / 127.5 - 1)
    drawn = noise.get("control_latents")
    control = contiguous.mode(control) if drawn is None else contiguous.sample(control, drawn.float())
    batch |= {"control": control_pictures(images), "control_latents": control}
    if row.has_reference:
        batch["reference_latents"] = vae.mode(vae.encode(reference_pictures(images).float() / 127.5 - 1))[:, None]
    return recipe, batch | {"noise": noise["noise"], "image": images}


def same(ours: Tensor, theirs: Tensor) -> bool:
    return ours.dtype == theirs.dtype and torch.equal(ours, theirs)


@pytest.fixture(autouse=True)
def _no_resizing(monkeypatch: pytest.MonkeyPatch) -> None:
    """This pipeline enlarges every picture to 1024 * 1024 pixels, which training leaves to whoever cuts them."""
    monkeypatch.setattr(qwen_edit, "calculate_dimensions", lambda *_: (WIDTH, HEIGHT, None))


def test_every_recipe_is_tested() -> None:
    assert ROWS.keys() | ALONE == RECIPES.keys()


@pytest.mark.parametrize("name", ["wan-vace", "wan-vace-reference"])
def test_wan_vace_is_fed_what_the_pipeline_feeds_it(name: str) -> None:
    """One frame, one sample, as the pipeline takes them; the reference of the picture's size."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLWan(base_dim=8, dim_mult=[1, 2, 2, 2], num_res_blocks=1).eval()
    heads = {"num_attention_heads": 1, "attention_head_dim": 16, "num_layers": 1, "ffn_dim": 8, "vace_layers": [0]}
    model = diffusers.WanVACETransformer3DModel(text_dim=8, freq_dim=8, **heads)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    given = copy.deepcopy(vae)
    pipeline = diffusers.WanVACEPipeline(vae=given, transformer=model, scheduler=scheduler, **NO_TEXT)
    images, masks = (pictures[:1] for pictures in uint8_pictures())
    references = reference_pictures(images)
    given_references = {"reference_images": as_pil(references)} if name == "wan-vace-reference" else {}
    calls = recorded(model)
    with contextlib.suppress(_Reached):
        pipeline(
            video=as_pil(images),
            mask=as_pil(masks.to(torch.uint8) * 255),
            prompt_embeds=EMBEDS["prompt_embeds"][:1],
            height=HEIGHT,
            width=WIDTH,
            num_frames=1,
            num_inference_steps=1,
            guidance_scale=0.0,
            generator=torch.Generator().manual_seed(2),
            **given_references,
        )
    autoencoder = Autoencoder(vae)
    recipe = conditioning(name, vae.config)
    recipe.check_model(model.config)
    batch: dict[str, Any] = dict(
        InpaintTransform(autoencoder, 0, recipe.fill, recipe.posterior, hole_latents=True)(
            {"image": images, "mask": masks, "__key__": ["a"], "references": references[:, None]}
        )
    )
    hole = fill_hole(images.float() / 127.5 - 1, ~masks, "grey", -1.0)
    assert torch.equal(batch["hole_latents"], autoencoder.mode(autoencoder.encode(hole)))
    assert same(recipe(batch), calls[0]["control_hidden_states"])
    frames = 1 + len(given_references)
    noise = torch.randn((1, 16, frames, HEIGHT // 8, WIDTH // 8), generator=torch.Generator().manual_seed(2))
    given_noise = noise if given_references else noise[:, :, 0]
    assert same(recipe.model_input(given_noise, batch), calls[0]["hidden_states"])
    assert recipe.latents(batch).shape == given_noise.shape
    assert recipe.loss_mask(batch).shape == (1, 1, *noise.shape[2:])
    assert recipe.loss_mask(batch)[:, :, :-1].sum() == 0 < recipe.loss_mask(batch)[:, :, -1:].sum()


def test_easyanimate_is_fed_what_the_pipeline_feeds_it() -> None:
    """One frame; without the noise that this model can add to the masked picture."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLMagvit(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, layers_per_block=1, latent_channels=16
    ).eval()
    heads = {"num_attention_heads": 1, "attention_head_dim": 16, "num_layers": 1, "mmdit_layers": 1, "patch_size": 2}
    model = diffusers.EasyAnimateTransformer3DModel(
        in_channels=33, out_channels=16, text_embed_dim=8, time_embed_dim=8, add_noise_in_inpaint_model=False, **heads
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    given = copy.deepcopy(vae)
    given.register_to_config(cache_mag_vae=True)  # asked for by the pipeline, though the class has none
    pipeline = diffusers.EasyAnimateInpaintPipeline(vae=given, transformer=model, scheduler=scheduler, **NO_TEXT)
    images, masks = uint8_pictures()
    calls = recorded(model)
    with contextlib.suppress(_Reached):
        pipeline(
            video=(images.float() / 255)[:, :, None],
            mask_video=masks.float()[:, :, None] * 255,
            prompt_embeds=EMBEDS["prompt_embeds"],
            prompt_attention_mask=torch.ones(BATCH, 4),
            height=HEIGHT,
            width=WIDTH,
            num_frames=1,
            num_inference_steps=1,
            guidance_scale=0.0,
            generator=torch.Generator().manual_seed(2),
        )
    recipe = conditioning("easyanimate-inpaint", vae.config)
    recipe.check_model(model.config)
    transform = InpaintTransform(Autoencoder(vae), 0, recipe.fill, recipe.posterior)
    singly = [
        transform({"image": images[row : row + 1], "mask": masks[row : row + 1], "__key__": ["a"]})
        for row in range(BATCH)
    ]
    batch = {key: torch.cat([each[key] for each in singly]) for key in ("latents", "masked_latents", "mask")}
    noise = torch.randn((BATCH, 16, 1, HEIGHT // 8, WIDTH // 8), generator=torch.Generator().manual_seed(2))
    fed = torch.cat([calls[0]["sample"], calls[0]["inpaint_latents"]], dim=1)
    assert same(recipe.model_input(noise[:, :, 0], batch), fed)


@pytest.mark.parametrize("name", ["brushnet-inpaint", "powerpaint2-inpaint"])
def test_brushnets_branch_is_fed_what_its_code_prepares(name: str) -> None:
    """As `examples/brushnet/test_brushnet.py` blackens the 8-bit image, and the pipeline then encodes and joins."""
    torch.manual_seed(0)
    module = sd_vae().eval()
    images, masks = uint8_pictures()
    black = images.masked_fill(masks, 0).float() / 255 * 2 - 1
    white = masks.float().expand(-1, 3, -1, -1) * 2 - 1
    keep = (white.sum(1)[:, None] < 0).float()
    with torch.no_grad():
        latents = module.encode(black).latent_dist.sample(torch.Generator().manual_seed(2)) * 0.18215
    branch = torch.cat([latents, nn.functional.interpolate(keep, latents.shape[-2:])], 1)

    vae = Autoencoder(module, channels_last=False)
    recipe = conditioning(name, module.config)
    pixels = fill_hole(images.float() / 255 * 2 - 1, masks, recipe.fill or "grey", -1.0)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(2))
    drawn = vae.sample(vae.encode(pixels), noise)
    assert same(recipe({"latents": drawn, "masked_latents": drawn, "mask": masks}), branch)
    recipe.check_model({"conditioning_channels": 5})


@pytest.mark.parametrize("name", BLENDING)
def test_known_latents_and_blend_mask_are_what_the_pipeline_blends(name: str) -> None:
    row, (_, masks) = ROWS[name], uint8_pictures()
    fed = fed_by_pipeline(row, masks, run=True)
    denoised = fed_by_pipeline(row, torch.ones_like(masks), run=True).output
    recipe, batch = batch_of_ours(name, row, fed.vae, masks)
    assert 0 < recipe.blend_mask(batch).mean() < 1
    known, mask = recipe.latents(batch), recipe.blend_mask(batch)
    if recipe.row.layout in ("packed", "sequence"):
        known = pack_latents(known)
    if name == "kandinsky-inpaint":
        # This pipeline blends into every sample the first one's mask and latents.
        known, mask = known[:1], mask[:1]
    ours = (1 - mask) * known + mask * denoised
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13) and name == "qwen-blend":
        # Where the image is kept, 4.8e-7 apart on torch 2.6.
        torch.testing.assert_close(ours, fed.output, rtol=0, atol=1e-6)
    else:
        assert same(ours, fed.output)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if not row.channels_last])
def test_channels_last_encodes_what_these_pipelines_encode_contiguously_but_for_rounding(name: str) -> None:
    """Convolutions sum in another order in the other memory format; normal latents here, so 1e-4 is some 2^-13."""
    row, (_, masks) = ROWS[name], uint8_pictures()
    fed = fed_by_pipeline(row, masks, run=False)
    recipe, batch = batch_of_ours(name, row, fed.vae, masks, channels_last=True)
    torch.testing.assert_close(recipe(batch), fed.condition, rtol=0, atol=1e-4)


def test_sdxl_in_half_precision_is_exact_but_for_pixels_that_the_pipeline_rounds_to_half() -> None:
    """`force_upcast` encodes in float32, yet from pixels that were float16: 2^-12 apart at most, in [-1, 1]."""
    row, (_, masks) = ROWS["sdxl-inpaint"], uint8_pictures()
    fed = fed_by_pipeline(row, masks, dtype=torch.float16, vae_dtype=torch.float32, run=False)
    recipe, batch = batch_of_ours("sdxl-inpaint", row, fed.vae, masks, dtype=torch.float16, vae_dtype=torch.float32)
    ours = recipe.model_input(batch["noise"], batch)
    assert same(ours[:, :5], fed.model_input[:, :5])
    torch.testing.assert_close(ours, fed.model_input, rtol=0, atol=2**-9)

    images, _ = uint8_pictures()
    vae = Autoencoder(copy.deepcopy(fed.vae), channels_last=True)
    halves = fill_hole(images.float() / 127.5 - 1, masks, "grey", low=-1.0).half()
    generator = torch.Generator().manual_seed(2)
    torch.randn(batch["noise"].shape, generator=generator, dtype=torch.float16)
    noise = torch.randn(batch["noise"].shape, generator=generator)
    batch["masked_latents"] = vae.sample(vae.encode(halves.float()), noise)
    assert same(recipe.model_input(batch["noise"], batch), fed.model_input)


def test_time_ids_are_those_of_the_sdxl_pipeline() -> None:
    _, masks = uint8_pictures()
    fed = fed_by_pipeline(ROWS["sdxl-inpaint"], masks, run=False)
    names = {"original_size": "original_size", "crop_top_left": "crops_coords_top_left", "target_size": "target_size"}
    batch = {ours: torch.tensor([SIZES[theirs]] * BATCH) for ours, theirs in names.items()}
    assert same(size_conditioning(batch), fed.time_ids)
    assert size_conditioning(batch, torch.bfloat16).dtype == torch.bfloat16
    del batch["crop_top_left"]
    with pytest.raises(UsageError, match="crop_top_left"):
        size_conditioning(batch)


def test_kandinsky_2_1_prepares_its_mask_as_2_2_does() -> None:
    images, masks = uint8_pictures()
    keep, pixels = kandinsky21.prepare_mask_and_masked_image(
        as_pil(images), as_pil(masks.to(torch.uint8) * 255), HEIGHT, WIDTH
    )
    keep = kandinsky21.prepare_mask(torch.nn.functional.interpolate(keep, (HEIGHT // 8, WIDTH // 8), mode="nearest"))
    assert torch.equal(keep, 1 - latent_mask(masks, 8, "kandinsky").float())
    assert torch.equal(pixels, images.float() / 127.5 - 1)


def small_batch(channels: int = 4, **entries: Any) -> dict[str, Any]:
    latents = torch.randn(1, channels, 4, 6)
    mask = torch.zeros(1, 1, 32, 48, dtype=torch.bool)
    mask[..., 4:20, 12:40] = True
    return {"latents": latents, "masked_latents": latents + 1, "mask": mask} | entries


SD = {"scaling_factor": 0.18215, "latent_channels": 4}


def sd15(**config: Any) -> Recipe:
    return conditioning("sd15-inpaint", SD | config)


def test_an_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'sd15' is unknown; choose from sd15-inpaint, .*z-image-blend"):
        conditioning("sd15", SD)


def test_a_vae_config_that_cannot_belong_to_the_recipe_is_refused() -> None:
    with pytest.raises(UsageError, match="sd15-inpaint: the VAE has 16 latent channels instead of 4"):
        sd15(latent_channels=16)
    with pytest.raises(UsageError, match="qwen-blend: the VAE has 4 latent channels instead of 16"):
        conditioning("qwen-blend", {"z_dim": 4, "latents_mean": [0.0], "latents_std": [1.0]})
    with pytest.raises(UsageError, match="neither scaling_factor nor latents_std"):
        conditioning("sd15-inpaint", {"vae": {"config": SD}})


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        (
            "sdxl-inpaint",
            {"in_channels": 4},
            "sdxl-inpaint: the UNet has in_channels=4; give a UNet with in_channels=9, "
            "or choose recipe sd15-blend or sd2-blend or sdxl-blend",
        ),
        ("sd3-inpaint", {"in_channels": 16}, "or choose recipe sd3-blend or z-image-blend"),
        ("flux-fill", {"in_channels": 64}, "with in_channels=384, or choose recipe .*flux-blend"),
        ("flux-blend", {"in_channels": 128}, "with in_channels=64, or choose recipe flux-control-inpaint$"),
        ("flux-blend", {"in_channels": 99}, "has in_channels=99; give a transformer with in_channels=64$"),
        (
            "sd3-controlnet-inpaint",
            {"in_channels": 16, "extra_conditioning_channels": 0},
            r"the ControlNet has in_channels \+ extra_conditioning_channels=16; give a ControlNet with .*=17",
        ),
        ("z-image-controlnet-inpaint", {"control_in_dim": 16}, "control_in_dim=16; give a .* control_in_dim=33"),
        ("sd15-controlnet-inpaint", {"conditioning_channels": 1}, "conditioning_channels=3"),
    ],
)
def test_a_model_with_other_channels_is_refused(name: str, config: dict[str, Any], message: str) -> None:
    recipe = conditioning(name, {"scaling_factor": 1.0})
    with pytest.raises(UsageError, match=message):
        recipe.check_model(config)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"masked_latents": None}, "has no 'masked_latents' .*fill=\"grey\""),
        ({"mask": None}, "has no 'mask'"),
        ({"masked_latents": torch.zeros(1, 8, 4, 6)}, "masked_latents holds moments .8 channels.* Autoencoder.mode"),
        ({"masked_latents": torch.zeros(1, 3, 4, 4, 6)}, "holds 3 variants"),
        ({"masked_latents": torch.zeros(1, 16, 4, 6)}, r"must be \(B, 4, h, w\), not \(1, 16, 4, 6\)"),
        ({"mask": torch.zeros(1, 2, 32, 48, dtype=torch.bool)}, "give one variant"),
        ({"mask": torch.zeros(1, 1, 32, 48, dtype=torch.uint8)}, "bool or float, not .*uint8"),
        ({"mask": torch.zeros(1, 1, 32, 40, dtype=torch.bool)}, "not one whole multiple"),
        ({"mask": torch.zeros(2, 1, 32, 48, dtype=torch.bool)}, "not one whole multiple"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(entries: dict[str, Any], message: str) -> None:
    batch = {key: value for key, value in (small_batch() | entries).items() if value is not None}
    with pytest.raises(UsageError, match=message) as caught:
        sd15().model_input(torch.zeros(1, 4, 4, 6), batch)
    assert str(caught.value).startswith("sd15-inpaint: ")


def test_moments_are_refused_as_clean_latents_too() -> None:
    with pytest.raises(UsageError, match="latents holds moments"):
        sd15().latents(small_batch(latents=torch.zeros(1, 8, 4, 6)))


def test_noisy_latents_of_another_model_are_refused() -> None:
    with pytest.raises(UsageError, match=r"noisy must be \(B, 4, h, w\)"):
        sd15().model_input(torch.zeros(1, 16, 4, 6), small_batch())


def test_recipes_that_read_one_more_entry_say_so() -> None:
    picture = conditioning("sd15-controlnet-inpaint", SD)
    with pytest.raises(UsageError, match="has no 'image'"):
        picture(small_batch())
    with pytest.raises(UsageError, match="uint8 or float"):
        picture(small_batch(image=torch.zeros(1, 3, 32, 48, dtype=torch.int64)))
    as_float, as_uint8 = torch.full((1, 3, 32, 48), 0.2), torch.full((1, 3, 32, 48), 51, dtype=torch.uint8)
    assert torch.equal(picture(small_batch(image=as_float)), picture(small_batch(image=as_uint8)))
    control = conditioning("z-image-controlnet-inpaint", {"scaling_factor": 1.0})
    with pytest.raises(UsageError, match="has no 'control_latents'"):
        control(small_batch(16))


def test_odd_latents_cannot_be_packed() -> None:
    recipe = conditioning("flux-blend", {"scaling_factor": 1.0})
    with pytest.raises(UsageError, match=r"latents of \(3, 4\) cannot be packed"):
        recipe.model_input(torch.zeros(1, 16, 3, 4), {})


def test_nothing_is_concatenated_where_the_pipeline_only_blends() -> None:
    recipe = conditioning("flux-blend", {"scaling_factor": 1.0})
    assert recipe(small_batch(16)).shape == (1, 6, 0)
    assert not recipe.needs_masked_latents


def test_a_recipe_tells_how_its_latents_must_be_made() -> None:
    told = {
        name: (recipe.needs_masked_latents, recipe.fill, recipe.posterior)
        for name in RECIPES
        for recipe in [conditioning(name, {"scaling_factor": 1.0})]
    }
    assert told["sdxl-inpaint"] == told["flux-fill"] == (True, "grey", "sample")
    assert told["sd3-controlnet-inpaint"] == told["qwen-controlnet-inpaint"] == (True, "black", "sample")
    assert told["z-image-controlnet-inpaint"] == (True, "grey", "mode")
    assert told["kandinsky-inpaint"] == (False, None, "mode")
    assert told["sd15-controlnet-inpaint"] == told["qwen-blend"] == (False, None, "sample")


def test_the_mask_can_come_to_latent_size_as_comfyui_does_it() -> None:
    batch, noisy = small_batch(), torch.zeros(1, 4, 4, 6)
    own = sd15().model_input(noisy, batch)
    for how in ("nearest", "bilinear", "bilinear-round", "bicubic", "bicubic-round", "max", "area"):
        ours = conditioning("sd15-inpaint", SD, how).model_input(noisy, batch)
        fed = latent_mask(batch["mask"], 8, how).float()
        assert torch.equal(ours[:, 4:5], fed if how == "area" else fed.round())
        assert torch.equal(ours[:, 5:], own[:, 5:])
        assert torch.equal(ours, own) == (how == "nearest")
    with pytest.raises(UsageError, match="flux-fill: latent_mask='max' cannot be chosen"):
        conditioning("flux-fill", {"scaling_factor": 1.0}, "max")
    with pytest.raises(UsageError, match="cannot be chosen"):
        conditioning("sd15-blend", SD, "bilinear")
    with pytest.raises(UsageError, match=r"not one of nearest, bilinear, bicubic, bilinear-round, .*area"):
        conditioning("sd15-inpaint", SD, "unshuffle")


@pytest.mark.parametrize("name", RECIPES)
def test_a_soft_mask_is_fed_hard_as_the_mask_processor_makes_it_and_blends_softly(name: str) -> None:
    recipe = conditioning(name, {"scaling_factor": 1.0})
    channels = recipe.row.latent_channels
    soft = torch.randint(0, 256, (1, 1, 32, 48), generator=torch.Generator().manual_seed(3)) / 255
    hard = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True).preprocess(soft)
    batch = small_batch(channels) | {
        "image": torch.rand(1, 3, 32, 48),
        "control": torch.rand(1, 3, 32, 48),
        "control_latents": torch.randn(1, channels, 4, 6),
        "hole_latents": torch.randn(1, channels, 4, 6),
        "reference_latents": torch.randn(1, 1, channels, 4, 6),
    }
    noisy = torch.randn_like(recipe.latents(batch))
    fed = recipe.model_input(noisy, batch | {"mask": hard.bool()})
    assert torch.equal(recipe.model_input(noisy, batch | {"mask": soft}), fed)
    assert torch.equal(recipe(batch | {"mask": soft}), recipe(batch | {"mask": hard.bool()}))

    blend = recipe.blend_mask(batch | {"mask": soft})
    if name == "kandinsky-inpaint":
        assert torch.equal(blend, recipe.blend_mask(batch | {"mask": hard.bool()}))
        return
    if recipe.row.positions == "flux2":
        tokens = nn.functional.interpolate(soft, (2, 3), mode="bilinear")
        assert torch.equal(blend, tokens.flatten(2).transpose(1, 2))
        return
    small = soft[..., ::8, ::8]
    packed = recipe.row.layout in ("packed", "sequence")
    assert torch.equal(blend, pack_latents(small.expand(1, channels, -1, -1)) if packed else small)


@pytest.mark.parametrize("factor", [2, 8])
def test_each_latent_mask_equals_a_loop_over_its_cells(factor: int) -> None:
    generator = torch.Generator().manual_seed(4)
    mask = torch.rand(2, 1, 4 * factor, 6 * factor, generator=generator) < 0.5
    got = {how: latent_mask(mask, factor, how) for how in ("nearest", "bilinear-round", "max", "unshuffle")}
    middle = slice(factor // 2 - 1, factor // 2 + 1)
    for index in itertools.product(range(2), range(4), range(6)):
        b, row, column = index
        cell = mask[b, 0, row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
        assert got["nearest"][b, 0, row, column] == cell[0, 0]
        assert got["bilinear-round"][b, 0, row, column] == (cell[middle, middle].sum() > 2)
        assert got["max"][b, 0, row, column] == cell.any()
        assert torch.equal(got["unshuffle"][b, :, row, column], cell.flatten())
    assert all(each.dtype == torch.bool for each in got.values())


def test_area_weighs_pixels_by_a_triangle_two_cells_wide() -> None:
    mask = torch.zeros(1, 1, 32, 40, dtype=torch.bool)
    mask[..., 11, 18] = True
    triangle = torch.tensor([1 - abs(pixel + 0.5 - 8) / 8 for pixel in range(16)])
    triangle /= triangle.sum()
    area = latent_mask(mask, 8, "area")
    # Row 1 is centred on pixel 12 and its window starts at 4; row 0's window starts outside, at -4.
    assert area[0, 0, 1, 2] == pytest.approx(float(triangle[11 - 4] * triangle[18 - 12]), abs=1e-7)
    assert area[0, 0, 1, 1] == pytest.approx(float(triangle[11 - 4] * triangle[18 - 4]), abs=1e-7)
    assert latent_mask(torch.ones(1, 1, 32, 40, dtype=torch.bool), 8, "area").eq(1).all()


def test_a_latent_mask_that_cannot_be_made_is_refused() -> None:
    mask = torch.zeros(1, 1, 20, 16, dtype=torch.bool)
    with pytest.raises(UsageError, match="20 x 16 mask cannot be divided by 8"):
        latent_mask(mask, 8, "nearest")
    with pytest.raises(UsageError, match="'lanczos' is unknown; choose from nearest"):
        latent_mask(mask, 4, "lanczos")


def test_normalise_equals_the_autoencoders_own() -> None:
    torch.manual_seed(0)
    playground = kl(4, 0.5)
    playground.register_to_config(latents_mean=[-1.6, 1.1, 3.1, -0.8], latents_std=[8.4, 5.9, 6.5, 5.2])
    for module in (sd_vae(), flux_vae(), qwen_vae(), playground):
        vae = Autoencoder(module)
        latents = torch.randn(2, vae.latent_channels, 4, 6)
        assert torch.equal(normalise(latents, module.config), vae.normalise(latents))
