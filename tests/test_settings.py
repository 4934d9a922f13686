"""Settings are declared once: defaults, ranges, flags, texts and errors come from there."""

import inspect
import pickle
from typing import Any

import pytest
from flat import OF_JOBS

from inpaint_data import (
    EncodeSettings,
    InpaintDataModule,
    JobSettings,
    LoadSettings,
    MaskMixture,
    MaskSettings,
    PictureSettings,
    Preset,
    RandomOffset,
    SoftBorder,
    UsageError,
    cache_latents,
)
from inpaint_data.commands.main import reader_of
from inpaint_data.commands.settings import settings_of_group
from inpaint_data.latent_cache.settings import CacheSettings, FoundInTars, VaeRecord, plain

GROUPS = (PictureSettings, MaskSettings, EncodeSettings, JobSettings, LoadSettings)


@pytest.mark.parametrize("function", [InpaintDataModule.__init__, cache_latents])
def test_no_public_function_has_more_than_ten_parameters(function: Any) -> None:
    assert len([name for name in inspect.signature(function).parameters if name != "self"]) <= 10


@pytest.mark.parametrize("group", GROUPS)
def test_every_setting_has_a_text_a_default_and_a_flag_of_its_own(group: Any) -> None:
    settings = settings_of_group(group.group, group)
    assert len({setting.name for setting in settings}) == len(settings)
    for setting in settings:
        assert setting.text, setting.name
        assert not setting.required
    assert group() == group(**{name: getattr(group(), name) for name in group.model_fields})


def test_no_two_groups_of_a_job_share_a_flag() -> None:
    names = [setting.name for name, group in OF_JOBS.items() for setting in settings_of_group(name, group)]
    assert len(set(names)) == len(names)


def test_what_was_given_is_told_from_what_was_left_out() -> None:
    settings = PictureSettings(resolution=512, crop="random")
    assert settings.given == {"resolution": 512, "crop": "random"}
    assert settings.but(upscale=True).given == {"resolution": 512, "crop": "random", "upscale": True}
    assert pickle.loads(pickle.dumps(settings)).given == settings.given
    assert PictureSettings(512) == PictureSettings()
    with pytest.raises(ValueError, match="frozen"):
        settings.upscale = True


@pytest.mark.parametrize(
    ("make", "message", "place"),
    [
        (lambda: JobSettings(variants=0), "variants: 0 is too small; give 1 or more", ("variants",)),
        (lambda: JobSettings(variants=2**17), "variants: 131072 is too large; give at most 65536", ("variants",)),
        (lambda: JobSettings(seed="one"), "seed: 'one' is not a whole number", ("seed",)),
        (lambda: JobSettings(seed=True), "seed: True is not a whole number", ("seed",)),
        (lambda: JobSettings(max_bad_fraction=1.5), "max_bad_fraction: 1.5 is too large; give at most 1",
         ("max_bad_fraction",)),
        (lambda: JobSettings(storage="int4"), "storage: 'int4' is unknown; choose from float16, bf", ("storage",)),
        (lambda: JobSettings(dry_run="yes"), "dry_run: 'yes' is neither true nor false", ("dry_run",)),
        (lambda: JobSettings(device=3), "device: 3 is not a text", ("device",)),
        (lambda: JobSettings(sead=3), "there is no setting 'sead'; it takes variants, seed, batch_size", ("sead",)),
        (lambda: PictureSettings(resolution="big"), "resolution: 'big' is not a number of pixels", ()),
        (lambda: PictureSettings(filters={"min_sid": 3}), "filters: there is no setting 'min_sid'; it takes min_side",
         ("filters", "min_sid")),
        (lambda: MaskSettings(source="lama"), "masks: 'lama' is unknown; choose from sample", ("source",)),
        (lambda: MaskSettings(offset=200), "mask_offset: 200 is outside -128...128 pixels", ("offset",)),
        (lambda: MaskSettings(mixture={"precision": 7}), "mixture: precision: 7", ("mixture",)),
        (lambda: MaskSettings(mixture=3), "mixture: 3 is not a mapping; give some of weights", ("mixture",)),
        (lambda: MaskSettings(source="boxes", mixture={"weights": {"boxes": 1}}), "mixture: it has weights",
         ("mixture",)),
        (lambda: MaskSettings(preset="wos"), "preset: 'wos' is unknown; choose from was", ("preset",)),
        (lambda: MaskSettings(soft="gaussian"), "soft: 'gaussian' is not a border", ("soft",)),
        (lambda: EncodeSettings(dtype="int8"), "dtype: 'int8' is unknown; choose from float32, bfloat16, float16",
         ("dtype",)),
        (lambda: EncodeSettings(vae=3), "vae: 3 is not an autoencoder", ("vae",)),
        (lambda: LoadSettings(text={"dropout": 2}), "text: dropout: 2", ("text",)),
    ],
)  # fmt: skip
def test_an_error_is_one_line_and_says_where_it_stands(make: Any, message: str, place: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        make()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    if place:
        assert caught.value.place == place


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pictures": {"resolution": -1}}, "resolution: -1 is not a number of pixels"),
        ({"pictures": 3}, "pictures: 3 is not a mapping of settings; give a PictureSettings"),
        ({"masks": {"sourse": "boxes"}}, "there is no setting 'sourse'"),
        ({"loading": {"workers": "fibres"}}, "workers: 'fibres' is unknown; choose from threads, processes"),
        ({"encode": {"recipe": "sd9"}}, "recipe: 'sd9' is unknown"),
        ({"batch_size": 0}, "batch_size: 0 is not a positive whole number"),
    ],
)
def test_mappings_are_taken_like_objects(settings: dict[str, Any], message: str, shards: str) -> None:
    with pytest.raises(UsageError) as caught:
        InpaintDataModule(shards, **settings)
    assert str(caught.value).startswith(message)
    assert caught.value.place[0] == next(iter(settings))


