"""Encoding on this machine: what precision, batch and compiler change, with the demo's autoencoder at 256 px."""

import math
import sys
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from table import Row, pin, script, side_by_side

from inpaint_data import load_vae
from inpaint_data.demo import PHOTOS
from inpaint_data.encoding.device import computes_in_bfloat16


def rows(full: bool) -> Iterator[Row]:
    pin()
    pixels = photos(8)
    exact, half = load_vae("demo"), load_vae("demo", torch.bfloat16)
    flat = load_vae("demo", channels_last=True)
    ways = {
        "float32": lambda: exact.encode(pixels),
        "bfloat16": lambda: half.encode(pixels),
        "channels_last": lambda: flat.encode(pixels),
        "by two": lambda: [exact.encode(pair) for pair in pixels.split(2)],
    }
    if full:  # most of a minute to compile
        fast = load_vae("demo", compile=True)
        ways["compiled"] = lambda: fast.encode(pixels)
    times = side_by_side(ways, 9 if full else 5)
    has_bfloat16 = computes_in_bfloat16(torch.device("cpu"))
    print(f"dtype: auto is {'bfloat16' if has_bfloat16 else 'float32'} on this CPU", file=sys.stderr)
    if has_bfloat16:
        yield Row(
            "encode in bfloat16 (dtype: auto here), over float32",
            "0.4x",
            times["bfloat16"] / times["float32"],
            0.5,
            known=0.5,
        )
    yield Row("encode batches of 2 (batch_size: auto here), over one of 8", "-", times["by two"] / times["float32"], 1)
    print(f"channels_last {times['channels_last'] / times['float32']:.2f}x float32", file=sys.stderr)
    if full:
        print(f"compiled {times['compiled'] / times['float32']:.2f}x float32", file=sys.stderr)
    decoded = [exact.decode(exact.mode(vae.encode(pixels[:4]))) for vae in (exact, half)]
    error = (decoded[0] - decoded[1]).double().square().mean().item()
    psnr = 10 * math.log10(4 / error)
    yield Row("bfloat16 decoded, to float32 decoded", "-", psnr, 45, " dB", higher=True)


def photos(count: int) -> torch.Tensor:
    """(B, 3, 256, 256) in [-1, 1]."""
    files = sorted(PHOTOS.glob("*.jpg"))[:count]
    pictures = [np.asarray(Image.open(path).convert("RGB").resize((256, 256))) for path in files]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


if __name__ == "__main__":
    script(rows, __doc__)
