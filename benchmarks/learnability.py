"""Does a model learn to inpaint from the cache, and does it stop learning when the conditioning is wrong?

    python benchmarks/learnability.py

Cuts crops of the demo photographs, packs and caches them, and trains a small UNet from the cache on nine of the
photographs; then it inpaints crops of the other three and measures PSNR under the mask, after decoding. Beside ours,
the same training with one thing broken; all arms of a seed share photographs, initial weights, order, masks and noise:

    conditioning zeroed   mask and masked latents are zero, in training and in the test
    pairs shuffled        in training, each picture gets mask and masked latents of another one of its batch
    mask inverted         in training, the mask channel is 1 where to keep; the masked latents are as they should be
    mask shifted 16 px    in training, the mask channel is rolled 16 px down and right; the masked latents are not

The last three are tested with the right conditioning, as whoever trained with the bug would meet it. The loss is the
README's, over the whole picture. Seed s holds out every fourth photograph from the s-th on, so no choice was made.
Steps end it, not the clock; each training has one thread, so the figures do not depend on the number of workers.
"""

import argparse
import io
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DModel
from PIL import Image
from torch import Tensor

from inpaint_data import Autoencoder, Batch, LatentCache, cache_latents, load_vae, pack
from inpaint_data.demo import PHOTOS

OURS, ZEROED, SHUFFLED = "ours", "conditioning zeroed", "pairs shuffled"
INVERTED, SHIFTED = "mask inverted", "mask shifted 16 px"
CONTROLS = (ZEROED, SHUFFLED, INVERTED, SHIFTED)
GREY, MEAN, CEILING = "grey fill", "mean of the known pixels", "the photo itself, through the VAE"
FOLDS = 4  # each seed holds out a quarter of the photographs
SAMPLING_STEPS = 4  # more of them sharpen the picture and lower its PSNR
SHIFT = 16


@dataclass(frozen=True)
class Settings:
    """The size of a run; the defaults are what the README reports."""

    steps: int = 1500
    side: int = 64  # of a crop, pixels
    crops: int = 128  # of each photograph
    tested: int = 32  # of the crops of each held-out photograph
    variants: int = 4
    batch_size: int = 16
    widths: tuple[int, ...] = (64, 64)
    rate: float = 2e-3


def make_cache(root: Path, settings: Settings) -> Path:
    """Crops of every photograph, one to two times `side` wide and scaled to it, packed and cached."""
    rng = np.random.default_rng(0)
    side = settings.side
    for path in sorted(PHOTOS.glob("*.jpg")):
        photo, folder = Image.open(path).convert("RGB"), root / "crops" / path.stem
        folder.mkdir(parents=True)
        for number in range(settings.crops):
            wide = int(rng.integers(side, 2 * side + 1))
            left, top = int(rng.integers(photo.width - wide + 1)), int(rng.integers(photo.height - wide + 1))
            box = (left, top, left + wide, top + wide)
            crop = photo.resize((side, side), Image.Resampling.LANCZOS, box=box)
            if rng.random() < 0.5:
                crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            crop.save(folder / f"{number:03d}.png", compress_level=1)
    # Boxes, since strokes would hide half of a picture: too much to learn in so few steps.
    pack(str(root / "crops"), str(root / "shards"), shard_size=256)
    cache_latents(
        str(root / "shards"),
        str(root / "cache"),
        pictures={"resolution": side, "carry_image": "crop"},
        masks={"source": "boxes", "offset": (0, 8)},
        encode={"vae": "demo"},
        job={"variants": settings.variants, "device": "cpu"},
    )
    return root / "cache"


def split(cache: LatentCache, seed: int, tested: int) -> tuple[list[int], list[int], list[str]]:
    """Indices to train on, indices to test on, and the photographs held out."""
    names = [key.split("/") for _, key in cache.places()]  # photograph, number of the crop
    held_out = sorted({photo for photo, _ in names})[seed % FOLDS :: FOLDS]
    training = [index for index, (photo, _) in enumerate(names) if photo not in held_out]
    testing = [index for index, (photo, crop) in enumerate(names) if photo in held_out and int(crop) < tested]
    return training, testing, held_out


