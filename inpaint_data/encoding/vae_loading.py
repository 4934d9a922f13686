"""Loading of autoencoders: from a name on the Hub, a folder or a file, and never from a pickle."""

import json
import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import huggingface_hub
import torch
from safetensors import safe_open
from torch import nn

from inpaint_data.demo import VAE
from inpaint_data.encoding.models import MODELS
from inpaint_data.encoding.settings import DTYPES
from inpaint_data.encoding.vae import Autoencoder, cause
from inpaint_data.errors import UsageError, VaeError
from inpaint_data.shards.stores import is_url, local_path
from inpaint_data.shown import shortened

V = TypeVar("V")
PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

PARTS = ("vae", "movq")  # where a pipeline has its autoencoder; the second is Kandinsky's

# diffusers' names: model.safetensors, model.fp16.safetensors, and of weights in parts model-00001-of-00002.safetensors,
# model.fp16-00001-of-00002.safetensors, model.safetensors.index.json and model.safetensors.index.fp16.json.
WEIGHTS = re.compile(
    r"diffusion_pytorch_model(\.(?P<variant>(?!safetensors)[^.-]+))?(-\d+-of-\d+)?\.safetensors"
    r"(\.index(\.(?P<old>[^.]+))?\.json)?"
)


def load_vae(
    name_or_path: str | os.PathLike[str],
    dtype: torch.dtype | str | None = torch.float32,
    channels_last: bool | None = None,
    compile: bool = False,
    device: torch.device | str = "cpu",
) -> Autoencoder:
    """The autoencoder of that name. Only safetensors are read, never pickles.

    Args:
        name_or_path: "demo", the small one in this package; a folder with config.json or vae/config.json; a
            .safetensors file in diffusers' or the original format, best with its config.json beside it; or a name
            on the Hugging Face Hub. Where there are no plain weights, those of the one variant are loaded, such as
            diffusion_pytorch_model.fp16.safetensors; of several, name the file.
        dtype: what it computes in, see `parse_dtype`; None for what diffusers loads it in.
        channels_last, compile: see `Autoencoder`.
        device: where it goes now; later it follows the pixels.

    Raises:
        VaeError: one line with the file or name, what went wrong and the fix.
    """
    precision = None if dtype is None else parse_dtype(dtype)
    name = os.fspath(name_or_path)
    if not name:
        raise VaeError("vae: the name is empty; give a folder, a .safetensors file, a Hub name, or demo")
    path = VAE if name == "demo" else local_path(name)
    if path.suffix in {".ckpt", ".bin", ".pt", ".pth", ".pkl"}:
        raise VaeError(f"{name}: pickles can run code and are never loaded; convert it to .safetensors")
    if path.is_dir():
        folders = [path / part for part in PARTS if (path / part / "config.json").is_file()]
        module = _from_pretrained(str([*folders, path][0]), (None,), offline=True)
    elif path.is_file():
        module = _from_file(path)
    elif is_url(name):
        address = re.match(r"(?:hf://|https?://(?:www\.)?huggingface\.co/)([\w.-]+/[\w.-]+)", name)
        fix = f"write {address[1]}" if address else "copy it into a folder here, and name that"
        raise VaeError(f"vae: {name} is a URL, from which none is loaded; {fix}")
    elif (
        name == "demo"
        or isinstance(name_or_path, os.PathLike)
        or path.suffix == ".safetensors"
        or not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name)
    ):
        raise VaeError(f"vae: there is no {name!r}; give a folder, a .safetensors file, a Hub name, or demo")
    elif "/" not in name:  # no autoencoder on the Hub is without an owner, and asking it takes long
        raise VaeError(f"vae: there is no folder {name!r}, and names on the Hub are OWNER/NAME; {_instead_of(name)}")
    else:
        # The parts first: pipelines may have a config.json of their own at the root, autoencoders have no such folder.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*local_dir_use_symlinks")  # a retired argument diffusers still passes
            module = _from_pretrained(name, (*PARTS, None), offline=not hub_answers())
    return Autoencoder(module.to(device), name=name, dtype=precision, channels_last=channels_last, compile=compile)


