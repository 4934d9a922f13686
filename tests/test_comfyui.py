"""The ComfyUI nodes: the original's values bit for bit, alone with torch and NumPy, put where ComfyUI finds them."""

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import run, write_shard
from flat import cache_latents
from torch import Tensor

from inpaint_data import Autoencoder, LatentCache, UsageError, offset_mask
from inpaint_data.comfyui.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from inpaint_data.errors import InpaintDataError
from inpaint_data.masks.generators import GENERATORS
from inpaint_data.masks.presets import grow_comfy

ROOT = Path(__file__).parents[1]
GOLDEN = np.load(Path(__file__).parent / "data" / "inpaint_encode.npz")
CASES = sorted({name.split("/")[0] for name in GOLDEN.files})
# All but torch and NumPy that the package can load.
BLOCKED = (
    "lightning", "pytorch_lightning", "diffusers", "transformers", "cv2", "PIL", "pydantic", "webdataset", "fsspec",
    "huggingface_hub", "safetensors", "simplejpeg", "tqdm", "yaml", "braceexpand", "docstring_parser",
)  # fmt: skip


class Recorder:
    """A VAE of ComfyUI's kind, (B, H, W, C) -> (B, 4, h, w), that keeps what it is given."""

    def encode(self, pixels: Tensor) -> Tensor:
        self.given = pixels.clone()
        return torch.zeros(len(pixels), 4, pixels.shape[1] // 8, pixels.shape[2] // 8)


class AsInComfyUI:
    """An autoencoder behind ComfyUI's interface: what its class VAE does with an AutoencoderKL."""

    def __init__(self, vae: Autoencoder) -> None:
        self.vae = vae

    def encode(self, pixels: Tensor) -> Tensor:
        return self.vae.mode(self.vae.encode(pixels.movedim(-1, 1) * 2.0 - 1.0))


def node(name: str, **inputs: Any) -> Any:
    """The one output of a node that is run as ComfyUI's executor runs it."""
    kind = NODE_CLASS_MAPPINGS[name]
    (output,) = getattr(kind(), kind.FUNCTION)(**inputs)
    return output


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, photo_bytes: dict[str, bytes]) -> str:
    """Two shards that both have a "cat", with two masks for each sample."""
    folder = tmp_path_factory.mktemp("cached")
    for number, keys in enumerate((("cat", "rocket"), ("cat", "coffee"))):
        samples = {key: {"jpg": photo_bytes["cat"]} for key in keys}
        write_shard(folder / "shards" / f"{number}.tar", samples)
    cache_latents(
        str(folder / "shards"), str(folder / "cache"), resolution=64, masks="boxes", variants=2, storage="float32"
    )
    return str(folder / "cache")


