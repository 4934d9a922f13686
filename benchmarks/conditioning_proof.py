"""Does the conditioning that a recipe makes from a cache tell what is in the hole, and does broken conditioning not?

    python benchmarks/conditioning_proof.py

At noise level 1 the noisy latents say nothing, so whatever is known of the hole is in the other channels of
`recipe.model_input`: the mask and the masked latents. The best affine predictor of the hole from them is one linear
solve: no seed, learning rate or number of steps decides the figures. Everything goes the way of a training: shards,
`cache_latents`, `LatentCache`, `recipe.model_input`. Beside ours, the same with one thing broken:

    conditioning zeroed   mask and masked latents are zero, in the solve and in the test
    pairs shuffled        in the solve, each image gets mask and masked latents of another photograph
    mask inverted         in the solve, the mask is 1 where to keep; the masked latents are as they should be
    mask shifted 16 px    in the solve, the mask is rolled 16 px down and right; the masked latents are not

The last three are tested with the right conditioning, as whoever trained with the bug would meet it.

Photographs: crops of the demo's, through its autoencoder; each photograph is held out once, and the intervals are over
photographs. Exact: images of one colour each through an autoencoder that takes means, where the known pixels determine
the hole (and, of images that are all alike, the masked latents determine the mask), so that a solve must reach 0.
"""

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from inpaint_data import Autoencoder, LatentCache, Recipe, cache_latents, conditioning, pack
from inpaint_data.demo import PHOTOS

OURS, ZEROED, SHUFFLED = "ours", "conditioning zeroed", "pairs shuffled"
INVERTED, SHIFTED = "mask inverted", "mask shifted 16 px"
CONTROLS = (ZEROED, SHUFFLED, INVERTED, SHIFTED)
SHIFT = 16
SIDE = 64  # of a crop, pixels
WINDOW = 7  # latents around the one to predict, along each side
RIDGE = 1e-3  # of the mean variance of a feature: only so that the solve has one answer
T95 = 2.201  # Student's t for 12 photographs


def condition(recipe: Recipe, batch: Mapping[str, Any], arm: str) -> Tensor:
    """(B, 1 + C, h, w): what the model is fed besides the noisy latents, right or broken as the arm says."""
    changed = dict(batch)
    if arm == INVERTED:
        changed["mask"] = ~batch["mask"]
    if arm == SHIFTED:
        changed["mask"] = batch["mask"].roll((SHIFT, SHIFT), (-2, -1))
    if arm == SHUFFLED:
        shift = len(batch["mask"]) // 2  # half of the batch away is another photograph, or another colour
        changed |= {name: batch[name].roll(shift, 0) for name in ("mask", "masked_latents")}
    noise = torch.randn(batch["latents"].shape, generator=torch.Generator().manual_seed(0))
    fed = recipe.model_input(noise, changed)[:, recipe.row.latent_channels :]
    return torch.zeros_like(fed) if arm == ZEROED else fed


def batches_of(root: Path) -> list[dict[str, Any]]:
    """The cache as one batch for each variant."""
    caches = [LatentCache(root, variant=number) for number in range(LatentCache(root).variants)]
    return [dict(cache.batch(list(range(len(cache))))) for cache in caches]


# Photographs


def cache_of_photographs(root: Path, crops: int, variants: int) -> Path:
    """Crops of every photograph, one to two times as wide as they become, packed and cached by the demo's VAE."""
    rng = np.random.default_rng(0)
    for path in sorted(PHOTOS.glob("*.jpg")):
        photo, folder = Image.open(path).convert("RGB"), root / "crops" / path.stem
        folder.mkdir(parents=True)
        for number in range(crops):
            wide = int(rng.integers(SIDE, 2 * SIDE + 1))
            left, top = int(rng.integers(photo.width - wide + 1)), int(rng.integers(photo.height - wide + 1))
            box = (left, top, left + wide, top + wide)
            photo.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=box).save(folder / f"{number:03d}.png")
    masks = {"source": "boxes", "offset": (0, 8)}
    return cached(root, "demo", {"resolution": SIDE}, masks, variants)