def vae_of_cache(named: V | None, config: Mapping[str, Any]) -> V | Literal["demo"]:
    """The autoencoder that was named for a cache; where none was, the demo's if it made the cache.

    Raises:
        UsageError: none was named, and the cache is not the demo's.
    """
    if named is not None:
        return named
    own = json.loads((VAE / "config.json").read_bytes())
    if any(config.get(name) != value for name, value in own.items() if not name.startswith("_")):
        raise UsageError("vae: none is given; name the one that the cache was made with", place=("vae",))
    return "demo"


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """float32, float16 or bfloat16 by name (also fp32, fp16, bf16 ...) or as they are; anything else is a VaeError."""
    name = DTYPES.get(str(dtype), str(dtype))
    if name not in PRECISIONS:
        raise VaeError(f"dtype '{name}': choose from {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def _instead_of(name: str) -> str:
    """Which autoencoders somebody may have meant who wrote a name without an owner."""
    letters = re.sub("[^a-z0-9]", "", name.lower()).removesuffix("vae")
    near = [
        model.name
        for recipe, model in MODELS.items()
        if len(letters) > 1 and letters in re.sub("[^a-z0-9]", "", f"{recipe} {model.name}".lower())
    ]
    if not near:
        return "write such a name, demo, or the path of a folder or a .safetensors file"
    return f"did you mean {' or '.join(list(dict.fromkeys(near))[:2])}?"


def hub_answers() -> bool:
    """One short request, since each download retries a dead network for half a minute."""
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=5)
    except Exception:
        return False
    return True


def _class_of(source: str, subfolder: str | None, offline: bool) -> Any:
    """The diffusers class that config.json of a folder or a Hub name asks for."""
    import diffusers  # half of what it takes to start, and not needed to train from a cache

    config = diffusers.AutoencoderKL.load_config(source, subfolder=subfolder, local_files_only=offline)
    name = str(config.get("_class_name"))
    vae_class = getattr(diffusers, name, None)
    if not isinstance(vae_class, type) or not issubclass(vae_class, nn.Module) or not hasattr(vae_class, "encode"):
        raise VaeError(
            f"{source}: config.json has _class_name {name}, and diffusers {diffusers.__version__} has no such "
            "autoencoder; correct it or upgrade diffusers"
        )
    return vae_class


def _check_index(source: str, subfolder: str | None, offline: bool, variant: str | None) -> None:
    """Check that weights in several files are safetensors files beside their index: diffusers loads what that names.

    Raises:
        VaeError: another file is named, a pickle or one elsewhere.
    """
    name = f"diffusion_pytorch_model.safetensors.index.{variant + '.' if variant else ''}json"
    try:
        if os.path.isdir(source):
            path = Path(source, subfolder or "", name)
        else:
            path = Path(huggingface_hub.hf_hub_download(source, name, subfolder=subfolder, local_files_only=offline))
        weights = json.loads(path.read_bytes())["weight_map"].values()
    except (FileNotFoundError, huggingface_hub.errors.EntryNotFoundError):
        return  # weights in one file have none
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise VaeError(f"{source}: {name} cannot be read ({cause(error)}); download it again") from None
    for file in weights:
        if not (isinstance(file, str) and re.fullmatch(r"[\w-][\w.-]*\.safetensors", file)):
            raise VaeError(
                f"{source}: {name} names {shortened(file)}, which is not a safetensors file beside it; pickles can run "
                "code and are never loaded: convert the weights to safetensors"
            )


def _variant_in(source: str, subfolder: str | None, offline: bool) -> str | None:
    """The variant whose weights are to be loaded: None where there are plain ones, or nobody knows what there is.

    Raises:
        VaeError: there are several variants, and no plain weights.
    """
    folder = Path(source)
    if folder.is_dir():
        names = [path.name for path in (folder / (subfolder or "")).iterdir()]
    elif offline:
        names = _names_in_cache(source, subfolder)
    else:
        files = [Path(name) for name in huggingface_hub.list_repo_files(source)]
        names = [file.name for file in files if file.parent == Path(subfolder or "")]
    variants = {variant for name in names if (variant := _variant_of(name)) is not None}
    if not variants or "" in variants:
        return None
    if len(variants) > 1:
        listed = ", ".join(f"diffusion_pytorch_model.{variant}.safetensors" for variant in sorted(variants))
        raise VaeError(f"{source}: has the weights {listed}, and none without a variant; name the file as the vae")
    return variants.pop()