@pytest.mark.parametrize("case", CASES)
def test_the_node_gives_what_the_original_gives(case: str) -> None:
    pixels, recorder = torch.from_numpy(GOLDEN[f"{case}/pixels_u8"]).float() / 255, Recorder()
    mask, offset = torch.from_numpy(GOLDEN[f"{case}/mask"]), int(GOLDEN[f"{case}/mask_offset"])
    masks = [mask, mask.reshape(-1, 1, *mask.shape[-2:])]
    if mask.ndim == 3 and len(mask) == 1:
        masks.append(mask[0])
    for shaped in masks:
        untouched = pixels.clone(), shaped.clone()
        latent = node("WAS_VAEEncodeForInpaint", pixels=pixels, vae=recorder, mask=shaped, mask_offset=offset)
        assert latent.keys() == {"samples", "noise_mask"}
        assert torch.equal(recorder.given, torch.from_numpy(GOLDEN[f"{case}/encoded_pixels"]))
        assert recorder.given.is_contiguous()  # the last bits of a VAE's answer depend on the layout in memory
        assert torch.equal(latent["noise_mask"], torch.from_numpy(GOLDEN[f"{case}/noise_mask"]).float())
        assert latent["samples"].shape[1:] == (4, recorder.given.shape[1] // 8, recorder.given.shape[2] // 8)
        assert torch.equal(pixels, untouched[0])
        assert torch.equal(shaped, untouched[1])


def test_all_fourteen_golden_cases_go_through_the_node() -> None:
    assert len(CASES) == 14


def test_the_node_has_the_originals_inputs() -> None:
    kind = NODE_CLASS_MAPPINGS["WAS_VAEEncodeForInpaint"]
    inputs = kind.INPUT_TYPES()["required"]
    assert {name: entry[0] for name, entry in inputs.items()} == {
        "pixels": "IMAGE", "vae": "VAE", "mask": "MASK", "mask_offset": "INT",
    }  # fmt: skip
    assert inputs["mask_offset"][1].items() >= {"default": 6, "min": -128, "max": 128}.items()
    assert (kind.CATEGORY, kind.RETURN_TYPES) == ("latent/inpaint", ("LATENT",))


def test_every_node_keeps_the_contract_of_comfyuis_executor() -> None:
    """It calls the function with the inputs by name, and takes choices only from a list."""
    assert NODE_CLASS_MAPPINGS.keys() == NODE_DISPLAY_NAME_MAPPINGS.keys()
    for kind in NODE_CLASS_MAPPINGS.values():
        inputs = kind.INPUT_TYPES()
        entries = {name: entry for group in inputs.values() for name, entry in group.items()}
        parameters = inspect.signature(getattr(kind, kind.FUNCTION)).parameters
        assert set(parameters) - {"self"} == set(entries)
        for name, entry in entries.items():
            assert isinstance(entry[0], str | list)
            assert len(entry) == 1 or isinstance(entry[1], dict)
            if name in inputs.get("optional", {}):
                assert parameters[name].default == entry[1]["default"]
        json.dumps(inputs)  # as the interface is told of them


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"mask_offset": 129}, "mask_offset: 129 is outside -128...128 pixels"),
        ({"mask_offset": 2.5}, "mask_offset: 2.5 is neither a whole number"),
        ({"mask": torch.zeros(3, 16, 16)}, "there are 3 masks but 2 images"),
        ({"mask": torch.zeros(0, 16, 16)}, "mask must be"),
        ({"mask": torch.zeros(1, 0, 16)}, "mask must be"),
        ({"mask": torch.zeros(2, 3, 16, 16)}, "mask must be"),
        ({"mask": torch.full((1, 16, 16), torch.nan)}, "a float mask must be in [0, 1]"),
        ({"pixels": torch.zeros(2, 7, 16, 3)}, "smaller than the VAE's downscale factor 8"),
        ({"pixels": torch.zeros(2, 16, 16, 1)}, "pixels must be"),
    ],
)
def test_what_cannot_be_encoded_is_one_clear_sentence(change: dict[str, Any], sentence: str) -> None:
    inputs = {"pixels": torch.rand(2, 16, 16, 3), "vae": Recorder(), "mask": torch.zeros(1, 16, 16), "mask_offset": 6}
    with pytest.raises(UsageError) as caught:
        node("WAS_VAEEncodeForInpaint", **(inputs | change))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_mask_of_another_size_hides_nothing_and_a_full_one_everything() -> None:
    """LoadImage gives 64x64 zeros for an image without alpha."""
    pixels, recorder = torch.rand(2, 24, 40, 3).mul(255).round().div(255), Recorder()
    latent = node("WAS_VAEEncodeForInpaint", pixels=pixels, vae=recorder, mask=torch.zeros(1, 64, 64), mask_offset=6)
    assert torch.equal(recorder.given, (pixels - 0.5) + 0.5)
    assert torch.equal(latent["noise_mask"], torch.zeros(1, 1, 24, 40))
    latent = node("WAS_VAEEncodeForInpaint", pixels=pixels, vae=recorder, mask=torch.ones(1, 64, 64), mask_offset=-6)
    assert torch.equal(recorder.given, torch.full_like(pixels, 0.5))
    assert torch.equal(latent["noise_mask"], torch.ones(1, 1, 24, 40))


