"""Runs that are killed between any two of their writes, share a directory, or are tampered with."""

import errno
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import yaml

import processes
from covpool.cli import main
from covpool.data import Images
from covpool.experiments import grid
from covpool.experiments.arms import Arm
from covpool.experiments.runs import Run
from covpool.publish.weights import read_weights
from covpool.train import claim, engine, run_directory
from covpool.train.checkpoint import DamagedCheckpoint, read_checkpoint
from covpool.train.claim import claimed
from covpool.train.config import RunConfig
from covpool.train.published import appearing, model_weights, read_published, write_published
from covpool.train.run_directory import RunDirectory, make_numbered
from covpool.train.same_options import RESUME_KEYS, difference
from covpool.train.starting_weights import read_starting_weights
from inline_grid import command as inline
from tiny_images import OPTIONS, make_tiny_images

RUN = [*OPTIONS, "--train.epochs", "1", "--train.checkpoint_steps", "2"]
"""An epoch of three steps, with a checkpoint in its midst."""

CLOCK = ("seconds", "test_seconds", "images_per_second", "peak_memory_bytes")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return str(make_tiny_images(tmp_path_factory.mktemp("images")))


@pytest.fixture(scope="module")
def dead_process():
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture(scope="module")
def watched(images, tmp_path_factory):
    """A run, and the states of its directory between any two of its writes, oldest first.

    What a kill leaves is what is there when the next thing is about to be done to the directory.
    """
    folder = tmp_path_factory.mktemp("watched")
    path, states, copying = folder / "run", {}, []

    def noting(original):
        def call(*arguments, **options):
            if path.is_dir() and not copying:
                copying.append(True)
                kept = [f for f in path.iterdir() if not f.name.startswith(".")]
                # The last of those with the same files has what is half-written too.
                state = folder / str(len(states))
                key = tuple(sorted((f.name, f.read_bytes()) for f in kept))
                state = states.setdefault(key, state)
                shutil.rmtree(state, ignore_errors=True)
                shutil.copytree(path, state)
                copying.clear()
            return original(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "fsync", "mkdir"):
            patch.setattr(os, name, noting(getattr(os, name)))
        assert main(["train", "--data.root", images, "--output", str(path), *RUN]) == 0
    return path, list(states.values())


@pytest.fixture
def copy(watched, tmp_path):
    return shutil.copytree(watched[0], tmp_path / "copy")


def kill(path, dead_process):
    """Let what is half-written there be of a process that is no more."""
    for file in path.glob(".partial-*"):
        file.rename(file.with_name(file.name.replace(str(os.getpid()), str(dead_process))))


def without_clock(content):
    if isinstance(content, dict):
        return {k: without_clock(v) for k, v in content.items() if k not in CLOCK}
    return content


def assert_same_run(path, reference):
    assert {f.name for f in path.iterdir()} == {f.name for f in reference.iterdir()}
    for name in ("last.ckpt", "best.ckpt"):
        found, wanted = (read_checkpoint(p / name) for p in (path, reference))
        assert found.keys() == wanted.keys()
        assert found["global_step"] == wanted["global_step"]
        for key, value in wanted["state_dict"].items():
            assert torch.equal(found["state_dict"][key], value), f"{name} {key}"
    directories = [RunDirectory(p) for p in (path, reference)]
    rows = [[without_clock(row) for row in d.read_metrics()] for d in directories]
    assert rows[0] == rows[1]
    summaries = [without_clock(d.read_summary()) for d in directories]
    assert summaries[0] == summaries[1]
    for name in ("confusions.csv", "confusion.png", "config.yaml"):
        assert (path / name).read_bytes() == (reference / name).read_bytes(), name


