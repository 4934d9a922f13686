"""Text encoders: what a diffusers pipeline makes of a caption, by its own `encode_prompt` (diffusers 0.42.1).

Of a pipeline only its text encoders, tokenizers and processors are loaded. Each caption is encoded alone, so that what
it becomes does not depend on what else there is; equal captions are encoded once.
"""

import inspect
import logging
import os
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from inpaint_data.encoding.settings import TextModelSettings
from inpaint_data.encoding.weights import weights_sha256
from inpaint_data.errors import UsageError
from inpaint_data.shards.stores import local_path

Arrays = Mapping[str, npt.NDArray[Any]]
KEPT_BYTES = 2**28  # of captions that were encoded already
_PARTS = re.compile(r"(text_encoder|tokenizer|processor)(_\d)?")


@dataclass(frozen=True)
class TextSide:
    """A row of `TEXT_SIDES`.

    Attributes:
        outputs: what `encode_prompt` gives, in its order, by the name of the pipeline's argument; None for what is not
            kept.
        picture_area: pixels of the picture that is encoded with the caption; 0 where none is.
        package: what the pipeline needs besides transformers.
    """

    outputs: tuple[str | None, ...]
    picture_area: int = 0
    package: str = ""


_POOLED = TextSide(("prompt_embeds", None, "pooled_prompt_embeds"))
_ALONE = TextSide(("prompt_embeds",))
_MASKED = TextSide(("prompt_embeds", "prompt_embeds_mask"))
# By what the names of the pipelines begin with; the longest one counts.
TEXT_SIDES: Mapping[str, TextSide] = {
    "StableDiffusion": _ALONE,
    "StableDiffusionXL": _POOLED,
    "StableDiffusion3": _POOLED,
    "Flux": TextSide(("prompt_embeds", "pooled_prompt_embeds")),
    "Flux2": _ALONE,
    "Chroma": TextSide(("prompt_embeds", None, "prompt_attention_mask")),
    "QwenImage": _MASKED,
    "QwenImageEdit": TextSide(_MASKED.outputs, picture_area=1024 * 1024),
    "QwenImageEditPlus": TextSide(_MASKED.outputs, picture_area=384 * 384),
    "ZImage": _ALONE,
    "Wan": TextSide(("prompt_embeds",), package="ftfy"),
    "KandinskyV22Prior": TextSide(("prompt_embeds", "text_encoder_hidden_states", "text_mask")),
}


