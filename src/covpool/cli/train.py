"""`covpool train`.

What trains is imported once the options are read and the first line is said: it takes seconds.
"""

import os
import shlex
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from covpool.cli import UserError, loading, say
from covpool.cli.parsers import RESUMABLE
from covpool.cli.parsing import Given, checking_files, chosen_recipe, users_input
from covpool.text import quantity
from covpool.train.allocator import keep_freed_memory
from covpool.train.config import RunConfig
from covpool.train.interruption import Interrupted
from covpool.train.run_directory import AUTO, RunDirectory

if TYPE_CHECKING:
    from covpool.fitting import PreparedRun
    from covpool.train.recipe import Recipe

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
"""The variables that tell a process which of several it is, in the order in which Lightning looks
for them."""


@dataclass(frozen=True)
class Request:
    """What the command line asks for, read without PyTorch."""

    config: RunConfig
    output: Path | None = None
    resume: Path | None = None
    default: "Recipe | RunConfig | None" = None
    """What the options were laid over, where nothing was named for that."""

    @property
    def title(self) -> str:
        """What is going to be trained."""
        if self.resume not in (None, AUTO):
            return f"going on with {self.resume}"
        data, model, epochs = self.config.data, self.config.model, self.config.train.epochs
        images = "the embedded typefaces" if data.root is None else data.root
        length = quantity(epochs, "epoch")
        return f"training {model.backbone} with {model.method} on {images}, {length}"


def run(given: Given) -> int:
    """Train, and return the exit status, which is the first process's: others return 0."""
    with users_input():
        asked = _read(given)
    if first_process():
        say(f"{asked.title}; loading PyTorch")
    with loading():
        from covpool.fitting import prepared_run

    keep_freed_memory()
    with ExitStack() as held:
        with users_input(), checking_files() as progress:
            prepared = held.enter_context(
                prepared_run(
                    asked.config,
                    output=asked.output,
                    resume=asked.resume,
                    default=asked.default,
                    progress=progress,
                )
            )
        return _train(prepared)


def first_process() -> bool:
    """Whether this process is the one that speaks, as far as its environment tells."""
    return int(next((os.environ[name] for name in RANKS if name in os.environ), 0)) == 0


def _read(given: Given) -> Request:
    own, recipe = given.own, None
    if own.resume in (None, AUTO):
        if own.resume == AUTO and own.output is None:
            raise ValueError(
                "--resume auto needs --output, the run directory to go on with or to start"
            )
        recipe = chosen_recipe(given)
        config = given.config(recipe and recipe.config)
    else:
        for option in ("output", "recipe"):
            if (value := getattr(own, option)) is not None:
                raise ValueError(
                    f"--{option} {value} and --resume {own.resume} exclude each other: a resumed "
                    f"run goes on {'in' if option == 'output' else 'with'} its own "
                    f"{'directory' if option == 'output' else 'configuration'}"
                )
        there = RunDirectory.open(own.resume).read_config()
        config = given.config(there, allowed=RESUMABLE)
        return Request(config, resume=own.resume)
    if recipe is not None:
        recipe.check(config)
    default = None if own.recipe is not None else recipe or RunConfig()
    return Request(config, own.output, own.resume, default)


def _train(prepared: "PreparedRun") -> int:
    from covpool.data import DataError
    from covpool.train.divergence import TrainingDiverged
    from covpool.train.storage import StorageError
    from covpool.train.trainer import main_process

    speaks, directory = main_process(), prepared.directory
    go_on = f"covpool train --resume {shlex.quote(str(directory.path))}"
    try:
        prepared.train(say)
    except Interrupted as error:
        if speaks:
            say(f"covpool: interrupted; go on with: {go_on}", error=True)
        return 128 + error.signal_number if speaks else 0
    except (DataError, ChildProcessError) as error:
        raise UserError(f"{error}; then go on with: {go_on}") from error
    except StorageError as error:
        if not speaks:
            return 0
        kept = "; the checkpoints before are intact" if directory.has_checkpoint() else ""
        raise UserError(f"{error}{kept}; make room, then go on with: {go_on}") from error
    except TrainingDiverged as error:
        if not speaks:
            return 0
        kept = "last.ckpt holds the last good state; " if directory.last.is_file() else ""
        skipping = directory.read_config().train.on_nonfinite == "skip"
        say(
            f"covpool: training diverged in {error}; {kept}try a lower optim.learning_rate or "
            f"optim.clip_norm{'' if skipping else ', or --on-nonfinite skip'}",
            error=True,
        )
        return 1
    return 0