def cached(root: Path, vae: Any, pictures: dict[str, Any], masks: dict[str, Any], variants: int) -> Path:
    pack(str(root / "crops"), str(root / "shards"))
    cache_latents(
        str(root / "shards"),
        str(root / "cache"),
        pictures,
        masks,
        {"vae": vae},
        {"variants": variants, "device": "cpu", "storage": "float32", "batch_size": 64},
    )
    return root / "cache"


def moments(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """What the solve needs of some rows: the sums of features times features, and of features times targets."""
    return features.T @ features, features.T @ targets


def windows(fed: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h, w, C * WINDOW^2 + 1): what is around each latent, zero beyond the border, and a one."""
    batch, _, height, width = fed.shape
    around = F.unfold(fed.double(), WINDOW, padding=WINDOW // 2).transpose(1, 2).reshape(batch, height, width, -1)
    return torch.cat([around, around.new_ones(batch, height, width, 1)], -1)


def held_out_errors(root: Path, arm: str) -> dict[str, float]:
    """Photograph -> mean squared error of its holes, predicted by the solve over all other photographs."""
    recipe = conditioning("sd3-inpaint", LatentCache(root).settings.vae.config)
    names = [key.split("/")[0] for _, key in LatentCache(root).places()]
    rows: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {name: [] for name in names}
    for batch in batches_of(root):
        right, fed = condition(recipe, batch, ZEROED if arm == ZEROED else OURS), condition(recipe, batch, arm)
        hole, clean = condition(recipe, batch, OURS)[:, 0] >= 0.5, recipe.latents(batch).double().movedim(1, -1)
        for name in rows:
            of_it = torch.tensor([each == name for each in names])
            where = hole[of_it]
            tested, learnt = (windows(each[of_it])[where] for each in (right, fed))
            rows[name].append((learnt, tested, clean[of_it][where]))
    joined = {name: tuple(map(torch.cat, zip(*parts, strict=True))) for name, parts in rows.items()}
    sums = {name: moments(learnt, targets) for name, (learnt, _, targets) in joined.items()}
    errors = {}
    for name, (_, tested, targets) in joined.items():
        squares, products = (sum(each[i] for other, each in sums.items() if other != name) for i in (0, 1))
        ridge = RIDGE * squares.diagonal().mean() * torch.eye(len(squares))
        weights = torch.linalg.solve(squares + ridge, products)
        errors[name] = float((tested @ weights - targets).square().mean())
    return errors


def interval(values: list[float]) -> str:
    """Mean and 95 % interval, by Student's t over photographs."""
    half = T95 * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.mean(values)
    return f"{mean:.3f} ({mean - half:.3f} … {mean + half:.3f})"


def photographs_table(errors: Mapping[str, Mapping[str, float]]) -> str:
    lines = ["| | error of the hole | worse than ours by (95 %) | worse in |", "|---|---|---|---|"]
    for arm, of_photos in errors.items():
        lead = [of_photos[name] - errors[OURS][name] for name in of_photos]
        told = "| | |" if arm == OURS else f"| {interval(lead)} | {sum(each > 0 for each in lead)} of {len(lead)} |"
        lines.append(f"| {arm} | {statistics.mean(of_photos.values()):.3f} {told}")
    return "\n".join(lines)


# Exact


class Means(nn.Module):
    """An autoencoder whose latents are exactly affine in the image: mean red, green, blue and grey of each 8 x 8."""

    config: dict[str, Any] = {"latent_channels": 4, "scaling_factor": 1.0}  # noqa: RUF012 - read, never changed

    def encode(self, pixels: Tensor) -> Tensor:
        means = F.avg_pool2d(pixels, 8)
        return torch.cat([means, means.mean(1, keepdim=True)], 1)


def cache_of_colours(root: Path, count: int, alike: bool) -> Path:
    """Images of one colour, each with a box as its mask that leaves the border known, through `Means`."""
    rng, side = np.random.default_rng(0), 40
    (root / "crops").mkdir(parents=True)
    for number in range(count):
        colour = (200, 40, 90) if alike else tuple(int(each) for each in rng.integers(0, 256, 3))
        Image.new("RGB", (side, side), colour).save(root / "crops" / f"{number:04d}.png")
        top, left = (8 * int(each) for each in rng.integers(1, 3, 2))
        high, wide = (8 * int(each) for each in rng.integers(1, 3, 2))
        mask = np.zeros((side, side), np.uint8)
        mask[top : top + high, left : left + wide] = 255
        Image.fromarray(mask).save(root / "crops" / f"{number:04d}_mask.png")
    return cached(root, Autoencoder(Means()), {"resolution": side}, {"source": "sample", "offset": 0}, 1)


def solved(learnt: Tensor, tested: Tensor, targets: Tensor) -> float:
    """Mean squared error on the second half of the rows, of the affine fit of least norm to the first half."""
    learnt, tested = (torch.cat([each.flatten(1).double(), torch.ones(len(each), 1)], 1) for each in (learnt, tested))
    targets, half = targets.flatten(1).double(), len(learnt) // 2
    weights = torch.linalg.lstsq(learnt[:half], targets[:half], rcond=1e-6, driver="gelsd").solution
    return float((tested[half:] @ weights - targets[half:]).square().mean())


def hole_from_condition(root: Path, arm: str) -> float:
    """How well the conditioning determines the colour of the hole."""
    recipe, (batch,) = conditioning("sd15-inpaint", Means.config), batches_of(root)
    hole = condition(recipe, batch, OURS)[:, :1]
    colours = (recipe.latents(batch) * hole).sum((2, 3)) / hole.sum((2, 3))
    right = condition(recipe, batch, ZEROED if arm == ZEROED else OURS)
    return solved(condition(recipe, batch, arm), right, colours)


def mask_from_masked_latents(root: Path, arm: str) -> float:
    """How well, of images that are all alike, the masked latents determine the mask that is fed with them."""
    recipe, (batch,) = conditioning("sd15-inpaint", Means.config), batches_of(root)
    fed, right = (condition(recipe, batch, each) for each in (arm, OURS))
    masks = torch.cat([fed[: len(fed) // 2, 0], right[len(fed) // 2 :, 0]])
    return solved(fed[:, 1:], right[:, 1:], masks)


def exact_errors(root: Path, count: int) -> dict[str, tuple[float, float]]:
    """Arm -> mean squared errors of the hole and of the mask."""
    colours = cache_of_colours(root / "colours", count, alike=False)
    # These differ in their boxes alone, so fewer are enough.
    alike = cache_of_colours(root / "alike", count // 3, alike=True)
    return {arm: (hole_from_condition(colours, arm), mask_from_masked_latents(alike, arm)) for arm in (OURS, *CONTROLS)}


def exact_table(errors: Mapping[str, tuple[float, float]]) -> str:
    lines = ["| | the hole from the conditioning | the mask from the masked latents |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {arm} | {hole:.1e} | {mask:.1e} |" for arm, (hole, mask) in errors.items())])


def timed(what: str, work: Callable[[], Any]) -> Any:
    started = time.perf_counter()
    result = work()
    print(f"{what}: {time.perf_counter() - started:.0f} s")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Predict the hole from the conditioning, and from broken ones.")
    parser.add_argument("--crops", type=int, default=64, help="of each photograph")
    parser.add_argument("--variants", type=int, default=4, help="masks of each crop")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        print(exact_table(timed("exact", lambda: exact_errors(root / "exact", 300))))
        make = lambda: cache_of_photographs(root, arguments.crops, arguments.variants)  # noqa: E731
        cache = timed("cache of photographs", make)
        errors = {arm: timed(arm, lambda arm=arm: held_out_errors(cache, arm)) for arm in (OURS, *CONTROLS)}
    print(photographs_table(errors))
    for name in errors[OURS]:
        print(f"{name}: {', '.join(f'{arm} {of_photos[name]:.3f}' for arm, of_photos in errors.items())}")


if __name__ == "__main__":
    main()