def conditioning(batch: Batch, vae: Autoencoder, arm: str) -> Tensor:
    """(B, 1 + C, h, w): the mask and the normalised masked latents, right or broken as the arm says."""
    masked, mask = vae.normalise(batch["masked_latents"]), batch["mask"]
    if arm == INVERTED:
        mask = ~mask
    if arm == SHIFTED:
        mask = mask.roll((SHIFT, SHIFT), (-2, -1))
    small = mask[..., :: vae.factor, :: vae.factor].to(masked)  # nearest, as the diffusers pipelines make it
    condition = torch.cat([small, masked], 1)
    if arm == ZEROED:
        condition = torch.zeros_like(condition)
    return condition.roll(1, 0) if arm == SHUFFLED else condition


def build_unet(settings: Settings, latent_channels: int) -> UNet2DModel:
    levels = len(settings.widths)
    # One group for each norm: more of them would each take away the mean colour that the hole is to be given.
    return UNet2DModel(
        in_channels=2 * latent_channels + 1, out_channels=latent_channels, block_out_channels=settings.widths,
        layers_per_block=1, norm_num_groups=1,
        down_block_types=("DownBlock2D",) * levels, up_block_types=("UpBlock2D",) * levels,
    )  # fmt: skip


def batches(cache: LatentCache, indices: Sequence[int], size: int, shuffle: torch.Generator) -> Iterator[Batch]:
    """Endless, shuffled anew each epoch, as the DataModule does it; an epoch's rest that fills no batch is left out."""
    while True:
        order = [indices[i] for i in torch.randperm(len(indices), generator=shuffle).tolist()]
        for start in range(0, len(order) - size + 1, size):
            yield cache.batch(order[start : start + size])
        cache.epoch += 1


