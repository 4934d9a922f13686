"""The training script does what its configs say: it learns, shows pictures, goes on after a kill, and refuses early."""

import importlib.util
import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import write_shard
from diffusers import DDPMScheduler, UNet2DConditionModel, UNet2DModel
from flat import OF_TRAINING, cache_latents
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_pipelines import pipeline_of

from inpaint_data import Autoencoder, CacheError

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("train_*.yaml"))
CACHE = {"resolution": 64, "masks": "mixture", "mask_offset": (-4, 9), "batch_size": 4}
BLOCKS = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4}
PLAIN = BLOCKS | {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
SMALL = PLAIN | {"_class_name": "UNet2DModel", "in_channels": 33, "out_channels": 16}
TEXT = BLOCKS | {"down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "attention_head_dim": 4}
TEXT |= {"up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "cross_attention_dim": 16, "in_channels": 9}
SDXL = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 48}
SDXL |= {"cross_attention_dim": 48}
pytestmark = pytest.mark.filterwarnings(  # of Lightning's own code
    "ignore::DeprecationWarning:lightning.*", "ignore:.*LeafSpec", "ignore:.*WeightAveraging", "ignore:Precision bf16"
)
Train = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_inpainting", ROOT / "scripts" / "train_inpainting.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_inpainting"] = module  # where jsonargparse looks up the types of its classes
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, photo_bytes: dict[str, bytes]) -> str:
    """The demo's photographs at 64 pixels, encoded by the demo's VAE."""
    folder = tmp_path_factory.mktemp("demo")
    write_shard(folder / "shards" / "0.tar", {key: {"jpg": data} for key, data in photo_bytes.items()})
    cache_latents(str(folder / "shards"), str(folder / "cache"), vae="demo", **CACHE)
    return str(folder / "cache")


@pytest.fixture
def train(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Train:
    """Run the script on a config, with other settings; exit code and what it wrote to stderr."""
    monkeypatch.setattr(sys, "argv", ["train_inpainting.py"])  # LightningCLI warns of any that it is not given

    def fit(config: str, *more: str, command: str = "fit", **settings: Any) -> tuple[int, str]:
        where = {
            "checkpoints.dirpath": tmp_path / "checkpoints",
            "trainer.logger.init_args.save_dir": tmp_path / "log",
            "trainer.enable_progress_bar": "false",
            "trainer.log_every_n_steps": 1,
        }
        flags = [f"--{name.replace('__', '.')}={value}" for name, value in {**where, **settings}.items()]
        try:
            script.main([command, "--config", str(ROOT / "configs" / config), *flags, *more])
            code = 0
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        return code, capsys.readouterr().err

    return fit


def small(cache: str, **other: Any) -> dict[str, Any]:
    """The demo's config, cut down to six steps of a tiny UNet."""
    return {
        "data__source": cache,
        "data__val_source": cache,
        "model__unet_config": SMALL,
        "trainer__max_steps": 6,
        "trainer__val_check_interval": 3,
        "checkpoints__every_n_train_steps": 2,
        "pictures": {"count": 2, "steps": 2},
    } | other


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def one_line(err: str) -> str:
    """The complaint, among what Lightning tells."""
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("train_inpainting: ")]
    assert err.rstrip().endswith(line)
    return line


def test_a_run_logs_losses_and_pictures_and_leaves_the_averaged_unet(
    train: Train, cache: str, tmp_path: Path, record_figure: Callable[[str], None]
) -> None:
    assert train("train_demo.yaml", **small(cache))[0] == 0
    log = events(tmp_path / "log")
    losses = [each.value for each in log.Scalars("train/loss")]
    assert len(losses) == 6
    assert np.isfinite(losses).all()
    assert len(log.Scalars("val/loss")) == 2
    pictures = log.Images("original, masked, painted")
    assert [each.step for each in pictures] == [3, 6]
    assert pictures[0].encoded_image_string != pictures[1].encoded_image_string
    grid = np.asarray(Image.open(io.BytesIO(pictures[-1].encoded_image_string)))
    assert grid.shape == (2 * 64, 3 * 64, 3)
    original, masked, painted = np.split(grid.astype(int), 3, axis=1)
    hidden = (np.abs(masked - 127.5) < 1).all(-1)
    assert 0 < hidden.mean() < 1
    assert (original[~hidden] == masked[~hidden]).all()
    assert painted.std() > 1

    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    state = torch.load(checkpoint, weights_only=True)
    averaged, trained = state["state_dict"], state["current_model_state"]
    own = {f"unet.{name}" for name in UNet2DModel.from_config(SMALL).state_dict()}
    assert averaged.keys() == trained.keys() == own
    assert any(not torch.equal(averaged[name], trained[name]) for name in own)
    values = sum(weight.numel() for weight in averaged.values())
    # The averaged and the trained weights and AdamW's two moments, and little besides.
    assert checkpoint.stat().st_size < 4 * 4 * values + 300_000
    record_figure(f"checkpoint of {values} weights: {checkpoint.stat().st_size / values / 4:.1f} times their size")
    saved = load_file(tmp_path / "log" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(saved[name.removeprefix("unet.")], weight) for name, weight in averaged.items())

    # What a checkpoint gives to whoever loads it are the averaged weights, which were validated in training too.
    settings = small(cache, trainer__logger__init_args__save_dir=tmp_path / "validated")
    assert train("train_demo.yaml", "--ckpt_path=last", command="validate", **settings)[0] == 0
    (again,) = events(tmp_path / "validated").Scalars("val/loss")
    assert again.value == log.Scalars("val/loss")[-1].value


def test_pictures_are_painted_by_the_averaged_weights(train: Train, cache: str, tmp_path: Path) -> None:
    # With this decay the average stays what it was after the first step.
    assert train("train_demo.yaml", **small(cache, ema={"decay": 1.0}))[0] == 0
    log = events(tmp_path / "log")
    first, second = log.Images("original, masked, painted")
    assert first.encoded_image_string == second.encoded_image_string
    assert len({each.value for each in log.Scalars("val/loss")}) == 1


def test_a_killed_run_resumes_to_the_keys_and_the_weights_of_an_undisturbed_one(
    train: Train, cache: str, tmp_path: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, seen, kill_at = script.Inpainter.training_step, [], [-1]

    def recorded(self: Any, batch: dict, batch_idx: int) -> Any:
        if len(seen) == kill_at[0]:
            raise CacheError("the disk is gone")
        seen.append(batch["__key__"])
        return step(self, batch, batch_idx)

    def weights() -> bytes:
        return (tmp_path / "log" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()

    monkeypatch.setattr(script.Inpainter, "training_step", recorded)
    settings = small(cache, pictures={"count": 0})
    assert train("train_demo.yaml", **settings)[0] == 0
    undisturbed, learnt = seen.copy(), weights()
    assert len(undisturbed) == 6

    seen.clear()
    kill_at[0] = 5  # the second step of the second epoch; the last checkpoint is that of step 4
    code, err = train("train_demo.yaml", **settings)
    assert (code, one_line(err)) == (1, "train_inpainting: the disk is gone")
    assert seen == undisturbed[:5]
    copied = shutil.copy(tmp_path / "checkpoints" / "last.ckpt", tmp_path / "step4.ckpt")

    kill_at[0] = -1
    for checkpoint in ("last", copied):
        seen.clear()
        shutil.rmtree(tmp_path / "log" / "unet")
        assert train("train_demo.yaml", f"--ckpt_path={checkpoint}", **settings)[0] == 0
        assert seen == undisturbed[4:]
        assert weights() == learnt


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model__unet_config": SMALL | {"in_channels": 9}}, "the transformer has in_channels=9; give a transformer"),
        ({"model__unet_config": SMALL | {"out_channels": 4}}, "the UNet has out_channels=4"),
        ({"model__unet_config": SMALL | {"_class_name": "UNet"}}, "model.unet_config: KeyError: 'UNet'"),
        ({"model__unet_config": SMALL | {"block_out_channels": [8]}}, "Must provide the same number"),
        ({"model__unet_config": SMALL | {"chanels": 8}}, "unexpected keyword argument 'chanels'"),
        ({"pictures": {"steps": 0}}, "pictures.steps: 0"),
        ({"model__unet": "nowhere/unet"}, "model: give either unet"),
        ({"model__scheduler": {"beta_schedule": "steep"}}, "steep is not implemented"),
        ({"model__scheduler": {"beta_shedule": "linear"}}, "DDPMScheduler has no beta_shedule"),
        ({"model__scheduler": {"prediction_type": "flow"}}, "prediction_type is none of epsilon, sample"),
        ({"model__unmasked_weight": 2}, "unmasked_weight: 2.0 is not from 0 to 1"),
        ({"model__prior_weight": 1, "model__unmasked_weight": 0}, "model.prior_weight: needs the unet that training"),
        ({"model__lr": "fast"}, "\"model.lr\": Expected a <class 'float'>. Got value: fast; see --help"),
        ({"data__encode__recipe": "sd15-inpaint"}, "sd15-inpaint: the VAE has 16 latent channels instead of 4"),
        ({"data__encode__recipe": "flux-fill"}, "flux-fill: feeds a packed transformer"),
        (
            {"data__encode__recipe": "z-image-controlnet-inpaint"},
            "recipe z-image-controlnet-inpaint reads control_latents, which this cache was made without",
        ),
        ({"data__encode__recipe": "null"}, "recipe: none was given"),
        ({"data__encode": {"recipe": "sd3-inpaint"}}, "name it in data.encode.vae"),
        ({"data__pictures__resolution": 512}, "resolution: the cache has 64, this run 512"),
        ({"data__resolution": 512}, "--data.resolution=512; see --help"),
        ({"data__batch_size": 0}, "batch_size: 0"),
    ],
)
def test_what_cannot_work_is_one_line_before_the_first_step(
    change: dict, named: str, train: Train, cache: str, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: Any) -> None:
        pytest.fail("a step was made")

    monkeypatch.setattr(script.Inpainter, "training_step", step)
    code, err = train("train_demo.yaml", **small(cache) | change)
    assert named in one_line(err)
    assert code == 2


@pytest.mark.parametrize(
    ("data", "flags", "named"),
    [
        ("{batch_size: 0}", (), "FILE: batch_size: 0 is not a positive whole number"),
        ("{pictures: {resolution: 5x}}", (), "FILE: resolution: '5x' is not a number of pixels"),
        ("{masks: {source: mixture, mixture: {invert: 2}}}", (), "FILE: mixture: "),
        ("{loading: {text: {dropout: 2}}}", ("--data.loading.seed=1",), "FILE: text: dropout: 2 is "),
        (
            "{pictures: {crop: center}}",
            ("--data.pictures.resolution=5x",),
            "resolution: '5x' is not a number of pixels",
        ),
        ("{batch_size: 4}", ("--data.batch_size", "0"), "batch_size: 0 is not a positive whole number"),
        ("{loading: {text: {dropout: 2}}}", ("--data.loading.text.dropout=3",), "text: dropout: 3 is "),
    ],
)
def test_what_cannot_work_is_named_with_the_file_that_it_stands_in(
    data: str, flags: tuple[str, ...], named: str, train: Train, cache: str, tmp_path: Path
) -> None:
    file = tmp_path / "more.yaml"
    file.write_text(f"data: {data}\n")
    code, err = train("train_demo.yaml", "--config", str(file), *flags, **small(cache))
    assert one_line(err).startswith(f"train_inpainting: {named.replace('FILE', str(file))}")
    assert code == 2


@pytest.mark.parametrize("group", ["pictures", "masks", "encode", "loading"])
def test_a_text_in_place_of_settings_is_refused_and_not_imported(
    group: str, train: Train, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "strangers_module.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"data": {"source": cache, group: "strangers_module.Settings"}}))
    code, err = train("train_demo.yaml", "--config", str(config))
    assert (code, err.count("\n")) == (2, 1)
    assert f"{config}: {group}: 'strangers_module.Settings' is not a mapping of settings" in err
    assert "strangers_module" not in sys.modules


def test_a_flag_for_one_field_of_a_mapping_leaves_the_others(script: ModuleType) -> None:
    flags = [
        "--data.loading.text.dropout",
        "2e-1",
        "--data.masks.mixture.weights.boxes=1",
        "--data.masks.mixture.invert=1",
    ]
    made = script.with_whole_mappings(["fit", "--config", str(ROOT / "configs" / "train_sd15.yaml"), *flags, "--x=1"])
    text = {"dropout": 0.2}
    assert made[3:4] == ["--x=1"]
    assert [yaml.safe_load(each.partition("=")[2]) for each in made[4:]] == [
        text,
        {"weights": {"boxes": 1}, "invert": 1},
    ]


def test_pictures_are_encoded_live_too(train: Train, shards: str, tmp_path: Path) -> None:
    live = {"data__encode__vae": "demo", "data__pictures__resolution": 64, "data__masks__source": "mixture"}
    live["trainer__max_steps"] = 3
    assert train("train_demo.yaml", **small(shards) | live)[0] == 0
    assert len(events(tmp_path / "log").Images("original, masked, painted")) == 1
    assert not any("vae" in name for name in torch.load(tmp_path / "checkpoints" / "last.ckpt")["state_dict"])


@pytest.fixture
def text_run(tmp_path: Path, photo_bytes: dict[str, bytes], vae: Autoencoder) -> Callable[..., dict[str, Any]]:
    """The settings that put a tiny pipeline, its VAE and its cache where a config names those of the Hub."""

    def prepare(recipe: str, unet: dict[str, Any]) -> dict[str, Any]:
        own = tmp_path / "pipeline"
        own.mkdir()
        pipeline_of("StableDiffusionXLPipeline" if "xl" in recipe else "StableDiffusionPipeline", own)
        vae.module.save_pretrained(own / "vae")
        samples = {key: {"jpg": data, "txt": f"a photo of {key}".encode()} for key, data in photo_bytes.items()}
        write_shard(tmp_path / "shards" / "0.tar", samples)
        cache_latents(str(tmp_path / "shards"), str(tmp_path / "cache"), vae=str(own), text_model=str(own), **CACHE)
        UNet2DConditionModel(**unet).save_pretrained(tmp_path / "pipeline" / "unet")
        DDPMScheduler(beta_schedule="scaled_linear", steps_offset=1).save_pretrained(tmp_path / "pipeline/scheduler")
        return {
            "data__source": tmp_path / "cache",
            "data__val_source": tmp_path / "cache",
            "data__encode__vae": tmp_path / "pipeline",
            "data__batch_size": 4,
            "data__encode__recipe": recipe,
            "model__unet": tmp_path / "pipeline",
            "pictures": {"count": 1, "steps": 2},
            "trainer__max_steps": 2,
            "trainer__accumulate_grad_batches": 1,
            "trainer__val_check_interval": 2,
            "trainer__accelerator": "cpu",
        }

    return prepare


@pytest.mark.parametrize("recipe", ["sd15-inpaint", "sdxl-inpaint", "sd15-blend"])
def test_the_configs_of_stable_diffusion_train_a_tiny_one_in_its_place(
    recipe: str, train: Train, text_run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    name = f"train_{recipe[:4]}.yaml"
    unet = TEXT | (SDXL if "xl" in recipe else {}) | ({"in_channels": 4} if "blend" in recipe else {})
    assert train(name, **text_run(recipe, unet))[0] == 0
    log = events(tmp_path / "log")
    assert np.isfinite([each.value for each in log.Scalars("train/loss")]).all()
    assert len(log.Images("original, masked, painted")) == 1
    kept = UNet2DConditionModel.from_pretrained(tmp_path / "log" / "unet")
    assert kept.config.cross_attention_dim == (48 if "xl" in recipe else 16)


def test_the_loss_counts_the_hole_alone_and_holds_the_rest_to_the_unet_that_training_began_from(
    train: Train,
    text_run: Callable[..., dict[str, Any]],
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    step, seen = script.Inpainter.training_step, []

    def recorded(self: Any, batch: dict, batch_idx: int) -> Any:
        noisy, t = torch.randn_like(batch["latents"]), torch.zeros(4, dtype=torch.int64)
        before = float(self.prior_losses(self(noisy, t, batch), noisy, t, batch).detach().sum())
        holes = self.recipe.loss_mask(batch)
        loss = step(self, batch, batch_idx)
        answer, prior_weight = self.forward, self.prior_weight
        # Whatever the UNet answers where nothing is to be repainted, the loss of the hole is the same.
        self.forward = lambda *given: torch.where(holes == 0, 7.0, answer(*given))
        self.prior_weight = 0.0
        hole_alone = step(self, batch, batch_idx).detach()
        self.forward = answer
        assert torch.equal(step(self, batch, batch_idx), hole_alone)
        self.prior_weight = prior_weight
        seen.append((before, float(loss.detach() - hole_alone)))
        return loss

    monkeypatch.setattr(script.Inpainter, "training_step", recorded)
    weights = {"model__unmasked_weight": 0.0, "model__area_normalised": "true", "model__prior_weight": 0.5}
    settings = text_run("sd15-inpaint", TEXT) | weights | {"model__lr": 0.01, "pictures": {"count": 0}}
    assert train("train_sd15.yaml", **settings)[0] == 0
    (first, before_training), (later, after_a_step) = seen
    assert (first, before_training) == (0, 0)
    assert later > 0
    assert after_a_step > 0
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(name.startswith("unet.") for name in state["state_dict"])


def test_text_that_is_missing_or_of_another_encoder_is_one_line(
    train: Train, text_run: Callable[..., dict[str, Any]]
) -> None:
    settings = text_run("sdxl-inpaint", TEXT | SDXL | {"cross_attention_dim": 24})
    code, err = train("train_sdxl.yaml", **settings)
    assert (code, "prompt_embeds are 48 wide, but the UNet takes 24" in one_line(err)) == (2, True)
    text = {"embeddings": "[prompt_embeds.npy]", "empty_prompt": settings["data__source"] / "empty_prompt"}
    code, err = train("train_sdxl.yaml", **settings, **{f"data__loading__text__{name}": text[name] for name in text})
    assert (code, "the UNet takes pooled_prompt_embeds" in one_line(err)) == (2, True)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_parses(config: Path, train: Train) -> None:
    assert train(config.name, "--print_config") == (0, "")
    data = yaml.safe_load(config.read_text())["data"]
    for name, group in OF_TRAINING.items():
        group(**data.get(name, {}))


def test_images_of_the_class_are_learnt_beside_and_the_same_ones_after_a_resume(
    train: Train, cache: str, tmp_path: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, seen = script.Inpainter.losses, []

    def recorded(self: Any, batch: dict, generator: torch.Generator) -> Any:
        if self.trainer.training:
            seen.append(list(batch["__key__"]))
        return losses(self, batch, generator)

    monkeypatch.setattr(script.Inpainter, "losses", recorded)
    settings = small(cache, pictures={"count": 0}, model__class_source=cache, model__class_weight=0.5)
    assert train("train_demo.yaml", **settings)[0] == 0
    undisturbed = seen.copy()
    assert {len(keys) for keys in undisturbed} == {8}
    assert len({key for keys in undisturbed[:3] for key in keys[4:]}) == 12  # an epoch of the class
    assert any(keys[:4] != keys[4:] for keys in undisturbed)
    first = next((tmp_path / "checkpoints").glob("*step=4*.ckpt"), tmp_path / "checkpoints" / "last.ckpt")
    kept, step = shutil.copy(first, tmp_path / "kept.ckpt"), 4 if "step=4" in first.name else 6
    seen.clear()
    assert train("train_demo.yaml", f"--ckpt_path={kept}", **settings | {"trainer__max_steps": 8})[0] == 0
    assert seen[: 6 - step] == undisturbed[step:]


def test_images_of_the_class_that_do_not_fit_are_one_line(
    train: Train, cache: str, tmp_path: Path, photo_bytes: dict[str, bytes]
) -> None:
    write_shard(tmp_path / "in" / "0.tar", {key: {"jpg": data} for key, data in photo_bytes.items()})
    cache_latents(str(tmp_path / "in"), str(tmp_path / "large"), vae="demo", **CACHE | {"resolution": 128})
    for given, told in (
        ({"model__class_source": tmp_path / "large"}, "has (16, 16, 16) for latents, where source has (16, 8, 8)"),
        ({"model__class_weight": -1}, "prior_weight: -1"),
    ):
        code, err = train("train_demo.yaml", **small(cache, pictures={"count": 0}), **given)
        assert code == 2
        assert told in one_line(err)
