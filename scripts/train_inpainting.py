"""Train an inpainting UNet of diffusers from a cache of latents, or from pictures that are encoded live.

    pip install '.[train]'
    make demo
    python scripts/train_inpainting.py fit --config configs/train_demo.yaml
    tensorboard --logdir demo_out/train

The same command with `--ckpt_path last` goes on where the last checkpoint was written, with the very next batch and the
noise it would have had. Any setting of the YAML is a flag too: `--model.lr 1e-5 --data.batch_size 2`; `fit --help`.

The UNet is a new one (`model.unet_config`) or one by hub name or folder (`model.unet`); its averaged weights are in
LOG_DIR/unet when the training ends, as `from_pretrained` takes them.
"""

import inspect
import json
import sys
from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel, UNet2DModel
from jsonargparse import get_loader
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from yaml import YAMLError

from inpaint_data import (
    Autoencoder,
    Batch,
    InpaintDataError,
    InpaintDataModule,
    Recipe,
    UsageError,
    masked_loss,
    prior_preservation,
    size_conditioning,
)
from inpaint_data.batch import select, to_device
from inpaint_data.encoding.vae import cause
from inpaint_data.seeding import generator_for

UNETS = {"UNet2DModel": UNet2DModel, "UNet2DConditionModel": UNet2DConditionModel}
OBJECTIVES = ("epsilon", "sample", "v_prediction")


def paired(batch: Batch, of_class: Batch) -> Batch:
    """One batch of both, those of the class behind the others.

    Raises:
        UsageError: they are of several sizes, or one has what the other lacks.
    """
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    for name, value in tensors.items():
        other = of_class.get(name)
        if not isinstance(other, Tensor) or other.shape[1:] != value.shape[1:]:
            found = "nothing" if not isinstance(other, Tensor) else f"{tuple(other.shape[1:])}"
            raise UsageError(
                f"model.class_source: has {found} for {name}, where source has {tuple(value.shape[1:])}; cache both "
                "with the same settings, in one size"
            )
    joined = {name: torch.cat([value, cast(Any, of_class)[name].to(value)]) for name, value in tensors.items()}
    return cast(Batch, joined | {"__key__": [*batch["__key__"], *of_class["__key__"]]})


