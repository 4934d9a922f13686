"""What a job does on a GPU: nobody waits for it, and what comes back late is what the slow way gives.

All but the group norm need a CUDA device, and are skipped where there is none.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DEMO_VAE, small_samples, write_shard
from flat import cache_latents
from torch import Tensor, nn
from torch.nn import functional

from inpaint_data import Autoencoder, InpaintTransform, RandomOffset, SoftBorder, load_vae, verify_cache
from inpaint_data.batch import ImageBatch, is_batch, to_device
from inpaint_data.encoding import compiling
from inpaint_data.encoding.noise import normal_noise
from inpaint_data.encoding.settings import EncodeSettings, TextModelSettings
from inpaint_data.job.caching import work_of
from inpaint_data.job.encoding import OnDevice, encode
from inpaint_data.job.settings import JobSettings
from inpaint_data.job.work import Work
from inpaint_data.masks.settings import MaskSettings
from inpaint_data.pictures.settings import PictureSettings
from inpaint_data.seeding import sample_id

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SETTINGS: dict[str, Any] = {"resolution": 64, "upscale": True, "masks": "mixture", "batch_size": 4, "device": "cuda"}


@pytest.fixture
def shards(tmp_path: Path) -> str:
    for number in range(3):
        write_shard(tmp_path / "shards" / f"s{number}.tar", small_samples(10, number))
    return str(tmp_path / "shards")


def work(masks: dict[str, Any], vae: Any = str(DEMO_VAE), **job: Any) -> Work:
    return work_of(
        PictureSettings(resolution=64, upscale=True),
        MaskSettings(**masks),
        EncodeSettings(vae=vae),
        JobSettings(batch_size=4, device="cuda", **job),
        (),
        TextModelSettings(),
    )


def batches(work: Work, shards: str) -> Iterator[ImageBatch]:
    return filter(is_batch, work.events([str(path) for path in sorted(Path(shards).glob("*.tar"))]))


MASKS: dict[str, dict[str, Any]] = {
    "drawn offsets": {"source": "mixture", "offset": (-8, 24)},
    "offsets relative to the mask": {
        "source": "mixture",
        "offset": RandomOffset("normal", mean=0.1, deviation=0.1, relative=True, windows=("square", "octagon")),
    },
    "ComfyUI's windows": {"source": "mixture", "preset": "comfy", "offset": 6},
    "soft borders": {"source": "mixture", "soft": SoftBorder("gaussian", 4)},
    "noise in the holes": {"source": "mixture", "fill": "noise"},
}


@needs_gpu
@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS.keys())
def test_nothing_waits_for_the_device_while_a_batch_is_launched(shards: str, masks: dict[str, Any]) -> None:
    job = work(masks, variants=2)
    device, launched = OnDevice(job), 0
    for batch in batches(job, shards):
        torch.cuda.set_sync_debug_mode("error" if launched else "default")  # the first one moves the weights there
        try:
            under_way = device.begin(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert under_way.encoded is not None
        device.finish(under_way)
        launched += 1
    assert launched == 9


@needs_gpu
@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS.keys())
def test_what_comes_back_late_is_to_the_last_bit_what_waiting_gives(shards: str, masks: dict[str, Any]) -> None:
    job = work(masks, variants=2)
    device = OnDevice(job)
    all_batches = list(batches(job, shards))
    assert len(all_batches) == 9
    for batch, under_way in [(batch, device.begin(batch)) for batch in all_batches]:
        [(fast, faults)] = device.finish(under_way)
        [(slow, _)] = encode(job, batch)
        assert not faults
        for one, other in zip(fast, slow, strict=True):
            assert one.keys() == other.keys()
            for name, value in other.items():
                same = torch.equal(one[name], value) if isinstance(value, Tensor) else one[name] == value
                assert same, name


@needs_gpu
@pytest.mark.parametrize("shape", [(4, 64, 64), (3, 5, 7), (3, 1024, 1024)])
def test_noise_made_on_the_device_has_the_bits_of_the_cpus(shape: tuple[int, ...]) -> None:
    names = [f"s0\0{number}" for number in range(5)]
    device = torch.device("cuda", torch.cuda.current_device())
    expected = normal_noise(3, names, range(5), "latents", shape)
    normal_noise(3, names, range(5), "latents", (1,), device)  # which brings the table there
    torch.cuda.set_sync_debug_mode("error")
    try:
        noise = normal_noise(3, names, range(5), "latents", shape, device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert noise.device == device
    assert torch.equal(noise.cpu(), expected)


@needs_gpu
def test_a_drawn_posterior_on_a_gpu_has_the_noise_that_a_cpu_draws(shards: str) -> None:
    job = work({"source": "mixture"})
    batch = next(batches(job, shards))
    drawn = {}
    for posterior in ("sample", "moments"):
        transform = InpaintTransform(job.encoder.autoencoder, seed=batch["seed"], posterior=posterior)
        given = {**batch, "mask": batch["masks"], "variant": [0] * len(batch["__key__"])}
        drawn[posterior] = transform(to_device(given, torch.device("cuda")))["latents"].cpu()
    names = list(map(sample_id, batch["__shard__"], batch["__key__"]))
    noise = normal_noise(batch["seed"], names, [0] * len(names), "latents", tuple(drawn["sample"].shape[1:]))
    mean, deviation = drawn["moments"].chunk(2, dim=1)
    expected = mean + (0.5 * deviation.clamp(-30, 20)).exp() * noise
    torch.testing.assert_close(drawn["sample"], expected, rtol=1e-5, atol=1e-5)


class Overflowing(nn.Module):
    """Infinite in half precision for bright pictures, and for very bright ones in any."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(3e4))

    def encode(self, pixels: Tensor) -> Tensor:
        pooled = functional.avg_pool2d(pixels, 8)
        brightest = pooled.amax((1, 2, 3), keepdim=True)
        return torch.where(brightest > 0.6, torch.inf, pooled.abs() * 4 * self.gain)


