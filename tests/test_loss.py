"""The loss counts what the mask says, in the layout of every model's prediction, as the trainers that people use do."""

from typing import Any

import pytest
import torch
from torch import Tensor

from inpaint_data import RECIPES, UsageError, conditioning, masked_loss, prior_preservation
from inpaint_data.encoding.recipes import pack_latents

HEIGHT, WIDTH, F = 32, 48, 8


def fed(channels: int, soft: bool = False) -> dict[str, Any]:
    """A batch of three: drawn at random, a hole of one latent, no hole at all."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand((3, 1, HEIGHT, WIDTH), generator=generator)
    mask[1:] = 0
    mask[1, :, 8:16, 24:32] = 1
    latents = torch.randn((3, channels, HEIGHT // F, WIDTH // F), generator=generator)
    return {"latents": latents, "mask": mask if soft else mask > 0.5}


def by_hand(losses: Tensor, mask: Tensor, floor: float, normalised: bool, prior: Tensor | None, much: float) -> Tensor:
    """The sum of the module's docstring, value by value in float64."""
    result = torch.zeros_like(losses, dtype=torch.float64)
    wide = mask.expand_as(losses).double()
    for number in range(len(losses)):
        inside = wide[number].clamp(min=floor)
        for weights, each in ((inside, losses), (1 - inside, None if prior is None else prior * much)):
            if each is None or not weights.any():
                continue
            area = sum(weights.flatten().tolist()) / weights.numel() if normalised else 1
            result[number] += each[number].double() * weights / area
    return result


@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("floor", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("recipe", ["sd3-inpaint", "flux-fill", "z-image-blend"])
def test_losses_are_weighted_as_the_docstring_says(recipe: str, floor: float, normalised: bool, prior: bool) -> None:
    batch = fed(16)
    made = conditioning(recipe, {"scaling_factor": 1.0})
    prediction = made.model_input(torch.zeros_like(batch["latents"]), batch | {"masked_latents": batch["latents"]})
    channels = 64 if made.row.layout == "packed" else 16
    shape = (*prediction.shape[:-1], channels) if channels == 64 else (3, 16, *prediction.shape[2:])
    losses, before = torch.rand(shape), torch.rand(shape) if prior else None
    mask = made.loss_mask(batch)
    ours = masked_loss(losses, mask, floor, normalised, before, 0.5)
    assert ours.shape == losses.shape
    torch.testing.assert_close(ours.double(), by_hand(losses, mask, floor, normalised, before, 0.5), rtol=1e-5, atol=0)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("name", RECIPES)
def test_the_loss_mask_is_the_share_of_each_latent_to_repaint_where_the_model_predicts_it(
    name: str, soft: bool
) -> None:
    channels = RECIPES[name].latent_channels
    batch = fed(channels, soft)
    batch["reference_latents"] = torch.zeros(3, 1, *batch["latents"].shape[1:])
    recipe = conditioning(name, {"scaling_factor": 1.0})
    cells = batch["mask"].float().reshape(3, 1, HEIGHT // F, F, WIDTH // F, F).permute(0, 1, 2, 4, 3, 5)
    share = cells.flatten(-2).mean(-1)
    mask = recipe.loss_mask(batch)
    expected = {
        "plain": share,
        "packed": pack_latents(share.repeat(1, channels, 1, 1)),
        "sequence": pack_latents(share.repeat(1, channels, 1, 1)),
        "frame": share[:, :, None],
    }[recipe.row.layout]
    if name == "wan-vace-reference":
        expected = torch.cat([torch.zeros_like(expected), expected], dim=2)
    torch.testing.assert_close(mask, expected, rtol=0, atol=1e-6 if soft else 0)


def test_a_sample_without_a_hole_counts_nothing_and_is_not_nan() -> None:
    batch = fed(16)
    losses = masked_loss(torch.rand(3, 16, 4, 6), conditioning("sd3-blend", {"scaling_factor": 1.0}).loss_mask(batch),
                         area_normalised=True)  # fmt: skip
    assert losses[0].any()
    assert losses[1].any()
    assert not losses[2].any()


@pytest.mark.parametrize(
    ("mask", "change", "named"),
    [
        (torch.ones(3, 1, 32, 48), {}, r"mask: \(3, 1, 32, 48\) does not fit losses of \(3, 16, 4, 6\); give recipe."),
        (torch.ones(1, 1, 4, 6), {}, "does not fit"),
        (torch.ones(4, 6), {}, "does not fit"),
        (torch.ones(3, 1, 4, 6), {"unmasked_weight": 1.5}, "unmasked_weight: 1.5 is not from 0 to 1"),
        (torch.ones(3, 1, 4, 6), {"prior_weight": -1.0}, "prior_weight: -1.0 is not 0 or more"),
    ],
)
def test_a_mask_or_weight_that_cannot_be_meant_is_one_line(mask: Tensor, change: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        masked_loss(torch.ones(3, 16, 4, 6), mask, **change)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0, 2.5])
def test_pairs_with_images_of_the_class_count_as_dreambooth_counts_them(weight: float) -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.randn(6, 4, 8, 8, generator=generator) for _ in range(2))
    losses = prior_preservation((prediction - target).square(), weight)
    # examples/dreambooth/train_dreambooth.py of diffusers v0.37.0
    model_pred, model_pred_prior = torch.chunk(prediction, 2, dim=0)
    own, prior = torch.chunk(target, 2, dim=0)
    loss = torch.nn.functional.mse_loss(model_pred.float(), own.float(), reduction="mean")
    loss = loss + weight * torch.nn.functional.mse_loss(model_pred_prior.float(), prior.float(), reduction="mean")
    assert losses.shape == prediction.shape
    assert torch.allclose(losses.mean(), loss, rtol=1e-6)


def test_what_is_no_pair_is_refused() -> None:
    with pytest.raises(UsageError, match="losses: 3 samples are not pairs; give as many"):
        prior_preservation(torch.zeros(3, 4, 8, 8))
    with pytest.raises(UsageError, match="prior_weight: -1 is not 0 or more"):
        prior_preservation(torch.zeros(2, 4, 8, 8), -1)


def test_levels_for_a_mask_and_a_prior_of_another_shape_are_one_line() -> None:
    losses = torch.rand(2, 4, 8, 8)
    with pytest.raises(UsageError, match=r"mask: is torch.uint8; give bool, or float"):
        masked_loss(losses, torch.full((2, 1, 8, 8), 255, dtype=torch.uint8))
    with pytest.raises(UsageError, match=r"prior_losses: \(2, 4, 4, 4\) are not of the shape of losses"):
        masked_loss(losses, torch.ones(2, 1, 8, 8), prior_losses=torch.rand(2, 4, 4, 4))
    with pytest.raises(UsageError, match="unmasked_weight: 'half'"):
        masked_loss(losses, torch.ones(2, 1, 8, 8), unmasked_weight="half")
