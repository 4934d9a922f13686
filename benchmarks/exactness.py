"""How far equal encodings are apart: from float64, in the other memory format, and in another batch.

    python benchmarks/exactness.py [--vae demo]

Prints the largest difference of raw moments in float32, of noise with a grey hole, on this machine's CPU.
"""

import argparse
import copy

import torch
from torch import Tensor

from inpaint_data import load_vae
from inpaint_data.encoding.fills import fill_hole
from inpaint_data.encoding.vae import Autoencoder


def holed(count: int, side: int) -> Tensor:
    pixels = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.zeros(count, 1, side, side, dtype=torch.bool)
    mask[..., side // 4 : side // 2, side // 4 :] = True
    return fill_hole(pixels, mask, "grey", -1.0)


def apart(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--vae", default="demo")
    name = parser.parse_args().vae
    contiguous, last = load_vae(name), load_vae(name, channels_last=True)
    double = copy.deepcopy(contiguous.module).double()
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for side in (96, 256, 512, 1024):
        pixels = holed(1, side)
        with torch.no_grad():
            posterior = Autoencoder(double).module.encode(pixels.double()).latent_dist
        exact = torch.cat([posterior.mean, posterior.logvar], dim=1)
        rows = {"contiguous": contiguous.encode(pixels), "channels_last": last.encode(pixels)}
        shown = ", ".join(f"{layout} {apart(raw, exact):.1e}" for layout, raw in rows.items())
        print(f"  {side:>5} px  from float64: {shown}; from each other: {apart(*rows.values()):.1e}")
    for side in (256, 512):
        pixels = holed(4, side)
        for layout, vae in (("contiguous", contiguous), ("channels_last", last)):
            alone = torch.cat([vae.encode(pixels[i : i + 1]) for i in range(4)])
            print(f"  {side:>5} px  alone and in a batch of 4, {layout}: {apart(alone, vae.encode(pixels)):.1e}")


if __name__ == "__main__":
    main()