def test_a_drawn_mask_is_a_function_of_the_seed_and_its_number() -> None:
    many = node("InpaintDataDrawMask", masks="mixture", width=48, height=32, seed=2**64 - 1, batch_size=3)
    one = node("InpaintDataDrawMask", masks="mixture", width=48, height=32, seed=2**64 - 1, batch_size=1)
    other = node("InpaintDataDrawMask", masks="mixture", width=48, height=32, seed=7, batch_size=3)
    assert many.shape == (3, 32, 48)
    assert many.dtype == torch.float32
    assert set(many.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(one[0], many[0])
    assert not torch.equal(many, other)


def test_every_generator_can_be_drawn_and_a_mixture_is_yaml() -> None:
    choices = NODE_CLASS_MAPPINGS["InpaintDataDrawMask"].INPUT_TYPES()["required"]["masks"][0]
    assert choices == ["mixture", *GENERATORS]
    for name in choices:
        assert node("InpaintDataDrawMask", masks=name, width=64, height=64, seed=1).shape == (1, 64, 64)
    halves = {"masks": "mixture", "width": 64, "height": 64, "seed": 1, "batch_size": 8}
    text = "weights:\n  outpaint: 1\nmin_hole: 0.3\nmax_hole: 0.4\nparameters: {outpaint: {depth: [0.1, 0.9]}}\n"
    holes = node("InpaintDataDrawMask", **halves, mixture=text).mean((1, 2))
    assert 0.3 <= holes.min() <= holes.max() <= 0.4
    inverted = {"masks": "center", "width": 64, "height": 64, "seed": 1}
    drawn = [node("InpaintDataDrawMask", **inverted, mixture=text) for text in ("", "invert: 1.0")]
    assert torch.equal(drawn[0], 1 - drawn[1])


@pytest.mark.parametrize(
    ("masks", "mixture", "sentence"),
    [
        ("drawn", "", "masks: 'drawn' is unknown"),
        ("mixture", "weights: {boxs: 1}", "no generator is called 'boxs'"),
        ("mixture", "weights: [", "mixture: is not YAML"),
        ("mixture", "boxes", "mixture: 'boxes' is not a mapping"),
        ("mixture", "invrt: 1", "there is no setting 'invrt'; it takes"),
        ("mixture", "weights: {object: 1}", "object masks come with samples"),
        ("boxes", "weights: {strokes: 1}", "it has weights, but masks is boxes"),
        ("center", "min_hole: 0.99", "mixture: 1000 draws of center at 16x16"),
    ],
)
def test_a_mixture_that_cannot_be_is_one_clear_sentence(masks: str, mixture: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        node("InpaintDataDrawMask", masks=masks, width=16, height=16, seed=0, mixture=mixture)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("window", ["square", "octagon", "cross", "comfy"])
def test_masks_grow_in_every_window(window: Any) -> None:
    mask = (torch.rand(2, 40, 56, generator=torch.Generator().manual_seed(0)) > 0.99).float()
    given = mask[:, None].bool()
    expected = grow_comfy(given, 6) if window == "comfy" else offset_mask(given, 6, window)
    assert torch.equal(node("InpaintDataOffsetMask", mask=mask, mask_offset=6, window=window), expected[:, 0].float())
    one = node("InpaintDataOffsetMask", mask=mask[0], mask_offset=6, window=window)
    assert torch.equal(one, expected[:1, 0].float())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"mask_offset": -129}, "mask_offset: -129 is outside"),
        ({"window": "disc"}, "window: 'disc' is unknown; choose from square, octagon, cross, comfy"),
        ({"window": "comfy", "mask_offset": -1}, "-1 shrinks masks, which window comfy cannot; give 0 or more"),
        ({"mask": torch.zeros(0, 8, 8)}, "not empty"),
        ({"mask": torch.zeros(1, 3, 8, 8)}, "mask must be"),
        ({"mask": torch.full((8, 8), 2.0)}, "a float mask must be in [0, 1]"),
    ],
)
def test_an_offset_that_cannot_be_is_one_clear_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        node("InpaintDataOffsetMask", **({"mask": torch.zeros(8, 8), "mask_offset": 6, "window": "square"} | change))
    assert sentence in str(caught.value)