def train(arm: str, seed: int, root: Path, indices: Sequence[int], vae: Autoencoder, settings: Settings) -> UNet2DModel:
    """A rectified flow that predicts the clean latents from noisy ones and the arm's conditioning."""
    torch.manual_seed(seed)
    unet = build_unet(settings, vae.latent_channels)
    optimiser = torch.optim.AdamW(unet.parameters(), settings.rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.rate, settings.steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    source = batches(LatentCache(root, seed=seed), indices, settings.batch_size, generator)
    for _, batch in zip(range(settings.steps), source, strict=False):
        clean = vae.normalise(batch["latents"])
        noise = torch.randn(clean.shape, generator=generator)
        # Noisy levels come more often: what the hole will hold is decided there.
        level = torch.rand((len(clean), 1, 1, 1), generator=generator).sqrt()
        noisy = clean + (noise - clean) * level
        predicted = unet(torch.cat([noisy, conditioning(batch, vae, arm)], 1), level.flatten() * 1000).sample
        loss = (predicted - clean).square().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return unet.eval()


@torch.no_grad()
def inpaint(unet: UNet2DModel, condition: Tensor, noise: Tensor) -> Tensor:
    """From noise to normalised latents, in a few deterministic steps along the straight line between them."""
    latents = noise
    levels = torch.linspace(1, 0, SAMPLING_STEPS + 1).tolist()
    for level, following in pairwise(levels):
        clean = unet(torch.cat([latents, condition], 1), level * 1000).sample
        latents = clean + (following / level) * (latents - clean)
    return latents


def masked_psnr(pixels: Tensor, photos: Tensor, mask: Tensor) -> float:
    """Mean over the pictures of their PSNR in dB, of the pixels to repaint alone. Pixels in [0, 1]."""
    error = ((pixels - photos).square() * mask).sum((1, 2, 3)) / (3 * mask.sum((1, 2, 3)))
    return float((-10 * error.log10()).mean())


def fills(photos: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """What needs no training: the middle grey, and each picture's mean colour outside its hole."""
    known = (photos * ~mask).sum((2, 3), keepdim=True) / (~mask).sum((2, 3), keepdim=True)
    return {MEAN: known.expand_as(photos), GREY: torch.full_like(photos, 0.5)}


def photos_of(batch: Batch) -> Tensor:
    """(B, 3, H, W) in [0, 1]: the crops, which the cache carries without loss."""
    crops = [np.array(Image.open(io.BytesIO(carried["crop.png"]))) for carried in batch["carried"]]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255


def run_arm(arm: str, seed: int, root: Path, settings: Settings) -> dict[str, float]:
    """Train one arm and test it: its PSNR, and along with ours that of the fills and of the VAE."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    vae, cache = load_vae("demo"), LatentCache(root, variant=0)
    training, testing, _ = split(cache, seed, settings.tested)
    unet = train(arm, seed, root, training, vae, settings)
    batch = cache.batch(testing)
    photos, mask = photos_of(batch), batch["mask"]
    noise = torch.randn(batch["latents"].shape, generator=torch.Generator().manual_seed(seed))
    condition = conditioning(batch, vae, ZEROED if arm == ZEROED else OURS)
    painted = vae.denormalise(inpaint(unet, condition, noise))
    pixels = {arm: (vae.decode(painted) + 1) / 2}
    if arm == OURS:
        pixels |= fills(photos, mask) | {CEILING: (vae.decode(batch["latents"]) + 1) / 2}
    figures = {name: masked_psnr(each, photos, mask) for name, each in pixels.items()}
    print(f"seed {seed}, {arm}: {figures[arm]:.2f} dB, {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return figures


def run(
    root: Path, settings: Settings, seeds: Sequence[int], arms: Sequence[str] = (OURS, *CONTROLS), workers: int = 1
) -> dict[int, dict[str, float]]:
    """Seed -> arm or fill -> masked PSNR in dB, from the cache at `root`."""
    jobs = [(arm, seed, root, settings) for seed in seeds for arm in arms]
    columns = list(zip(*jobs, strict=True))
    spawn = multiprocessing.get_context("spawn")  # a forked process would inherit torch's threads in an odd state
    with ProcessPoolExecutor(workers, spawn) if workers > 1 else nullcontext() as pool:
        answers = list((pool.map if pool else map)(run_arm, *columns))
    figures: dict[int, dict[str, float]] = {seed: {} for seed in seeds}
    for (_, seed, _, _), answer in zip(jobs, answers, strict=True):
        figures[seed] |= answer
    return figures


def table(figures: dict[int, dict[str, float]]) -> str:
    """Markdown: a column for each seed, mean and standard deviation, and the smallest lead of ours in any seed."""
    seeds = sorted(figures)
    lines = [f"| PSNR under the mask, dB | {' | '.join(f'seed {seed}' for seed in seeds)} | mean | ours leads by |"]
    lines.append("|---" * (len(seeds) + 3) + "|")
    for name in (OURS, *CONTROLS, MEAN, GREY, CEILING):
        row = [figures[seed][name] for seed in seeds]
        spread = f" ± {statistics.stdev(row):.2f}" if len(row) > 1 else ""
        lead = min(figures[seed][OURS] - figures[seed][name] for seed in seeds)
        told = "" if name in (OURS, CEILING) else f"{lead:+.2f} or more"
        label = f"**{name}**" if name == OURS else name
        lines.append(
            f"| {label} | {' | '.join(f'{x:.2f}' for x in row)} | {statistics.mean(row):.2f}{spread} | {told} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train from the cache, and from broken conditioning; compare.")
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="trainings at a time, one thread each")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the cache's last bits depend on it
    settings, started = Settings(steps=arguments.steps), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        root = make_cache(Path(folder), settings)
        figures = run(root, settings, range(arguments.seeds), workers=arguments.workers)
        for seed in figures:
            print(f"seed {seed} holds out {', '.join(split(LatentCache(root), seed, settings.tested)[2])}")
    print(table(figures))
    print(f"{settings.steps} steps of {settings.batch_size}, {(time.perf_counter() - started) / 60:.0f} minutes")
    for name in (*CONTROLS, MEAN):
        won = sum(each[OURS] > each[name] for each in figures.values())
        print(f"ours beats {name!r} in {won} of {len(figures)} seeds")


if __name__ == "__main__":
    main()
