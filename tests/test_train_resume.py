"""A run that was stopped and resumed ends as the run that was not: bit for bit."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

import quick
from covpool.cli import main
from covpool.data import DataError, Images
from covpool.train.recorder import PROGRESS, Recorder
from covpool.train.sampling import TrainBatchSampler
from tiny_images import OPTIONS, make_tiny_images

RUN = [
    *OPTIONS,
    *("--train.epochs", "3"),
    *("--model.drop_rate", "0.2"),
    *("--model.schedule", "0:isqrt-cov,1:svd-pade"),
    *("--optim.warmup_epochs", "0.5"),
    *("--optim.decay", "step"),
    *("--optim.milestones", "[2]"),
    *("--optim.clip_norm", "1"),
]
"""Three epochs of 3 steps with everything that is random or changes on the way."""

CLOCK = ("seconds", "test_seconds", "images_per_second")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return str(make_tiny_images(tmp_path_factory.mktemp("images")))


@pytest.fixture(scope="module")
def uninterrupted(images, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    assert main(["train", "--data.root", images, "--output", str(path), *RUN]) == 0
    return load(path)


def load(path):
    return torch.load(path / "last.ckpt", weights_only=True)


def assert_same(checkpoint, reference):
    assert checkpoint["global_step"] == reference["global_step"] == 9
    for key, value in reference["state_dict"].items():
        assert torch.equal(checkpoint["state_dict"][key], value), key
    states = [c["optimizer_states"][0]["state"] for c in (checkpoint, reference)]
    assert states[1]
    for index, state in states[1].items():
        for name, value in state.items():
            assert torch.equal(states[0][index][name], value), name
    histories = [
        [{k: v for k, v in row.items() if k not in CLOCK} for row in c[PROGRESS]["history"]]
        for c in (checkpoint, reference)
    ]
    assert histories[0] == histories[1]


def interrupt_at(steps, monkeypatch, signal_number=signal.SIGINT):
    """Send this process a signal, as Ctrl-C does, when a step of those is being finished."""
    left, original = set(steps), Recorder.on_train_batch_end

    def hook(self, trainer, module, *rest):
        if module.global_step in left:
            left.remove(module.global_step)
            os.kill(os.getpid(), signal_number)
        original(self, trainer, module, *rest)

    monkeypatch.setattr(Recorder, "on_train_batch_end", hook)


@quick.parametrize(
    ("steps", "workers"),
    [((1, 2), 0), ((5, 7), 0), ((3, 6), 0), ((4,), 2), ((6,), 2)],
    keep=[((3, 6), 0), ((4,), 2)],
)
def test_resumed_equals_uninterrupted(
    steps, workers, images, uninterrupted, tmp_path, monkeypatch, capsys
):
    interrupt_at(steps, monkeypatch)
    path = tmp_path / "run"
    options = ["--data.workers", str(workers), *RUN]
    assert main(["train", "--data.root", images, "--output", str(path), *options]) == 130
    assert f"covpool train --resume {path}" in capsys.readouterr().err
    for _ in steps[1:]:
        assert main(["train", "--resume", str(path)]) == 130
    assert load(path)["global_step"] == steps[-1]
    assert main(["train", "--resume", str(path)]) == 0
    assert_same(load(path), uninterrupted)
    methods = [row["method"] for row in load(path)[PROGRESS]["history"]]
    assert methods == ["isqrt-cov", "svd-pade", "svd-pade"]


def test_a_killed_run_resumes_from_its_last_checkpoint(
    images, uninterrupted, tmp_path, monkeypatch
):
    path = tmp_path / "run"
    original = Recorder.on_train_batch_end

    class Killed(BaseException):
        pass

    def hook(self, trainer, module, *rest):
        original(self, trainer, module, *rest)
        if module.global_step == 5:
            raise Killed

    options = ["--train.checkpoint_steps", "2", *RUN]
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "on_train_batch_end", hook)
        with pytest.raises(Killed):
            main(["train", "--data.root", images, "--output", str(path), *options])
    assert load(path)["global_step"] == 4
    assert main(["train", "--resume", str(path)]) == 0
    assert_same(load(path), uninterrupted)


def test_a_run_without_a_checkpoint_begins_anew(images, uninterrupted, tmp_path, capsys):
    path = tmp_path / "run"
    assert main(["train", "--data.root", images, "--output", str(path), *RUN]) == 0
    (path / "last.ckpt").unlink()
    assert main(["train", "--resume", str(path)]) == 0
    assert "starting from the beginning" in capsys.readouterr().out
    assert_same(load(path), uninterrupted)


NEWER = {
    "optim": ("name", "options", "layer_decay", "decay_norm_and_bias", "decay_options"),
    "data": ("mixup", "cutmix", "mixup_options", "random_erasing", "erasing_options"),
}
"""Options that runs of version 0.1 do not have."""


def test_a_run_of_an_older_version_goes_on(images, uninterrupted, tmp_path, monkeypatch):
    interrupt_at((4,), monkeypatch)
    path = tmp_path / "run"
    assert main(["train", "--data.root", images, "--output", str(path), *RUN]) == 130
    checkpoint, config = load(path), yaml.safe_load((path / "config.yaml").read_text())
    for options in (config, checkpoint["covpool"]["config"]):
        for group, names in NEWER.items():
            for name in names:
                del options[group][name]
    torch.save(checkpoint, path / "last.ckpt")
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", "--resume", str(path)]) == 0
    assert_same(load(path), uninterrupted)


def test_a_finished_run_can_be_made_longer(images, tmp_path, capsys):
    path = tmp_path / "run"
    assert main(["train", "--data.root", images, "--output", str(path), *OPTIONS]) == 0
    assert main(["train", "--resume", str(path)]) == 2
    assert "finished its 2 epochs" in capsys.readouterr().err
    assert main(["train", "--resume", str(path), "--train.epochs", "3"]) == 0
    assert [row["epoch"] for row in load(path)[PROGRESS]["history"]] == [1, 2, 3]


def test_a_resumed_run_keeps_its_own_options(images, tmp_path, capsys):
    path = tmp_path / "run"
    assert main(["train", "--data.root", images, "--output", str(path), *OPTIONS]) == 0
    assert main(["train", "--resume", str(path), "--model.method", "gap"]) == 2
    error = capsys.readouterr().err
    assert "--model.method cannot be changed" in error
    assert "train.epochs" in error


def test_an_image_damaged_in_mid_run_loses_nothing(
    images, uninterrupted, tmp_path, monkeypatch, capsys
):
    path, original = tmp_path / "run", Images.__getitem__
    second_epoch = list(TrainBatchSampler(27, 8, seed=0, step=lambda: 3))

    def damaged(self, index):
        if index == second_epoch[1][4]:
            raise DataError("cannot read image a/b.png")
        return original(self, index)

    options = ["--data.workers", "1", *RUN]
    with monkeypatch.context() as patch:
        patch.setattr(Images, "__getitem__", damaged)
        assert main(["train", "--data.root", images, "--output", str(path), *options]) == 2
    error = capsys.readouterr().err
    assert "covpool: error: cannot read image a/b.png" in error
    assert "start a new run with --data.skip_damaged true, or repair" in error
    assert error.count("\n") == 1
    assert load(path)["global_step"] == 4
    assert main(["train", "--resume", str(path)]) == 0
    assert_same(load(path), uninterrupted)


@quick.parametrize("epoch", [1, 2, 3], keep=[2])
def test_an_image_damaged_while_evaluating_loses_nothing(
    epoch, images, uninterrupted, tmp_path, monkeypatch, capsys
):
    path, original, met = tmp_path / "run", Images.__getitem__, []

    def damaged(self, index):
        if self.augment is None and index == 9:  # in the second batch of an evaluation
            met.append(index)
            if len(met) == epoch:
                raise DataError("cannot read image a/b.png")
        return original(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(Images, "__getitem__", damaged)
        assert main(["train", "--data.root", images, "--output", str(path), *RUN]) == 2
    assert "covpool: error: cannot read image a/b.png" in capsys.readouterr().err
    assert load(path)["global_step"] == 3 * epoch
    assert len(load(path)[PROGRESS]["history"]) == epoch - 1
    assert main(["train", "--resume", str(path)]) == 0
    assert_same(load(path), uninterrupted)


def test_a_run_does_not_go_on_with_other_images(tmp_path, monkeypatch, capsys):
    images, path = make_tiny_images(tmp_path / "images"), tmp_path / "run"
    interrupt_at((2,), monkeypatch)
    command = ["train", "--data.root", str(images), "--output", str(path), *OPTIONS]
    assert main(command) == 130
    image = images / "train" / "grain" / "3.png"
    content = image.read_bytes()
    image.write_bytes(content[:50])
    capsys.readouterr()
    assert main(["train", "--resume", str(path), "--data.skip_damaged", "true"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "began with 27 training and 12 test images" in error
    assert "now has 26 training and 12 test images; restore them" in error
    image.write_bytes(content)
    image.rename(image.with_name("33.png"))
    assert main(["train", "--resume", str(path)]) == 2
    assert "the same numbers of images, but other files" in capsys.readouterr().err
    image.with_name("33.png").rename(image)
    moved = images.rename(tmp_path / "moved")
    assert main(["train", "--resume", str(path), "--data.root", str(moved)]) == 0


@pytest.mark.slow
def test_ctrl_c_on_the_command_itself(images, tmp_path):
    path = tmp_path / "run"
    options = ["--output", str(path), "--data.workers", "1", *RUN, "--train.epochs", "100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "covpool.cli", "train", "--data.root", images, *options],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        while not (path / "last.ckpt").exists():
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # the loader's processes get it too
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    lines = [line for line in error.splitlines() if line]
    assert lines[0].startswith("covpool: stopping at the next safe point")
    assert lines[1:] == [f"covpool: interrupted; go on with: covpool train --resume {path}"]
    assert load(path)["global_step"] > 0
