"""Every autoencoder class answers alike, in exactly the numbers that its own pipeline would compute."""

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    AutoencoderKLTemporalDecoder,
    AutoencoderKLWan,
    AutoencoderTiny,
    Flux2Pipeline,
    VQModel,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from inpaint_data.encoding.vae import Autoencoder
from inpaint_data.encoding.vae_loading import load_vae, parse_dtype
from inpaint_data.errors import EncodeError, VaeError

DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"


def kl(**config: object) -> AutoencoderKL:
    shape = {"block_out_channels": (8, 8, 16), "down_block_types": (DOWN,) * 3, "up_block_types": (UP,) * 3}
    return AutoencoderKL(**shape, layers_per_block=1, norm_num_groups=4, **config)


def tiny() -> AutoencoderTiny:
    blocks = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8)}
    return AutoencoderTiny(**blocks, num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1))


def dc() -> AutoencoderDC:
    channels, layers, scales = (8, 8, 16), (1, 1, 1), ((), (), (5,))
    return AutoencoderDC(
        latent_channels=8,
        attention_head_dim=8,
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        encoder_layers_per_block=layers,
        decoder_layers_per_block=layers,
        encoder_qkv_multiscales=scales,
        decoder_qkv_multiscales=scales,
        scaling_factor=0.41407,
    )


def vq() -> VQModel:
    shape = {"block_out_channels": (8, 8), "down_block_types": (DOWN,) * 2, "up_block_types": (UP,) * 2}
    return VQModel(**shape, norm_num_groups=4, latent_channels=3, num_vq_embeddings=16)


def asymmetric() -> AsymmetricAutoencoderKL:
    return AsymmetricAutoencoderKL(
        down_block_types=(DOWN,) * 2,
        down_block_out_channels=(8, 8),
        up_block_types=(UP,) * 2,
        up_block_out_channels=(16, 16),
        norm_num_groups=4,
    )


def flux2() -> AutoencoderKLFlux2:
    shape = {"block_out_channels": (8, 8), "down_block_types": (DOWN,) * 2, "up_block_types": (UP,) * 2}
    module = AutoencoderKLFlux2(**shape, layers_per_block=1, norm_num_groups=4, latent_channels=4)
    module.bn.running_mean.normal_()
    module.bn.running_var.uniform_(0.5, 3.0)
    return module


MEAN, STD = [-0.7571, -0.7089, -0.9113, 0.1075], [2.8184, 1.4541, 2.3275, 2.6558]
VIDEO = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}


def qwen() -> AutoencoderKLQwenImage:
    return AutoencoderKLQwenImage(**VIDEO, latents_mean=MEAN, latents_std=STD)


def wan() -> AutoencoderKLWan:
    return AutoencoderKLWan(**VIDEO, latents_mean=MEAN, latents_std=STD)


