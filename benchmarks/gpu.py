"""What a GPU does: encoding, offsets, and how busy the whole job keeps it.

    python benchmarks/gpu.py [--short]

Random weights of the real configurations of Stable Diffusion, SDXL and Flux, real JPEG shards made of the demo's
photos, no network; under eight minutes on an H100. Figures of one run are of one card, which is named.
"""

import argparse
import contextlib
import io
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from jobs import write_shards
from table import chosen_parts
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from inpaint_data import Autoencoder, UsageError, cache_latents, offset_mask
from inpaint_data.encoding.compiling import InOtherWords
from inpaint_data.encoding.noise import normal_noise
from inpaint_data.pictures.formats import Decoding
from inpaint_data.pictures.gpu_jpeg import check_decodes_on_gpu
from inpaint_data.pictures.images import decode_image

BLOCKS: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
MODELS: dict[str, dict[str, Any]] = {
    "sd": BLOCKS | {"sample_size": 512, "scaling_factor": 0.18215},
    "sdxl": BLOCKS | {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
    "flux": BLOCKS
    | {
        "sample_size": 1024,
        "latent_channels": 16,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
}
BATCH = {512: 16, 1024: 4}
# Dense FLOP/s of the data sheets, in tera: NVIDIA H100 and H200 SXM.
PEAK = {"bf16": 989.0, "fp16": 989.0, "tf32": 494.0, "fp32": 67.0}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}
DEVICE = torch.device("cuda")


def seconds(run: Callable[[], object], rounds: int = 5, warm: int = 2) -> float:
    """Median seconds of a call, by the device's own events."""
    times = []
    for number in range(warm + rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        if number >= warm:
            times.append(start.elapsed_time(end) / 1000)
    return statistics.median(times)


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """TF32 in convolutions and matrix products, or not."""
    kept = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = kept


def autoencoder(model: str, dtype: str, channels_last: bool, compiled: bool = False) -> Autoencoder:
    torch.manual_seed(0)
    module = AutoencoderKL(**MODELS[model]).to(DEVICE)
    return Autoencoder(module, dtype=DTYPES[dtype], channels_last=channels_last, compile=compiled)


def picture(side: int, batch: int) -> torch.Tensor:
    generator = torch.Generator(DEVICE).manual_seed(0)
    return torch.rand((batch, 3, side, side), generator=generator, device=DEVICE) * 2 - 1


def flops(model: str, side: int) -> float:
    with FlopCounterMode(display=False) as counter:
        autoencoder(model, "bf16", False).encode(picture(side, 1))
    return float(counter.get_total_flops())


def card() -> None:
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {os.cpu_count()} cores")
    square = torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16)
    rate = 2 * 8192**3 / seconds(lambda: square @ square) / 1e12
    block = torch.empty(2**30, device=DEVICE, dtype=torch.uint8)
    other, here = torch.empty_like(block), torch.empty(2**28, dtype=torch.uint8, pin_memory=True)
    copied = 2 * len(block) / seconds(lambda: other.copy_(block)) / 1e9
    up = len(here) / seconds(lambda: block[: len(here)].copy_(here, non_blocking=True)) / 1e9
    down = len(here) / seconds(lambda: here.copy_(block[: len(here)], non_blocking=True)) / 1e9
    loose = torch.empty(2**28, dtype=torch.uint8)
    pageable = len(loose) / seconds(lambda: block[: len(loose)].copy_(loose)) / 1e9
    print(f"bf16 matrix product {rate:.0f} TFLOP/s; device memory {copied:.0f} GB/s, read and written")
    print(f"to the device {up:.1f} GB/s pinned, {pageable:.1f} pageable; from it {down:.1f} GB/s pinned")


def encoding(short: bool) -> None:
    print("\nencoding, images/s and share of the data sheet's peak")
    print(f"{'':<12}{'batch':>6}{'':>7}{'contiguous':>18}{'channels_last':>18}{'compiled':>18}   worst |difference|")
    for model in ("sd",) if short else MODELS:
        for side in BATCH:
            work, pixels = flops(model, side), picture(side, BATCH[side])
            with precision("fp32"):
                exact = autoencoder(model, "fp32", False).encode(pixels[:2])
            for dtype in ("bf16", "fp16", "tf32", "fp32"):
                cells, worst = [], 0.0
                for channels_last, compiled in ((False, False), (True, False), (False, True)):
                    is_slow = compiled and model == "sdxl"  # half a minute each, and Stable Diffusion's encoder again
                    if is_slow or ((channels_last or compiled) and dtype != "bf16"):
                        cells.append(f"{'':>18}")
                        continue
                    with precision(dtype):
                        vae = autoencoder(model, dtype, channels_last, compiled)
                        rounds, warm = (2, 1) if dtype == "fp32" else (5, 3)
                        took = seconds(lambda vae=vae, pixels=pixels: vae.encode(pixels), rounds, warm)
                        worst = max(worst, (vae.encode(pixels)[:2] - exact).abs().max().item())
                    rate = len(pixels) / took
                    cells.append(f"{rate:>10.0f} {rate * work / PEAK[dtype] / 1e12:>6.1%} ")
                print(f"{model} {side:<9}{len(pixels):>5}  {dtype:<6}{''.join(cells)}   {worst:.2g}", flush=True)


def by_batch() -> None:
    """What a batch saves, whether a graph does, and whether one large encode gives the values of small ones."""
    print("\nStable Diffusion, 512, bf16: images/s by batch, launched one by one and as a CUDA graph")
    vae = autoencoder("sd", "bf16", False)
    for batch in (1, 2, 4, 8, 16, 32):
        pixels = picture(512, batch)
        eager = batch / seconds(lambda pixels=pixels: vae.encode(pixels, unchecked=[]))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            vae.encode(pixels, unchecked=[])
        replayed = batch / seconds(graph.replay)
        print(f"{batch:>5} {eager:>8.0f} {replayed:>8.0f}   {replayed / eager:.2f}x", flush=True)
    images, holes = picture(512, 8), picture(512, 8).flip(-1)
    both = torch.cat([images, holes])
    apart = seconds(lambda: (vae.encode(images), vae.encode(holes)))
    together = seconds(lambda: vae.encode(both))
    equal = torch.equal(vae.encode(both), torch.cat([vae.encode(images), vae.encode(holes)]))
    print(f"8 pictures and 8 with holes in one encode: {apart / together:.2f}x two encodes of 8; equal bits: {equal}")


def compiling() -> None:
    """What torch.compile alone does, and what it is told beside."""
    print("\nStable Diffusion, bf16, compiled: images/s, and the error to float32 (rms)")
    sizes = {side: picture(side, batch) for side, batch in BATCH.items()}
    with precision("fp32"):
        exact = autoencoder("sd", "fp32", False).encode(sizes[512][:2])
    ways = {"torch.compile": (), "with group norms": ("group_norm",), "with attention too": ("group_norm", "attention")}
    for name, told in ways.items():
        torch._dynamo.reset()
        vae = autoencoder("sd", "bf16", False)
        words = OnlySome(told)

        def encode(pixels: torch.Tensor, vae: Autoencoder = vae, words: OnlySome = words) -> Any:
            with words:
                return vae.module.encode(pixels.contiguous(memory_format=torch.channels_last))

        vae._encode = torch.compile(encode, dynamic=False)
        rates = [len(each) / seconds(lambda vae=vae, each=each: vae.encode(each), 5, 3) for each in sizes.values()]
        error = (vae.encode(sizes[512])[:2] - exact).square().mean().sqrt().item()
        print(f"{name:<20}" + "".join(f"{rate:>8.0f}" for rate in rates) + f"   {error:.1e}", flush=True)


class OnlySome(InOtherWords):
    """Some of the other words."""

    def __init__(self, told: tuple[str, ...]) -> None:
        super().__init__()
        self.told = told

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        ours = {functional.group_norm: "group_norm", functional.scaled_dot_product_attention: "attention"}
        if func in ours and ours[func] not in self.told:
            return func(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)


def offsets() -> None:
    print("\noffset_mask, -8...24 and -128...128: masks/s, and bytes of a mask read and written once over that time")
    for side in BATCH:
        for low, high in ((-8, 24), (-128, 128)):
            generator = torch.Generator().manual_seed(0)
            masks = (torch.rand((32, 1, side, side), generator=generator) > 0.999).to(DEVICE)
            drawn = torch.randint(low, high + 1, (32,), generator=generator)
            took = seconds(lambda masks=masks, drawn=drawn: offset_mask(masks, drawn))
            share = 2 * masks.numel() / took / 1e9
            print(f"{side:>6} {low:>5}...{high:<4} {len(masks) / took:>8.0f} masks/s {share:>7.1f} GB/s", flush=True)


def noise() -> None:
    names = [str(number) for number in range(16)]
    print("\nnoise for 16 pictures: on the device from counters, and by torch.randn on the CPU, milliseconds")
    for what, shape in (
        ("posterior, 512 px", (4, 64, 64)),
        ("fill, 512 px", (3, 512, 512)),
        ("fill, 1024 px", (3, 1024, 1024)),
    ):
        ours = seconds(lambda shape=shape: normal_noise(0, names, range(16), "latents", shape, DEVICE))
        other = seconds(lambda shape=shape: torch.randn((16, *shape)).to(DEVICE))
        print(f"{what:<20} {ours * 1e3:>8.2f} {other * 1e3:>8.2f}", flush=True)


def decoding() -> None:
    from pictures import photographs  # which says what peers it lacks

    print("\nJPEGs decoded, and checked: pictures/s by 1 and 8 threads, and how far nvJPEG's pixels are from libjpeg's")
    try:
        check_decodes_on_gpu()
    except UsageError as error:
        print(f"left out: {error}")
        return
    for side in BATCH:
        files = [data for data in photographs(side) for _ in range(8)]
        for decoder in ("libjpeg", "nvjpeg"):
            decode = partial(decode_image, decoding=Decoding(decoder=decoder))
            rates = []
            for threads in (1, 8):
                with ThreadPoolExecutor(threads) as pool:
                    took = seconds(lambda pool=pool, decode=decode, files=files: list(pool.map(decode, files)), 3, 1)
                rates.append(f"{len(files) / took:>8.0f}")
            apart = max(int(abs(decode(data).astype(int) - decode_image(data)).max()) for data in files[::8])
            print(f"{side:>6} {decoder:<8} {' '.join(rates)}   {apart} levels", flush=True)


def busy(profiled: Any) -> tuple[float, float]:
    """Seconds in which the device ran at least one kernel, and those from the first to the end of the last."""
    spans = sorted(
        (event.start_ns(), event.start_ns() + event.duration_ns())
        for event in profiled.profiler.kineto_results.events()
        if event.device_type() == torch.autograd.DeviceType.CUDA and not event.name().startswith(("Memcpy", "Memset"))
    )
    total, end = 0, 0
    for start, stop in spans:
        total += max(0, stop - max(start, end))
        end = max(end, stop)
    return total / 1e9, (end - spans[0][0]) / 1e9


def job(short: bool, compiled: bool = True) -> None:
    """The whole job: JPEG shards in, a committed cache out."""
    print("\nthe job, bf16: JPEG shards to a cache, masks of the mixture, offset -8...24; 4 decoding threads or more")
    print("  side  K  encoder   threads  images  the whole job, encodes/s, busy    kernels only, busy   s idle")
    few, many = 4, max(4, (os.cpu_count() or 4) - 2)
    ways = [
        (side, variants, is_compiled, few) for side in BATCH for variants in (1, 4) for is_compiled in (False, compiled)
    ]
    for side, variants, is_compiled, workers in dict.fromkeys([(512, 1, compiled, many), *ways]):
        if variants == 4 and (short or not is_compiled):
            continue
        encodes = {512: 4096, 1024: 1024}[side] // (1 if is_compiled else 2) // (2 if short else 1)
        images = encodes // (1 + variants)
        vae = autoencoder("sd", "bf16", False, is_compiled)
        settings = {"batch_size": BATCH[side], "device": "cuda", "num_workers": workers, "variants": variants}
        masks = {"source": "mixture", "offset": (-8, 24)}
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_shards(folder / "warm", side, 2 * BATCH[side])
            write_shards(folder / "shards", side, images, 256)

            def run(of: str, out: str, folder=folder, side=side, masks=masks, vae=vae, settings=settings) -> Any:
                with contextlib.redirect_stderr(io.StringIO()):
                    return cache_latents(
                        str(folder / of), str(folder / out), {"resolution": side}, masks, {"vae": vae}, settings
                    )

            run("warm", "warm_out")
            with profile(activities=[ProfilerActivity.CUDA]) as profiled:
                summary = run("shards", "out")
        working, span = busy(profiled)
        rate = images * (1 + variants) / summary.seconds
        print(
            f"{side:>6}{variants:>3}  {'compiled' if is_compiled else 'eager':<10}{workers:>7}{images:>8}"
            f"{summary.seconds:>9.1f} s{rate:>9.1f}{working / summary.seconds:>8.1%}"
            f"{images * (1 + variants) / span:>16.1f}{working / span:>8.1%}"
            f"{summary.waited_for_pictures:>9.2f}{summary.waited_for_disk:>6.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="Stable Diffusion alone, fewer images")
    parts: dict[str, Callable[[], None]] = {
        "card": card,
        "job": lambda: job(options.short),
        "by_batch": by_batch,
        "compiling": compiling,
        "offsets": offsets,
        "noise": noise,
        "decoding": decoding,
        "encoding": lambda: encoding(options.short),
    }
    parser.add_argument("--only", default=",".join(parts), help=f"some of {', '.join(parts)}")
    options = parser.parse_args()
    chosen = chosen_parts(parser, options.only, parts)
    if not torch.cuda.is_available():
        sys.exit("gpu.py: there is no CUDA device here; its figures in docs/performance.md are of the card named there")
    logging.getLogger("inpaint_data").setLevel(logging.ERROR)
    started = time.monotonic()
    for part in chosen:
        parts[part]()
        print(f"({time.monotonic() - started:.0f} s so far)", flush=True)


if __name__ == "__main__":
    main()
