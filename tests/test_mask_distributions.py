"""Mask generators named after published code draw holes as that code does.

`data/mask_quantiles.json` has the quantiles of the hole ratios of 4000 masks that the published code drew, measured by
`benchmarks/mask_distributions.py`, which prints the pieces and the widths too.
"""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from inpaint_data.masks.drawn import hole_ratio
from inpaint_data.masks.generators import GENERATORS
from inpaint_data.seeding import generator_for

QUANTILES = json.loads((Path(__file__).parent / "data" / "mask_quantiles.json").read_text())
THEIRS = 4000
DRAWS = {"lama-mix": 4000}  # one stroke less would not show in fewer; of the others 800


def distance(hole: np.ndarray, quantiles: list[float]) -> float:
    """The Kolmogorov-Smirnov distance at the quantiles: how far the shares of masks up to each are from its own."""
    shares = np.linspace(0, 1, len(quantiles))[1:-1]
    return float(abs(np.searchsorted(np.sort(hole), quantiles[1:-1], "right") / len(hole) - shares).max())


@pytest.mark.parametrize("row", QUANTILES)
def test_a_published_generator_draws_holes_as_the_published_code_does(row: str) -> None:
    name, _, limits = row.partition(", hole ")
    parameters = {"hole": tuple(json.loads(limits))} if limits else {}
    side = min(QUANTILES[row]["side"], 256)  # the published lengths scale, and a quarter of the pixels takes less time
    count = DRAWS.get(name, 800)
    hole = [
        hole_ratio(GENERATORS[name](side, side, generator_for(0, str(i), 0, "mask"), **parameters))
        for i in range(count)
    ]
    # Equal distributions are nearer than this 99 times in 100; the seeds are fixed.
    assert distance(np.array(hole), QUANTILES[row]["hole"]) < 1.63 * (1 / count + 1 / THEIRS) ** 0.5


def test_the_clouds_of_kohya_have_as_many_pieces_as_the_published_ones() -> None:
    """Their hole ratio is the threshold, whatever the noise: 92.5 pieces on average, where `clouds` has 10."""
    masks = [GENERATORS["kohya-cloud"](512, 512, generator_for(0, str(i), 0, "mask")) for i in range(60)]
    pieces = [cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1 for mask in masks]
    assert abs(np.mean(pieces) - 92.5) < 4 * np.std(pieces) / len(pieces) ** 0.5


def test_every_generator_named_after_published_code_is_compared_with_it() -> None:
    published = {name for name in GENERATORS if name.startswith(("lama", "mat", "comodgan", "kohya"))}
    assert published | {"outpaint"} == {row.split(",")[0] for row in QUANTILES}