def _variant_of(name: str) -> str | None:
    """The variant of a file of weights, or of the index of several; "" for the plain one, None for any other file."""
    match = WEIGHTS.fullmatch(name)
    return (match["variant"] or match["old"] or "") if match else None


def _names_in_cache(source: str, subfolder: str | None) -> list[str]:
    """The names of the files that the Hub's local cache has beside the config.json."""
    parts = [subfolder] if subfolder else []
    config = huggingface_hub.try_to_load_from_cache(source, "/".join([*parts, "config.json"]))
    return [path.name for path in Path(config).parent.iterdir()] if isinstance(config, str) else []


def _from_pretrained(
    source: str, subfolders: Sequence[str | None], offline: bool, variant: str | None = None
) -> nn.Module:
    """The first of those subfolders of a folder or a Hub name that has a config.json; no weight stays at random."""
    problem = ""
    for subfolder in subfolders:
        try:
            vae_class = _class_of(source, subfolder, offline)
        except VaeError:
            raise
        except Exception as error:
            problem = cause(error)
            continue
        options: dict[str, Any] = {"subfolder": subfolder, "local_files_only": offline, "use_safetensors": True}
        try:
            variant = variant or _variant_in(source, subfolder, offline)
            options["variant"] = variant
            _check_index(source, subfolder, offline, variant)
            # low_cpu_mem_usage=False: else every load warns when accelerate is not installed.
            loaded = vae_class.from_pretrained(source, low_cpu_mem_usage=False, output_loading_info=True, **options)
        except VaeError:
            raise
        except Exception as error:
            raise VaeError(f"{source}: {cause(error)}; download or save the safetensors weights again") from None
        module: nn.Module = loaded[0]
        if missing := sorted(loaded[1]["missing_keys"]):
            raise VaeError(f"{source}: {len(missing)} weights are missing, first {missing[0]}; save them again")
        return module
    tried = " or ".join(f"{subfolder}/config.json" if subfolder else "config.json" for subfolder in subfolders)
    place = " in the cache, and the Hub does not answer" if offline else " on the Hub"
    if len(subfolders) == 1:  # a folder
        place = ""
    check = "check the network and the name" if place and offline else "check the name"
    raise VaeError(
        f"{source}: no usable {tried}{place} ({problem}); {check}, or give a folder that save_pretrained wrote"
    )


def _from_file(file: Path) -> nn.Module:
    """A single .safetensors file, its class and shape from the config.json beside it if there is one."""
    import diffusers  # as above

    has_config = (file.parent / "config.json").is_file()
    variant = _variant_of(file.name)
    if has_config and variant is not None:  # what save_pretrained wrote
        return _from_pretrained(str(file.parent), (None,), offline=True, variant=variant or None)
    try:
        with safe_open(file, framework="pt") as weights:
            names = list(weights.keys())
            # The original format keeps the autoencoder beside a whole diffusion model.
            names = [name for name in names if name.startswith(("first_stage_model.", "vae."))] or names
            stored = sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
    except Exception as error:
        raise VaeError(f"{file}: not a whole safetensors file ({cause(error)}); download it again") from None
    try:
        vae_class = _class_of(str(file.parent), None, offline=True) if has_config else diffusers.AutoencoderKL
        if not hasattr(vae_class, "from_single_file"):
            raise VaeError(
                f"{file}: {vae_class.__name__} has no single-file format; name it diffusion_pytorch_model.safetensors"
            )
        options = {"config": str(file.parent)} if has_config else {}
        offline = has_config or not hub_answers()
        module: nn.Module = vae_class.from_single_file(
            str(file), low_cpu_mem_usage=False, local_files_only=offline, **options
        )
    except VaeError:
        raise
    except Exception as error:
        fix = "check the config.json beside it" if has_config else "put the VAE's config.json beside it"
        raise VaeError(f"{file}: cannot be loaded ({cause(error)}); {fix}") from None
    # from_single_file leaves what it does not find at random; its conversions keep the number of values.
    needed = sum(parameter.numel() for parameter in module.parameters())
    if stored < needed:
        raise VaeError(f"{file}: {stored} values, but config.json asks for {needed}; one of them is the wrong file")
    return module
