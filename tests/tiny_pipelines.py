"""Pipelines of diffusers with tiny text encoders of random weights, of the classes that the real ones have."""

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ part['text'] if part['type'] == 'text' else '' }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
CLIP_LENGTH = 16  # tokens of the tiny CLIP, a real one has 77


def clip_tokenizer(folder: Path, pad_token: str = "<|endoftext|>") -> transformers.CLIPTokenizer:
    """A real byte-level tokenizer with three merges."""
    letters = sorted(ByteLevel.alphabet())
    words = ["ph", "pho", "ot</w>"]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), *words, "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\np h\nph o\no t</w>\n")
    return transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=CLIP_LENGTH, pad_token=pad_token)


def clip(kind: Any, tokenizer: Any, seed: int, width: int = 16) -> Any:
    torch.manual_seed(seed)
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        projection_dim=24,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=CLIP_LENGTH,
        initializer_factor=30.0,  # larger than usual, so that captions differ in half precision
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return kind(config).eval()


def t5_tokenizer() -> Any:
    letters = [(letter, -2.0) for letter in "▁abcdefghijklmnopqrstuvwxyz,."]
    return transformers.T5TokenizerFast(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters], extra_ids=0)


def t5(kind: Any = transformers.T5EncoderModel, config: Any = transformers.T5Config) -> Any:
    torch.manual_seed(2)
    return kind(config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)).eval()


def qwen_tokenizer(folder: Path) -> Any:
    folder.mkdir(parents=True)
    words = [*sorted(ByteLevel.alphabet()), *SPECIAL]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.Qwen2Tokenizer.from_pretrained(
        folder, pad_token="<|endoftext|>", additional_special_tokens=SPECIAL[1:]
    )
    tokenizer.chat_template = CHAT
    return tokenizer


DECODER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 2048,
}


def qwen3(kind: Any, tokenizer: Any, layers: int) -> Any:
    torch.manual_seed(3)
    config = transformers.Qwen3Config(vocab_size=len(tokenizer), **(DECODER | {"num_hidden_layers": layers}))
    return kind(config).eval()


def qwen_vl(tokenizer: Any) -> Any:
    torch.manual_seed(4)
    text = DECODER | {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}, "vocab_size": len(tokenizer)}
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 16}
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")
    }
    config = transformers.Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision | {"fullatt_block_indexes": [1]},
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        **ids,
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config).eval()


def parts_of(kind: str, folder: Path) -> dict[str, Any]:
    """The text side of a pipeline of that class."""
    if kind.startswith("StableDiffusion3"):
        one, two = clip_tokenizer(folder / "1"), clip_tokenizer(folder / "2", pad_token="!")
        with_head = transformers.CLIPTextModelWithProjection
        return {
            **{"tokenizer": one, "tokenizer_2": two, "tokenizer_3": t5_tokenizer()},
            **{"text_encoder": clip(with_head, one, 0, 8), "text_encoder_2": clip(with_head, two, 1, 8)},
            "text_encoder_3": t5(),
        }
    if kind.startswith("StableDiffusionXL"):
        one, two = clip_tokenizer(folder / "1"), clip_tokenizer(folder / "2", pad_token="!")
        second = clip(transformers.CLIPTextModelWithProjection, two, 1, width=32)
        return {
            **{"tokenizer": one, "tokenizer_2": two},
            **{"text_encoder": clip(transformers.CLIPTextModel, one, 0), "text_encoder_2": second},
        }
    if kind.startswith(("StableDiffusion", "KandinskyV22Prior")):
        own = clip_tokenizer(folder / "1")
        model = "CLIPTextModel" if kind.startswith("Stable") else "CLIPTextModelWithProjection"
        return {"tokenizer": own, "text_encoder": clip(getattr(transformers, model), own, 0)}
    if kind.startswith(("Chroma", "Wan")):
        return {
            "tokenizer": t5_tokenizer(),
            "text_encoder": t5() if kind[0] == "C" else t5(transformers.UMT5EncoderModel, transformers.UMT5Config),
        }
    if kind.startswith(("Flux2Klein", "ZImage")):
        own = qwen_tokenizer(folder / "1")
        if kind.startswith("Flux2"):  # takes its 27th layer too
            return {"tokenizer": own, "text_encoder": qwen3(transformers.Qwen3ForCausalLM, own, 28)}
        return {"tokenizer": own, "text_encoder": qwen3(transformers.Qwen3Model, own, 3)}
    if kind.startswith("Flux"):
        own = clip_tokenizer(folder / "1")
        return {
            **{"tokenizer": own, "text_encoder": clip(transformers.CLIPTextModel, own, 0)},
            **{"tokenizer_2": t5_tokenizer(), "text_encoder_2": t5()},
        }
    own = qwen_tokenizer(folder / "1")
    parts = {"tokenizer": own, "text_encoder": qwen_vl(own)}
    if kind.startswith("QwenImageEdit"):
        pictures = transformers.Qwen2VLImageProcessorPil()
        parts["processor"] = Qwen2VLProcessor(pictures, own, chat_template=CHAT)
    return parts


class Qwen2VLProcessor(transformers.Qwen2VLProcessor):
    """transformers' own without its part for videos, which needs torchvision."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
        super().__init__(image_processor, tokenizer, None, chat_template)


def pipeline_of(kind: str, folder: Path) -> Any:
    """A pipeline with nothing but its text side, saved in `folder`."""
    import inspect

    own = getattr(diffusers, kind)
    parts = parts_of(kind, folder / "made_of")
    needed = [name for name, each in inspect.signature(own.__init__).parameters.items() if each.default is each.empty]
    pipeline = own(**{name: None for name in needed if name != "self"} | parts)
    pipeline.save_pretrained(folder)
    return pipeline