@pytest.mark.slow
def test_a_run_killed_between_any_two_writes_ends_as_one_that_was_not(
    watched, images, dead_process, tmp_path
):
    run, states = watched
    seen = {name for state in states for name in os.listdir(state)}
    assert {f.name for f in run.iterdir()} - seen <= {"summary.json"}
    assert len(states) >= 11  # the first one is empty; each of the files adds one
    half_written = [file.name for state in states for file in state.glob(".partial-*")]
    assert len(half_written) >= 10
    for number, state in enumerate(states):
        kill(state, dead_process)
        there = sorted(os.listdir(state))
        path = state.rename(tmp_path / f"run-{number}")
        command = ["train", "--data.root", images, "--output", str(path), "--resume", "auto"]
        assert main([*command, *RUN]) == 0, there
        assert (path / "summary.json").is_file(), there
        assert_same_run(path, run)


def exit_while_drawing(rank):
    replace = os.replace

    def exiting(source, target, **options):
        if Path(target).name == "confusion.png":
            os._exit(9)
        return replace(source, target, **options)

    os.replace = exiting


def test_a_killed_process_leaves_no_lock_and_its_rubbish_is_cleared_away(images, watched, tmp_path):
    path = tmp_path / "run"
    command = ["train", "--data.root", images, "--output", str(path), "--resume", "auto", *RUN]
    status, told = processes.run(command, tmp_path / "log", world=1, prepare=exit_while_drawing)
    assert status == [9], told
    assert [f.name[:9] for f in path.iterdir() if f.name.startswith(".p")] == [".partial-"]
    assert main(command) == 0
    assert_same_run(path, watched[0])


def test_a_finished_run_that_lost_a_result_writes_it_anew(copy, watched, capsys):
    assert main(["train", "--resume", str(copy)]) == 2
    assert "has finished its 1 epoch" in capsys.readouterr().err
    for name in run_directory.RESULTS:
        (copy / name).unlink()
    assert main(["train", "--resume", str(copy)]) == 0
    assert "Final  top-1" in capsys.readouterr().out
    assert_same_run(copy, watched[0])


def test_a_disk_that_is_full_at_the_summary_is_made_up_for(copy, watched, monkeypatch, capsys):
    def full(path, text):
        if path.name == "summary.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(path, text)

    replace = run_directory.replace_text
    (copy / "summary.json").unlink()
    command = ["train", "--resume", str(copy)]
    monkeypatch.setattr(run_directory, "replace_text", full)
    assert main(command) == 2
    error = capsys.readouterr().err
    assert f"cannot write the results to {copy}: {os.strerror(errno.ENOSPC)}" in error
    assert f"make room, then go on with: covpool train --resume {copy}" in error
    monkeypatch.undo()
    assert main(command) == 0
    assert_same_run(copy, watched[0])


def test_a_picture_that_cannot_be_drawn_does_not_take_the_results_with_it(
    copy, monkeypatch, caplog, capsys
):
    def fail(*arguments):
        raise UnicodeEncodeError("utf-8", "x", 0, 1, "a name that cannot be drawn")

    for name in ("confusion.png", "confusions.csv", "summary.json"):
        (copy / name).unlink()
    monkeypatch.setattr(engine, "draw_confusion", fail)
    assert main(["train", "--resume", str(copy)]) == 0
    assert "could not be drawn" in caplog.text
    assert json.loads((copy / "summary.json").read_text())["status"] == "finished"
    assert main(["train", "--resume", str(copy)]) == 2  # nothing is evaluated again for it
    assert "has finished its 1 epoch" in capsys.readouterr().err


def test_a_cell_of_a_comparison_that_was_killed_before_its_summary_is_healed(images, tmp_path):
    folder = tmp_path / "comparison"
    options = ["--methods", "gap", "--seeds", "1", "--output", str(folder), *RUN]
    assert inline("compare", "--data.root", images, *options) == 0
    cell = folder / "gap-seed0"
    whole = shutil.copytree(cell, tmp_path / "whole")
    for name in ("summary.json", "summary.md", "confusion.png"):
        (cell / name).unlink()
    assert inline("compare", "--data.root", images, *options) == 0
    assert_same_run(cell, whole)
    (cell / "summary.json").unlink()
    with pytest.MonkeyPatch.context() as patch, claimed(cell):
        patch.setattr(grid, "GRACE_SECONDS", 0)
        again = Run(arm=Arm("gap"), seed=0, config=RunDirectory(cell).read_config(), path=cell)
        with pytest.raises(ValueError, match=f"is in use by process {os.getpid()}"):
            grid.run_one(again)


