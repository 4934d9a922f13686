"""Captions become what each diffusers pipeline makes of them, in shards and in the job, and tensors of a batch."""

import io
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from conftest import run, small_samples, write_shard
from flat import data_module
from tiny_pipelines import Qwen2VLProcessor, pipeline_of

from inpaint_data import LatentCache, UsageError, cache_latents, verify_cache
from inpaint_data.encoding.models import MODELS
from inpaint_data.encoding.recipe_rows import RECIPES
from inpaint_data.encoding.settings import TextModelSettings
from inpaint_data.encoding.text_encoder import TEXT_SIDES, TextEncoder

CPU = torch.device("cpu")
CAPTIONS = ["a photo of b", "", "a, photo"]
OUTPUTS = {  # of encode_prompt, as each pipeline's own __call__ unpacks it
    "StableDiffusionPipeline": ["prompt_embeds", ""],
    "StableDiffusionInpaintPipeline": ["prompt_embeds", ""],
    "StableDiffusionXLInpaintPipeline": ["prompt_embeds", "", "pooled_prompt_embeds", ""],
    "StableDiffusion3InpaintPipeline": ["prompt_embeds", "", "pooled_prompt_embeds", ""],
    "FluxFillPipeline": ["prompt_embeds", "pooled_prompt_embeds", ""],
    "FluxKontextInpaintPipeline": ["prompt_embeds", "pooled_prompt_embeds", ""],
    "Flux2KleinInpaintPipeline": ["prompt_embeds", ""],
    "ChromaInpaintPipeline": ["prompt_embeds", "", "prompt_attention_mask", "", "", ""],
    "QwenImageInpaintPipeline": ["prompt_embeds", "prompt_embeds_mask"],
    "QwenImageEditInpaintPipeline": ["prompt_embeds", "prompt_embeds_mask"],
    "QwenImageEditPlusPipeline": ["prompt_embeds", "prompt_embeds_mask"],
    "ZImageInpaintPipeline": ["prompt_embeds", ""],
    "WanVACEPipeline": ["prompt_embeds", ""],
    "KandinskyV22PriorPipeline": ["prompt_embeds", "text_encoder_hidden_states", "text_mask"],
}
PICTURE = torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def encoder_of(kind: str, folder: Path, dtype: str = "float32", **settings: Any) -> tuple[TextEncoder, Any]:
    """Ours, and the pipeline that it is of."""
    folder.mkdir()
    components = pipeline_of(kind, folder).components
    none = {name: None for name, each in components.items() if each is None or name == "processor"}
    pipeline = getattr(diffusers, kind).from_pretrained(folder, torch_dtype=getattr(torch, dtype), **none)
    if "processor" in components:
        pipeline.processor = components["processor"]
    return TextEncoder(TextModelSettings(model=str(folder), dtype=dtype, **settings), CPU), pipeline


