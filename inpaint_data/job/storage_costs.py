"""What each way to store latents takes and costs: bytes of a sample, and the error after decoding."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from inpaint_data.batch import Batch, ImageBatch
from inpaint_data.encoding.noise import normal_noise
from inpaint_data.encoding.vae import Autoencoder, sample_posterior
from inpaint_data.job.work import Work
from inpaint_data.latent_cache.members import ARRAYS, members_of
from inpaint_data.latent_cache.storage import STORED, Storage, from_storage, scales_of, to_storage

DECODED = 2  # samples


def storage_costs(work: Work, batches: Sequence[Batch]) -> list[tuple[str, str]]:
    """Lines of a table: bytes of a sample in each storage, and how far what is decoded of it is from float32's.

    Beside them how far a latent that is drawn from the posterior is, which training sees as noise anyway.

    Args:
        work: of the job.
        batches: the first ones, of raw moments on the CPU; one for each variant.
    """
    first, storing = batches[0], work.storing
    members = members_of(batches, 0, storing)
    rest = sum(len(data) for name, data in members.items() if name not in ARRAYS)
    values = sum(codec.floats(batches, 0, storing).size for codec in ARRAYS.values() if codec.takes(first, storing))
    latents: Tensor = first["latents"][:DECODED]
    means = latents.chunk(2, 1)[0] if storing.has_posterior else latents
    autoencoder = work.encoder.autoencoder.in_single_precision()  # in which half a latent's bits count
    whole = _decoded(autoencoder, means, work.device)
    texts = []
    for storage, dtype in STORED.items():
        size = f"{storage} {(values * dtype.itemsize + rest) / 1e6:.3g} MB"
        if whole is not None and storage != "float32":
            kept = torch.stack([_kept(latent, storage) for latent in means])
            size += f" {_psnr(_decoded(autoencoder, kept, work.device), whole):.0f} dB"
        texts.append(size)
    lines = [("a sample", "; ".join(texts) + ("" if whole is None else ", decoded, against storing float32"))]
    if whole is not None and storing.has_posterior:
        keys = first["__key__"][:DECODED]
        noise = normal_noise(0, keys, [0] * len(keys), "latents", tuple(means.shape[1:]))
        drawn = _decoded(autoencoder, sample_posterior(latents, noise), work.device)
        lines.append(
            ("", f"drawn from the posterior {_psnr(drawn, whole):.0f} dB; keep: mean halves the latents' bytes")
        )
    return lines


def precision_cost(work: Work, batch: ImageBatch, batches: Sequence[Batch]) -> list[tuple[str, str]]:
    """A line: how far what is decoded is from what an autoencoder in float32 makes of the same pictures.

    No line where it computes in float32, or does not decode.

    Args:
        work: of the job.
        batch: the pictures.
        batches: what was encoded of them, of raw moments on the CPU.
    """
    autoencoder = work.encoder.autoencoder
    exact = autoencoder.in_single_precision()
    if exact is autoencoder or not hasattr(autoencoder.module, "decode"):
        return []
    pixels = batch["image"][:DECODED].to(work.device).float() / 127.5 - 1
    raw = batches[0]["latents"][: len(pixels)].to(work.device)
    decoded = [exact.decode(exact.mode(moments)).cpu() for moments in (raw, exact.encode(pixels))]
    how = f"{str(autoencoder.dtype).removeprefix('torch.')}{', compiled,' if autoencoder.compiled else ''}"
    return [("encoded", f"in {how} {_psnr(*decoded):.0f} dB, decoded, against encoding in float32")]


def _kept(latent: Tensor, storage: Storage) -> Tensor:
    """What is read of a latent that was stored."""
    array = latent.contiguous().numpy()
    return torch.from_numpy(from_storage(to_storage(array, storage), scales_of(array))).float()


def _decoded(autoencoder: Autoencoder, latents: Tensor, device: torch.device) -> Tensor | None:
    """Pixels in [-1, 1]; None of an autoencoder that does not decode."""
    if not hasattr(autoencoder.module, "decode"):
        return None
    return autoencoder.decode(latents.to(device)).cpu()


def _psnr(pixels: Tensor | None, whole: Tensor) -> float:
    """In decibels, of values in [-1, 1]."""
    assert pixels is not None
    error = float((pixels - whole).double().square().mean())
    return math.inf if error == 0 else 10 * math.log10(4 / error)
