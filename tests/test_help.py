"""What the command says of itself: help, version, completion, a first YAML; and the same texts in LightningCLI."""

import json
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import get_args

import pytest
from conftest import run

import inpaint_data
from inpaint_data import JobSettings, MaskSettings, PictureSettings
from inpaint_data.commands.catalogue import entry_of, shipped, text_of
from inpaint_data.commands.init import FILLED, Example
from inpaint_data.commands.main import COMMANDS, DRAWN, reader_of
from inpaint_data.encoding.models import MODELS
from inpaint_data.masks.generators import GENERATORS

ROOT = Path(__file__).parents[1]


def test_the_overview_names_commands_masks_models_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert tuple(GENERATORS) == DRAWN
    for name in (*COMMANDS, *GENERATORS, *MODELS):
        assert re.search(rf"(^|[ ,]){re.escape(name)}($|[ ,])", out, re.MULTILINE), name
    assert "0 done   1 data failed   2 settings that cannot work   128 + N" in out


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["cahce"]])
def test_what_needs_no_work_is_said_at_once(words: list[str]) -> None:
    program = f"""
import sys
sys.argv = ["inpaint-data", *{words!r}]
try:
    import runpy
    runpy.run_module("inpaint_data", run_name="__main__")
finally:
    print(sorted({{"torch", "pydantic", "numpy", "yaml", "PIL", "cv2"}} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stderr.splitlines()[-1] == "[]"
    assert done.returncode == (2 if words == ["cahce"] else 0)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "inpaint_data", *words], capture_output=True, check=False, cwd=ROOT)
        times.append(time.perf_counter() - started)
    assert min(times) < 1  # a tenth of a second; torch alone takes more than one


def test_the_version_is_that_of_the_package() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", inpaint_data.__version__)
    assert "__version__" not in vars(inpaint_data)  # read when it is asked for


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_needs_nothing_of_what_a_command_imports_and_says_what_its_settings_say(name: str) -> None:
    written = json.loads(json.dumps(entry_of(reader_of(name))))
    assert shipped()[name] == written, "run python -m inpaint_data.commands.catalogue"


@pytest.mark.parametrize("words", [["cache", "--help"], ["cache", "--hlep"], ["--help"], ["verify", "a", "b"]])
def test_neither_help_nor_a_misspelt_flag_waits_for_torch(words: list[str]) -> None:
    code = f"import sys; from inpaint_data.commands.main import _main; _main({words!r}); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "pydantic", "yaml"} & set(modules[-2000:])


@pytest.mark.parametrize("command", list(COMMANDS))
def test_the_help_of_a_command_lists_every_setting_with_its_choices(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    plain = " ".join(out.split())
    reader = reader_of(command)
    for setting in reader.settings:
        assert setting.text, setting.name
        assert (f"--{setting.name} " if setting.name not in reader.positional else setting.name) in plain
        assert " ".join(text_of(setting).split()) in plain
        for choice in setting.choices if not setting.is_switch else ():
            assert choice in text_of(setting)
    assert ("--for FOR" in plain) == (
        command in ("cache", "stats", "masks", "sheet", "verify", "index", "text", "look")
    )


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bash") / "completion.bash"
    with path.open("w") as out:
        subprocess.run([sys.executable, "-m", "inpaint_data", "completion", "bash"], stdout=out, check=True, cwd=ROOT)
    return path


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["ca"], {"cache"}),
        (["cache", "--mask_"], {"--mask_offset", "--mask_padding"}),
        (["cache", "--fo"], {"--for", "--formats"}),
        (["cache", "--dtype", ""], {"float32", "bfloat16", "float16", "auto"}),
        (["cache", "--dtype", "=", "b"], {"bfloat16"}),
        (["cache", "--dtype", "="], {"float32", "bfloat16", "float16", "auto"}),
        (["cache", "--masks", "lama-thi"], {"lama-thin", "lama-thin-256", "lama-thick", "lama-thick-256"}),
        (["cache", "--upscale", "t"], {"true"}),
        (["cache", "--for", "sdxl-i"], {"sdxl-inpaint"}),
        (
            ["cache", "--recipe", "flux-con"],
            {"flux-control-inpaint", "flux-controlnet-inpaint", "flux-controlnet-rgb-inpaint"},
        ),
        (["completion", ""], {"bash", "zsh", "fish"}),
        (["init", "--example", "train_sd"], {"train_sd15", "train_sdxl"}),
        (["verify", "here"], {"here.tar"}),
        (["verify", "--de"], {"--deep"}),
    ],
)
def test_bash_completes_commands_flags_and_choices(
    words: list[str], completed: set[str], script: Path, tmp_path: Path
) -> None:
    (tmp_path / "here.tar").touch()
    line = ["inpaint-data", *words]
    program = (
        f"source {script}; COMP_WORDS=({' '.join(map(repr, line))}); COMP_CWORD={len(line) - 1}; _inpaint_data; "
        'printf "%s\\n" "${COMPREPLY[@]}"; complete -p inpaint-data'
    )
    done = subprocess.run(["bash", "--norc", "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    *answers, registered = done.stdout.splitlines()
    assert (done.stderr, set(answers)) == ("", completed)
    assert "-F _inpaint_data" in registered


def test_zsh_and_fish_get_the_same_names(capsys: pytest.CaptureFixture[str]) -> None:
    _, zsh, _ = run(capsys, "completion", "zsh")
    _, fish, _ = run(capsys, "completion", "fish")
    assert "bashcompinit" in zsh
    for name in COMMANDS:
        assert f"    {name})" in zsh
        assert f"-a {name} -d " in fish
    assert "-l storage -d 'Number type of the latents in the cache.' -x -a 'float16 bfloat16 float32 int8'" in fish


@pytest.mark.usefixtures("shards")
def test_the_first_yaml_is_the_cache_commands_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "init")
    assert (code, out) == (
        0,
        "job.yaml: correct shards and out in it, name vae or for, then run: inpaint-data cache --config job.yaml\n",
    )
    settings = ["--resolution", "64", "--masks", "boxes", "--vae", "demo"]
    code, out, _ = run(capsys, "cache", "--config", "job.yaml", *settings)
    assert code == 0
    assert "cached       12" in out
    text = Path("job.yaml").read_text()
    for setting in reader_of("cache").settings:
        line = re.search(rf"^ *(# )?{setting.place[-1]}:", text, re.MULTILINE)
        assert line, setting.place
        assert (line[1] is None) == (setting.place in FILLED)
    assert run(capsys, "init")[::2] == (
        2,
        "inpaint-data init: file: job.yaml is there already; name another one, or remove it\n",
    )
    assert Path("job.yaml").read_text() == text


def test_what_stands_behind_a_hash_is_the_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job, bare = tmp_path / "new" / "job.yaml", tmp_path / "bare.yaml"
    assert run(capsys, "init", str(job))[0] == 0
    names = "|".join(setting.place[-1] for setting in reader_of("cache").settings)
    bare.write_text(re.sub(rf"^( *)# ((?:{names}):)", r"\1\2", job.read_text(), flags=re.MULTILINE))
    given = reader_of("cache").read(["--config", str(bare)])
    assert given["pictures"] == PictureSettings()
    assert given["masks"] == MaskSettings(source="sample")
    assert given["encode"].vae is None
    assert given["job"] == JobSettings()


def test_every_example_is_written_as_it_is_in_configs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(get_args(Example)) == sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
    for name in get_args(Example):
        assert run(capsys, "init", str(tmp_path / f"{name}.yaml"), "--example", name)[0] == 0
        assert (tmp_path / f"{name}.yaml").read_bytes() == (ROOT / "configs" / f"{name}.yaml").read_bytes()


def test_the_examples_come_with_the_wheel() -> None:
    import tomllib

    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"configs": "inpaint_data/configs"}


def test_an_installed_package_finds_its_examples(tmp_path: Path) -> None:
    """As a wheel is unpacked: configs/ within the package, and nothing beside it."""
    archive = tmp_path / "package.zip"
    with zipfile.ZipFile(archive, "w") as written:
        for path in sorted((ROOT / "inpaint_data").rglob("*.py")):
            written.write(path, path.relative_to(ROOT))
        for path in sorted((ROOT / "configs").glob("*.yaml")):
            written.write(path, Path("inpaint_data", "configs", path.name))
    zipfile.ZipFile(archive).extractall(tmp_path / "site")
    program = "from inpaint_data.commands.init import examples; print(examples())"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path / "site",
        env={"PYTHONPATH": str(tmp_path / "site")},
    )  # fmt: skip
    assert done.stdout.strip() == str(tmp_path / "site" / "inpaint_data" / "configs")


@pytest.mark.parametrize("group", ["pictures", "masks", "encode", "loading"])
def test_lightnings_command_line_shows_the_texts_of_the_settings(
    group: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI
    from lightning.pytorch.demos.boring_classes import BoringModel

    from inpaint_data import InpaintDataModule
    from inpaint_data.commands.settings import settings_of_group
    from inpaint_data.encoding.settings import EncodeSettings
    from inpaint_data.training.settings import LoadSettings

    kinds = {"pictures": PictureSettings, "masks": MaskSettings, "encode": EncodeSettings, "loading": LoadSettings}
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", f"--data.{group}.help"])
    with pytest.raises(SystemExit) as ended:
        LightningCLI(BoringModel, InpaintDataModule)
    assert ended.value.code == 0
    said = "".join(capsys.readouterr().out.split())
    for setting in settings_of_group(group, kinds[group]):
        assert "".join(setting.text.split()).rstrip(".") in said, setting.name
