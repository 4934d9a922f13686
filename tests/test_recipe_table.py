"""The table of recipes: each row, each kind of input and each precision against the pipeline's own `__call__`."""

import re
from pathlib import Path

import pytest
import torch
from conftest import Figure
from test_conditioning import (
    ALONE,
    HEIGHT,
    ROWS,
    SEQUENCES,
    WIDTH,
    batch_of_ours,
    fed_by_pipeline,
    qwen_edit,
    same,
    uint8_pictures,
)

from inpaint_data.encoding.recipe_rows import ADDED, RECIPES

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
INPUTS = ("PIL", "NumPy", "tensor")
TABLE = Path(__file__).parents[1] / "docs" / "training.md"


@pytest.fixture(autouse=True)
def _no_resizing(monkeypatch: pytest.MonkeyPatch) -> None:
    """This pipeline enlarges every picture to 1024 * 1024 pixels, which training leaves to whoever cuts them."""
    monkeypatch.setattr(qwen_edit, "calculate_dimensions", lambda *_: (WIDTH, HEIGHT, None))


def cells() -> dict[str, list[str]]:
    """Recipe -> the cells of its line in the documents: channels, pipeline, and what holds for each kind of input."""
    lines = re.findall(r"^\| `([a-z0-9-]+)` \| (.+) \|$", TABLE.read_text(), re.MULTILINE)
    return {name: rest.split(" | ") for name, rest in lines if name in RECIPES}


def test_every_recipe_has_a_line_with_its_channels_and_its_source() -> None:
    assert list(cells()) == list(RECIPES)
    for name, (channels, source, *rest) in cells().items():
        assert channels.split(",")[0] == (str(RECIPES[name].channels) if RECIPES[name].parts else "its own"), name
        assert name in ALONE or ROWS[name].pipeline.__name__ in source, name
        assert len(rest) == (1 if name in ALONE else 3), name


def outcome(name: str, given: str, dtype: torch.dtype) -> str:
    """ "equal", how far apart at most, or that the pipeline fails; all else that it is told is compared too."""
    row, (_, masks) = ROWS[name], uint8_pictures()
    # The autoencoder of SDXL computes in float32 whatever the model does.
    vae_dtype = torch.float32 if name.startswith("sdxl") else dtype
    try:
        fed = fed_by_pipeline(row, masks, dtype=dtype, vae_dtype=vae_dtype, run=False, given=given)
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return "fails"
    last = row.channels_last and given != "tensor"
    recipe, batch = batch_of_ours(name, row, fed.vae, masks, dtype=dtype, vae_dtype=vae_dtype, channels_last=last)
    recipe.check_model(fed.config)
    like = torch.zeros(1, dtype=dtype)
    pairs = [(recipe.model_input(batch["noise"], batch), fed.model_input)]
    pairs += [(recipe(batch, like), fed.condition)] if row.controlnet else []
    assert row.controlnet or fed.condition is None
    positions = recipe.positions(batch, like)
    assert bool(positions) == (name in SEQUENCES)
    if "img_ids" in positions:
        assert same(positions["img_ids"], fed.positions["img_ids"])
    elif positions:
        assert positions == fed.positions
    tokens = recipe.row.layout in ("packed", "sequence") and not ADDED.keys() & set(recipe.row.parts)
    assert pairs[-1][0].shape[-1 if tokens else 1] == recipe.channels
    if all(same(*pair) for pair in pairs):
        return "equal"
    apart = max(float((ours.float() - theirs.float()).abs().max()) for ours, theirs in pairs)
    return f"{apart:.1e}"


def measured(name: str, given: str, dtypes: list[str]) -> dict[str, str]:
    return {dtype: outcome(name, given, DTYPES[dtype]) for dtype in dtypes}


def holds(cell: str, found: dict[str, str]) -> bool:
    """Whether what was measured is what a cell says."""
    if cell == "equal":
        return set(found.values()) == {"equal"}
    if cell == "not taken":
        return set(found.values()) == {"fails"}
    if match := re.fullmatch(r"equal in float32; half within (\S+)", cell):
        rest = {value for dtype, value in found.items() if dtype != "float32"}
        return found.get("float32", "equal") == "equal" and all(float(value) <= float(match[1]) for value in rest)
    assert cell == "equal in float32; fails in half"
    return all(value == ("equal" if dtype == "float32" else "fails") for dtype, value in found.items())


@pytest.mark.parametrize("given", INPUTS)
@pytest.mark.parametrize("name", ROWS)
def test_the_model_is_fed_what_the_pipeline_feeds_it(name: str, given: str, record_figure: Figure) -> None:
    """Of PIL pictures in each precision; of the others in float32, and in half precision where the long tests run."""
    found = measured(name, given, list(DTYPES) if given == "PIL" else ["float32"])
    record_figure(f"{name} fed {given}: {', '.join(f'{dtype} {result}' for dtype, result in found.items())}")
    assert holds(cells()[name][2 + INPUTS.index(given)], found), found


@pytest.mark.slow
@pytest.mark.parametrize("given", INPUTS[1:])
@pytest.mark.parametrize("name", ROWS)
def test_half_precision_of_arrays_and_tensors(name: str, given: str, record_figure: Figure) -> None:
    found = measured(name, given, ["bfloat16", "float16"])
    record_figure(f"{name} fed {given}: {', '.join(f'{dtype} {result}' for dtype, result in found.items())}")
    assert holds(cells()[name][2 + INPUTS.index(given)], found), found
