"""The autoencoder, whichever diffusers class it is: pixels to latents and back.

Latents are raw as the encoder gives them (caches hold these), normalised as a diffusion model takes them.
Shapes: B batch, H and W of the image, h = H / factor, w = W / factor, C latent channels, M moment channels.
"""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from inpaint_data.encoding.compiling import compiled
from inpaint_data.encoding.weights import weights_sha256
from inpaint_data.errors import EncodeError, VaeError

# Not an nn.Module: whoever holds it has no frozen VAE in its state_dict, its checkpoints or its optimiser.

STATISTICS = ("latents_mean", "latents_std")  # which most classes have in their config


class Autoencoder:
    """A frozen autoencoder that answers in raw float32, whatever its class.

    Args:
        module: a diffusers autoencoder, or any module with `encode` (and `decode`) for (B, 3, H, W) pixels. It is
            changed in place: frozen, set to eval, cast, laid out.
        name: what error messages call it; the class name when empty.
        dtype: what it computes in; None keeps the module's own.
        channels_last: memory format of weights and pixels; None is the module's own, contiguous unless somebody changed
            it. 5-D modules ignore it. On CPUs it costs exactness: PyTorch's GroupNorm adds up in another way
            there, see `benchmarks/exactness.py`.
        compile: torch.compile the encoder, whose results then differ from the eager ones in the last bits, see
            `compiling`.

    Attributes:
        factor: pixels per latent along each side.
        latent_channels: C.
        has_posterior: whether it gives mean and log-variance, or only latents.
        is_5d: whether it takes (B, 3, 1, H, W), as video autoencoders do.
        retries: how many samples were encoded again in float32.

    Raises:
        VaeError: no encoder, or pixels and latents are not related by one whole factor.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        name: str = "",
        dtype: torch.dtype | None = None,
        channels_last: bool | None = None,
        compile: bool = False,
    ) -> None:
        self.name = name or type(module).__name__
        encode: Any = getattr(module, "encode", None)
        if not callable(encode):
            raise VaeError(f"{self.name}: {type(module).__name__} has no encode(); give an autoencoder")
        self.module: Any = module.requires_grad_(False).eval()
        if dtype is not None:
            nn.Module.to(module, dtype)  # diffusers' own to() warns at every cast
        floats = (parameter.dtype for parameter in module.parameters() if parameter.is_floating_point())
        self.dtype: torch.dtype = dtype or next(floats, torch.float32)
        # Of the encoder only: SVD's temporal decoder has Conv3d too, while its encoder takes images.
        self.is_5d = any(isinstance(part, nn.Conv3d) for part in getattr(module, "encoder", module).modules())
        planes = [parameter for parameter in module.parameters() if parameter.ndim == 4]
        if channels_last is None:
            channels_last = not all(parameter.is_contiguous() for parameter in planes)
        self.channels_last = channels_last and not self.is_5d
        # One by one: module.to(memory_format=...) refuses any 5-D weight.
        for parameter in planes:
            parameter.data = parameter.data.contiguous(memory_format=self._layout)
        self.retries = 0
        self._exact: Autoencoder | None = None
        self._config = _config_of(module)
        self.factor, self.latent_channels, self.has_posterior = self._probe()
        self.compiled = compile
        self._encode = compiled(encode) if compile else encode

    @property
    def config(self) -> dict[str, Any]:
        """A copy of diffusers' config of the module; empty where it has none."""
        return dict(self._config)

    @property
    def device(self) -> torch.device:
        """The device of the weights; the CPU for a module without any."""
        tensor: Tensor | None = next(chain(self.module.parameters(), self.module.buffers()), None)
        return tensor.device if tensor is not None else torch.device("cpu")

    @property
    def _layout(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def moment_channels(self) -> int:
        """M, the channels `encode` returns: 2C with a posterior (mean, then log-variance), else C."""
        return 2 * self.latent_channels if self.has_posterior else self.latent_channels

    def encode(
        self, pixels: Tensor, keys: Sequence[str] | None = None, unchecked: list[Tensor] | None = None
    ) -> Tensor:
        """Raw moments: what diffusers' `encode(pixels)` gives in this dtype and memory format, to the last bit.

        The module moves to the pixels' device if it is elsewhere. An autocast around the call has no effect. In half
        precision, samples with NaN or infinity are encoded once more, alone and in float32.

        Args:
            pixels: (B, 3, H, W) float, [-1, 1]; H and W divisible by `factor`.
            keys: B names for error messages.
            unchecked: where given, nothing waits for the device to see whether the answer is finite. (B,) bool on the
                device is appended, where it is; whoever gave the list looks at it later, and encodes again without.

        Returns:
            (B, M, h, w) float32 on the pixels' device, contiguous; the log-variance clipped to [-30, 20] as diffusers
            does. Neither scaled nor shifted.

        Raises:
            ValueError: not (B, 3, H, W) float.
            VaeError: a side that `factor` does not divide.
            EncodeError: NaN or infinity in float32 too; `indexes` says which samples.
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point():
            raise ValueError(f"pixels must be (B, 3, H, W) float in [-1, 1], not {tuple(pixels.shape)} {pixels.dtype}")
        batch, _, height, width = pixels.shape
        if height % self.factor or width % self.factor:
            raise VaeError(f"{self.name}: {height} x {width} pixels, not divisible by {self.factor}; crop or resize")
        shape = (batch, self.moment_channels, height // self.factor, width // self.factor)
        if batch == 0:
            return torch.empty(shape, device=pixels.device)
        self._move_to(pixels.device)
        raw, finite, _ = self._answer(self._encode, pixels, self.dtype)
        if raw.shape != shape:
            raise VaeError(f"{self.name}: {height} x {width} pixels gave {tuple(raw.shape)} instead of {shape}")
        if unchecked is not None:
            unchecked.append(finite)
            return raw
        failed: list[int] = (~finite).nonzero().flatten().tolist()
        if failed and self.dtype in (torch.float16, torch.bfloat16):
            failed = self._retry(pixels, raw, failed)
        if failed:
            names = ", ".join(f"'{keys[i]}'" if keys is not None else f"at position {i}" for i in failed)
            message = f"{self.name}: NaN or infinity in float32 too for samples {names}; check them and the weights"
            raise EncodeError(message, failed)
        return raw

    def in_single_precision(self) -> "Autoencoder":
        """The same one in float32 and not compiled; a copy, made once, unless this is that."""
        if self.dtype == torch.float32 and not self.compiled:
            return self
        if self._exact is None:
            copied = copy.deepcopy(self.module).float()
            self._exact = Autoencoder(copied, name=self.name, channels_last=self.channels_last)
        return self._exact

    def mode(self, raw: Tensor) -> Tensor:
        """(..., M, h, w) raw → (..., C, h, w): the posterior's mean; latents stay as they are."""
        return raw.chunk(2, dim=-3)[0] if self.has_posterior else raw

    def sample(self, raw: Tensor, noise: Tensor) -> Tensor:
        """(..., M, h, w) raw, (..., C, h, w) standard normal noise → (..., C, h, w); latents stay as they are.

        In this autoencoder's dtype, as pipelines do it, see `sample_posterior`.
        """
        if not self.has_posterior:
            return raw
        return sample_posterior(raw, noise, self.dtype)

    def normalise(self, latents: Tensor) -> Tensor:
        """Raw (B, C, h, w) float → what the diffusion model takes, to the last bit as the class's pipeline does.

        The shape and dtype stay, but FLUX.2 gives (B, 4C, h/2, w/2); an odd side is a VaeError there.
        """
        if not self._patches:
            return normalise(latents, self._config)
        mean, std, _ = self._statistics(latents)
        return (_patchify(latents) - mean) / std

    def denormalise(self, latents: Tensor) -> Tensor:
        """Latents as `normalise` gives them → raw (B, C, h, w), up to rounding."""
        mean, std, scale = self._statistics(latents)
        latents = latents * std / (1.0 if scale is None else scale) + mean
        return _unpatchify(latents) if self._patches else latents

    def decode(self, latents: Tensor) -> Tensor:
        """Raw latents (B, C, h, w) → pixels (B, 3, H, W) float32, clamped to [-1, 1]."""
        self._move_to(latents.device)
        with torch.no_grad(), torch.autocast(latents.device.type, enabled=False):
            output = self.module.decode(self._lay_out(latents.to(self.dtype)))
        pixels: Tensor = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
        return (pixels[:, :, 0] if self.is_5d else pixels).float().clamp(-1, 1)

    def fingerprint(self) -> dict[str, Any]:
        """All that decides the latents, for JSON; the same wherever the weights are and however they lie in memory.

        The weights are hashed once: changing them later does not change the answer.
        """
        config = {key: value for key, value in self._config.items() if not key.startswith("_")}
        return {
            "kind": type(self.module).__name__,
            "config": json.loads(json.dumps(config, default=str)),
            "weights_sha256": self._weights_sha256,
            "dtype": str(self.dtype).removeprefix("torch."),
            "channels_last": self.channels_last,
            "compiled": self.compiled,
            "tiling": bool(getattr(self.module, "use_tiling", False)),
            "slicing": bool(getattr(self.module, "use_slicing", False)),
            "has_posterior": self.has_posterior,
            "factor": self.factor,
        }

    @cached_property
    def _weights_sha256(self) -> str:
        return weights_sha256(self.module)

    @property
    def _patches(self) -> bool:
        """FLUX.2 normalises 2 x 2 patches by the statistics of a batch norm."""
        return "batch_norm_eps" in self._config and hasattr(self.module, "bn")

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor, float | None]:
        """Mean and standard deviation, each broadcasting to (B, C, h, w), and scale, as the pipelines compute them."""
        mean, std = self._config.get("latents_mean"), self._config.get("latents_std")
        scale: float | None = self._config.get("scaling_factor")
        if self._patches:
            bn, scale = self.module.bn, 1.0
            mean, std = bn.running_mean, torch.sqrt(bn.running_var + self._config["batch_norm_eps"])
        elif mean is None or std is None:
            mean, std = [self._config.get("shift_factor") or 0.0], [1.0]
            scale = 1.0 if scale is None else scale
        mean, std = (torch.as_tensor(values).view(1, -1, 1, 1).to(like) for values in (mean, std))
        return mean, std, scale

    def _move_to(self, device: torch.device) -> None:
        if self.device != device:
            self.module.to(device)

    def _lay_out(self, images: Tensor) -> Tensor:
        """In this autoencoder's one memory format, since the strides decide how convolutions round."""
        if self.is_5d:
            return images[:, :, None].contiguous()
        return images.contiguous(memory_format=self._layout)

    def _answer(
        self, encode: Callable[[Tensor], Any], pixels: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, bool]:
        """(B, 3, H, W) → raw (B, M, h, w) float32, (B,) bool where all of it is finite, whether it has a posterior."""
        # no_grad, not inference_mode: the result goes into layers that train. An outer autocast would run even a
        # float32 module in half precision.
        with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
            answer = encode(self._lay_out(pixels.to(dtype)))
            answer = answer[0] if isinstance(answer, tuple) else answer
            for attribute in ("latent_dist", "latents", "latent"):
                answer = getattr(answer, attribute, answer)
            has_posterior = hasattr(answer, "logvar")
            raw = torch.cat([answer.mean, answer.logvar], dim=1) if has_posterior else answer
            if not isinstance(raw, Tensor):
                raise VaeError(f"{self.name}: encode() gave {type(raw).__name__}, neither latents nor a posterior")
            # `parameters` are the moments before clipping, which turns infinity into 20.
            finite = torch.isfinite(getattr(answer, "parameters", raw)).flatten(1).all(dim=1)
            raw = raw[:, :, 0] if self.is_5d else raw
            return raw.to(torch.float32, memory_format=torch.contiguous_format), finite, has_posterior

    def _retry(self, pixels: Tensor, raw: Tensor, failed: list[int]) -> list[int]:
        """Encode those samples into `raw`, each alone and in float32; returns the ones that are still not finite."""
        encode = self.in_single_precision().module.to(pixels.device).encode
        still_failed = []
        for index in failed:
            retried, finite, _ = self._answer(encode, pixels[index : index + 1], torch.float32)
            raw[index] = retried[0]
            if not finite.item():
                still_failed.append(index)
        self.retries += len(failed)
        return still_failed

    def _probe(self) -> tuple[int, int, bool]:
        """Encode zeros and read the factor, C and whether there is a posterior."""
        problem = ""
        for side in (64, 256):
            try:
                zeros = torch.zeros(1, 3, side, side, device=self.device)
                raw, _, has_posterior = self._answer(self.module.encode, zeros, self.dtype)
                _, channels, height, width = raw.shape
            except Exception as error:  # each class has its own way to refuse what is too small for it
                problem = cause(error)
                continue
            if raw.numel() and height == width and side % height == 0:
                return side // height, channels // 2 if has_posterior else channels, has_posterior
            problem = f"latents are {height} x {width}, and both sides must shrink by the same whole number"
        raise VaeError(f"{self.name}: cannot be used for images of {side} x {side} pixels: {problem}")


