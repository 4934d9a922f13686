"""The house: which folder may import which, what is loaded when, and that every import is declared."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

import inpaint_data
import inpaint_data.pipeline

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "inpaint_data"
# From the roof down; what is no folder is the ground that everybody stands on.
FOLDERS = (
    "training", "comfyui", "commands", "job", "pipeline", "latent_cache", "encoding", "pictures", "masks", "shards",
    "folders",
    "demo",
)  # fmt: skip
STANDARD = sys.stdlib_module_names


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it; not what only type checkers import."""
    tree = ast.parse(path.read_text())
    checked = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in checked:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(str(node.module))
    return names


def folder_of(module: str) -> str:
    """The folder of a module of the package, or "" for the ground."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FOLDERS else ""


FILES = sorted(PACKAGE.rglob("*.py"))
OPENINGS = (PACKAGE / "__init__.py", PACKAGE / "__main__.py")  # which hand on to any folder


def test_every_folder_is_in_the_drawing() -> None:
    there = {path.parent.name for path in FILES if path.parent != PACKAGE}
    assert there == set(FOLDERS)
    drawn = (ROOT / "CONTRIBUTING.md").read_text()
    for folder in FOLDERS:
        assert re.search(rf"^ *{folder}/ ", drawn, re.MULTILINE), f"CONTRIBUTING.md does not draw {folder}/"
    for path in FILES:
        if path.name != "__init__.py" and path.name != "__main__.py":
            assert f"{path.stem}" in drawn, f"CONTRIBUTING.md does not name {path.relative_to(PACKAGE)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards(path: Path) -> None:
    own = folder_of(".".join(["inpaint_data", *path.relative_to(PACKAGE).with_suffix("").parts]))
    below = FOLDERS[FOLDERS.index(own) :] if own else ()
    for module in imports_of(path):
        if module.split(".")[0] != "inpaint_data" or path in OPENINGS:
            continue
        folder = folder_of(module)
        assert folder == "" or folder in below, f"{path.name} in {own or 'the ground'} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_training_knows_lightning_and_no_module_is_long(path: Path) -> None:
    modules = {module.split(".")[0] for module in imports_of(path)}
    if path.parent.name != "training" and path != PACKAGE / "commands" / "loggers.py":  # which only names its loggers
        assert not modules & {"lightning", "pytorch_lightning", "jsonargparse"}
    assert len(path.read_text().splitlines()) <= 400


def test_every_import_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [
        name
        for group in ("datasets", "nvjpeg", "parquet", "ray", "s3", "text", "train")
        for name in project["optional-dependencies"][group]
    ]
    declared = {
        re.split(r"[\[><=;! ]", name)[0].lower().replace("-", "_") for name in [*project["dependencies"], *extras]
    }
    names = {"yaml": "pyyaml", "PIL": "pillow", "cv2": "opencv_python_headless", "nvidia": "nvidia_nvimgcodec_cu13"}
    scripts = [path for path in (ROOT / "scripts").glob("*.py") if path.name != "train_demo_vae.py"]
    used = {module.split(".")[0] for path in [*FILES, *scripts] for module in imports_of(path)}
    third = {names.get(name, name) for name in used - STANDARD - {"inpaint_data"}}
    assert third <= declared, f"not declared: {sorted(third - declared)}"
    unused = {"s3fs", "tensorboard", "jsonargparse", "ftfy"}  # which fsspec, Lightning and diffusers look up
    assert declared - third - unused == set()


def loaded_after(code: str) -> set[str]:
    """Which of the heavy packages a fresh process has loaded after some code."""
    heavy = (
        "lightning",
        "pytorch_lightning",
        "diffusers",
        "transformers",
        "cv2",
        "PIL",
        "pydantic",
        "webdataset",
        "fsspec",
        "pyarrow",
    )
    program = f"{code}\nimport sys\nprint([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(ast.literal_eval(done.stdout.splitlines()[-1]))


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_after("import inpaint_data") == set()
    assert loaded_after("from inpaint_data import LatentCache") == set()
    assert not loaded_after("import inpaint_data.commands.main") & {"lightning", "diffusers", "cv2", "pydantic"}


def test_only_who_loads_an_autoencoder_waits_for_diffusers() -> None:
    assert not loaded_after("import inpaint_data.job.audit, inpaint_data.job.caching") & {"lightning", "diffusers"}


def test_the_lazy_names_are_those_that_type_checkers_see() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == {name: f"inpaint_data.{home}" for name, home in inpaint_data._HOME_OF.items()}
    assert set(seen) == set(inpaint_data.__all__)
    for name in inpaint_data.__all__:
        assert getattr(inpaint_data, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = inpaint_data.nothing


def test_no_public_function_hides_a_module() -> None:
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES}
    for package in (inpaint_data, inpaint_data.pipeline):
        for name in package.__all__:
            assert f"{package.__name__}.{name}" not in modules


def test_a_cache_is_read_with_torch_and_numpy_alone(tmp_path: Path, shards: str) -> None:
    from flat import cache_latents

    cache_latents(shards, str(tmp_path / "cache"), resolution=64, masks="boxes")
    program = f"""
import sys
for name in ("lightning", "pytorch_lightning", "diffusers", "transformers", "cv2", "PIL", "pydantic", "webdataset",
             "fsspec", "huggingface_hub", "safetensors", "simplejpeg", "tqdm", "yaml", "braceexpand",
             "docstring_parser", "jsonargparse"):
    sys.modules[name] = None
from inpaint_data import LatentCache
cache = LatentCache({str(tmp_path / "cache")!r}, posterior="sample")
print([len(batch["__key__"]) for batch in (cache.batch(rows) for rows in cache.batches(4))])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.strip() == "[4, 4, 4]", done.stderr


def test_webdataset_is_what_the_package_stands_on() -> None:
    program = "import sys; sys.modules['webdataset'] = None; import inpaint_data.job.caching"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert "webdataset" in done.stderr