@needs_gpu
def test_what_overflows_is_encoded_again_or_named_as_on_a_cpu(shards: str, tmp_path: Path) -> None:
    summaries = {
        device: cache_latents(
            shards,
            str(tmp_path / device),
            vae=Autoencoder(Overflowing(), dtype=torch.float16),
            max_bad_fraction=1.0,
            **SETTINGS | {"device": device, "storage": "float32"},
        )
        for device in ("cpu", "cuda")
    }
    here, there = summaries["cpu"], summaries["cuda"]
    assert here.retried > len(here.quarantined) > 0
    assert {entry.key for _, entry in here.quarantined} == {entry.key for _, entry in there.quarantined}
    assert (here.cached, here.retried > 0) == (there.cached, there.retried > 0)


class Hungry(nn.Module):
    """Needs half a GiB for each picture."""

    def encode(self, pixels: Tensor) -> Tensor:
        torch.empty(len(pixels), 2**29, dtype=torch.uint8, device=pixels.device).fill_(1)
        return functional.avg_pool2d(pixels, 8)


@needs_gpu
def test_a_batch_too_large_for_the_gpu_is_encoded_in_parts(shards: str, tmp_path: Path) -> None:
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 1.2 * 2**30) / total)
    try:
        summary = cache_latents(shards, str(tmp_path / "cache"), vae=Autoencoder(Hungry()), **SETTINGS)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert summary.cached == 30
    assert summary.in_parts > 0
    assert not verify_cache(str(tmp_path / "cache")).problems


@needs_gpu
def test_a_compiled_encoder_is_as_near_to_float32_as_the_plain_one() -> None:
    pixels = torch.rand(3, 3, 64, 96, device="cuda") * 2 - 1
    exact = load_vae("demo").encode(pixels)
    plain = load_vae("demo", torch.bfloat16)
    fast = load_vae("demo", torch.bfloat16, compile=True)
    for count in (3, 2, 1):
        off = (plain.encode(pixels[:count]) - exact[:count]).square().mean().sqrt()
        assert (fast.encode(pixels[:count]) - exact[:count]).square().mean().sqrt() < 1.5 * off


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_wide_attention_is_as_near_to_float64_as_torch_has_it(dtype: torch.dtype) -> None:
    query, key, value = (torch.randn(2, 1, 300, 512, device="cuda", dtype=dtype) for _ in range(3))
    exact = functional.scaled_dot_product_attention(query.double(), key.double(), value.double())
    theirs = (functional.scaled_dot_product_attention(query, key, value) - exact).abs().max()
    with compiling.InOtherWords():
        ours = functional.scaled_dot_product_attention(query, key, value)
    assert ours.dtype == dtype
    assert (ours - exact).abs().max() < 2 * theirs


@pytest.mark.parametrize("shape", [(2, 8, 5, 7), (1, 12, 9), (3, 8, 1, 4, 6)])
@pytest.mark.parametrize("affine", [False, True])
def test_a_group_norm_in_other_words_is_torchs(shape: tuple[int, ...], affine: bool) -> None:
    images = torch.randn(shape) * 3 + 1
    weights = {name: torch.randn(shape[1]) for name in ("weight", "bias")} if affine else {}
    with compiling.InOtherWords():
        ours = functional.group_norm(images, 4, eps=1e-6, **weights)
    torch.testing.assert_close(ours, functional.group_norm(images, 4, eps=1e-6, **weights), rtol=1e-5, atol=1e-5)
    norm = nn.GroupNorm(4, shape[1]).to(torch.bfloat16)
    with compiling.InOtherWords():
        assert norm(images.bfloat16()).dtype == torch.bfloat16
