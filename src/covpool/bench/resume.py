"""Kill runs at random moments, resume them, and compare how they end with a run left alone.

Each trial is `covpool train` on the embedded typefaces in a directory of its own. Its processes,
the loaders' included, get SIGKILL at a random moment of the training, up to three times in a row,
and each time the run goes on by the same command with `--resume auto`. In the end its weights,
momenta and metrics (but for times) are compared bit by bit with those of an uninterrupted run.
Kills count that left steps to take. Exit status 1 if any end differs. The same command goes on
where it stopped.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from covpool.bench.campaign import Report, write_results
from covpool.machine import describe_environment
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


def add_options(parser: argparse.ArgumentParser) -> None:
    """How often what is killed."""
    parser.add_argument("--kills", type=int, default=10, help="of each number of processes (10)")
    parser.add_argument("--processes", default="1,2", help="numbers of processes (default: 1,2)")
    parser.add_argument("--workers", type=int, default=2, help="loader processes each (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")


def prepare(options: argparse.Namespace) -> dict[str, Any]:
    """The results so far, those of an earlier call in `options.output` included.

    Raises:
        ValueError, OSError: it had other options, or cannot be read.
    """
    results: dict[str, Any] = {
        "environment": describe_environment(1, "cpu"),
        "options": list(RUN),
        "workers": options.workers,
        "seed": options.seed,
    }
    return {**results, "processes": read_earlier(options.output, results)}


def measure(options: argparse.Namespace, results: dict[str, Any], report: Report) -> int:
    """Go on from these results until there are as many kills as asked for; the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        for world in map(int, options.processes.split(",")):
            _kill_and_resume(world, options, results, Path(folder), report)
    failed = False
    for world, outcome in results["processes"].items():
        same = count(outcome, same=True)
        failed |= same < outcome["kills"]
        print(f"{world} processes: {same} of {outcome['kills']} kills end bit-identically")
    return int(failed)


def _kill_and_resume(
    world: int, options: argparse.Namespace, results: dict[str, Any], folder: Path, report: Report
) -> None:
    command = (*RUN, "--data.workers", str(options.workers), "--train.devices", str(world))
    log, directory = folder / f"{world}.log", folder / f"{world}-alone"
    report(f"{world} processes: left alone")
    whole = Run(directory, command, log)
    if not whole.wait_for_training():
        raise RuntimeError(f"the run did not begin to train:\n{log.read_text()}")
    began = time.monotonic()
    whole.wait()
    seconds = time.monotonic() - began
    reference = result(directory)
    outcome = results["processes"].setdefault(str(world), {"trials": []})
    outcome |= {"seconds_uninterrupted": round(seconds, 2), "steps": checkpoint_step(directory)}
    while (kills := count(outcome)) < options.kills:
        number = len(outcome["trials"])
        moments = random.Random(f"{options.seed} {world} {number}")
        directory = folder / f"{world}-{number}"
        trial: dict[str, Any] = {"kills": []}
        for _ in range(min(moments.randint(1, 3), options.kills - kills)):
            report(f"{world} processes, {kills} of {options.kills} kills: killing")
            attempt = Run(directory, command, log)
            attempt.wait_for_training()
            delay = moments.uniform(0, 0.8 * seconds)
            if not attempt.kill_after(delay):
                break
            step = checkpoint_step(directory)
            left = sorted(file.name for file in directory.glob("*partial*"))
            trial["kills"].append(
                {"seconds": round(delay, 3), "goes_on_from_step": step, "left": left}
            )
        report(f"{world} processes, {kills} of {options.kills} kills: resuming")
        Run(directory, command, log).wait()
        trial["differences"] = differences(result(directory), reference)
        outcome["trials"].append(trial)
        outcome["kills"] = count(outcome)
        write_results(results, options.output)
    outcome["kills"] = kills


def count(outcome: dict[str, Any], *, same: bool = False) -> int:
    """Kills that left steps to take; with `same`, of trials that ended without differences."""
    return sum(
        (kill["goes_on_from_step"] or 0) < outcome["steps"]
        for trial in outcome["trials"]
        for kill in trial["kills"]
        if not (same and trial["differences"])
    )


def read_earlier(output: Path, results: dict[str, Any]) -> dict[str, Any]:
    """What an earlier call has found, by number of processes.

    Raises:
        ValueError: it had other options.
    """
    if not output.is_file():
        return {}
    earlier = json.loads(output.read_text(encoding="utf-8"))
    for key in ("options", "workers", "seed"):
        if earlier[key] != results[key]:
            raise ValueError(
                f"{output} has {key} {earlier[key]!r}, not {results[key]!r}; choose another "
                "--output"
            )
    return earlier["processes"]