class Inpainter(LightningModule):
    """A UNet that learns to paint what a recipe hides. The recipe, the seed and the VAE are those of the data.

    Args:
        unet: hub name or folder of a pipeline (its `unet` is taken) or of a UNet alone.
        unet_config: in place of it, the config of a new one, with diffusers' `_class_name`.
        scheduler: settings of diffusers' DDPMScheduler, such as `prediction_type`. They come on top of those of the
            pipeline that `unet` names.
        lr: of AdamW.
        gradient_checkpointing: saves memory, costs time.
        unmasked_weight: how much the known part of an image counts, where the hole counts 1; 0 for the hole alone.
        area_normalised: small holes count as much as large ones.
        prior_weight: how much it counts that the UNet answers outside the hole as the one named in `unet` did, which is
            then kept in memory beside it. For an `unmasked_weight` below 1.
        class_source: a cache of images of the class, of which each step learns as many beside its own, so that what it
            learns of one does not change all (DreamBooth's prior preservation).
        class_weight: how much these count, where a step's own count 1.
    """

    def __init__(
        self,
        unet: str | None = None,
        unet_config: dict[str, Any] | None = None,
        scheduler: dict[str, Any] | None = None,
        lr: float = 1e-5,
        gradient_checkpointing: bool = False,
        unmasked_weight: float = 1.0,
        area_normalised: bool = False,
        prior_weight: float = 0.0,
        class_source: str | None = None,
        class_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if (unet is None) == (unet_config is None):
            raise UsageError("model: give either unet, a hub name or folder, or unet_config, the config of a new one")
        self.unet = new_unet(unet_config or {}) if unet is None else load_unet(unet)
        self.scheduler = make_scheduler(unet, scheduler or {})
        self.lr = lr
        if prior_weight and (unet is None or unmasked_weight == 1):
            raise UsageError(
                "model.prior_weight: needs the unet that training begins from, and an unmasked_weight below 1; "
                "give both, or leave it out"
            )
        self.weighting = {"unmasked_weight": unmasked_weight, "area_normalised": area_normalised}
        masked_loss(torch.zeros(1), torch.zeros(1), **self.weighting, prior_weight=prior_weight)  # checks the weights
        self.prior_weight, self.prior_name = prior_weight, unet
        self._prior: list[UNet2DModel | UNet2DConditionModel] = []
        prior_preservation(torch.zeros(2), class_weight)  # checks the weight
        self.class_source, self.class_weight = class_source, class_weight
        self._of_class: Iterator[Batch] | None = None  # of the epoch
        if gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()

    @property
    def data(self) -> InpaintDataModule:
        return cast(Any, self.trainer).datamodule  # type: ignore[no-any-return]

    def setup(self, stage: str) -> None:  # noqa: ARG002 - Lightning's signature
        """Check the UNet against the recipe, before the first step."""
        self.recipe: Recipe = self.data.recipe
        row, config = self.recipe.row, self.unet.config
        if row.layout != "plain" or row.model == "ControlNet":
            raise UsageError(f"{self.recipe.name}: feeds a {row.layout} {row.model}, and this script trains UNets")
        self.recipe.check_model(config)
        if config.out_channels != row.latent_channels:
            raise UsageError(
                f"{self.recipe.name}: the UNet has out_channels={config.out_channels}; give one with "
                f"out_channels={row.latent_channels}"
            )
        kind = config.get("addition_embed_type")
        if kind not in (None, "text_time"):
            raise UsageError(f"the UNet wants {kind} embeddings, which batches do not have; give one of SD or SDXL")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.unet.parameters(), self.lr)

    def training_step(self, batch: Batch | None, batch_idx: int) -> Tensor | None:
        if batch is None:  # every sample of it was bad, which is in the log
            return None
        purpose = f"train {self.global_rank} {batch_idx}"
        generator = self.generator(self.data.loading.seed, self.current_epoch, purpose)
        if self.class_source is None:
            loss = self.losses(batch, generator).mean()
        else:
            pairs = paired(batch, self.of_class(batch_idx, len(batch["__key__"])))
            loss = prior_preservation(self.losses(pairs, generator), self.class_weight).mean()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["__key__"]))
        return loss

    def validation_step(self, batch: Batch | None, batch_idx: int) -> None:
        if batch is not None:
            loss = self.losses(batch, self.generator(0, 0, f"validate {self.global_rank} {batch_idx}")).mean()
            self.log("val/loss", loss, prog_bar=True, sync_dist=True, batch_size=len(batch["__key__"]))

    def generator(self, seed: int, epoch: int, purpose: str) -> torch.Generator:
        """A step's own: a resumed run draws what the undisturbed one would have drawn."""
        number = int(generator_for(seed, "", epoch, purpose).integers(2**63))
        return torch.Generator(self.device).manual_seed(number)

    def on_train_epoch_start(self) -> None:
        self._of_class = None

    @cached_property
    def class_data(self) -> InpaintDataModule:
        """The images of the class, opened once."""
        own = self.data
        loading = own.loading.but(fresh_masks=False)
        data = InpaintDataModule(self.class_source, batch_size=own.batch_size, encode=own.encode, loading=loading)
        data.setup("fit")
        return data

    def of_class(self, batch_idx: int, count: int) -> Batch:
        """As many samples of the class, the same ones for a step of an epoch after a resume too."""
        if self._of_class is None:
            self._of_class = islice(self.class_batches(self.current_epoch), batch_idx, None)
        return to_device(select(next(self._of_class), range(count)), self.device)

    def class_batches(self, epoch: int) -> Iterator[Batch]:
        """Whole batches of the class, for ever."""
        data = self.class_data
        for number in count(epoch * 2**20):  # another order for each pass over it
            data.epoch = number
            whole = (batch for batch in data.train_dataloader() if len(batch["__key__"]) == data.batch_size)
            first = next(whole, None)
            if first is None:
                raise UsageError(
                    f"model.class_source: {self.class_source} has fewer than {data.batch_size} samples of one size; "
                    "give more, or a smaller batch_size"
                )
            yield from chain([first], whole)

    def losses(self, batch: Batch, generator: torch.Generator) -> Tensor:
        # Of paired data the UNet learns the target, while it is shown what the picture keeps.
        clean = self.recipe.latents({"latents": batch.get("target_latents", batch["latents"])})
        noise = torch.randn(clean.shape, generator=generator, device=self.device)
        steps = self.scheduler.config.num_train_timesteps
        t = torch.randint(steps, clean.shape[:1], generator=generator, device=self.device)
        noisy = self.scheduler.add_noise(clean, noise, t)
        answer = self(noisy, t, batch)
        wanted = dict(zip(OBJECTIVES, (noise, clean, self.scheduler.get_velocity(clean, noise, t)), strict=True))
        losses = (answer.float() - wanted[self.scheduler.config.prediction_type]).square()
        prior = self.prior_losses(answer, noisy, t, batch) if self.prior_weight else None
        mask = self.recipe.loss_mask(batch)
        return masked_loss(losses, mask, **self.weighting, prior_losses=prior, prior_weight=self.prior_weight)

    def prior_losses(self, answer: Tensor, noisy: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """How far the UNet is from the answer that it gave before training."""
        with torch.no_grad():
            before: Tensor = self.prior(self.recipe.model_input(noisy, batch), t, **self.text(batch)).sample
        return (answer - before).float().square()

    @property
    def prior(self) -> UNet2DModel | UNet2DConditionModel:
        """The UNet as it was before training. In a list: no submodule, so neither averaged nor in checkpoints."""
        if not self._prior:
            self._prior.append(load_unet(str(self.prior_name)).eval().requires_grad_(False).to(self.device))
        return self._prior[0]

    def forward(self, noisy: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """(B, C, h, w) noisy and normalised, (B,) or () steps -> the UNet's answer (B, C, h, w)."""
        answer: Tensor = self.unet(self.recipe.model_input(noisy, batch), t, **self.text(batch)).sample
        return answer

    def text(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What a text-conditional UNet takes besides."""
        if not isinstance(self.unet, UNet2DConditionModel):
            return {}
        xl = self.unet.config.addition_embed_type == "text_time"
        for name in ("prompt_embeds", "pooled_prompt_embeds")[: 1 + xl]:
            if name not in batch:
                raise UsageError(
                    f"the UNet takes {name}, which batches lack; make the cache with --text_model, or list {name}.npy "
                    "in data.loading.text.embeddings"
                )
        embeds, width = batch["prompt_embeds"], self.unet.config.cross_attention_dim
        if isinstance(width, int) and embeds.shape[-1] != width:
            raise UsageError(f"prompt_embeds are {embeds.shape[-1]} wide, but the UNet takes {width}; add its own text")
        given = {"encoder_hidden_states": embeds, "encoder_attention_mask": batch["prompt_embeds_mask"]}
        if xl:
            times = size_conditioning(batch, embeds.dtype)
            given["added_cond_kwargs"] = {"text_embeds": batch["pooled_prompt_embeds"], "time_ids": times}
        return given

    def paint(self, batch: Batch, steps: int) -> Tensor:
        """Normalised latents (B, C, h, w) with the hole painted, in a few steps of DDIM from always the same noise."""
        recipe, known = self.recipe, self.recipe.latents(batch)
        # Latents reach beyond [-1, 1], and the first step must be one of pure noise.
        ddim = DDIMScheduler.from_config(self.scheduler.config, clip_sample=False, timestep_spacing="trailing")
        ddim.set_timesteps(steps, device=self.device)
        noise = torch.randn(known.shape, generator=torch.Generator().manual_seed(0)).to(known)
        latents, mask = noise, recipe.blend_mask(batch)
        following = [*ddim.timesteps[1:], None]
        for t, after in zip(ddim.timesteps, following, strict=True):
            latents = ddim.step(self(latents, t, batch).float(), t, latents).prev_sample
            if not recipe.row.parts:  # this UNet is not told what is known; its pipeline blends it in
                kept = known if after is None else ddim.add_noise(known, noise, after[None])
                latents = (1 - mask) * kept + mask * latents
        return latents

    def on_train_end(self) -> None:
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)  # which all ranks must ask for
        if self.trainer.is_global_zero:  # the averaging callback came first: these are its weights
            self.unet.save_pretrained(folder / "unet")


class SamplePictures(Callback):
    """At each validation, logs its first pictures: the original, what is masked, what the averaged weights paint.

    The VAE is the data's (`data.encode.vae`), held here so that no checkpoint has it.

    Args:
        count: how many pictures; 0 for none, and then no VAE is needed.
        steps: of DDIM.
    """

    def __init__(self, count: int = 4, steps: int = 20) -> None:
        if steps < 1:
            raise UsageError(f"pictures.steps: {steps} steps paint nothing; give 1 or more, such as 20")
        self.count, self.steps = count, steps
        self.vae: Autoencoder | None = None

    def setup(self, trainer: Trainer, pl_module: Inpainter, stage: str) -> None:  # type: ignore[override]  # noqa: ARG002
        data = pl_module.data
        if self.count < 1 or self.vae is not None or "validate" not in data.sources:
            return
        encoder = data.encoder
        if (encoder is None or not encoder.transform.has_vae) and data.encode.vae is None:
            raise UsageError(
                "sample pictures need the cache's VAE: name it in data.encode.vae, or set pictures.count to 0"
            )
        self.vae = data.autoencoder

    def on_validation_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: Inpainter, _: Any, batch: Batch | None, batch_idx: int, *__: Any
    ) -> None:
        # Not at the validation's end, where the averaging callback has put the trained weights back already.
        if batch_idx or batch is None or self.vae is None or trainer.sanity_checking or not trainer.is_global_zero:
            return
        first: Any = {name: value[: self.count] for name, value in cast(dict[str, Any], batch).items()}
        with trainer.precision_plugin.forward_context():
            painted = pl_module.paint(first, self.steps)
        if not pl_module.recipe.row.raw:
            painted = self.vae.denormalise(painted)
        original = self.vae.decode(first["latents"])
        columns = original, torch.where(first["mask"] >= 0.5, 0.0, original), self.vae.decode(painted)
        grid = torch.cat([*torch.cat(columns, -1)], -2) / 2 + 0.5  # a row for each picture
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("original, masked, painted", grid, trainer.global_step)


def new_unet(config: dict[str, Any]) -> UNet2DModel | UNet2DConditionModel:
    """A UNet of random weights."""
    try:
        return UNETS[config["_class_name"]](**{key: value for key, value in config.items() if not key.startswith("_")})
    except Exception as error:  # diffusers checks some of its settings, and stumbles over the others
        raise UsageError(f"model.unet_config: {cause(error)}; give a config of {' or '.join(UNETS)}") from None


def load_unet(name: str) -> UNet2DModel | UNet2DConditionModel:
    """The UNet of that hub name or folder, in float32; no weight stays at random."""
    folder = None if Path(name, "config.json").is_file() else "unet"
    options: Any = {"torch_dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
    try:
        kind = UNETS[UNet2DModel.load_config(name, subfolder=folder)["_class_name"]]
        unet, found = kind.from_pretrained(name, subfolder=folder, low_cpu_mem_usage=False, **options)
    except Exception as error:
        raise UsageError(f"model.unet {name}: cannot be loaded ({cause(error)}); check the name or folder") from None
    if found["missing_keys"]:
        raise UsageError(f"model.unet {name}: has no {found['missing_keys'][0]}; save or download it again")
    return unet.train()


def make_scheduler(unet: str | None, settings: dict[str, Any]) -> DDPMScheduler:
    """Those settings on top of the pipeline's, or of DDPMScheduler's own for a new UNet."""
    alone = unet is not None and Path(unet, "config.json").is_file()
    try:
        if alone and not settings:
            raise ValueError(f"{unet} has none beside it; give the settings that it was trained with")
        if unknown := settings.keys() - inspect.signature(DDPMScheduler).parameters.keys():
            raise ValueError(f"DDPMScheduler has no {', '.join(sorted(unknown))}")
        base = {} if unet is None or alone else DDPMScheduler.load_config(unet, subfolder="scheduler")
        scheduler = DDPMScheduler.from_config({**base, **settings})
        if scheduler.config.prediction_type not in OBJECTIVES:
            raise ValueError(f"prediction_type is none of {', '.join(OBJECTIVES)}")
    except (OSError, ValueError, TypeError, NotImplementedError) as error:
        raise UsageError(f"model.scheduler: {cause(error)}") from None
    return scheduler


GROUPS = ("pictures", "masks", "encode", "loading")  # of the data's settings


class InpaintingCLI(LightningCLI):
    """LightningCLI with the callbacks that every training here has, each under a key of its own."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {name: LightningCLI.subcommands()[name] for name in ("fit", "validate")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(EMAWeightAveraging, "ema")
        parser.add_lightning_class_args(SamplePictures, "pictures")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoints")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        for place, value, _ in data_given(args):
            if place[0] in GROUPS and len(place) == 1 and isinstance(value, str):
                # jsonargparse would import it, in search of a class.
                raise UsageError(f"{place[0]}: {value!r} is not a mapping of settings; write them below it", place)
        self.config = parser.parse_args(with_whole_mappings(args))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; what cannot work is one line and the exit code that `inpaint-data` would give."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    strict = {"exit_on_error": False}
    try:
        InpaintingCLI(
            Inpainter,
            InpaintDataModule,
            save_config_kwargs={"overwrite": True},  # a resumed run writes to the same folder
            parser_kwargs=strict | dict.fromkeys(("fit", "validate"), strict),
            args=given,
        )
    except ArgumentError as error:
        refuse(f"{error}; see --help", UsageError.exit_code)
    except UsageError as error:
        refuse(f"{file_of(error.place, given)}{error}", error.exit_code)
    except (InpaintDataError, OSError) as error:
        refuse(str(error), getattr(error, "exit_code", 1))


def refuse(why: str, exit_code: int) -> None:
    sys.stderr.write(f"train_inpainting: {' '.join(why.split())}\n")
    sys.exit(exit_code)


def file_of(place: Sequence[str], arguments: Sequence[str]) -> str:
    """The --config file that a setting of the data stands in, and a colon; nothing where a flag gave it.

    Of a setting that was given several times the last one counts, and of one that was left out, what it belongs to.
    """
    for length in range(len(place), 0, -1):
        files = [given.file for given in data_given(arguments) if given.says(tuple(place[:length]))]
        if files:
            return f"{files[-1]}: " if files[-1] else ""
    return ""


def with_whole_mappings(arguments: Sequence[str]) -> list[str]:
    """The arguments with whole mappings in place of flags for their fields, such as --data.loading.text.dropout.

    jsonargparse would let go of all other fields.
    """
    tree: dict[str, Any] = {}
    whole: dict[tuple[str, ...], None] = {}
    for place, value, _ in data_given(arguments):
        inner = tree
        for name in place[:-1]:
            if not isinstance(inner.get(name), dict):
                inner[name] = {}
            inner = inner[name]
        inner[place[-1]] = value
        if len(place) > 2:
            whole[place[:2]] = None
    kept, rest = [], iter(arguments)
    for argument in rest:
        flag, equals, _ = argument.partition("=")
        if not (flag.startswith("--data.") and flag.count(".") > 2):
            kept.append(argument)
        elif not equals:
            next(rest, None)
    there = [(group, name) for group, name in whole if isinstance(tree[group], dict) and name in tree[group]]
    return kept + [f"--data.{group}.{name}={json.dumps(tree[group][name])}" for group, name in there]


class Given(NamedTuple):
    """One thing that was said of the data."""

    place: tuple[str, ...]  # below data
    value: Any
    file: str  # nothing for a flag

    def says(self, place: tuple[str, ...]) -> bool:
        """Whether it gives what is at that place, or some of it."""
        if self.place[: len(place)] == place:
            return True
        if place[: len(self.place)] != self.place:
            return False
        value = self.value
        for name in place[len(self.place) :]:
            if not isinstance(value, dict) or name not in value:
                return False
            value = value[name]
        return True


def data_given(arguments: Sequence[str]) -> Iterator[Given]:
    """What --config files and flags say of the data, in their order."""
    rest = iter(arguments)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if flag in ("-c", "--config"):
            file = value if equals else next(rest, "")
            with suppress(OSError, ValueError):  # jsonargparse says what is wrong with it
                content = loaded(Path(file).read_text(encoding="utf-8"))
                if isinstance(content, dict) and isinstance(content.get("data"), dict):
                    yield from (Given((name,), each, file) for name, each in content["data"].items())
        elif flag.startswith("--data."):
            yield Given(tuple(flag.split(".")[1:]), loaded(value if equals else next(rest, "")), "")


def loaded(text: str) -> Any:
    """What a flag or a file says, read as jsonargparse does it."""
    try:
        return get_loader("yaml")(text)
    except (ValueError, YAMLError):
        return text


if __name__ == "__main__":
    main()
