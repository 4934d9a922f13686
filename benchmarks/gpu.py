"""What the transform costs on a device, beside the encoding that cannot be saved and beside masks made on the CPU.

    python benchmarks/gpu.py --device cuda --dtype bfloat16

All contenders run in turn in one process; printed are images per second and the share of time that is not encoding.
The autoencoder has Stable Diffusion's real configuration and random weights, `--vae demo` takes the small one.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL

from inpaint_data import Autoencoder, InpaintTransform, load_vae, offset_mask

SD = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}


def seconds(contenders: dict[str, Callable[[], object]], device: torch.device, repetitions: int) -> dict[str, float]:
    """Median seconds of each, taken in turn after one round of warming up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for repetition in range(repetitions + 1):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if repetition:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def offset_on_cpu(masks: torch.Tensor, offsets: list[int], device: torch.device) -> torch.Tensor:
    """The usual way: OpenCV in a loop, then up to the device."""
    grown = [
        (cv2.dilate if k > 0 else cv2.erode)(mask[0].numpy().astype(np.uint8), np.ones((2 * abs(k) + 1,) * 2, np.uint8))
        for mask, k in zip(masks, offsets, strict=True)
    ]
    return torch.from_numpy(np.stack(grown)).to(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--vae", default="sd", help="sd, or what load_vae takes")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=10)
    args = parser.parse_args()
    device, batch, side = torch.device(args.device), args.batch_size, args.resolution
    dtype = getattr(torch, args.dtype)
    vae = Autoencoder(AutoencoderKL(**SD), dtype=dtype) if args.vae == "sd" else load_vae(args.vae, dtype)

    generator = torch.Generator().manual_seed(0)
    masks = torch.rand((batch, 1, side, side), generator=generator) > 0.999
    images = torch.randint(0, 256, (batch, 3, side, side), generator=generator, dtype=torch.uint8).to(device)
    keys = [str(number) for number in range(batch)]
    offsets = torch.randint(-128, 129, (batch,), generator=generator)
    on_device = masks.to(device)
    pixels = (images / 127.5 - 1).to(memory_format=torch.channels_last)
    transform = InpaintTransform(vae, mask_offset=(-128, 128), posterior="moments")
    took = seconds(
        {
            "two encodes": lambda: (vae.encode(pixels), vae.encode(pixels)),
            "the transform": lambda: transform({"image": images, "mask": on_device, "__key__": keys}),
            "offsets, ours": lambda: offset_mask(on_device, offsets),
            "offsets, OpenCV and upload": lambda: offset_on_cpu(masks, offsets.tolist(), device),
        },
        device,
        args.repetitions,
    )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, {args.dtype}, {batch} images of {side}x{side}, torch {torch.__version__}")
    for label, value in took.items():
        print(f"  {label:<28} {1000 * value:9.2f} ms {batch / value:10.1f} images/s")
    print(f"  the transform takes {took['the transform'] / took['two encodes']:.3f} times what its two encodes take")
    print(f"  ours offsets {took['offsets, OpenCV and upload'] / took['offsets, ours']:.2f} times as fast as OpenCV")


if __name__ == "__main__":
    main()
