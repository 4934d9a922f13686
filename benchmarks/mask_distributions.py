"""How the masks of each generator are distributed, beside those that the published code draws.

    python benchmarks/mask_distributions.py --lama ../lama --mat ../MAT --comodgan ../co-mod-gan --kohya ../sd-scripts

Prints for each generator that is somebody else's the mean hole ratio, the mean number of pieces (connected components
of eight neighbours) and the mean width of what is masked (four times the mean distance to its border, in pixels),
theirs and ours, and the Kolmogorov-Smirnov distance between the two; at 512 pixels, or at 256 where that was published.
The arguments are checkouts of the code that was published: github.com/advimman/lama, fenglinglwb/MAT,
zsyzzsoft/co-mod-gan and kohya-ss/sd-scripts. Without one its rows have our figures alone. `--quantiles` writes the 51
quantiles of their hole ratios that `tests/test_mask_distributions.py` compares with. It takes a few minutes.
"""

import argparse
import importlib.util
import json
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import yaml

from inpaint_data.masks.generators import GENERATORS
from inpaint_data.seeding import generator_for

Mask = np.ndarray[Any, np.dtype[np.bool_]]
MEASURES = ("hole", "pieces", "width")


@dataclass(frozen=True)
class Row:
    """A generator of somebody else's.

    Args:
        tool: whose; the checkout.
        file: of the published code, in the checkout.
        draws: (module, side, checkout) -> a function that draws one of their masks.
        side: the size that it was published for.
        name: of our generator.
        parameters: that ours is drawn with.
    """

    tool: str
    file: str
    draws: Callable[[ModuleType, int, Path], Callable[[], Mask]]
    side: int
    name: str
    parameters: Mapping[str, Any]


def lama(config: str, module: ModuleType, side: int, checkout: Path) -> Callable[[], Mask]:
    """Drawn as bin/gen_mask_dataset.py or the training does, as the configuration says."""
    written = yaml.safe_load((checkout / config).read_text())
    arguments = (
        written["mask_generator_kwargs"] if "mask_generator_kwargs" in written else written["train"]["mask_gen_kwargs"]
    )
    arguments.pop("variants_n", None)
    generator, limit = module.MixedMaskGenerator(**arguments), written.get("max_tamper_area", 1)
    image = np.zeros((3, side, side), np.float32)

    def draw() -> Mask:
        while (mask := generator(image)[0] > 0).mean() > limit:
            pass
        return mask

    return draw


def outpainting(module: ModuleType, side: int, checkout: Path) -> Callable[[], Mask]:  # noqa: ARG001 - as the others
    generator, image = module.OutpaintingMaskGenerator(), np.zeros((3, side, side), np.float32)
    return lambda: generator(image)[0] > 0


def free_form(hole: tuple[float, float], module: ModuleType, side: int, checkout: Path) -> Callable[[], Mask]:  # noqa: ARG001 - as the others
    return lambda: module.RandomMask(side, list(hole))[0] == 0  # there 0 is the hole


def kohya(kind: str, module: ModuleType, side: int, checkout: Path) -> Callable[[], Mask]:  # noqa: ARG001 - as the others
    """One kind, as `random_mask` draws it, or "random" for that itself."""
    draw: dict[str, Callable[[], Any]] = {
        "random": lambda: module.random_mask(side, side),
        "cloud": lambda: module.cloud_mask(side, side, threshold=random.uniform(0.1, 0.3)),
        "polygon": lambda: module.polygon_mask(side, side, n_polygons=random.randint(1, 2)),
        "shape": lambda: module.shape_mask(side, side, max_coverage=0.6),
        "wobbly": lambda: module.wobbly_ellipse_mask(side, side),
    }
    return lambda: np.asarray(draw[kind]()) > 0