@pytest.mark.parametrize("variant", [0, 1])
@pytest.mark.parametrize("samples", ["latents", "masked_latents"])
def test_a_cached_sample_is_loaded_as_the_cache_has_it(cache: str, samples: str, variant: int) -> None:
    opened: Any = LatentCache(cache, variant=variant)[3]
    by_index = node("InpaintDataLoadCachedLatent", cache=cache, index=3, variant=variant, samples=samples)
    by_key = node("InpaintDataLoadCachedLatent", cache=cache, index=0, variant=variant, samples=samples, key="coffee")
    for latent in (by_index, by_key):
        assert torch.equal(latent["samples"], opened[samples])
        assert torch.equal(latent["noise_mask"], opened["mask"].float())
        assert latent["noise_mask"].shape == (1, 1, 64, 64)


def test_a_cached_sample_is_what_encoding_in_comfyui_gives(
    tmp_path: Path, vae: Autoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latents are raw, as ComfyUI's VAE gives them: its `process_in` comes later, in the sampler."""
    pixels = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    png = _png(pixels[0])
    write_shard(tmp_path / "shards" / "0.tar", {"noise": {"png": png}})
    vae.module.save_pretrained(tmp_path / "vae")
    monkeypatch.chdir(tmp_path)
    cache_latents(
        "shards", "cache", resolution=64, masks="boxes", mask_offset=9, vae=str(tmp_path / "vae"), storage="float32"
    )
    for samples in ("latents", "masked_latents"):
        cached = node("InpaintDataLoadCachedLatent", cache="cache", samples=samples)
        mask = cached["noise_mask"][:, 0] if samples == "masked_latents" else torch.zeros(1, 64, 64)
        encoded = node(
            "WAS_VAEEncodeForInpaint", pixels=pixels.float() / 255, vae=AsInComfyUI(vae), mask=mask, mask_offset=0
        )
        if samples == "masked_latents":
            assert torch.equal(cached["samples"], encoded["samples"])
            assert torch.equal(cached["noise_mask"], encoded["noise_mask"])
        else:  # the node rounds dark pixels by up to 2^-26
            assert torch.allclose(cached["samples"], encoded["samples"], atol=1e-5)


def _png(pixels: Tensor) -> bytes:
    import cv2

    return bytes(cv2.imencode(".png", pixels.numpy()[..., ::-1])[1])


def _of_class(name: str) -> Callable[[LatentCache], str]:
    return lambda _: name


def test_latents_have_the_shape_that_comfyuis_vae_gives(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = node("InpaintDataLoadCachedLatent", cache=cache)["samples"]
    monkeypatch.setattr(LatentCache, "vae_class", property(_of_class("AutoencoderKLQwenImage")))
    assert torch.equal(node("InpaintDataLoadCachedLatent", cache=cache)["samples"], plain[:, :, None])
    monkeypatch.setattr(LatentCache, "vae_class", property(_of_class("AutoencoderKLFlux2")))
    with pytest.raises(UsageError, match="is of AutoencoderKLFlux2, whose latents ComfyUI's VAE gives in another form"):
        node("InpaintDataLoadCachedLatent", cache=cache)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"cache": "missing"}, "missing: no such folder; name the one that `inpaint-data cache` wrote to"),
        ({"cache": "."}, "no cache.json here, so this is not a latent cache"),
        ({"cache": " "}, "cache: no folder is given"),
        ({"index": 4}, "which has samples 0...3"),
        ({"variant": 2}, "variant: 2 is not in the cache, which has 0...1"),
        ({"key": "coffe"}, "there is no sample 'coffe'"),
        ({"key": "coffe"}, "did you mean coffee?"),
        ({"key": "cat"}, "2 samples are called 'cat'; leave it empty and give the index: 0 in 0.tar, 2 in 1.tar"),
        ({"samples": "moments"}, "choose from latents, masked_latents"),
    ],
)
def test_a_sample_that_is_not_there_is_one_clear_sentence(
    change: dict[str, Any], sentence: str, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InpaintDataError) as caught:
        node("InpaintDataLoadCachedLatent", **({"cache": cache} | change))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_cache_without_masked_latents_has_latents_to_load(shards: str, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    cache_latents(shards, cache, resolution=64, masks="boxes", masked_latents=False, soft={"radius": 4})
    latent = node("InpaintDataLoadCachedLatent", cache=cache, samples="latents")
    assert ((latent["noise_mask"] > 0) & (latent["noise_mask"] < 1)).any()
    with pytest.raises(UsageError, match="has no masked latents; choose samples: latents"):
        node("InpaintDataLoadCachedLatent", cache=cache)


def test_comfyui_loads_a_sample_again_when_the_cache_has_changed(photo_bytes: dict[str, bytes], tmp_path: Path) -> None:
    kind = NODE_CLASS_MAPPINGS["InpaintDataLoadCachedLatent"]
    shards, cache = str(tmp_path / "shards"), str(tmp_path / "cache")
    missing = kind.IS_CHANGED(cache=cache, index=0)
    write_shard(Path(shards) / "0.tar", {"cat": {"jpg": photo_bytes["cat"]}})
    cache_latents(shards, cache, resolution=64, masks="boxes")
    first = kind.IS_CHANGED(cache=cache, index=0)
    assert first == kind.IS_CHANGED(cache=cache, index=1) != missing
    write_shard(Path(shards) / "more.tar", {"cat": {"jpg": b"damaged"}})
    cache_latents(shards, cache, resolution=64, masks="boxes", max_bad_fraction=1.0)
    assert kind.IS_CHANGED(cache=cache, index=0) != first


PROGRAM = """
import torch
class Vae:
    def encode(self, pixels):
        return pixels.movedim(-1, 1)
def call(name, **inputs):
    kind = nodes.NODE_CLASS_MAPPINGS[name]
    kind.INPUT_TYPES()
    return getattr(kind(), kind.FUNCTION)(**inputs)[0]
mask = torch.zeros(1, 16, 16)
mask[:, 8, 8] = 1
latent = call("WAS_VAEEncodeForInpaint", pixels=torch.ones(1, 16, 16, 3), vae=Vae(), mask=mask, mask_offset=2)
print(int((latent["samples"] == 0.5).sum()), int(latent["noise_mask"].sum()))
print(int(call("InpaintDataOffsetMask", mask=mask, mask_offset=2, window="cross").sum()))
print(tuple(call("InpaintDataLoadCachedLatent", cache=CACHE)["samples"].shape))
print(tuple(call("InpaintDataDrawMask", masks="center", width=16, height=8, seed=0).shape))
try:
    call("InpaintDataDrawMask", masks="lama-thick", width=16, height=8, seed=0)
except Exception as error:
    print(error)
# As pickle asks every module.
print(any(hasattr(module, "a_name") for name, module in list(sys.modules.items()) if name.startswith("inpaint_data")))
"""
PRINTED = """75 25
13
(1, 16, 8, 8)
(1, 8, 16)
drawing masks needs OpenCV; run `pip install opencv-python-headless`
False
"""


def _run(program: str, cache: str, cwd: Path) -> str:
    head = f"import sys\nfor name in {BLOCKED!r}:\n    sys.modules[name] = None\nCACHE = {cache!r}\n"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", head + program], capture_output=True, text=True, check=False, cwd=cwd, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_nodes_run_with_torch_and_numpy_alone(cache: str) -> None:
    assert _run("import inpaint_data.comfyui.nodes as nodes" + PROGRAM, cache, ROOT) == PRINTED


# ComfyUI's nodes.py, load_custom_node: a module from the path of its file, under a name that is that path.
AS_COMFYUI_LOADS = """
import importlib.util
from pathlib import Path
sys.path[:] = [path for path in sys.path if not (Path(path) / "inpaint_data" / "__init__.py").is_file()]
name = FOLDER.replace(".", "_x_")
spec = importlib.util.spec_from_file_location(name, FOLDER + "/__init__.py")
nodes = importlib.util.module_from_spec(spec)
sys.modules[name] = nodes
spec.loader.exec_module(nodes)
import inpaint_data
assert inpaint_data.__file__.startswith(FOLDER), inpaint_data.__file__
"""


def test_the_installed_folder_runs_where_there_is_no_inpaint_data(
    cache: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "comfyui", "--install", str(tmp_path))
    folder = tmp_path / "comfyui_inpaint_data"
    assert (code, out, err) == (0, f"the nodes are in {folder}; start ComfyUI again\n", "")
    assert _run(f"FOLDER = {str(folder)!r}{AS_COMFYUI_LOADS}{PROGRAM}", cache, tmp_path) == PRINTED
    assert sum(path.stat().st_size for path in folder.rglob("*.*")) < 5 * 2**19


def test_the_installed_folder_takes_the_package_that_is_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "comfyui", "--install", str(tmp_path))
    program = f"""
import importlib.util
import sys
sys.path.insert(0, {str(ROOT)!r})
spec = importlib.util.spec_from_file_location("x", {str(tmp_path / "comfyui_inpaint_data" / "__init__.py")!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
import inpaint_data
print(inpaint_data.__file__, *module.NODE_CLASS_MAPPINGS)
"""
    file, *names = _run(program, "", tmp_path).split()
    assert Path(file) == ROOT / "inpaint_data" / "__init__.py"
    assert names == list(NODE_CLASS_MAPPINGS)