def test_the_reason_in_a_summary_is_no_markup():
    summary = {"data": "x", "backbone": "y", "schedule": "gap", "status": "failed", "epochs": 0}
    summary |= {"epochs_planned": 1, "seconds": 0.0, "seed": 0, "parameters": 5}
    summary |= {"covpool": "1", "torch": "2", "reason": "cannot read <b>.png\n[x](y)\x1b"}
    text = run_directory.summary_markdown(summary)
    assert text.splitlines()[-1] == r"cannot read \<b\>.png \[x\](y)\\x1b"


STUDY = {
    "study": {"title": "One arm", "arms": ["gap"], "leading": [], "references": ["gap"]}
    | {"seeds": 1, "rates": [0.1]},
}

COMMANDS = {
    "train": ["--resume"],
    "compare": ["--methods", "gap", "--output"],
    "study": ["STUDY", "--output"],
    "reproduce": ["table1", "--output"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_directory_in_use_is_refused(name, copy, tmp_path, capsys):
    path = copy if name == "train" else tmp_path / "folder"
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump(STUDY))
    words = [str(study) if word == "STUDY" else word for word in COMMANDS[name]]
    with claimed(path):
        before = sorted(os.listdir(path))
        assert main([name, *words, str(path)]) == 2
        assert sorted(os.listdir(path)) == before
    error = capsys.readouterr().err
    assert f"{path} is in use by process {os.getpid()} on {platform.node()}; wait" in error
    assert error.count("\n") == 1
    assert claim.LOCK not in os.listdir(path)


def test_a_file_is_no_directory_to_hold(copy):
    with pytest.raises(ValueError, match=r"config\.yaml is a file; choose another --output"):
        claimed(copy / "config.yaml").__enter__()


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_where_the_file_system_knows_no_locks_the_file_is_one(tmp_path, monkeypatch):
    def missing(*arguments):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(pytest.importorskip("fcntl"), "flock", missing)
    held = f"by process {os.getpid()} on .*, remove {tmp_path / claim.LOCK} if it is no more"
    with claimed(tmp_path):
        with pytest.raises(ValueError, match=held), claimed(tmp_path):
            pass
        assert os.listdir(tmp_path) == [claim.LOCK]
    assert not os.listdir(tmp_path)


def test_a_default_directory_that_another_run_takes_first_is_not_shared(
    images, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    mkdir, taken = Path.mkdir, []

    def late(self, *arguments, **options):
        if self.parent.name == "runs" and not taken:
            taken.append(self)
            mkdir(self, *arguments, **options)  # the other run, at this very moment
            RunDirectory(self).write_config(RunConfig())
        return mkdir(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", late)
    assert main(["train", "--data.root", images, *RUN, "--train.seed", "5"]) == 0
    assert os.listdir(taken[0]) == ["config.yaml"]
    assert RunDirectory(taken[0]).read_config() == RunConfig()
    other = tmp_path / f"{taken[0]}-2"
    assert RunDirectory(other).read_config().train.seed == 5


def test_directories_of_one_name_made_at_once_are_different(tmp_path):
    made, start = [], threading.Barrier(8)

    def make():
        start.wait()
        made.append(make_numbered(tmp_path / "run"))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = {path.name for path in made}
    assert names == {"run", *(f"run-{number}" for number in range(2, 9))}


def test_two_processes_that_write_one_file_do_not_meet(tmp_path, dead_process):
    file = tmp_path / "file"

    def write(partial):
        partial.write_text("of this one")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "getpid", lambda: dead_process)
            run_directory.replace_text(file, "of the other")
        assert file.read_text() == "of the other"

    run_directory.replace_file(file, write)
    assert file.read_text() == "of this one"
    assert os.listdir(tmp_path) == ["file"]


def test_what_a_killed_export_left_is_cleared_away_by_the_next_one(tmp_path, dead_process):
    kept = {f".partial-{dead_process}-other", f".partial-{os.getpid()}-out-of-this-one"}
    for name in (*kept, f".partial-{dead_process}-out"):
        (tmp_path / name).mkdir()
    with appearing(tmp_path / "out") as partial:
        (partial / "weights").touch()
    assert set(os.listdir(tmp_path)) == {*kept, "out"}
    assert os.listdir(tmp_path / "out") == ["weights"]


def test_what_a_killed_run_left_in_a_directory_does_not_stop_an_export(tmp_path, dead_process):
    out = tmp_path / "out"
    out.mkdir()
    for name in (claim.LOCK, f".partial-{dead_process}-last.ckpt"):
        (out / name).touch()
    with appearing(out) as partial:
        (partial / "weights").touch()
    assert os.listdir(out) == ["weights"]
    with pytest.raises(ValueError, match="out is not empty"):
        appearing(out).__enter__()


CHANGES = {
    "data.batch_size": 4,
    "data.augment": "none",
    "train.seed": 1,
    "train.precision": "64",
    "optim.learning_rate": 0.01,
    "model.method": "gap",
}


@pytest.mark.parametrize("option", CHANGES)
def test_a_configuration_edited_by_hand_is_not_resumed(option, copy, capsys):
    content = yaml.safe_load((copy / "config.yaml").read_text())
    group, name = option.split(".")
    before = content[group][name]
    assert before != CHANGES[option]
    content[group][name] = CHANGES[option]
    (copy / "config.yaml").write_text(yaml.safe_dump(content))
    files = {f.name: f.read_bytes() for f in copy.iterdir()}
    assert main(["train", "--resume", str(copy), "--train.epochs", "2"]) == 2
    error = capsys.readouterr().err
    assert f"{option} is {before!r} in it, {CHANGES[option]!r} in the run's conf" in error
    assert error.count("\n") == 1
    assert {f.name: f.read_bytes() for f in copy.iterdir()} == files


def test_what_may_differ_on_resumption_is_what_resume_lets_change():
    here = RunConfig()
    for group, fields in here.to_dict().items():
        for name in fields:
            there = {g: dict(own) for g, own in here.to_dict().items()}
            there[group][name] = "another value"
            found = difference(there, here, free=RESUME_KEYS)
            assert (found is None) == ((group, name) in RESUME_KEYS)
            if found:
                assert found[:2] == (f"{group}.{name}", "another value")
            del there[group][name]  # an option that is newer than what is read
            assert difference(there, here, free=()) is None


@pytest.mark.parametrize("damage", ["missing", "damaged", "of another epoch"])
def test_a_lost_best_checkpoint_is_written_anew(damage, copy, watched, caplog):
    best, content = copy / "best.ckpt", (copy / "best.ckpt").read_bytes()
    if damage == "missing":
        best.unlink()
    elif damage == "damaged":
        best.write_bytes(content[:-200])
    else:
        other = torch.load(best, weights_only=True)
        other["covpool"]["epoch"] = -1
        torch.save(other, best)
    assert main(["train", "--resume", str(copy)]) == 2  # it has finished
    assert f"written anew from {copy / 'last.ckpt'}" in caplog.text
    kept = copy / "best.ckpt.damaged"
    assert kept.is_file() == (damage != "missing")
    kept.unlink(missing_ok=True)
    assert_same_run(copy, watched[0])


def test_a_resumption_that_is_refused_leaves_best_as_it_is(copy, capsys):
    (copy / "best.ckpt").unlink()
    checkpoint = torch.load(copy / "last.ckpt", weights_only=True)
    checkpoint["covpool"]["images"]["test"]["digest"] = "0" * 64
    torch.save(checkpoint, copy / "last.ckpt")
    assert main(["train", "--resume", str(copy), "--train.epochs", "2"]) == 2
    assert "began with" in capsys.readouterr().err
    assert not list(copy.glob("best.ckpt*"))


def test_a_best_checkpoint_that_is_lost_for_good_is_said(copy, caplog):
    (copy / "best.ckpt").unlink()
    checkpoint = torch.load(copy / "last.ckpt", weights_only=True)
    rows = checkpoint["covpool_progress"]["history"]
    rows.append({**rows[0], "epoch": 2, "test_top1": 0.0})
    checkpoint["covpool"]["epoch"] = 1
    torch.save(checkpoint, copy / "last.ckpt")
    assert main(["train", "--resume", str(copy)]) == 0
    assert "weights of epoch 1 are in no other checkpoint" in caplog.text


def test_a_killed_process_of_the_loader_is_told_and_costs_no_run(
    images, watched, tmp_path, monkeypatch, capsys
):
    path, original = tmp_path / "run", Images.__getitem__

    def killed(self, index):
        if self.augment is None:  # in the evaluation
            os.kill(os.getpid(), 9)
        return original(self, index)

    options = [*RUN, "--data.workers", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(Images, "__getitem__", killed)
        assert main(["train", "--data.root", images, "--output", str(path), *options]) == 2
        error = capsys.readouterr().err
        assert "which read images for data.workers, " in error
        assert "give fewer data.workers, or more memory" in error
        assert f"then go on with: covpool train --resume {path}" in error
        assert error.count("\n") == 1
        assert main(["evaluate", str(path), "--data.workers", "1"]) == 2
        assert "give fewer data.workers" in capsys.readouterr().err
    assert json.loads((path / "summary.json").read_text())["status"] == "failed"
    assert main(["train", "--resume", str(path), "--data.workers", "0"]) == 0
    assert_same_run(path, watched[0])


def raising(error):
    def load(*arguments, **options):
        raise error

    return load


@pytest.mark.parametrize(
    "error",
    [
        *(RecursionError("maximum recursion depth exceeded"), KeyError(3)),
        *(AssertionError(), AttributeError("no dtype"), IndexError("pop from empty list")),
        *(TypeError("unhashable"), OSError("truncated"), torch.OutOfMemoryError("50 TiB")),
    ],
    ids=repr,
)
def test_whatever_a_damaged_file_raises_is_one_error(error, copy, tmp_path, monkeypatch):
    plain = tmp_path / "plain.pth"
    torch.save({"conv.weight": torch.zeros(1)}, plain)
    monkeypatch.setattr(torch, "load", raising(error))
    for read, file in (
        (read_checkpoint, copy / "last.ckpt"),
        (read_starting_weights, plain),
        (read_weights, plain),
    ):
        with pytest.raises(DamagedCheckpoint, match=f"{file} (is damaged|cannot be read)"):
            read(file)


@pytest.mark.parametrize("error", [MemoryError(), PermissionError(errno.EACCES, "denied", "x")])
def test_what_the_machine_lacks_is_no_damage(error, copy, tmp_path, monkeypatch, capsys):
    published, checkpoint = tmp_path / "published", read_checkpoint(copy / "best.ckpt")
    write_published(published, model_weights(checkpoint), checkpoint["covpool"], "")
    monkeypatch.setattr("safetensors.torch.load_file", raising(error))
    with pytest.raises(type(error)):
        read_published(published)
    before = sorted(os.listdir(copy))
    monkeypatch.setattr(torch, "load", raising(error))
    for read, file in ((read_checkpoint, "last.ckpt"), (read_weights, "best.ckpt")):
        with pytest.raises(type(error)):
            read(copy / file)
    assert main(["train", "--resume", str(copy)]) == 2
    told = capsys.readouterr().err
    assert ("not enough memory" if isinstance(error, MemoryError) else "denied: x") in told
    assert told.count("\n") == 1
    assert sorted(os.listdir(copy)) == before


def test_a_checkpoint_that_contains_itself_is_damaged(copy, capsys):
    checkpoint = torch.load(copy / "last.ckpt", weights_only=True)
    constants = checkpoint["covpool"]["config"]["model"]["constants"]
    constants["itself"] = constants
    torch.save(checkpoint, copy / "last.ckpt")
    for command in (["train", "--resume"], ["evaluate"]):
        assert main([*command, str(copy)]) == 2
        error = capsys.readouterr().err
        assert "last.ckpt is damaged (Circular reference detected)" in error
        assert error.count("\n") == 1