class TextEncoder:
    """The text side of a pipeline.

    Args:
        settings: with the pipeline's name.
        device: where captions are encoded.

    Raises:
        UsageError: transformers is missing, the pipeline cannot be loaded, or there is no row for it.
    """

    def __init__(self, settings: TextModelSettings, device: torch.device) -> None:
        try:
            import transformers  # noqa: F401 - the error of diffusers is less clear
        except ModuleNotFoundError:
            raise UsageError("text_model needs transformers: pip install 'inpaint_data[text]'") from None
        self.settings, self.device = settings, device
        name = os.path.expanduser(settings.model)
        config = _config_of(name)
        self.kind: str = config["_class_name"]
        self.side = _side_of(self.kind, settings.model)
        if self.side.package and find_spec(self.side.package) is None:
            raise UsageError(f"text_model: {self.kind} needs {self.side.package}; install it with pip")
        parts = _load_parts(name, config, settings.dtype, device)
        self.pipeline: Any = _assembled(self.kind, config, parts)
        self._encoders = {part: module for part, module in parts.items() if isinstance(module, nn.Module)}
        self._tokenizers = [each for part, each in parts.items() if part.startswith("tokenizer")]
        self._known: OrderedDict[str, Arrays] = OrderedDict()
        self._known_bytes = 0

    @property
    def needs_picture(self) -> bool:
        """Whether a caption is encoded with its picture."""
        return self.side.picture_area > 0

    def encode(self, caption: str, picture: Tensor | None = None) -> Arrays:
        """What the pipeline's `encode_prompt` gives for a caption, without its batch dimension.

        Args:
            caption: of one image.
            picture: (3, H, W) uint8, where `needs_picture`; the pipeline's own size of it is encoded.

        Returns:
            By the pipeline's arguments: (L, D) and (D,) of the dtype it computes in, bfloat16 as the uint16 of its
            bits; masks (L,) bool.
        """
        if picture is not None:
            return self._encode(caption, picture)
        if caption in self._known:
            self._known.move_to_end(caption)
            return self._known[caption]
        arrays = self._encode(caption, None)
        self._known[caption] = arrays
        self._known_bytes += _bytes_of(arrays)
        while self._known_bytes > KEPT_BYTES and len(self._known) > 1:
            self._known_bytes -= _bytes_of(self._known.popitem(last=False)[1])
        return arrays

    def empty(self) -> Arrays:
        """What the pipeline takes without a negative prompt: of "", or zeros where it says so, as XL does."""
        arrays = self.encode("", self._grey if self.needs_picture else None)
        if not getattr(self.pipeline.config, "force_zeros_for_empty_prompt", False):
            return arrays
        return {name: np.zeros_like(array) for name, array in arrays.items()}

    def is_too_long(self, caption: str) -> bool:
        """Whether each of the encoders sees only the beginning of a caption."""
        parameter = inspect.signature(self._encode_prompt).parameters.get("max_sequence_length")
        given = self.settings.max_length or (parameter.default if parameter else None)
        for tokenizer in self._tokenizers:
            own = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
            is_clip = type(own).__name__.startswith("CLIP")
            limit = own.model_max_length if is_clip or given is None else given
            if len(own(caption, verbose=False).input_ids) <= limit:
                return False
        return bool(self._tokenizers)

    def fingerprint(self) -> dict[str, Any]:
        """All that decides the embeddings, for JSON."""
        return {
            "kind": self.kind,
            "weights_sha256": self._weights_sha256,
            "dtype": self.settings.dtype,
            "max_length": self.settings.max_length,
            "versions": {name: version(name) for name in ("diffusers", "transformers")},
            "members": self.members,
        }

    @property
    def members(self) -> list[str]:
        """The names of the members that a sample gets."""
        return [f"{name}.npy" for name in self.side.outputs if name and name != "prompt_embeds_mask"]

    @cached_property
    def _weights_sha256(self) -> dict[str, str]:
        return {part: weights_sha256(module) for part, module in self._encoders.items()}

    @property
    def _encode_prompt(self) -> Any:
        return getattr(self.pipeline, "encode_prompt", None) or self.pipeline._encode_prompt

    @property
    def _grey(self) -> Tensor:
        return torch.full((3, 64, 64), 128, dtype=torch.uint8)

    def _encode(self, caption: str, picture: Tensor | None) -> Arrays:
        takes = inspect.signature(self._encode_prompt).parameters
        arguments: dict[str, Any] = {
            "prompt": caption,
            **dict.fromkeys(("prompt_2", "prompt_3")),
            "device": self.device,
            "num_images_per_prompt": 1,
            "num_videos_per_prompt": 1,
            "do_classifier_free_guidance": False,
        }
        if self.settings.max_length is not None:
            arguments["max_sequence_length"] = self.settings.max_length
        if picture is not None:
            arguments["image"] = [self._resized(picture)]
        with torch.inference_mode(), _quiet(type(self.pipeline).__module__, "transformers"):
            given = self._encode_prompt(**{name: value for name, value in arguments.items() if name in takes})
        outputs = dict(zip(self.side.outputs, given if isinstance(given, tuple) else (given,), strict=False))
        found = {name: value[0] for name, value in outputs.items() if name and value is not None}
        mask = found.pop("prompt_embeds_mask", None)  # Qwen's, of what a batch is padded with
        if mask is not None:
            found["prompt_embeds"] = found["prompt_embeds"][mask.bool()]
        return {name: _array(value.bool() if name.endswith("_mask") else value) for name, value in found.items()}

    def _resized(self, picture: Tensor) -> Any:
        from PIL import Image

        image = Image.fromarray(picture.permute(1, 2, 0).cpu().numpy())
        module: Any = inspect.getmodule(type(self.pipeline))
        width, height, *_ = module.calculate_dimensions(self.side.picture_area, image.width / image.height)
        return self.pipeline.image_processor.resize(image, height, width)


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Without what libraries say of each caption that is too long; `is_too_long` tells."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _bytes_of(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:  # which NumPy does not have
        bits: npt.NDArray[Any] = tensor.view(torch.int16).numpy().view(np.uint16)
        return bits
    array: npt.NDArray[Any] = tensor.numpy()
    return array