def test_installing_again_brings_the_nodes_up_to_date(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "comfyui_inpaint_data"
    folder.mkdir()  # of a run that was stopped at once
    for _ in range(2):
        assert run(capsys, "comfyui", "--install", str(tmp_path))[0] == 0
        assert not (folder / "inpaint_data" / "of_another_version.py").exists()
        (folder / "inpaint_data" / "of_another_version.py").touch()
        (folder / "inpaint_data" / "comfyui" / "nodes.py").write_text("")
        with (folder / "__init__.py").open("a") as file:
            file.write("# of another version")
    assert [path.name for path in tmp_path.iterdir()] == ["comfyui_inpaint_data"]


def test_a_folder_where_nodes_cannot_go_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    comfyui, foreign, linked = (tmp_path / name for name in ("ComfyUI", "foreign", "linked"))
    for folder in (comfyui / "custom_nodes", foreign / "comfyui_inpaint_data", linked):
        folder.mkdir(parents=True)
    (foreign / "comfyui_inpaint_data" / "__init__.py").write_text("# somebody's")
    (linked / "comfyui_inpaint_data").symlink_to(foreign)
    for custom_nodes, line in (
        (tmp_path / "nowhere", f"there is no folder {tmp_path / 'nowhere'}; name ComfyUI's custom_nodes"),
        (comfyui, f"{comfyui} is ComfyUI's own folder; name {comfyui / 'custom_nodes'}"),
        (foreign, f"{foreign / 'comfyui_inpaint_data'} is there and is not of this command; rename or remove it"),
        (linked, f"{linked / 'comfyui_inpaint_data'} is there and is not of this command; rename or remove it"),
    ):
        code, out, err = run(capsys, "comfyui", "--install", str(custom_nodes))
        assert (code, out, err) == (2, "", f"inpaint-data comfyui: install: {line}\n")
    code, _, err = run(capsys, "comfyui", "--install", "/proc")
    assert code == 2
    assert "install: cannot write to /proc/comfyui_inpaint_data" in err
    assert err.count("\n") == 1
    assert (foreign / "comfyui_inpaint_data" / "__init__.py").read_text() == "# somebody's"
