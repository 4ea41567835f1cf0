"""Kill runs at random moments, resume them, and compare how they end with a run left alone."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from covpool.bench import tables
from covpool.bench.measurement import Measurement, Record, Results
from covpool.bench.options import ResumeOptions
from covpool.bench.tables import Table, column
from covpool.train.checkpoint import find_checkpoint
from covpool.train.progress import EPOCH_HEADER

RUN = (
    *("--train.epochs", "3", "--data.batch_size", "64", "--train.checkpoint_steps", "4"),
    *("--model.backbone_options.width", "8", "--model.drop_rate", "0.2"),
    *("--model.schedule", "0:isqrt-cov,1:svd-pade", "--optim.clip_norm", "1"),
    *("--train.accelerator", "cpu", "--train.threads", "1"),
)
"""Three epochs with everything that is random or changes on the way."""

CLOCK = ("seconds", "test_seconds", "images_per_second")
BEGUN = EPOCH_HEADER.splitlines()[-1].rstrip()
"""What a run prints before its first step."""


class Run:
    """One start of the command, with its processes in a group of their own."""

    def __init__(self, directory: Path, options: tuple[str, ...], log: Path) -> None:
        self.log = log
        self.start = log.stat().st_size if log.exists() else 0
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "covpool.cli", "train", *options),
                    *("--output", str(directory), "--resume", "auto"),
                ],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )

    def wait_for_training(self) -> bool:
        """Until the first step; False where the run ended before."""
        while self.process.poll() is None:
            if BEGUN in self.log.read_bytes()[self.start :].decode(errors="replace"):
                return True
            time.sleep(0.05)
        return False

    def wait(self) -> None:
        """Until it ends.

        Raises:
            RuntimeError: with an error.
        """
        if self.process.wait():
            raise RuntimeError(
                f"the run ended with status {self.process.returncode}:\n{self.log.read_text()}"
            )

    def kill_after(self, seconds: float) -> bool:
        """SIGKILL to every process of the run; False where it ended before."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            return True
        return False


def result(directory: Path) -> dict[str, Any]:
    """All that must be the same: tensors by name, and the rows of the epochs."""
    found: dict[str, Any] = {}
    for name in ("last.ckpt", "best.ckpt"):
        checkpoint = torch.load(directory / name, weights_only=True)
        for key, tensor in checkpoint["state_dict"].items():
            found[f"{name} {key}"] = tensor
        found[f"{name} step"] = checkpoint["global_step"]
        for optimizer in checkpoint.get("optimizer_states", []):
            for index, state in optimizer["state"].items():
                found[f"{name} momentum {index}"] = state["momentum_buffer"]
    for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found[f"epoch {row['epoch']}"] = {k: v for k, v in row.items() if k not in CLOCK}
    return found


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The names of what is not the same, bit by bit."""

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            return a.dtype == b.dtype and torch.equal(a, b)
        return bool(a == b)

    return [name for name in {**one, **other} if not same(one.get(name), other.get(name))]


def checkpoint_step(directory: Path) -> int | None:
    """The step of the checkpoint that a killed run would go on from."""
    found = find_checkpoint(directory / "last.ckpt")
    return found[0]["global_step"] if found else None


class Resume(Measurement[ResumeOptions]):
    """A record for each trial: a run that is killed, resumed, and compared."""

    def records(self, done: Mapping[str, Record]) -> Iterator[Record]:
        with tempfile.TemporaryDirectory() as folder:
            for world in self.options.processes:
                trials = [trial for trial in done.values() if trial["processes"] == world]
                yield from trials
                if kills_of(trials) < self.options.kills:
                    yield from self._trials(world, trials, Path(folder))

    def _trials(self, world: int, trials: list[Record], folder: Path) -> Iterator[Record]:
        """More of them, until there are as many kills as asked for."""
        own, log = self.options, folder / f"{world}.log"
        command = (*RUN, "--data.workers", str(own.workers), "--train.devices", str(world))
        self.say(f"{world} processes: left alone")
        whole = Run(folder / f"{world}-alone", command, log)
        if not whole.wait_for_training():
            raise RuntimeError(f"the run did not begin to train:\n{log.read_text()}")
        began = time.monotonic()
        whole.wait()
        seconds = time.monotonic() - began
        reference = result(folder / f"{world}-alone")
        while (kills := kills_of(trials)) < own.kills:
            name = f"{world} processes, trial {len(trials) + 1}"
            moments = random.Random(f"{own.seed} {world} {len(trials)}")
            directory = folder / name
            trial: Record = {"shape": name, "processes": world, "kills": []}
            trial |= {
                "seconds_uninterrupted": round(seconds, 2),
                "steps": reference["last.ckpt step"],
            }
            for _ in range(min(moments.randint(1, 3), own.kills - kills)):
                self.say(f"{name}, {kills} of {own.kills} kills: killing")
                attempt = Run(directory, command, log)
                attempt.wait_for_training()
                delay = moments.uniform(0, 0.8 * seconds)
                if not attempt.kill_after(delay):
                    break
                left = sorted(file.name for file in directory.glob("*partial*"))
                step = checkpoint_step(directory)
                kill = {"seconds": round(delay, 3), "goes_on_from_step": step, "left": left}
                trial["kills"].append(kill)
            self.say(f"{name}, {kills} of {own.kills} kills: resuming")
            Run(directory, command, log).wait()
            trial["differences"] = differences(result(directory), reference)
            trials.append(trial)
            yield trial

    @classmethod
    def tables(cls, record: Record) -> Iterator[Table]:
        columns = {
            "killed after s": column("seconds", "{:.1f}"),
            "goes on from step": column("goes_on_from_step", f"{{}} of {record['steps']}"),
        }
        end = ", ".join(record["differences"]) or "none"
        yield tables.table(f"{record['shape']}; differences: {end}", columns, record["kills"])

    def finish(self, results: Results, output: Path | None) -> tuple[Sequence[str], int]:
        lines, failed = [], False
        for world in self.options.processes:
            trials = [trial for trial in results["shapes"] if trial["processes"] == world]
            kills, same = kills_of(trials), kills_of(trials, same=True)
            failed |= same < kills
            lines.append(f"{world} processes: {same} of {kills} kills end bit-identically")
        return lines, int(failed)


def kills_of(trials: Sequence[Record], *, same: bool = False) -> int:
    """Kills that left steps to take; with `same`, of trials that ended without differences."""
    return sum(
        (kill["goes_on_from_step"] or 0) < trial["steps"]
        for trial in trials
        for kill in trial["kills"]
        if not (same and trial["differences"])
    )