def test_objects_are_made_of_mappings_and_lists() -> None:
    masks = MaskSettings(
        source="mixture", mixture={"weights": {"boxes": 1}}, offset={"distribution": "normal", "deviation": 3},
        preset={"growth": "none", "offset": 0}, soft={"kind": "ramp", "radius": 2},
    )  # fmt: skip
    assert masks.mixture == MaskMixture(weights={"boxes": 1})
    assert masks.offset == RandomOffset("normal", deviation=3)
    assert masks.preset == Preset(growth="none", offset=0)
    assert masks.soft == SoftBorder("ramp", 2)
    assert MaskSettings(offset=[-8, 24]).offset == (-8, 24)
    assert PictureSettings(resolution=[128, 256]).resolution == (128, 256)


def cache_settings(**changes: Any) -> CacheSettings:
    vae = VaeRecord(
        kind="AutoencoderKL", config={"scaling_factor": 1.0}, weights_sha256="0", dtype="float32", channels_last=True,
        has_posterior=True, factor=8,
    )  # fmt: skip
    common: dict[str, Any] = {"vae": vae, "variants": 2, "storage": "float16", "masked_latents": True}
    return CacheSettings(**(common | changes))


@pytest.mark.parametrize(
    "settings",
    [
        cache_settings(pictures=PictureSettings(resolution=(128, 256), max_aspect=2.0), masks=MaskSettings("boxes")),
        cache_settings(
            pictures=PictureSettings(64, "mask", mask_padding=3, target=True, carry_image="crop"),
            masks=MaskSettings(source="object", mixture=MaskMixture(invert=0.5), offset=RandomOffset(low=2, high=3)),
            stages=["select(mine)"], tf32=True,
        ),
        cache_settings(
            indexed=FoundInTars(
                sizes=[[64, 64]], low=-3, high=4, windows=["square"], soft=True, paired=[], carry_image="none"
            )
        ),
    ],
)  # fmt: skip
def test_what_a_cache_was_made_with_comes_back_from_json(settings: CacheSettings) -> None:
    content = plain(settings.to_json())
    again = CacheSettings.from_json(content)
    assert again.to_json() == settings.to_json()
    assert again.fingerprint == settings.fingerprint
    assert again.expected == settings.expected


def test_what_cannot_matter_is_not_part_of_a_caches_identity() -> None:
    def fingerprint(pictures: dict[str, Any], masks: dict[str, Any] | None = None) -> str:
        made = cache_settings(pictures=PictureSettings(**pictures), masks=MaskSettings(**(masks or {})))
        return made.fingerprint

    plain_one = fingerprint({"resolution": 128})
    assert plain_one == fingerprint({"resolution": [128], "crop": ["center"], "bucket_step": 32, "mask_padding": 4})
    assert plain_one != fingerprint({"resolution": 128, "max_aspect": 2.0})
    buckets = {"resolution": 128, "max_aspect": 2.0}
    assert fingerprint(buckets) != fingerprint(buckets | {"bucket_step": 32})


def test_the_command_line_and_python_read_one_tree() -> None:
    reader = reader_of("cache")
    given = reader.read(
        ["--shards", "a", "--out", "b", "--resolution", "[128,256]", "--masks", "mixture", "--mixture.precision", "2",
         "--job.seed", "3", "--upscale", "--vae", "demo"]
    )  # fmt: skip
    assert given["pictures"] == PictureSettings(resolution=(128, 256), upscale=True)
    assert given["masks"] == MaskSettings(source="mixture", mixture=MaskMixture(precision=2))
    assert given["encode"].given == {"vae": "demo"}
    assert given["job"].given == {"seed": 3}