def theirs(pipeline: Any, names: list[str], caption: str, **arguments: Any) -> dict[str, torch.Tensor]:
    """What the pipeline itself makes of a caption, with guidance as in its own call."""
    import inspect

    encode = getattr(pipeline, "encode_prompt", None) or pipeline._encode_prompt
    takes = inspect.signature(encode).parameters
    given = {"prompt": caption, "device": CPU, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    given |= dict.fromkeys(("prompt_2", "prompt_3")) | arguments
    with torch.inference_mode():
        outputs = encode(**{name: value for name, value in given.items() if name in takes})
    return {name: value[0] for name, value in zip(names, outputs, strict=True) if name and value is not None}


def tensor(array: Any) -> torch.Tensor:
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_caption_is_what_the_pipeline_makes_of_it(
    kind: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # transformers' own needs torchvision, whose builds need CUDA's torch.
    monkeypatch.setattr(transformers, "Qwen2VLProcessor", Qwen2VLProcessor)
    encoder, pipeline = encoder_of(kind, tmp_path / "pipeline", dtype)
    seen = []
    for caption in CAPTIONS:
        arguments: dict[str, Any] = {}
        if encoder.needs_picture:
            from PIL import Image

            image = Image.fromarray(PICTURE.permute(1, 2, 0).numpy())
            area = 384 * 384 if "Plus" in kind else 1024 * 1024
            height, width = (round((area * ratio) ** 0.5 / 32) * 32 for ratio in (48 / 64, 64 / 48))
            arguments["image"] = [pipeline.image_processor.resize(image, height, width)]
        expected = theirs(pipeline, OUTPUTS[kind], caption, **arguments)
        mask = expected.pop("prompt_embeds_mask", None)
        assert mask is None or mask.all()  # Qwen's, of one caption alone
        found = encoder.encode(caption, PICTURE if encoder.needs_picture else None)
        assert found.keys() == expected.keys()
        assert {f"{name}.npy" for name in found} == set(encoder.members)
        for name, value in expected.items():
            ours = tensor(found[name])
            assert torch.equal(ours, value.bool() if name.endswith("_mask") else value)
            assert ours.dtype == (torch.bool if name.endswith("_mask") else getattr(torch, dtype))
        seen.append(found["prompt_embeds"])
    assert seen[0].shape != seen[2].shape or not np.array_equal(seen[0], seen[2])


def test_every_family_of_pipelines_is_compared() -> None:
    assert all(any(kind.startswith(family) for kind in OUTPUTS) for family in TEXT_SIDES)


def test_equal_captions_are_encoded_once_and_no_caption_depends_on_others(tmp_path: Path) -> None:
    encoder, _ = encoder_of("FluxFillPipeline", tmp_path / "pipeline")
    calls = list[int]()
    encoder.pipeline.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    first = {caption: encoder.encode(caption) for caption in ["a", "b", "a", "a"]}
    again = {caption: encoder.encode(caption) for caption in ["b", "c", "a"]}
    assert len(calls) == 3
    assert all(np.array_equal(first[each]["prompt_embeds"], again[each]["prompt_embeds"]) for each in "ab")


def test_the_empty_prompt_is_zeros_where_the_pipeline_says_so(tmp_path: Path) -> None:
    xl, _ = encoder_of("StableDiffusionXLInpaintPipeline", tmp_path / "xl")
    assert not any(array.any() for array in xl.empty().values())
    plain, _ = encoder_of("StableDiffusionInpaintPipeline", tmp_path / "plain")
    assert np.array_equal(plain.empty()["prompt_embeds"], plain.encode("")["prompt_embeds"])


def test_the_length_and_what_is_too_long_for_it(tmp_path: Path) -> None:
    encoder, pipeline = encoder_of("FluxFillPipeline", tmp_path / "pipeline", max_length=32)
    assert encoder.encode("a b")["prompt_embeds"].shape == (32, 16)
    expected = theirs(pipeline, OUTPUTS["FluxFillPipeline"], "a b", max_sequence_length=32)
    assert torch.equal(tensor(encoder.encode("a b")["prompt_embeds"]), expected["prompt_embeds"])
    assert not encoder.is_too_long("a" * 20)  # too long for CLIP alone, which sees 16
    assert encoder.is_too_long("a" * 40)


def test_the_fingerprint_changes_with_what_decides_the_embeddings(tmp_path: Path) -> None:
    one, pipeline = encoder_of("StableDiffusionInpaintPipeline", tmp_path / "one")
    again = TextEncoder(TextModelSettings(model=str(tmp_path / "one")), CPU)
    half = TextEncoder(TextModelSettings(model=str(tmp_path / "one"), dtype="bfloat16"), CPU)
    with torch.no_grad():
        next(pipeline.text_encoder.parameters()).add_(1)
    pipeline.save_pretrained(tmp_path / "other")
    other = TextEncoder(TextModelSettings(model=str(tmp_path / "other")), CPU)
    assert one.fingerprint() == again.fingerprint()
    assert len({str(each.fingerprint()) for each in (one, half, other)}) == 3
    assert one.fingerprint()["versions"].keys() == {"diffusers", "transformers"}


def test_what_is_no_pipeline_of_known_text_is_refused(tmp_path: Path) -> None:
    pipeline = tmp_path / "pipeline"
    pipeline.mkdir()
    pipeline_of("StableDiffusionInpaintPipeline", pipeline)
    index = (pipeline / "model_index.json").read_text()
    (pipeline / "model_index.json").write_text(index.replace("StableDiffusionInpaint", "PixArtAlpha"))
    for name, message in (
        (pipeline, "is a PixArtAlphaPipeline, whose text is not encoded here"),
        (tmp_path / "nowhere", "cannot be loaded .*give the name or the folder of a diffusers pipeline"),
        (pipeline / "text_encoder", "cannot be loaded .*which has a model_index.json"),
    ):
        with pytest.raises(UsageError, match=rf"^text_model: .*{message}"):
            TextEncoder(TextModelSettings(model=str(name)), CPU)


@pytest.fixture
def flux(tmp_path: Path) -> Path:
    (tmp_path / "flux").mkdir()
    pipeline_of("FluxFillPipeline", tmp_path / "flux")
    return tmp_path / "flux"


def array(data: bytes) -> Any:
    return np.load(io.BytesIO(data), allow_pickle=False)


JOB: dict[str, Any] = {
    "pictures": {"resolution": 16, "upscale": True},
    "masks": {"source": "boxes"},
    "encode": {"vae": "demo"},
}


def test_the_job_makes_embeddings_and_training_finds_them_by_itself(flux: Path, tmp_path: Path) -> None:
    samples = small_samples(5)
    samples["sample_3"]["txt"] = samples["sample_1"]["txt"]
    write_shard(tmp_path / "in" / "0.tar", samples)
    text = {"model": str(flux), "dtype": "bfloat16"}
    summary = cache_latents(str(tmp_path / "in"), str(tmp_path / "cache"), **JOB, job={"device": "cpu"}, text=text)
    assert summary.in_cache["samples"] == 5
    encoder = TextEncoder(TextModelSettings(**text), CPU)
    cache = LatentCache(str(tmp_path / "cache"))
    assert cache.settings.text is not None
    assert cache.settings.text.members == ["prompt_embeds.npy", "pooled_prompt_embeds.npy"]
    for row in range(5):
        batch = cache[row]
        expected = encoder.encode(batch["caption"][0])
        for name, value in expected.items():
            assert np.array_equal(array(batch["carried"][0][f"{name}.npy"]), value)
    module = data_module(str(tmp_path / "cache"), batch_size=5, text={"dropout": 0.5})
    module.setup("fit")
    empty = encoder.empty()
    dropped = 0
    for batch in module.train_dataloader():
        assert batch["carried"] == [{}] * 5 or all("prompt_embeds.npy" not in each for each in batch["carried"])
        for row, caption in enumerate(batch["caption"]):
            wanted = encoder.encode(caption) if caption else empty
            dropped += not caption
            assert torch.equal(batch["prompt_embeds"][row].bfloat16(), tensor(wanted["prompt_embeds"]))
            assert torch.equal(batch["pooled_prompt_embeds"][row].bfloat16(), tensor(wanted["pooled_prompt_embeds"]))
    assert 0 < dropped < 5
    assert verify_cache(str(tmp_path / "cache"), deep=True, against=str(tmp_path / "in")).problems == []
    (tmp_path / "cache" / "empty_prompt" / "pooled_prompt_embeds.npy").unlink()
    (problem,) = verify_cache(str(tmp_path / "cache")).problems
    assert problem.file == "empty_prompt/pooled_prompt_embeds.npy"
    with pytest.raises(UsageError, match=r"empty_prompt: .*pooled_prompt_embeds.npy: No such file"):
        next(iter(data_module(str(tmp_path / "cache"), text={"dropout": 0.5}).train_dataloader()))


def test_a_cache_of_other_text_is_refused_and_the_same_goes_on(flux: Path, tmp_path: Path) -> None:
    samples = small_samples(4)
    write_shard(tmp_path / "in" / "0.tar", samples)

    def job(**text: Any) -> Any:
        return cache_latents(str(tmp_path / "in"), str(tmp_path / "cache"), **JOB, job={"device": "cpu"}, text=text)

    job(model=str(flux))
    before = (tmp_path / "cache" / "0.tar").read_bytes()
    write_shard(tmp_path / "in" / "1.tar", {f"x{key}": each for key, each in samples.items()})
    with pytest.raises(UsageError, match=r"made with other settings.* text"):
        job()
    with pytest.raises(UsageError, match=r"text.dtype: the cache has .?float32"):
        job(model=str(flux), dtype="bfloat16")
    assert job(model=str(flux)).in_cache["samples"] == 8
    assert (tmp_path / "cache" / "0.tar").read_bytes() == before
    samples["sample_0"]["prompt_embeds.npy"] = b""
    write_shard(tmp_path / "other" / "0.tar", samples)
    with pytest.raises(UsageError, match=r"sample 'sample_0': has a prompt_embeds.npy; leave text_model out"):
        cache_latents(str(tmp_path / "other"), str(tmp_path / "c2"), **JOB, text={"model": str(flux)})


def test_text_that_depends_on_the_picture_is_made_in_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(transformers, "Qwen2VLProcessor", Qwen2VLProcessor)
    edit = tmp_path / "edit"
    edit.mkdir()
    pipeline_of("QwenImageEditInpaintPipeline", edit)
    write_shard(tmp_path / "in" / "0.tar", small_samples(2))
    job = {**JOB, "pictures": {"resolution": 16, "carry_image": "crop"}}
    cache_latents(str(tmp_path / "in"), str(tmp_path / "cache"), **job, text={"model": str(edit)})
    encoder = TextEncoder(TextModelSettings(model=str(edit)), CPU)
    for row in range(2):
        batch = LatentCache(str(tmp_path / "cache"))[row]
        from PIL import Image

        crop = np.asarray(Image.open(io.BytesIO(batch["carried"][0]["crop.png"])))
        expected = encoder.encode(batch["caption"][0], torch.from_numpy(crop.copy()).permute(2, 0, 1))
        assert np.array_equal(array(batch["carried"][0]["prompt_embeds.npy"]), expected["prompt_embeds"])
    arguments = ["--shards", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--text_model", str(edit)]
    code, _, err = run(capsys, "text", *arguments)
    assert code == 2
    assert "encodes captions with their pictures as they are cut; give --text_model to cache" in err


def test_one_word_for_a_model_names_its_text_encoders() -> None:
    for recipe in RECIPES:
        settings = MODELS[recipe].settings(recipe)
        assert ("text", "model") in settings
        assert settings["text", "dtype"] == settings["encode", "dtype"]


def test_captions_that_are_cut_short_are_counted_and_not_told_one_by_one(
    flux: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = small_samples(3)
    samples["sample_1"]["txt"] = b"a long caption " * 20
    write_shard(tmp_path / "in" / "0.tar", samples)
    words = [
        "--resolution",
        "16",
        "--masks",
        "boxes",
        "--vae",
        "demo",
        "--text_model",
        str(flux),
        "--text_length",
        "64",
    ]
    code, out, err = run(capsys, "cache", "--shards", str(tmp_path / "in"), "--out", str(tmp_path / "cache"), *words)
    assert code == 0
    assert "long caption 1 of 3 samples, cut short: 0/sample_1" in out
    assert "truncated" not in err
    assert "longer than the specified" not in err


def test_an_encoder_that_is_cut_short_is_one_line(tmp_path: Path) -> None:
    pipeline = tmp_path / "pipeline"
    pipeline.mkdir()
    pipeline_of("StableDiffusionInpaintPipeline", pipeline)
    (weights,) = (pipeline / "text_encoder").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UsageError, match=r"its text_encoder cannot be loaded .*check the name or the folder"):
        TextEncoder(TextModelSettings(model=str(pipeline)), torch.device("cpu"))
