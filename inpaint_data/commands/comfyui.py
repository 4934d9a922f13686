"""inpaint-data comfyui: the nodes into ComfyUI's folder of custom nodes."""

import shutil
from pathlib import Path

import inpaint_data
from inpaint_data.commands.outcome import Outcome
from inpaint_data.errors import UsageError
from inpaint_data.shards.stores import local_path

PACKAGE = Path(inpaint_data.__file__).parent
ENTRY = PACKAGE / "comfyui" / "entry.py"
FOLDER = "comfyui_inpaint_data"
LEFT_OUT = shutil.ignore_patterns("demo", "catalogue.json", "__pycache__")


def run(install: str) -> Outcome:
    """Put the ComfyUI nodes into a folder of custom nodes, or bring those that are there up to date.

    They lie in a folder of their own, with a copy of this package that is used where ComfyUI's Python does not have it.

    Args:
        install: ComfyUI's folder custom_nodes

    Returns:
        Where they are.

    Raises:
        UsageError: there is no such folder, it may not be written to, or something else lies where the nodes would.
    """
    custom_nodes = local_path(install)
    if not custom_nodes.is_dir():
        raise UsageError(f"install: there is no folder {custom_nodes}; name ComfyUI's custom_nodes")
    if (custom_nodes / "custom_nodes").is_dir():
        raise UsageError(f"install: {custom_nodes} is ComfyUI's own folder; name {custom_nodes / 'custom_nodes'}")
    folder = custom_nodes / FOLDER
    if (folder.exists() or folder.is_symlink()) and not _is_ours(folder):
        raise UsageError(f"install: {folder} is there and is not of this command; rename or remove it")
    try:
        folder.mkdir(exist_ok=True)
        shutil.copyfile(ENTRY, folder / "__init__.py")  # first, since it says whose folder it is
        copy = folder / PACKAGE.name
        if copy.exists():
            shutil.rmtree(copy)
        shutil.copytree(PACKAGE, copy, ignore=LEFT_OUT)
    except (OSError, shutil.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"install: cannot write to {folder} ({reason}); name a folder that you may write to") from None
    return Outcome(f"the nodes are in {folder}; start ComfyUI again")


def _is_ours(folder: Path) -> bool:
    """True if the folder has our entry, of whichever version, or nothing."""
    entry = folder / "__init__.py"
    if not folder.is_dir() or folder.is_symlink():
        return False
    if not entry.is_file():
        return not any(folder.iterdir())
    first_line = ENTRY.read_bytes().splitlines()[0]
    return entry.read_bytes().startswith(first_line)