def _config_of(module: nn.Module) -> dict[str, Any]:
    """Diffusers' config of the module, empty where it has none; with what statistics LTX and FLUX.2 have as buffers."""
    config = getattr(module, "config", None)
    fields: dict[str, Any] = dict(config) if isinstance(config, Mapping) else {}
    statistics = {name: values for name, values in module.named_buffers(recurse=False) if name in STATISTICS}
    if "batch_norm_eps" in fields:  # FLUX.2's, by which patches are normalised
        buffers = dict(module.named_buffers())
        of_patches = {"bn_mean": buffers.get("bn.running_mean"), "bn_var": buffers.get("bn.running_var")}
        statistics |= {name: values for name, values in of_patches.items() if values is not None}
    return {name: values.float().tolist() for name, values in statistics.items()} | fields


def sample_posterior(raw: Tensor, noise: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(..., 2C, h, w) mean and log-variance, (..., C, h, w) standard normal noise → (..., C, h, w), all float32.

    Computed in `dtype`, as diffusers' DiagonalGaussianDistribution does in that of the model; a sample in float32 where
    its moments do not fit into `dtype`, since it was encoded again in float32.
    """

    def drawn(raw: Tensor, noise: Tensor) -> Tensor:
        mean, log_variance = raw.chunk(2, dim=-3)
        deviation = 0.5 * log_variance
        if deviation.requires_grad:
            return (mean + torch.exp(deviation) * noise).float()
        return deviation.exp_().mul_(noise).add_(mean).float()  # the same in one buffer

    if dtype == torch.float32:
        return drawn(raw, noise)
    fits = raw.to(dtype).isfinite().all(-1).all(-1).all(-1)[..., None, None, None]
    return torch.where(fits, drawn(raw.to(dtype), noise.to(dtype)), drawn(raw, noise))


def normalise(latents: Tensor, vae_config: Mapping[str, Any], rounded: bool = False) -> Tensor:
    """Raw (B, C, h, w) → what the diffusion model takes, as pipelines compute it, also in half precision.

    The shape stays; FLUX.2's patches are normalised as such, and laid out as they were. With `rounded` mean and
    deviation are in the precision of the latents, as some pipelines of Qwen's have them.
    """
    if "bn_mean" in vae_config:
        patches = _patchify(latents)
        bn_mean, bn_var = (torch.tensor(vae_config[key]).to(latents).view(1, -1, 1, 1) for key in ("bn_mean", "bn_var"))
        return _unpatchify((patches - bn_mean) / torch.sqrt(bn_var + vae_config["batch_norm_eps"]))
    mean, std = vae_config.get("latents_mean"), vae_config.get("latents_std")
    scale: float | None = vae_config.get("scaling_factor")
    if mean is None or std is None:
        # Python numbers, which half precision rounds only with the result; tensors would be rounded first.
        return (latents - (vae_config.get("shift_factor") or 0.0)) * (1.0 if scale is None else scale)
    dtype = latents.dtype if rounded else torch.float32
    mean, std = (torch.tensor(values, dtype=dtype, device=latents.device).view(1, -1, 1, 1) for values in (mean, std))
    centred = latents - mean
    # Wan and Qwen, which have no scale, multiply by 1/std; the others divide.
    return (centred * (1.0 / std) if scale is None else centred * scale / std).to(latents.dtype)


def _patchify(latents: Tensor) -> Tensor:
    """(B, C, h, w) → (B, 4C, h/2, w/2)."""
    batch, channels, height, width = latents.shape
    if height % 2 or width % 2:
        raise VaeError(f"{height} x {width} latents cannot be cut into 2 x 2 patches; use even sides")
    patches = latents.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
    return patches.reshape(batch, channels * 4, height // 2, width // 2)


def _unpatchify(latents: Tensor) -> Tensor:
    """(B, 4C, h/2, w/2) → (B, C, h, w)."""
    batch, channels, height, width = latents.shape
    patches = latents.reshape(batch, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
    return patches.reshape(batch, channels // 4, height * 2, width * 2)


def cause(error: Exception) -> str:
    """The complaint of another library, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
