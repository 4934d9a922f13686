"""The report of `look`: what image shards hold, what settings would make of it, and the command to run next."""

import json
import re
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

import torch

from inpaint_data.commands.packing import pack
from inpaint_data.encoding.device import choose_device
from inpaint_data.encoding.settings import EncodeSettings
from inpaint_data.errors import UsageError
from inpaint_data.job.caching import inputs_of
from inpaint_data.job.settings import JobSettings
from inpaint_data.latent_cache.settings import plain
from inpaint_data.latent_cache.storage import STORED
from inpaint_data.masks.settings import MaskSettings
from inpaint_data.pictures.geometry import Size
from inpaint_data.pictures.settings import ExampleSettings, PictureSettings
from inpaint_data.pipeline.survey import TOO_SMALL, Survey, survey_shards
from inpaint_data.settings import Settings, short_name
from inpaint_data.shards.stores import FOLDER
from inpaint_data.shown import shown

BUCKETS = 6  # listed
CHANNELS = (("SD, SDXL", 4), ("SD3, Flux", 16))  # of latents
VAE = "stabilityai/sd-vae-ft-mse"  # of the command to run next: one that is small and open
LATENT = 8  # pixels of a latent's side, of most autoencoders
OF_A_SAMPLE = 4096  # bytes of its record and of the tar's headers, about


def look(
    source: str,
    pictures: PictureSettings,
    masks: MaskSettings,
    encode: EncodeSettings,
    job: JobSettings,
    samples: int,
) -> str:
    """The report, for a person to read. Masks are those that most samples bring, where no source is given.

    A folder that is not packed is paired first; the report begins with what belongs to what.

    Raises:
        UsageError: there are no shards, or they are a cache.
        ShardError: none can be read.
    """
    if samples < 1:
        raise UsageError(f"samples: {samples} is too small; give 1 or more", ("samples",))
    shards = inputs_of(source)
    drawn = MaskSettings(source="mixture")
    survey = survey_shards(shards, ExampleSettings(pictures, masks if "source" in masks.given else drawn), (), samples)
    if "source" not in masks.given:
        masks = masks.but(source=brought_by(survey))
        if masks.source != drawn.source:
            survey = survey_shards(shards, ExampleSettings(pictures, masks), (), samples)
    lines = _held(survey) + survey.lines() + _made_of_it(survey, job)
    lines += [("next", line) for line in _next(source, (pictures, masks, encode, job), survey)]
    report = "\n".join(shown(f"  {name:<13} {text}") for name, text in lines)
    if not shards[0].startswith(FOLDER):
        return report
    return f"{pack(source, 'shards', dry_run=True).table()}\n\n{report}"


