"""Lightning's loggers by name, for the command line."""

import importlib
from typing import Literal

from inpaint_data.errors import UsageError
from inpaint_data.job.metrics import MetricsLogger

LoggerName = Literal["tensorboard", "wandb", "csv"]
FOLDER = "runs"  # where they write, in the working directory
PROJECT = "inpaint_data"  # on Weights & Biases
PACKAGES: dict[LoggerName, str] = {"tensorboard": "tensorboard", "wandb": "wandb"}


def check_logger(name: LoggerName) -> None:
    """Raises UsageError where the package of a logger is not installed."""
    package = PACKAGES.get(name)
    try:
        importlib.import_module(package or "lightning")
    except ImportError:
        raise UsageError(f"logger: {name} needs a package: pip install {package}", ("logger",)) from None


def logger_of(name: LoggerName, out: str) -> MetricsLogger:
    """Lightning's logger of this name, for the cache at `out`.

    Raises:
        UsageError: its package is not installed.
    """
    check_logger(name)
    from lightning.pytorch.loggers import (
        CSVLogger,
        TensorBoardLogger,
        WandbLogger,
    )  # for seconds, only where one is named

    cache = out.rstrip("/").rpartition("/")[2]
    if name == "wandb":
        return WandbLogger(name=cache, project=PROJECT, save_dir=FOLDER)
    return TensorBoardLogger(FOLDER, cache) if name == "tensorboard" else CSVLogger(FOLDER, cache)
