"""The loss of an inpainting model: how much each latent counts, by the mask.

Shapes: B batch, C channels, h w latents, T tokens of a packed model.
"""

import torch
from torch import Tensor

from inpaint_data.errors import UsageError


def masked_loss(
    losses: Tensor,
    mask: Tensor,
    unmasked_weight: float = 0.0,
    area_normalised: bool = False,
    prior_losses: Tensor | None = None,
    prior_weight: float = 1.0,
) -> Tensor:
    """Losses weighted by the mask; their mean is what to learn from.

    The weight w is the mask, but nowhere less than `unmasked_weight`: `losses * w`, and where a prior is given
    `+ prior_losses * (1 - w) * prior_weight`. With the defaults it is the masked loss of kohya's sd-scripts
    (library/custom_train_functions.py, 48d368f) and SimpleTuner (simpletuner/helpers/models/common.py, 231f431).
    All of it is OneTrainer's (modules/util/loss/masked_loss.py, 111c9ca), which brings masks to latents by
    `latent_mask(mask, 8, "area")`; but a sample where nothing has weight is zero here, and NaN there.

    Args:
        losses: (B, C, h, w), packed (B, T, 4C), or any other layout of a model's prediction, float: the error of each
            value, such as `(prediction - target).square()`.
        mask: 1 = repaint, bool or float in [0, 1], as `recipe.loss_mask(batch)` gives it: of the dimensions of
            `losses`, or 1 in their place.
        unmasked_weight: of what is known, from 0 (only the hole counts) to 1 (the whole image counts alike).
        area_normalised: divide each sample's weights by their mean, so that small holes count as much as large ones.
        prior_losses: as `losses`, between the prediction and that of the model before training, for the same input:
            what is outside the hole stays as it was.
        prior_weight: of them.

    Returns:
        In shape and dtype of `losses`.

    Raises:
        UsageError: a mask of another shape, or a weight out of range.
    """
    if not isinstance(unmasked_weight, int | float) or not 0 <= unmasked_weight <= 1:
        raise UsageError(f"unmasked_weight: {unmasked_weight!r} is not from 0 to 1; give such a number, as 0.1")
    if not isinstance(prior_weight, int | float) or not 0 <= prior_weight < float("inf"):
        raise UsageError(f"prior_weight: {prior_weight!r} is not 0 or more; give such a number, as 1")
    fits = mask.ndim == losses.ndim and len(mask) == len(losses)
    if not fits or any(side not in (1, full) for side, full in zip(mask.shape, losses.shape, strict=True)):
        raise UsageError(
            f"mask: {tuple(mask.shape)} does not fit losses of {tuple(losses.shape)}; give recipe.loss_mask(batch)"
        )
    if prior_losses is not None and prior_losses.shape != losses.shape:
        raise UsageError(
            f"prior_losses: {tuple(prior_losses.shape)} are not of the shape of losses, {tuple(losses.shape)}"
        )
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise UsageError(f"mask: is {mask.dtype}; give bool, or float in [0, 1]: levels divided by 255")
    weights = mask.to(losses).clamp(min=unmasked_weight)
    weighted = _weighted(losses, weights, area_normalised)
    if prior_losses is None:
        return weighted
    return weighted + prior_weight * _weighted(prior_losses, 1 - weights, area_normalised)


def prior_preservation(losses: Tensor, prior_weight: float = 1.0) -> Tensor:
    """Losses of a batch whose second half are images of the class, so that learning one of it does not forget the rest.

    Their mean is the mean of the first half and `prior_weight` times that of the second, as DreamBooth's training in
    diffusers has it (examples/dreambooth/train_dreambooth.py, v0.37.0). A batch of both from two caches is
    `torch.utils.data.default_collate([batch, prior_batch])`.

    Args:
        losses: (2B, ...) float, such as `masked_loss` gives them.
        prior_weight: of the second half.

    Returns:
        In shape and dtype of `losses`.

    Raises:
        UsageError: an odd number of samples, or a weight out of range.
    """
    if len(losses) % 2:
        raise UsageError(f"losses: {len(losses)} samples are not pairs; give as many of the class as of the others")
    if not isinstance(prior_weight, int | float) or not 0 <= prior_weight < float("inf"):
        raise UsageError(f"prior_weight: {prior_weight!r} is not 0 or more; give such a number, as 1")
    halves = losses.new_tensor([2.0, 2.0 * prior_weight]).repeat_interleave(len(losses) // 2)
    return losses * halves.view(-1, *[1] * (losses.ndim - 1))


def _weighted(losses: Tensor, weights: Tensor, area_normalised: bool) -> Tensor:
    if not area_normalised:
        return losses * weights
    area = weights.mean(dim=list(range(1, weights.ndim)), keepdim=True)
    return losses * weights / area.clamp(min=torch.finfo(area.dtype).tiny)  # without weights 0, not NaN