class Plain(nn.Module):
    """What a user may bring: no config, no output class."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 5, 2, stride=2)

    def encode(self, pixels: Tensor) -> tuple[Tensor]:
        return (self.down(pixels),)


Build = Callable[[], nn.Module]
# class → factor, latent channels, posterior, 5-D, where its own encode() keeps the latents
CASES: list[tuple[Build, int, int, bool, bool, Callable[[object], Tensor]]] = [
    (kl, 4, 4, True, False, lambda out: out.latent_dist),
    (tiny, 4, 4, False, False, lambda out: out.latents),
    (dc, 4, 8, False, False, lambda out: out.latent),
    (vq, 2, 3, False, False, lambda out: out.latents),
    (asymmetric, 2, 4, True, False, lambda out: out.latent_dist),
    (flux2, 2, 4, True, False, lambda out: out.latent_dist),
    (qwen, 8, 4, True, True, lambda out: out.latent_dist),
    (wan, 8, 4, True, True, lambda out: out.latent_dist),
    (Plain, 2, 5, False, False, lambda out: out[0]),
]
every_class = pytest.mark.parametrize("case", CASES, ids=[case[0].__name__ for case in CASES])


@pytest.fixture(autouse=True)
def _same_weights_every_time() -> None:
    torch.manual_seed(0)


def pictures(batch: int = 2, height: int = 32, width: int = 48) -> Tensor:
    return torch.rand(batch, 3, height, width) * 2 - 1


@every_class
def test_factor_and_channels_come_from_the_encoder_itself(case: tuple) -> None:
    build, factor, channels, has_posterior, is_5d, _ = case
    vae = Autoencoder(build())
    assert (vae.factor, vae.latent_channels, vae.has_posterior, vae.is_5d) == (factor, channels, has_posterior, is_5d)
    assert vae.moment_channels == (2 * channels if has_posterior else channels)
    assert vae.encode(pictures(0)).shape == (0, vae.moment_channels, 32 // factor, 48 // factor)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_class
def test_moments_equal_the_classs_own_encode_to_the_last_bit(
    case: tuple, dtype: torch.dtype, channels_last: bool
) -> None:
    build, _, _, has_posterior, is_5d, latents_of = case
    vae = Autoencoder(build(), dtype=dtype, channels_last=channels_last)
    pixels = pictures()
    given = pixels.to(dtype)
    if is_5d:
        given = given[:, :, None]
    elif channels_last:
        given = given.to(memory_format=torch.channels_last)
    with torch.no_grad():
        own = latents_of(vae.module.encode(given))
    raw = vae.encode(pixels)
    assert raw.dtype == torch.float32
    assert raw.is_contiguous()
    assert torch.equal(raw, vae.encode(pixels.contiguous(memory_format=torch.channels_last)))
    if not has_posterior:
        assert torch.equal(raw, own.float())
        assert torch.equal(vae.mode(raw), raw)
        assert torch.equal(vae.sample(raw, torch.randn_like(raw)), raw)
        return
    mean, logvar = raw.chunk(2, dim=1)
    assert torch.equal(mean, own.mean.float().reshape(mean.shape))
    assert torch.equal(logvar, own.logvar.float().reshape(mean.shape))
    assert torch.equal(vae.mode(raw), mean)


def test_sampling_equals_diffusers_given_the_same_noise() -> None:
    vae = Autoencoder(kl())
    raw = vae.encode(pictures())
    noise = torch.randn(raw[:, :4].shape, generator=torch.Generator().manual_seed(3))
    posterior = DiagonalGaussianDistribution(raw)
    assert torch.equal(vae.sample(raw, noise), posterior.sample(torch.Generator().manual_seed(3)))
    assert torch.equal(vae.sample(raw[0], noise[0]), vae.sample(raw, noise)[0])


def test_a_temporal_decoder_does_not_make_a_picture_encoder_5d() -> None:
    vae = Autoencoder(AutoencoderKLTemporalDecoder(block_out_channels=(32, 32), down_block_types=(DOWN,) * 2))
    assert not vae.is_5d
    assert vae.encode(pictures(1)).shape == (1, 8, 16, 24)


def test_an_outer_autocast_changes_nothing() -> None:
    vae = Autoencoder(kl())
    pixels = pictures()
    expected = vae.encode(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(vae.encode(pixels), expected)
        assert vae.decode(vae.mode(expected)).dtype == torch.float32


def test_a_layer_trains_on_the_result_while_the_autoencoder_stays_frozen() -> None:
    vae = Autoencoder(kl().train())
    layer = nn.Conv2d(8, 1, 1)
    layer(vae.encode(pictures().requires_grad_())).sum().backward()
    assert layer.weight.grad is not None
    assert not vae.module.training
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in vae.module.parameters())


def test_whoever_holds_it_has_no_vae_weights_in_the_state_dict() -> None:
    holder = nn.Linear(1, 1)
    holder.vae = Autoencoder(kl())
    assert set(holder.state_dict()) == {"weight", "bias"}


def overflowing(scale: float) -> AutoencoderKL:
    """Bright pictures overflow in the first convolution, grey ones (0) do not."""
    module = kl()
    with torch.no_grad():
        module.encoder.conv_in.weight.abs_().mul_(scale)
    return module


def test_a_sample_that_overflows_in_half_precision_is_encoded_alone_in_float32() -> None:
    vae = Autoencoder(overflowing(5e4), dtype=torch.float16)
    pixels = torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32), torch.zeros(3, 32, 32)])
    with torch.no_grad():
        own = vae.module.encode(pixels.half()).latent_dist
    assert own.mean.isfinite().flatten(1).all(1).tolist() == [True, False, True]
    raw = vae.encode(pixels)
    single = Autoencoder(copy.deepcopy(vae.module), dtype=torch.float32)
    assert torch.equal(raw[1:2], single.encode(pixels[1:2]))
    assert torch.equal(raw[::2, :4], own.mean[::2].float())
    assert vae.retries == 1
    assert vae.dtype == torch.float16 == next(vae.module.parameters()).dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_overflows_in_float32_too_is_named_by_key_or_position(dtype: torch.dtype) -> None:
    vae = Autoencoder(overflowing(3e38), name="broken", dtype=dtype)
    pixels = torch.stack([torch.ones(3, 32, 32), torch.zeros(3, 32, 32), torch.ones(3, 32, 32)])
    with pytest.raises(EncodeError, match=r"broken: NaN .* 'cat', 'fox'") as caught:
        vae.encode(pixels, keys=["cat", "dog", "fox"])
    assert caught.value.indexes == [0, 2]
    with pytest.raises(EncodeError, match="at position 0, at position 2"):
        vae.encode(pixels)


def test_infinity_is_found_before_clipping_hides_it() -> None:
    module = kl()
    with torch.no_grad():
        module.quant_conv.bias[-1] = torch.inf
    with pytest.raises(EncodeError):
        Autoencoder(module).encode(pictures())


def test_sizes_that_the_factor_does_not_divide_are_refused_with_the_numbers() -> None:
    with pytest.raises(VaeError, match=r"32 x 50 pixels, not divisible by 4"):
        Autoencoder(kl()).encode(pictures(1, 32, 50))
    with pytest.raises(ValueError, match=r"uint8"):
        Autoencoder(kl()).encode(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_modules_without_one_whole_factor_are_refused() -> None:
    uneven, fractional = Plain(), Plain()
    uneven.down = nn.Conv2d(3, 5, 2, stride=(2, 4))
    fractional.down = nn.Conv2d(3, 5, 3, stride=3)
    for module, numbers in ((uneven, "128 x 64"), (fractional, "85 x 85")):
        with pytest.raises(VaeError, match=f"Plain: .*{numbers}"):
            Autoencoder(module)
    with pytest.raises(VaeError, match="Linear has no encode"):
        Autoencoder(nn.Linear(3, 3))


def test_a_module_that_refuses_small_pictures_is_probed_with_larger_ones() -> None:
    module = Plain()
    module.down = nn.Conv2d(3, 5, 128, stride=128)
    assert Autoencoder(module).factor == 128


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_compiling_gives_the_same_up_to_rounding() -> None:
    module, pixels = Plain(), pictures()
    eager = Autoencoder(module).encode(pixels)
    torch.testing.assert_close(Autoencoder(module, compile=True).encode(pixels), eager)


def test_scaling_follows_the_config() -> None:
    z = torch.randn(2, 4, 6, 8)
    assert torch.equal(Autoencoder(kl(scaling_factor=0.18215)).normalise(z), z * 0.18215)
    both = Autoencoder(kl(scaling_factor=0.3611, shift_factor=0.1159))
    assert torch.equal(both.normalise(z), (z - 0.1159) * 0.3611)
    assert torch.equal(Autoencoder(tiny()).normalise(z), z)
    assert torch.equal(Autoencoder(dc()).normalise(z), z * 0.41407)
    assert torch.equal(Autoencoder(Plain()).normalise(z), z)


@pytest.mark.parametrize("build", [qwen, wan])
def test_channel_statistics_are_applied_as_the_qwen_and_wan_pipelines_do(build: Build) -> None:
    vae = Autoencoder(build())
    z = torch.randn(2, 4, 1, 6, 8)
    # Copied from pipeline_qwenimage_inpaint.py, where z is 5-D.
    mean = torch.tensor(vae.module.config.latents_mean).view(1, vae.module.config.z_dim, 1, 1, 1)
    std = 1.0 / torch.tensor(vae.module.config.latents_std).view(1, vae.module.config.z_dim, 1, 1, 1)
    assert torch.equal(vae.normalise(z[:, :, 0]), ((z - mean) * std)[:, :, 0])


def test_channel_statistics_with_a_scale_are_applied_as_the_sdxl_pipeline_does() -> None:
    z = torch.randn(2, 4, 6, 8)
    vae = Autoencoder(kl(latents_mean=MEAN, latents_std=STD, scaling_factor=0.5))
    mean, std = torch.tensor(MEAN).view(1, 4, 1, 1), torch.tensor(STD).view(1, 4, 1, 1)
    assert torch.equal(vae.normalise(z), (z - mean) * 0.5 / std)


def test_flux2_is_patched_and_batch_normalised_as_its_pipeline_does() -> None:
    vae = Autoencoder(flux2())
    z = torch.randn(2, 4, 6, 8)
    bn, eps = vae.module.bn, vae.module.config.batch_norm_eps
    std = torch.sqrt(bn.running_var.view(1, -1, 1, 1) + eps)
    expected = (Flux2Pipeline._patchify_latents(z) - bn.running_mean.view(1, -1, 1, 1)) / std
    assert torch.equal(vae.normalise(z), expected)
    with pytest.raises(VaeError, match="5 x 8 latents"):
        vae.normalise(z[:, :, :5])


SCALED = [*(case[0] for case in CASES), lambda: kl(shift_factor=0.1), lambda: kl(latents_mean=MEAN, latents_std=STD)]


@pytest.mark.parametrize("build", SCALED)
def test_denormalise_reverses_normalise_to_a_few_roundings(build: Build) -> None:
    vae = Autoencoder(build())
    z = torch.randn(2, vae.latent_channels, 6, 8)
    assert (vae.denormalise(vae.normalise(z)) - z).abs().max() < 2e-6


@pytest.mark.parametrize("case", CASES[:-1], ids=[case[0].__name__ for case in CASES[:-1]])
def test_decoding_gives_pixels_of_the_encoded_size_within_range(case: tuple) -> None:
    build, factor, channels, *_ = case
    decoded = Autoencoder(build(), dtype=torch.bfloat16).decode(torch.randn(2, channels, 8, 4) * 9)
    assert decoded.dtype == torch.float32
    assert decoded.shape == (2, 3, 8 * factor, 4 * factor)
    assert decoded.abs().max() <= 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_module_follows_the_pixels_to_their_device() -> None:
    vae = Autoencoder(kl())
    before = vae.fingerprint()
    assert vae.encode(pictures().cuda()).device.type == "cuda" == vae.device.type
    assert Autoencoder(vae.module).fingerprint() == before


def test_a_module_keeps_the_layout_it_arrives_in_and_the_fingerprint_says_which() -> None:
    pixels = pictures()
    for arrives, asked, expected in (
        (torch.contiguous_format, None, False),
        (torch.channels_last, None, True),
        (torch.channels_last, False, False),
        (torch.contiguous_format, True, True),
    ):
        vae = Autoencoder(kl().to(memory_format=arrives), channels_last=asked)
        assert vae.channels_last == vae.fingerprint()["channels_last"] == expected
        layout = torch.channels_last if expected else torch.contiguous_format
        assert all(weight.is_contiguous(memory_format=layout) for weight in vae.module.parameters() if weight.ndim == 4)
        with torch.no_grad():
            own = vae.module.encode(pixels.contiguous(memory_format=layout)).latent_dist.mean
        assert torch.equal(vae.mode(vae.encode(pixels)), own)


def test_on_a_cpu_the_default_is_as_near_to_float64_as_float32_can_be() -> None:
    """Channels_last is not: PyTorch's group norm is off by a thousand times as much there."""
    vae = load_vae("demo")
    pixels = torch.zeros(1, 3, 256, 256)
    pixels[..., 128:] = torch.rand(1, 3, 256, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    raw = vae.encode(pixels)
    with torch.no_grad():
        exact = vae.module.double().encode(pixels.double()).latent_dist.mean
    assert (vae.mode(raw) - exact).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_posterior_is_sampled_in_the_models_dtype_as_diffusers_does(dtype: torch.dtype) -> None:
    vae = Autoencoder(kl(), dtype=dtype)
    pixels = pictures()
    raw = vae.encode(pixels)
    with torch.no_grad():
        own = vae.module.encode(pixels.to(dtype)).latent_dist
    theirs = own.sample(torch.Generator().manual_seed(0))
    noise = torch.randn(own.mean.shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    ours = vae.sample(raw, noise.float())
    assert ours.dtype == torch.float32
    assert torch.equal(ours, theirs.float())
    raw[0, 0] = 1e6  # as encoded again in float32, and too much for float16
    again = vae.sample(raw, noise.float())
    assert again.isfinite().all()
    assert torch.equal(again[1:], ours[1:])


def test_fingerprint_is_json_and_knows_neither_memory_format_nor_origin(tmp_path: Path) -> None:
    module = kl()
    module.save_pretrained(tmp_path / "somewhere")
    one = Autoencoder(module, channels_last=False).fingerprint()
    two = load_vae(tmp_path / "somewhere", channels_last=True).fingerprint()
    assert json.loads(json.dumps(one)) == one
    assert one.pop("channels_last") != two.pop("channels_last")
    assert one == two
    assert one["kind"] == "AutoencoderKL"
    assert not any(key.startswith("_") for key in one["config"])


def test_fingerprint_changes_with_one_bit_of_a_weight_the_config_or_the_dtype() -> None:
    def made(config: float = 0.5, flip: bool = False, dtype: torch.dtype = torch.bfloat16) -> str:
        torch.manual_seed(0)
        module = kl(scaling_factor=config).to(torch.bfloat16)
        if flip:
            module.quant_conv.weight.data.view(torch.int16)[0, 0] ^= 1
        return json.dumps(Autoencoder(module, dtype=dtype).fingerprint(), sort_keys=True)

    assert made() == made()
    assert len({made(), made(config=0.25), made(flip=True), made(dtype=torch.float32)}) == 4


def same_weights(vae: Autoencoder, module: nn.Module) -> bool:
    state = module.state_dict()
    return all(torch.equal(tensor, state[key]) for key, tensor in vae.module.state_dict().items())


@pytest.mark.parametrize("build", [kl, tiny, dc, vq, asymmetric, flux2, qwen, wan])
def test_a_folder_picks_the_class_and_a_pipeline_folder_its_vae(
    build: Build, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    module = build()
    module.save_pretrained(tmp_path / "pipeline" / "vae")
    capfd.readouterr()
    for folder in (tmp_path / "pipeline" / "vae", str(tmp_path / "pipeline")):
        vae = load_vae(folder, dtype="bf16")
        assert type(vae.module) is type(module)
        assert vae.dtype == torch.bfloat16
        assert same_weights(vae, module.to(torch.bfloat16))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("file_name", ["diffusion_pytorch_model.safetensors", "other.safetensors"])
def test_a_single_file_is_read_with_the_config_beside_it(file_name: str, tmp_path: Path) -> None:
    module = kl()
    module.save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").rename(tmp_path / file_name)
    assert same_weights(load_vae(tmp_path / file_name), module)


def to_original_format(state: dict[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """Diffusers' names of an AutoencoderKL → those of the original latent-diffusion code, with a UNet beside them."""
    original = {"model.diffusion_model.out.2.weight": torch.zeros(100_000)}
    for key, tensor in state.items():
        parts = key.split(".")
        if parts[1] in ("down_blocks", "up_blocks"):
            side, kind, index, part, number, *rest = parts
            level = index if kind == "down_blocks" else str(blocks - 1 - int(index))
            direction = kind.removesuffix("_blocks")
            part = {"resnets": f"block.{number}", "downsamplers": "downsample", "upsamplers": "upsample"}[part]
            parts = [side, direction, level, part, *rest]
        elif parts[1] == "mid_block":
            side, _, part, number, *rest = parts
            parts = [side, "mid", f"block_{int(number) + 1}" if part == "resnets" else "attn_1", *rest]
        name = "first_stage_model." + ".".join(parts)
        for ours, theirs in (
            ("conv_shortcut", "nin_shortcut"),
            ("conv_norm_out", "norm_out"),
            ("group_norm", "norm"),
            ("to_q", "q"),
            ("to_k", "k"),
            ("to_v", "v"),
            ("to_out.0", "proj_out"),
        ):
            name = name.replace(f".{ours}.", f".{theirs}.")
        is_attention = ".attn_1." in name and tensor.ndim == 2
        original[name] = tensor[:, :, None, None].clone() if is_attention else tensor.clone()
    return original


def test_the_original_format_is_read_with_the_config_beside_it(tmp_path: Path) -> None:
    module = kl()
    module.save_config(tmp_path)
    original = to_original_format(module.state_dict(), blocks=3)
    save_file(original, tmp_path / "sd15.safetensors")
    assert same_weights(load_vae(tmp_path / "sd15.safetensors"), module)
    # diffusers itself would leave what is missing at random.
    fewer = {key: tensor for key, tensor in original.items() if ".decoder.conv_in." not in key}
    save_file(fewer, tmp_path / "fewer.safetensors")
    with pytest.raises(VaeError, match=r"fewer\.safetensors"):
        load_vae(tmp_path / "fewer.safetensors")


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_hub_name_in_the_cache_loads_without_a_network(variant: str | None, tmp_path: Path) -> None:
    commit = "0123456789" * 4
    snapshot = tmp_path / "models--someone--model" / "snapshots" / commit
    kl().save_pretrained(snapshot / "vae", variant=variant)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(commit)
    index = snapshot / "vae" / "diffusion_pytorch_model.safetensors.index.json"
    code = f"""
from pathlib import Path
from inpaint_data import load_vae
assert load_vae("someone/model").factor == 4
Path({str(index)!r}).write_text('{{"weight_map": {{"encoder.conv_in.weight": "part.bin"}}}}')
load_vae("someone/model")
"""
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert done.stderr.startswith("Traceback")  # and before it nothing
    assert "VaeError: someone/model: diffusion_pytorch_model.safetensors.index.json names 'part.bin'" in done.stderr


@pytest.mark.parametrize("size", ["10GB", "20KB"])  # whole, and in parts with an index
@pytest.mark.parametrize("place", ["folder", "pipeline", "file"])
def test_half_precision_weights_load_where_there_are_no_others(size: str, place: str, tmp_path: Path) -> None:
    module, name = kl().half(), str(tmp_path)
    folder = tmp_path / "vae" if place == "pipeline" else tmp_path
    module.save_pretrained(folder, variant="fp16", max_shard_size=size)
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(files) > 1 if size == "20KB" else files == ["diffusion_pytorch_model.fp16.safetensors"]
    if place == "file":
        name = str(folder / files[0])
    loaded = load_vae(name)
    assert loaded.dtype == torch.float32
    assert loaded.fingerprint()["weights_sha256"] == Autoencoder(module.float()).fingerprint()["weights_sha256"]


def test_plain_weights_come_before_variants_and_of_several_variants_one_is_to_be_named(tmp_path: Path) -> None:
    module = kl()
    for variant in ("bf16", "fp16"):
        module.save_pretrained(tmp_path, variant=variant)
    with pytest.raises(VaeError, match=r"diffusion_pytorch_model.bf16.safetensors, .*fp16.safetensors.*name the file"):
        load_vae(str(tmp_path))
    load_vae(str(tmp_path / "diffusion_pytorch_model.fp16.safetensors"))
    module.save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"damaged")
    load_vae(str(tmp_path))


def test_the_demo_autoencoder_comes_with_the_package() -> None:
    vae = load_vae("demo")
    assert (vae.factor, vae.dtype) == (8, torch.float32)


def broken(folder: Path, how: str) -> Path:
    """A saved autoencoder with one thing wrong."""
    kl().save_pretrained(folder)
    config, weights = folder / "config.json", folder / "diffusion_pytorch_model.safetensors"
    if how == "class":
        config.write_text(config.read_text().replace("AutoencoderKL", "AutoencoderOfTomorrow"))
    elif how == "not an autoencoder":
        config.write_text(config.read_text().replace("AutoencoderKL", "DDIMScheduler"))
    elif how == "json":
        config.write_text(config.read_text()[:-20])
    elif how == "no config":
        config.unlink()
    elif how == "no weights":
        weights.rename(folder / "diffusion_pytorch_model.bin")
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif how == "one missing":
        save_file({k: v for k, v in load_file(weights).items() if k != "encoder.conv_in.weight"}, weights)
    return folder


@pytest.mark.parametrize(
    ("how", "mend"),
    [
        ("class", "AutoencoderOfTomorrow.*upgrade diffusers"),
        ("not an autoencoder", "DDIMScheduler.*no such autoencoder"),
        ("json", "config.json.*not a valid JSON.*save_pretrained"),
        ("no config", "config.json.*save_pretrained"),
        ("no weights", "diffusion_pytorch_model.safetensors.*save the safetensors weights again"),
        ("truncated", "download or save the safetensors weights again"),
        ("one missing", "encoder.conv_in.weight.*save them again"),
    ],
)
def test_a_broken_folder_is_named_in_one_line_with_the_mend(how: str, mend: str, tmp_path: Path) -> None:
    folder = broken(tmp_path / "vae_folder", how)
    with pytest.raises(VaeError, match=f"vae_folder.*{mend}") as caught:
        load_vae(folder)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_broken_single_file_is_named_with_the_mend(tmp_path: Path) -> None:
    folder = broken(tmp_path / "vae_folder", "truncated")
    cut = (folder / "diffusion_pytorch_model.safetensors").rename(folder / "cut.safetensors")
    with pytest.raises(VaeError, match=r"cut.safetensors: not a whole safetensors file.*download it again"):
        load_vae(cut)
    vq().save_pretrained(folder)
    named = (folder / "diffusion_pytorch_model.safetensors").rename(folder / "vq.safetensors")
    with pytest.raises(VaeError, match=r"vq.safetensors: .*VQModel.*diffusion_pytorch_model.safetensors"):
        load_vae(named)


def test_a_single_file_without_its_config_asks_for_it_when_it_does_not_load(tmp_path: Path) -> None:
    save_file(kl().state_dict(), tmp_path / "alone.safetensors")
    with pytest.raises(VaeError, match=r"alone.safetensors: cannot be loaded .* put the VAE's config.json beside it"):
        load_vae(tmp_path / "alone.safetensors")


@pytest.mark.parametrize("name", ["vae.ckpt", "vae.bin", "vae.pt"])
def test_pickles_are_never_loaded(name: str, tmp_path: Path) -> None:
    torch.save(kl().state_dict(), tmp_path / name)
    with pytest.raises(VaeError, match=r"pickles .* convert it to .safetensors"):
        load_vae(tmp_path / name)


@pytest.mark.parametrize("name", ["part.bin", "../part.safetensors", "/part.safetensors", "sub/part.bin", 7, None])
def test_an_index_of_weights_names_only_safetensors_beside_it(name: object, tmp_path: Path) -> None:
    folder = tmp_path / "vae_folder"
    kl().save_pretrained(folder, max_shard_size="100KB")
    assert load_vae(folder).factor == 4
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    (part, *_) = set(content["weight_map"].values())
    torch.save(load_file(folder / part), folder / "part.bin")
    shutil.copy(folder / part, tmp_path / "part.safetensors")
    content["weight_map"] = {key: name if file == part else file for key, file in content["weight_map"].items()}
    index.write_text(json.dumps(content))
    with pytest.raises(VaeError, match=r"vae_folder: .*index.json names .*never loaded"):
        load_vae(folder)
    index.write_text("[" * 100_000)
    with pytest.raises(VaeError, match=r"index.json cannot be read"):
        load_vae(folder)


@pytest.mark.parametrize("name", ["./here", "/no/where", "a/b/c", "../up", "x.safetensors", Path("a/b"), "~/vae"])
def test_a_name_that_is_a_path_never_asks_the_hub(name: str | Path) -> None:
    with pytest.raises(VaeError, match=f"vae: there is no {str(name)!r}; give a folder"):
        load_vae(name)


def test_an_unknown_name_says_what_was_tried() -> None:
    with pytest.raises(
        VaeError, match=r"^inpaint-data-tests/none: no usable vae/config.json or movq/config.json or config.json"
    ):
        load_vae("inpaint-data-tests/none")


def test_dtypes_have_long_and_short_names() -> None:
    for name, short in (("float32", "fp32"), ("float16", "fp16"), ("bfloat16", "bf16")):
        assert parse_dtype(name) is parse_dtype(short) is parse_dtype(getattr(torch, name)) is getattr(torch, name)
    for unknown in ("int8", "fp8", torch.float64):
        with pytest.raises(VaeError, match=r"choose from float32, float16, bfloat16"):
            parse_dtype(unknown)