def _side_of(kind: str, name: str) -> TextSide:
    fitting = [beginning for beginning in TEXT_SIDES if re.match(rf"{beginning}(?=[A-Z])", kind)]
    if not fitting:
        raise UsageError(
            f"text_model: {name} is a {kind}, whose text is not encoded here; give a pipeline that begins with "
            f"{', '.join(TEXT_SIDES)}, or put embeddings of your own into the shards as members"
        )
    return TEXT_SIDES[max(fitting, key=len)]


@cache
def _is_offline(name: str) -> bool:
    """True if the model is a folder, or the Hub does not answer: each download would retry for minutes."""
    from inpaint_data.encoding.vae_loading import hub_answers

    return local_path(name).is_dir() or not hub_answers()


def _config_of(name: str) -> dict[str, Any]:
    """The model_index.json of a pipeline."""
    from diffusers import DiffusionPipeline

    try:
        config: dict[str, Any] = DiffusionPipeline.load_config(name, local_files_only=_is_offline(name))
    except (OSError, ValueError) as error:
        place = "" if local_path(name).is_dir() or not _is_offline(name) else ", and the Hub does not answer"
        raise UsageError(
            f"text_model: {name} cannot be loaded ({_line(error)}){place}; give the name or the folder of a diffusers "
            "pipeline, which has a model_index.json"
        ) from None
    return config


def _load_parts(name: str, config: Mapping[str, Any], dtype: str, device: torch.device) -> dict[str, Any]:
    """The text encoders, tokenizers and processors of a pipeline; None for what it has not."""
    parts: dict[str, Any] = {}
    for part, kind in sorted(config.items()):
        if _PARTS.fullmatch(part) is None or not isinstance(kind, list):
            continue
        try:
            parts[part] = None if kind[1] is None else _load_part(name, part, str(kind[1]), dtype, device)
        except Exception as error:  # each of the libraries that read a part has errors of its own
            raise UsageError(
                f"text_model: {name}: its {part} cannot be loaded ({_line(error)}); check the name or the folder"
            ) from None
    for part, module in parts.items():
        tokenizer = parts.get(part.replace("text_encoder", "tokenizer"))
        if isinstance(module, nn.Module) and tokenizer is not None:
            _check_tokenizer(name, part, getattr(tokenizer, "tokenizer", tokenizer), module)
    return parts


def _load_part(name: str, part: str, kind: str, dtype: str, device: torch.device) -> Any:
    """Load one part. What a folder lacks is an error; transformers would make up weights."""
    import transformers

    own = getattr(transformers, kind)
    local: Any = {"subfolder": part, "local_files_only": _is_offline(name)}
    if not issubclass(own, nn.Module):
        return own.from_pretrained(name, **local)
    module, loading = own.from_pretrained(
        name, torch_dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True, **local
    )
    if loading["missing_keys"]:
        raise ValueError(f"it has no {', '.join(sorted(loading['missing_keys'])[:3])}")
    return module.eval().to(device)


def _check_tokenizer(name: str, part: str, tokenizer: Any, module: nn.Module) -> None:
    """A tokenizer that is not the encoder's own, as transformers makes one up where files are missing."""
    config: Any = module.config
    config = getattr(config, "text_config", config)
    count, known = len(tokenizer), config.vocab_size
    if not 0.9 * known <= count <= known:
        raise UsageError(
            f"text_model: {name} cannot be loaded (its tokenizer has {count} tokens, its {part} {known}); check the "
            "folder"
        )
    if type(tokenizer).__name__.startswith("CLIP"):
        tokenizer.model_max_length = min(tokenizer.model_max_length, config.max_position_embeddings)


def _assembled(kind: str, config: Mapping[str, Any], parts: Mapping[str, Any]) -> Any:
    """The pipeline with these parts and none of the others."""
    import diffusers

    own = getattr(diffusers, kind, None)
    if own is None:
        raise UsageError(f"text_model: diffusers {diffusers.__version__} has no {kind}; upgrade it")
    arguments: dict[str, Any] = {}
    for name, parameter in list(inspect.signature(own.__init__).parameters.items())[1:]:
        if name in parts:
            arguments[name] = parts[name]
        elif name in config and not isinstance(config[name], list):
            arguments[name] = config[name]
        elif parameter.default is parameter.empty:
            arguments[name] = None
    return own(**arguments)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
