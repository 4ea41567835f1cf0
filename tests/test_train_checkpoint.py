"""Checkpoints under damage, kills in the midst of writing, and full disks."""

import errno
import os
import random
import re
import shutil
from pathlib import Path

import pytest
import torch

from covpool.cli import main
from covpool.train import checkpoint as checkpoints
from covpool.train.checkpoint import (
    METADATA,
    DamagedCheckpoint,
    find_checkpoint,
    read_checkpoint,
)
from covpool.train.recorder import Recorder
from covpool.train.storage import AtomicCheckpointIO
from tiny_images import OPTIONS, make_tiny_images


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return str(make_tiny_images(tmp_path_factory.mktemp("images")))


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """Two epochs of three steps; previous.ckpt is after the first, last.ckpt after the second."""
    path = tmp_path_factory.mktemp("whole") / "run"
    options = ["--output", str(path), "--keep", "all", *OPTIONS]
    assert main(["train", "--data.root", images, *options]) == 0
    return path


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def step_of(path):
    return torch.load(path, weights_only=True)["global_step"]


def same(a, b):
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return a == b


def flip(content, bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_no_flipped_bit_goes_unnoticed_and_changes_something(finished, tmp_path):
    content, file = (finished / "last.ckpt").read_bytes(), tmp_path / "last.ckpt"
    original, random_bit, noticed = read_checkpoint(finished / "last.ckpt"), random.Random(0), 0
    for _ in range(150):
        file.write_bytes(flip(content, random_bit.randrange(8 * len(content))))
        try:
            assert same(read_checkpoint(file)["state_dict"], original["state_dict"])
        except (DamagedCheckpoint, ValueError):
            noticed += 1
    assert noticed > 75


def damage_a_tensor(file):
    """Flip a bit of the first weight's mantissa, which torch.load does not notice."""
    content = file.read_bytes()
    weights = next(iter(torch.load(file, weights_only=True)["state_dict"].values()))
    place = content.index(weights.flatten()[:4].numpy().tobytes())
    file.write_bytes(flip(content, 8 * place + 3))
    torch.load(file, weights_only=True)


def test_the_checkpoint_before_takes_a_damaged_ones_place(finished, copy, caplog):
    damage_a_tensor(copy / "last.ckpt")
    assert main(["train", "--resume", str(copy)]) == 0
    assert f"{copy / 'last.ckpt'} is damaged" in caplog.text
    assert f"going on from {copy / 'previous.ckpt'}, after step 3" in caplog.text
    for name in ("last.ckpt", "previous.ckpt"):
        assert same(*(read_checkpoint(p / name)["state_dict"] for p in (copy, finished)))
    assert (copy / "last.ckpt.damaged").is_file()


def test_two_damaged_checkpoints_are_refused(copy, capsys):
    for name in ("last.ckpt", "previous.ckpt"):
        damage_a_tensor(copy / name)
    assert main(["train", "--resume", str(copy)]) == 2
    error = capsys.readouterr().err
    assert f"{copy / 'last.ckpt'} is damaged" in error
    assert f"{copy / 'previous.ckpt'} is damaged" in error
    assert "start a new run" in error
    assert error.count("\n") == 1


def test_at_every_moment_of_writing_one_complete_checkpoint_is_there(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    about = dict.fromkeys(checkpoints.METADATA_KEYS, "")
    about["vector_layout"] = checkpoints.VECTOR_LAYOUT
    last = tmp_path / "last.ckpt"

    def save(number):
        content = {METADATA: about, "state_dict": {}, "global_step": number}
        AtomicCheckpointIO().save_checkpoint(content, last)

    calls = [(os, "fsync"), (os, "replace"), (os, "open"), (Path, "unlink")]
    save(0)
    killed, before = 0, 0
    for number in range(1, 20):
        left = number
        with monkeypatch.context() as patch:

            def counted(original):
                def call(*arguments, **options):
                    nonlocal left
                    left -= 1
                    if left == 0:
                        raise Killed
                    return original(*arguments, **options)

                return call

            for owner, name in calls:
                patch.setattr(owner, name, counted(getattr(owner, name)))
            try:
                save(number)
            except Killed:
                killed += 1
        found = find_checkpoint(last)
        assert found is not None
        assert found[0]["global_step"] in (before, number)
        before = found[0]["global_step"]
    assert killed >= 5


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_leaves_the_checkpoint_before_and_says_so(finished, copy, monkeypatch, capsys):
    (copy / "last.ckpt").unlink()
    (copy / "previous.ckpt").rename(copy / "last.ckpt")
    partial = copy / f".partial-{os.getpid()}-last.ckpt"
    save, full = Recorder._save, [True]

    def save_on_full_disk(self, *arguments, **options):
        if full.pop():
            partial.symlink_to("/dev/full")
        save(self, *arguments, **options)

    monkeypatch.setattr(Recorder, "_save", save_on_full_disk)
    assert main(["train", "--resume", str(copy)]) == 2
    monkeypatch.undo()
    error = capsys.readouterr().err
    assert f"cannot write {copy / 'last.ckpt'}: {os.strerror(errno.ENOSPC)}" in error
    assert f"make room, then go on with: covpool train --resume {copy}" in error
    assert error.count("\n") == 1
    assert not [file for file in copy.iterdir() if "partial" in file.name]
    assert step_of(copy / "last.ckpt") == 3
    assert main(["train", "--resume", str(copy)]) == 0
    assert same(*(read_checkpoint(p / "last.ckpt")["state_dict"] for p in (copy, finished)))


def test_metrics_that_cannot_be_written_are_said(images, tmp_path, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr("covpool.train.run_directory.RunDirectory.write_metrics", full)
    path = tmp_path / "run"
    assert main(["train", "--data.root", images, "--output", str(path), *OPTIONS]) == 2
    error = capsys.readouterr().err
    assert f"cannot write {path / 'metrics.csv'}: {os.strerror(errno.EDQUOT)}" in error


def without(key):
    def change(progress):
        del progress[key]

    return change


FORGED = {
    "history\\[1\\] is not whole: it lacks test_top1": lambda progress: progress["history"][1].pop(
        "test_top1"
    ),
    "history\\[1\\].method must be text": lambda p: p["history"][1].update(method=3),
    "history\\[0\\].test_top1 must be a number": lambda p: p["history"][0].update(test_top1="1"),
    "history must be a list": lambda progress: progress.update(history={"a": 1}),
    "history\\[0\\] must be a mapping": lambda progress: progress["history"].insert(0, 5),
    "seconds must be a number": lambda progress: progress.update(seconds=None),
    "train_sums must be a tensor": lambda progress: progress.update(train_sums=[1.0]),
    "it lacks skipped": without("skipped"),
    "it lacks history": without("history"),
}


@pytest.mark.parametrize(
    "change",
    [
        {"images": {"train": 3}},
        {"images": {}},
        {"classes": 5},
        {"epoch": "1"},
        {"config": {"a": 1}},
    ],
    ids=str,
)
def test_metadata_that_covpool_did_not_write_is_named(change, copy, capsys):
    checkpoint = torch.load(copy / "last.ckpt", weights_only=True)
    checkpoint[METADATA] |= change
    torch.save(checkpoint, copy / "last.ckpt")
    assert main(["train", "--resume", str(copy), "--epochs", "3"]) == 2
    error = capsys.readouterr().err
    assert str(copy / "last.ckpt") in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("message", FORGED)
@pytest.mark.parametrize("longer", [True, False])
def test_progress_that_covpool_did_not_write_is_named(message, longer, copy, capsys):
    checkpoint = torch.load(copy / "last.ckpt", weights_only=True)
    FORGED[message](checkpoint["covpool_progress"])
    torch.save(checkpoint, copy / "last.ckpt")
    files = {file.name: file.read_bytes() for file in copy.iterdir()}
    options = ["--epochs", "3"] if longer else []
    assert main(["train", "--resume", str(copy), *options]) == 2
    error = capsys.readouterr().err
    assert re.search(f"{copy / 'last.ckpt'}: covpool_progress.*{message}", error)
    assert error.count("\n") == 1
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == files
