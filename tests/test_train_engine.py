"""Options of the engine: each does what it says, or is refused before anything starts."""

import csv
import importlib.util
import json
import signal
import sys
from functools import partial

import pytest
import torch

from covpool.cli import main
from covpool.train.loggers import LOGGERS
from covpool.train.run_directory import RunDirectory
from test_train_resume import RUN, assert_same, interrupt_at, load
from tiny_images import OPTIONS, make_tiny_images


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return str(make_tiny_images(tmp_path_factory.mktemp("images")))


@pytest.fixture(scope="module")
def plain(images, tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "run"
    assert main(command(images, path, "--train.precision", "64")) == 0
    return load(path)["state_dict"]


def command(images, path, *options):
    return ["train", "--data.root", images, "--output", str(path), *OPTIONS, *options]


@pytest.mark.parametrize("option", ["channels_last", "compile", "deterministic"])
def test_how_it_is_computed_changes_no_result(option, images, plain, tmp_path, monkeypatch):
    # Without its compiler, which takes a minute for what is not ours to test.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    path = tmp_path / "run"
    options = ("--train.precision", "64", f"--train.{option}", "true")
    assert main(command(images, path, *options)) == 0
    found = load(path)["state_dict"]
    assert found.keys() == plain.keys()
    for name, value in plain.items():
        assert torch.allclose(found[name], value, rtol=0, atol=1e-10), name
    torch.use_deterministic_algorithms(False)


def test_accumulation_resumes_bit_for_bit(images, tmp_path, monkeypatch):
    options = (*RUN, "--train.accumulate", "2")
    assert main(command(images, tmp_path / "whole", *options)) == 0
    interrupt_at((4,), monkeypatch)
    assert main(command(images, tmp_path / "run", *options)) == 130
    assert load(tmp_path / "run")["global_step"] == 4
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert_same(load(tmp_path / "run"), load(tmp_path / "whole"))


REFUSED = {
    "--train.sync_batchnorm true": "train.sync_batchnorm true needs GPUs",
    "--train.strategy fsdp": "train.strategy 'fsdp'",
    "--train.accumulate 3": "data.batch_size 8 cannot be divided among 1 processes × train.acc",
    "--train.on_nonfinite maybe": "train.on_nonfinite must be one of",
    "--train.loggers [csv]": "train.loggers",
    "--train.loggers tensorboard,csv": "train.loggers",
}


@pytest.mark.parametrize("options", REFUSED)
def test_what_cannot_be_is_refused_before_training(options, images, tmp_path, capsys):
    path = tmp_path / "run"
    assert main(command(images, path, *options.split())) == 2
    assert REFUSED[options] in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.parametrize("name", LOGGERS)
def test_a_logger_that_is_not_installed_is_named(name, images, tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda module, *rest: None if module == name else find(module)
    )
    assert main(command(images, tmp_path / "run", "--train.loggers", f"[{name}]")) == 2
    error = capsys.readouterr().err
    assert f"train.loggers '{name}' needs the package {name}" in error
    assert f"pip install '.[train,{name}]'" in error


def test_metrics_go_to_tensorboard_and_go_on(images, tmp_path, monkeypatch):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    path = tmp_path / "run"
    interrupt_at((4,), monkeypatch)
    assert main(command(images, path, "--train.loggers", "[tensorboard]")) == 130
    assert main(["train", "--resume", str(path)]) == 0
    events = reader.EventAccumulator(str(path / "tensorboard"))
    events.Reload()
    rows = RunDirectory(path).read_metrics()
    for name in ("test_top1", "train_loss", "learning_rate"):
        logged = {event.step: event.value for event in events.Scalars(name)}
        assert logged == {3 * row["epoch"]: pytest.approx(row[name], rel=1e-6) for row in rows}


def test_metrics_go_to_weights_and_biases(images, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    path = tmp_path / "run"
    assert main(command(images, path, "--train.loggers", "[wandb]")) == 0
    name = (path / "wandb-id.txt").read_text().strip()
    files = list(path.glob(f"wandb/offline-run-*-{name}/run-{name}.wandb"))
    assert len(files) == 1
    assert b"test_top1" in files[0].read_bytes()


def test_one_command_starts_and_goes_on(images, tmp_path, monkeypatch, capsys):
    path = tmp_path / "run"
    whole = command(images, tmp_path / "whole", *RUN)
    assert main(whole) == 0
    interrupt_at((4,), monkeypatch)
    arguments = command(images, path, *RUN, "--resume", "auto")
    assert main(arguments) == 130
    capsys.readouterr()
    assert main([*arguments, "--model.drop_rate", "0.1"]) == 2
    assert "was started with model.drop_rate 0.2, not 0.1" in capsys.readouterr().err
    assert main(arguments) == 0
    assert f"going on in {path}" in capsys.readouterr().out
    assert_same(load(path), load(tmp_path / "whole"))
    assert main(arguments) == 0
    assert "has finished its 3 epochs" in capsys.readouterr().out
    assert main(["train", "--resume", "auto"]) == 2
    assert "--resume auto needs --output" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGUSR1")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_signals_of_a_cluster_save_and_end(name, images, tmp_path, monkeypatch, capsys):
    path, number = tmp_path / "run", getattr(signal, name)
    interrupt_at((4,), monkeypatch, number)
    assert main(command(images, path)) == 128 + number
    assert f"go on with: covpool train --resume {path}" in capsys.readouterr().err
    assert load(path)["global_step"] == 4
    summary = json.loads((path / "summary.json").read_text())
    assert summary["reason"] == f"stopped by {name}"


def test_metrics_csv_counts_skipped_steps(images, tmp_path):
    path = tmp_path / "run"
    assert main(command(images, path, "--train.epochs", "1")) == 0
    with (path / "metrics.csv").open(newline="") as file:
        assert [row["skipped_steps"] for row in csv.DictReader(file)] == ["0"]
