"""Settings by their short names, as flags have them, sorted into the groups that they belong to."""

from typing import Any

from inpaint_data import (
    EncodeSettings,
    InpaintDataModule,
    JobSettings,
    LoadSettings,
    MaskSettings,
    PictureSettings,
    Summary,
    TextModelSettings,
    load_vae,
)
from inpaint_data import cache_latents as cache_with_groups
from inpaint_data.commands.settings import settings_of_group
from inpaint_data.pictures.settings import ExampleSettings
from inpaint_data.settings import Settings

OF_EXAMPLES: dict[str, type[Settings]] = {"pictures": PictureSettings, "masks": MaskSettings}
OF_JOBS = OF_EXAMPLES | {"encode": EncodeSettings, "job": JobSettings, "text": TextModelSettings}
OF_TRAINING = OF_EXAMPLES | {"encode": EncodeSettings, "loading": LoadSettings}


def grouped(groups: dict[str, type[Settings]], flat: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Group -> setting -> value. What is in no group comes under its own name."""
    homes = {each.name: each.place for name, kind in groups.items() for each in settings_of_group(name, kind)}
    result: dict[str, Any] = {}
    for name, value in flat.items():
        if name in homes:
            group, field = homes[name]
            result.setdefault(group, {})[field] = value
        else:
            result[name] = value
    return result


def with_demo(flat: dict[str, Any]) -> dict[str, Any]:
    """The demo's autoencoder itself where a recipe is named, whose name such settings refuse."""
    is_named = flat.get("recipe") is not None and flat.get("vae") == "demo"
    return flat | {"vae": load_vae("demo")} if is_named else flat


def cache_latents(shards: str | list[str], out: str, **flat: Any) -> Summary:
    return cache_with_groups(shards, out, **grouped(OF_JOBS, with_demo({"vae": "demo"} | flat)))


def data_module(source: Any = None, **flat: Any) -> InpaintDataModule:
    return InpaintDataModule(source, **grouped(OF_TRAINING, flat))


def example_settings(seed: int = 0, **flat: Any) -> ExampleSettings:
    groups = grouped(OF_EXAMPLES, flat)
    return ExampleSettings(
        PictureSettings(**groups.pop("pictures", {})), MaskSettings(**groups.pop("masks", {})), seed, **groups
    )
