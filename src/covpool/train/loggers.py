"""Where metrics go beside metrics.csv, through Lightning's own loggers."""

import importlib.util
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from lightning.pytorch.loggers import Logger, WandbLogger

from covpool.text import encodable
from covpool.train.config import RunConfig
from covpool.train.run_directory import RunDirectory, replace_text


def _tensorboard(directory: RunDirectory, config: RunConfig, step: int) -> Logger:
    from lightning.pytorch.loggers import TensorBoardLogger

    # purge_step hides what a killed run had logged beyond the checkpoint.
    return TensorBoardLogger(
        directory.path, name="tensorboard", version="", purge_step=step + 1 if step else None
    )


def _wandb(directory: RunDirectory, config: RunConfig, step: int) -> Logger:
    file = directory.path / "wandb-id.txt"
    if not file.is_file():
        replace_text(file, uuid.uuid4().hex[:8] + "\n")
    return WandbLogger(
        name=directory.path.name,
        save_dir=directory.path,
        project="covpool",
        id=file.read_text(encoding="utf-8").strip(),
        resume="allow",
    )


@dataclass(frozen=True)
class LoggerChoice:
    """A logger: the package and extra that it needs, and what makes one for a run directory."""

    package: str
    extra: str
    make: Callable[[RunDirectory, RunConfig, int], Logger]


LOGGERS: Mapping[str, LoggerChoice] = {
    "tensorboard": LoggerChoice("tensorboard", "tensorboard", _tensorboard),
    "wandb": LoggerChoice("wandb", "wandb", _wandb),
}


def check_loggers(config: RunConfig) -> None:
    """Raise a ValueError where a logger's package is not installed."""
    for name in config.train.loggers:
        choice = LOGGERS[name]
        if importlib.util.find_spec(choice.package) is None:
            raise ValueError(
                f"train.loggers {name!r} needs the package {choice.package}; install it, from the "
                f"checkout, with: pip install '.[train,{choice.extra}]'"
            )


def make_loggers(config: RunConfig, directory: RunDirectory, step: int) -> list[Logger]:
    """The configuration's loggers, which go on after `step` in the run directory's own logs."""
    # Their files hold UTF-8, which the path of the images need not be.
    options = {
        group: {
            key: encodable(value) if isinstance(value, str) else value for key, value in of.items()
        }
        for group, of in config.to_dict().items()
    }
    made = [LOGGERS[name].make(directory, config, step) for name in config.train.loggers]
    for logger in made:
        logger.log_hyperparams(options)
    return made


def close_loggers(loggers: Iterable[Logger], *, failed: bool) -> None:
    """Write out what they still hold; Lightning leaves that of wandb to the process's end."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish(exit_code=int(failed))
