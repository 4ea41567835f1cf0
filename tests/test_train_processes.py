"""Two processes: the same result as one, each image counted once, exact resumption."""

import json
import os
import signal
import sys
from functools import partial

import pytest
import torch

import processes
from covpool.cli import main
from covpool.cli.parsers import train_parser
from covpool.data import Images
from covpool.train.recorder import PROGRESS, Recorder
from covpool.train.run_directory import RunDirectory
from covpool.train.sampling import TrainBatchSampler
from covpool.train.weight_average import TRAINED
from test_train_resume import CLOCK, RUN, load
from tiny_images import OPTIONS, make_tiny_images

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are forked")

TWO = ("--train.devices", "2")
EXACT = (
    *("--model.backbone", "test_vit", "--model.backbone_options", "{}"),
    *("--model.reduced_channels", "null", "--data.image_size", "32"),
    *("--train.precision", "64"),
)
"""A network without batch norm, in float64: what a step computes does not depend on how its images
are shared out."""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """27 training and 15 test images: the last do not divide by two."""
    return str(make_tiny_images(tmp_path_factory.mktemp("images"), test=5))


def command(images, path, *options):
    return ["train", "--data.root", images, "--output", str(path), *OPTIONS, *options]


def without_clock(rows):
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]


def config_of(arguments):
    """The configuration of a command."""
    return train_parser().read(arguments[1:]).config()


def largest_difference(one, other):
    return max((other[key] - value).abs().max().item() for key, value in one.items())


@pytest.fixture(scope="module")
def alone(images, tmp_path_factory):
    path = tmp_path_factory.mktemp("alone") / "run"
    assert main(command(images, path, *EXACT)) == 0
    return path


def test_two_processes_end_as_one(images, alone, tmp_path):
    """To 1e-10: sums over the batch are taken in another order, in float64."""
    path = tmp_path / "run"
    options = (*EXACT, *TWO, "--train.loggers", "[tensorboard]")
    status, told = processes.run(
        command(images, path, *options), tmp_path / "log", variables=processes.slurm_variables
    )
    assert status == [0, 0], told
    assert len(list(path.rglob("events.out.tfevents.*"))) == 1  # the first process's
    one, two = load(alone), load(path)
    assert largest_difference(one["state_dict"], two["state_dict"]) < 1e-10
    for row, other in zip(one[PROGRESS]["history"], two[PROGRESS]["history"], strict=True):
        for key, value in row.items():
            if key.endswith(("top1", "top5")):  # counts over numbers: each image once
                assert other[key] == value, key
            elif key.endswith("loss"):
                assert other[key] == pytest.approx(value, rel=1e-10), key
    confusions = [(p / "confusions.csv").read_text() for p in (alone, path)]
    assert confusions[0] == confusions[1]


def test_accumulated_gradients_end_as_whole_batches(images, alone, tmp_path):
    path = tmp_path / "run"
    assert main(command(images, path, *EXACT, "--train.accumulate", "4")) == 0
    assert largest_difference(load(alone)["state_dict"], load(path)["state_dict"]) < 1e-10
    assert load(path)["global_step"] == 6


def poison(rank):
    """In the second process, an infinite image in the second step of the second epoch."""
    bad = next(iter(TrainBatchSampler(27, 8, seed=0, step=lambda: 4)))
    original = Images.__getitem__

    def get(self, index):
        image, label = original(self, index)
        return (image / 0 if rank and index in bad[1:2] else image), label

    Images.__getitem__ = get


def poison_and_kill(step, rank):
    """As `poison`, and every process is killed right after that step."""
    poison(rank)
    original = Recorder.on_train_batch_end

    def hook(self, trainer, module, *rest):
        original(self, trainer, module, *rest)
        if module.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    Recorder.on_train_batch_end = hook


def test_two_killed_processes_resume_bit_for_bit(images, tmp_path):
    """With accumulation, batch norm, dropout, a switch of methods, an average of the weights, and a
    skipped step."""
    options = (*RUN, *TWO, "--train.accumulate", "2", "--train.checkpoint_steps", "2")
    options += ("--data.workers", "1", "--resume", "auto", "--on-nonfinite", "skip")
    options += ("--optim.weight_average", "0.8")
    whole, path, log = tmp_path / "whole", tmp_path / "run", tmp_path / "log"
    status, told = processes.run(command(images, whole, *options), log, prepare=poison)
    assert status == [0, 0], told
    assert "skipped epoch 2, step 2 of 3: process 1: " in told
    for step, saved in ((3, 2), (8, 8)):
        kill = partial(poison_and_kill, step)
        status, told = processes.run(command(images, path, *options), log, prepare=kill)
        assert status == [-signal.SIGKILL] * 2, told
        assert load(path)["global_step"] == saved
    status, told = processes.run(command(images, path, *options), log, prepare=poison)
    assert status == [0, 0], told
    ends = [load(p) for p in (whole, path)]
    assert ends[0]["global_step"] == ends[1]["global_step"] == 9
    for weights in ("state_dict", TRAINED):
        for key, value in ends[0][weights].items():
            assert torch.equal(ends[1][weights][key], value), f"{weights} {key}"
    rows = [without_clock(RunDirectory(p).read_metrics()) for p in (whole, path)]
    assert rows[0] == rows[1]
    assert [row["skipped_steps"] for row in rows[0]] == [0, 1, 0]


def test_processes_stop_together_where_one_of_them_diverges(images, tmp_path):
    path, log = tmp_path / "run", tmp_path / "log"
    status, told = processes.run(command(images, path, *RUN, *TWO), log, prepare=poison)
    assert status == [1, 0], told
    assert "training diverged in epoch 2, step 2 of 3: process 1: " in told
    assert "the input itself is not finite in " in told
    assert json.loads((path / "summary.json").read_text())["status"] == "diverged"
    assert "Traceback" not in told + (tmp_path / "log.1").read_text()


def fill_disk(path, rank):
    (path / f".partial-{os.getpid()}-last.ckpt").symlink_to("/dev/full")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_processes_stop_together_where_the_disk_is_full(images, tmp_path):
    path, log = tmp_path / "run", tmp_path / "log"
    path.mkdir()
    (path / "config.yaml").write_text("{}")
    options = command(images, path, "--resume", "auto", *TWO)
    RunDirectory(path).write_config(config_of(options))
    status, told = processes.run(options, log, prepare=partial(fill_disk, path))
    assert status == [2, 0], told
    assert f"cannot write {path / 'last.ckpt'}: No space left" in told
    assert "Traceback" not in told + (tmp_path / "log.1").read_text()