def rows() -> dict[str, Row]:
    found: dict[str, Row] = {}
    masks = "saicinpainting/training/data/masks.py"
    for side in (512, 256):
        for kind in ("thin", "medium", "thick"):
            name = f"lama-{kind}" if side == 512 else f"lama-{kind}-256"
            config = f"configs/data_gen/random_{kind}_{side}.yaml"
            found[name] = Row("lama", masks, partial(lama, config), side, name, {})
    mix = "configs/training/data/abl-04-256-mh-dist.yaml"
    found["lama-mix"] = Row("lama", masks, partial(lama, mix), 256, "lama-mix", {})
    found["outpaint"] = Row("lama", masks, outpainting, 512, "outpaint", {})
    holes = ((0.0, 1.0), (0.1, 0.4), (0.2, 0.5))
    for tool, name, file, side in (
        ("mat", "mat", "datasets/mask_generator_512.py", 512),
        ("mat", "mat-256", "datasets/mask_generator_256.py", 256),
        ("comodgan", "comodgan", "training/mask_generator.py", 512),
        ("comodgan", "comodgan-256", "training/mask_generator.py", 256),
    ):
        for hole in holes if side == 512 else holes[:1]:
            label = name if hole == (0, 1) else f"{name}, hole {list(hole)}"
            found[label] = Row(tool, file, partial(free_form, hole), side, name, {"hole": hole})
    for kind in ("random", "cloud", "polygon", "shape", "wobbly"):
        name = "kohya" if kind == "random" else f"kohya-{kind}"
        found[name] = Row("kohya", "library/mask_generator.py", partial(kohya, kind), 512, name, {})
    return found


def published(path: Path) -> ModuleType:
    """Their module, without what it imports for other purposes."""
    unused = SimpleNamespace(SegmentationMask=None, LinearRamp=None)
    for name in ("saicinpainting.evaluation.masks.mask", "saicinpainting.utils", "tensorflow"):
        sys.modules.setdefault(name, unused)  # type: ignore[arg-type]
    spec = importlib.util.spec_from_file_location(f"published_{path.stem}_{abs(hash(path))}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measured(masks: list[Mask]) -> dict[str, np.ndarray[Any, Any]]:
    """MEASURES of each mask."""
    found = []
    for mask in masks:
        pixels = np.pad(mask, 1).astype(np.uint8)
        distances = cv2.distanceTransform(pixels, cv2.DIST_L2, 5)
        width = 4 * float(distances[pixels > 0].mean()) if mask.any() else 0.0
        found.append((mask.mean(), cv2.connectedComponents(pixels, connectivity=8)[0] - 1, width))
    return dict(zip(MEASURES, np.array(found).T, strict=True))


def distance(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """Kolmogorov-Smirnov: the greatest difference between the two distribution functions."""
    at = np.concatenate([one, other])
    below = (np.searchsorted(np.sort(each), at, "right") / len(each) for each in (one, other))
    return float(abs(np.subtract(*below)).max())


def ours(row: Row, count: int) -> dict[str, np.ndarray[Any, Any]]:
    draw = partial(GENERATORS[row.name], row.side, row.side, **row.parameters)
    return measured([draw(generator_for(0, str(i), 0, "mask")) for i in range(count)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="rows; all if none is named")
    parser.add_argument("--draws", type=int, default=2000, help="masks of each")
    parser.add_argument("--quantiles", type=Path, help="a .json to write")
    for tool in ("lama", "mat", "comodgan", "kohya"):
        parser.add_argument(f"--{tool}", type=Path, help="a checkout of the published code")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    quantiles = {}
    print(f"{given.draws} masks each: the mean of theirs / of ours, and the KS distance between the two")
    print(f"{'generator':<26} {'side':>4}" + "".join(f"  {name:>14} {'KS':>6}" for name in MEASURES))
    for label, row in rows().items():
        if (given.names and label not in given.names) or row.name not in GENERATORS:
            continue
        our = ours(row, given.draws)
        checkout = getattr(given, row.tool)
        if checkout is None:
            figures = (f"  {'? / ' + format(our[name].mean(), '.3f'):>14} {'-':>6}" for name in MEASURES)
            print(f"{label:<26} {row.side:>4}{''.join(figures)}  (no --{row.tool} given)")
            continue
        np.random.seed(0)
        random.seed(0)
        draw = row.draws(published(checkout / row.file), row.side, checkout)
        their = measured([draw() for _ in range(given.draws)])
        cells = [
            (f"{their[name].mean():.3f} / {our[name].mean():.3f}", distance(their[name], our[name]))
            for name in MEASURES
        ]
        print(f"{label:<26} {row.side:>4}" + "".join(f"  {means:>14} {ks:>6.3f}" for means, ks in cells), flush=True)
        levels = np.quantile(their["hole"], np.linspace(0, 1, 51))
        quantiles[label] = {"file": row.file, "side": row.side, "draws": given.draws, "hole": levels.round(5).tolist()}
    if given.quantiles:
        lines = ",\n".join(f"{json.dumps(label)}: {json.dumps(values)}" for label, values in quantiles.items())
        given.quantiles.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