def brought_by(survey: Survey) -> str:
    """The source of masks that at least half of the samples have; a mixture where none has."""
    enough = max(1, survey.samples // 2)
    if sum(count for name, count in survey.members.items() if re.match(r"mask\.0\.", name)) >= enough:
        return "object"
    if survey.members["json"] >= enough and survey.annotated * 2 >= max(1, survey.jsons):
        return "object"
    one = sum(count for name, count in survey.members.items() if re.fullmatch(r"mask\.[a-z]+", name))
    return "sample" if one >= enough else "mixture"


def _held(survey: Survey) -> list[tuple[str, str]]:
    about = "" if survey.is_whole else f"; looked at {survey.samples} of about {survey.samples * survey.times:,.0f}"
    members = ", ".join(f"{name} {count}" for name, count in survey.members.most_common())
    lines = [
        ("shards", f"{survey.shards}, {survey.bytes / 1e6:,.1f} MB"),
        ("samples", f"{survey.samples}{about}"),
        ("members", members or "none"),
        ("captions", f"{survey.captions} of {survey.samples}"),
    ]
    if survey.transparent:
        lines.append(("transparency", f"{survey.transparent} have an alpha channel, which is dropped; --masks alpha "
                      "repaints what is transparent, with --repaint opaque the rest"))  # fmt: skip
    if survey.sizes:
        sizes = sorted(survey.sizes.elements(), key=lambda size: size[0] * size[1])
        named = [f"{name} {_size(sizes[place])}" for name, place in (("least", 0), ("median", len(sizes) // 2))]
        lines.append(("images", f"{', '.join(named)}, largest {_size(sizes[-1])} (height x width)"))
    return lines


def _made_of_it(survey: Survey, job: JobSettings) -> list[tuple[str, str]]:
    if not survey.targets:
        return []
    named = ", ".join(f"{_size(size)} {count}" for size, count in survey.targets.most_common(BUCKETS))
    more = f" ... of {len(survey.targets)} sizes" if len(survey.targets) > BUCKETS else ""
    lines = [("views", named + more)]
    for models, channels in CHANNELS:
        size = _bytes(survey.targets, channels, job) * survey.times
        lines.append(("cache", f"about {size / 1e9:.3g} GB, {models} ({channels} channels, {job.variants} variants)"))
    device = choose_device(job.device)
    seconds = survey.pixels * (1 + job.variants) * seconds_of_a_pixel(device)
    lines.append(("time", f"about {timedelta(seconds=round(seconds))} on {device}, for an encoder of SD's size"))
    return lines


def _bytes(targets: Counter[Size], channels: int, job: JobSettings) -> float:
    """Of a cache of such views: moments of the image and of each variant at an eighth of its sides, and masks."""
    number = STORED[job.storage].itemsize
    pixels = sum(height * width * count for (height, width), count in targets.items())
    parts = [1 if key in job.means else 2 for key in ("latents", *["masked_latents"] * job.variants)]
    latents = sum(parts) * channels * number / 64
    return pixels * (latents + job.variants / 8) + targets.total() * OF_A_SAMPLE


def seconds_of_a_pixel(device: torch.device) -> float:
    """What a pixel takes in an encoder of the size that SD, SDXL, SD3 and Flux share, timed with random weights."""
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"]}
    with torch.device(device), torch.inference_mode():
        vae = AutoencoderKL(block_out_channels=[128, 256, 512, 512], layers_per_block=2, **blocks)
        image = torch.zeros(1, 3, *([128, 128] if device.type == "cpu" else [512, 512]))
        taken = []
        for _ in range(2):  # the first one warms up
            started = time.perf_counter()
            vae.encode(image).latent_dist.mean.sum().item()
            taken.append(time.perf_counter() - started)
    return taken[-1] / image[0, 0].numel()


def _next(source: str, groups: Sequence[Settings], survey: Survey) -> list[str]:
    """What to do now: what would keep more samples, then the command, with all that was given to this one."""
    lines = []
    if survey.unusable[TOO_SMALL]:
        lines.append(f"{survey.unusable[TOO_SMALL]} images are too small; --small bucket, --upscale or a lower "
                     "--resolution keeps them")  # fmt: skip
    odd = sorted({side for size in survey.targets for side in size if side % LATENT})
    if odd:
        lines.append(f"sides of {', '.join(map(str, odd[:3]))} are no multiples of {LATENT}, which autoencoders take; "
                     f"--resolution {max(1, round(odd[0] / LATENT)) * LATENT} is one")  # fmt: skip
    if not survey.targets:
        reason = next((survey.examples[kind][0] for kind, _ in survey.unusable.most_common()), "there are no samples")
        return [*lines, f"nothing can be cached like this: {reason}"]
    words = ["inpaint-data", "cache", "--shards", source, "--out", "cache"]
    for group in groups:
        for name, value in group.given.items():
            text = value if isinstance(value, str) else json.dumps(plain(value), separators=(",", ":"))
            words += [f"--{short_name(type(group), name)}", text]
    if "--vae" not in words:
        lines.append("--for sdxl-inpaint, flux-fill … sets the autoencoder and the sizes of a model")
        words += ["--vae", VAE]
    return [*lines, shlex.join(words)]


def _size(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
