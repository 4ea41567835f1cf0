"""Training from Python: the same as on the command line, and nothing is left behind by it."""

import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import threading
import warnings
from contextlib import suppress
from pathlib import Path

import numpy
import pytest
import torch
import yaml

import covpool
import quick
from covpool import fitting
from covpool.cli import main
from covpool.train.interruption import Interrupted, StopRequest
from covpool.train.recorder import Recorder
from covpool.train.run_directory import RunDirectory
from tiny_images import CLASSES, OPTIONS, make_tiny_images

SMALL = {
    "image_size": 16,
    "batch_size": 8,
    "epochs": 2,
    "model": {"backbone_options": {"width": 8}},
    "train": {"threads": 1, "accelerator": "cpu"},
}
"""`OPTIONS` of the command line as arguments."""

CLOCK = ("seconds", "test_seconds", "images_per_second")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_tiny_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    path = tmp_path_factory.mktemp("fit") / "run"
    return covpool.fit(images, pooling="svd-pade", output=path, progress=False, **SMALL)


def without_clock(rows):
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in rows]


def assert_same(one: Path, other: Path):
    configs = [RunDirectory(path).read_config() for path in (one, other)]
    assert configs[0] == configs[1]
    histories = [without_clock(RunDirectory(path).read_metrics()) for path in (one, other)]
    assert histories[0] == histories[1]
    weights = [
        torch.load(path / "last.ckpt", weights_only=True)["state_dict"] for path in (one, other)
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_it_is_the_command_line_bit_for_bit(run, images, tmp_path):
    path = tmp_path / "command"
    options = ["--output", str(path), "--model.method", "svd-pade", *OPTIONS]
    assert main(["train", str(images), *options]) == 0
    assert_same(run.directory, path)
    names = [{file.name for file in each.iterdir()} for each in (run.directory, path)]
    assert names[0] - {"report.html"} == names[1]


def test_both_train_by_one_function(images, tmp_path, monkeypatch):
    class Reached(Exception):
        pass

    def reached(*arguments, **options):
        raise Reached

    monkeypatch.setattr(fitting, "train", reached)
    with pytest.raises(Reached):
        covpool.fit(images, output=tmp_path / "a", progress=False, **SMALL)
    with pytest.raises(Reached):
        main(["train", str(images), "--output", str(tmp_path / "b"), *OPTIONS])


def test_the_run_tells_what_its_directory_holds(run, images):
    summary = json.loads((run.directory / "summary.json").read_text())
    assert run.summary == summary
    assert run.final == run.metrics[-1] == summary["final"]
    assert run.best == max(run.metrics, key=lambda row: row["test_top1"])
    assert run.checkpoint == run.directory / "best.ckpt"
    assert run.checkpoint.is_file()
    assert run.config.model.method == "svd-pade"
    assert not run.model.training
    assert run.trained.classes == CLASSES
    [prediction] = run.predict(images / "test" / "grain" / "0.png", top=2)
    assert len(prediction.likeliest) == 2
    assert "Covariance pooling: 1 run" in run.report().read_text(encoding="utf-8")
    earlier = covpool.TrainedRun(str(run.directory))
    assert earlier == run
    assert earlier.final == run.final
    with pytest.raises(ValueError, match="no run directory nowhere"):
        covpool.TrainedRun("nowhere")


def state():
    """What a library might change in the program that calls it."""
    legacy = numpy.random.get_state()  # noqa: NPY002 - the one that a program's own code may use
    generators = (torch.get_rng_state().tolist(), random.getstate(), str(legacy))
    loggers = [logging.getLogger(name) for name in ("", "covpool", "lightning.pytorch")]
    return {
        "signals": [signal.getsignal(number) for number in StopRequest.SIGNALS],
        "generators": generators,
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "warnings": [*warnings.filters],
        "logging": [(each.level, [*each.handlers], each.disabled) for each in loggers],
        "environment": dict(os.environ),
        "directory": Path.cwd(),
        "hook": sys.excepthook,
    }


def test_nothing_is_left_behind(images, tmp_path):
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        before = state()
        covpool.fit(images, output=tmp_path / "run", progress=False, **SMALL)
        after = state()
    finally:
        torch.set_num_threads(threads)
    for name, value in before.items():
        assert after[name] == value, name


def test_it_works_outside_of_the_main_thread(run, images, tmp_path):
    found = []

    def work():
        options = {"pooling": "svd-pade", "progress": False, **SMALL}
        found.append(covpool.fit(images, output=tmp_path / "run", **options))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert_same(found[0].directory, run.directory)


def test_ctrl_c_ends_it_even_in_a_loop_that_goes_on_after_errors(
    run, images, tmp_path, monkeypatch
):
    original = Recorder.on_train_batch_end

    def hook(self, trainer, module, *rest):
        if module.global_step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        original(self, trainer, module, *rest)

    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "on_train_batch_end", hook)
        with pytest.raises(Interrupted) as caught, suppress(Exception):
            covpool.fit(images, pooling="svd-pade", output=path, progress=False, **SMALL)
    assert caught.value.__notes__ == [f"go on with: covpool.fit(resume={str(path)!r})"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed = covpool.fit(resume=path, progress=False)
    assert_same(resumed.directory, run.directory)


def test_a_cell_that_is_run_again_returns_the_run(run, images, capsys):
    options = {"pooling": "svd-pade", "output": run.directory, "resume": "auto", **SMALL}
    files = {file.name: file.read_bytes() for file in run.directory.iterdir()}
    assert covpool.fit(images, **options) == run
    assert "has finished its 2 epochs" in capsys.readouterr().out
    assert {file.name: file.read_bytes() for file in run.directory.iterdir()} == files
    with pytest.raises(ValueError, match=r"was started with train\.seed 0, not 1"):
        covpool.fit(images, seed=1, **options)


def test_a_finished_run_is_made_longer_or_repeated(run, tmp_path):
    longer = covpool.fit(config=run.config, seed=7, output=tmp_path / "run", progress=False)
    assert longer.config.train.seed == 7
    assert longer.config.model == run.config.model
    longer = covpool.fit(resume=longer.directory, epochs=3, progress=False)
    assert [row["epoch"] for row in longer.metrics] == [1, 2, 3]


@quick.parametrize("variable", [None, "FORCE_COLOR", "TTY_COMPATIBLE"], keep=["FORCE_COLOR"])
def test_progress_is_plain_lines_or_nothing(variable, images, tmp_path, capsys, monkeypatch):
    """Also where a notebook or a service asks for colours."""
    if variable is not None:
        monkeypatch.setenv(variable, "1")
    few = {**SMALL, "data": {**SMALL.get("data", {}), "class_limit": 2}}
    covpool.fit(images, output=tmp_path / "silent", progress=False, **few)
    assert capsys.readouterr() == ("", "")
    covpool.fit(images, output=tmp_path / "told", **SMALL)
    told, error = capsys.readouterr()
    assert error == ""
    lines = told.splitlines()
    assert lines[0].startswith("defaults for your own images: model.backbone small-convnet, ")
    assert lines[0].endswith("timm with its weights: backbone='resnet50' pretrained=True")
    assert lines[1].startswith("small-convnet, isqrt-cov")
    assert [line.split()[0] for line in lines[5:7]] == ["1/2", "2/2"]
    assert lines[-1] == f"summary, curves and checkpoints: {tmp_path / 'told'}"
    assert not any("\x1b" in line for line in lines)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": {"backbne": "x"}}, "unknown option of model 'backbne'.*did you mean 'backbone'"),
        ({"epochs": 2, "train": {"epochs": 3}}, "train.epochs is given twice, as epochs=2 and"),
        ({"learning_rate": -1.0}, "optim.learning_rate must be above 0, not -1.0"),
        ({"epochs": "many"}, "train.epochs must be a whole number, not 'many'"),
        ({"recipe": "birds"}, "recipe 'birds' trains on Caltech-UCSD"),
        ({"recipe": "brids"}, "unknown recipe 'brids'.*did you mean 'birds'"),
        ({"recipe": "birds", "resume": "x"}, "recipe and resume exclude each other"),
        ({"resume": "nowhere"}, "no run directory nowhere"),
        ({"resume": "auto"}, "resume='auto' needs output"),
        ({"path": "nowhere"}, "nowhere"),
        ({"pooling": "svd-pad"}, "unknown pooling method 'svd-pad'.*did you mean 'svd-pade'"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        covpool.fit(**options)
    assert "\n" not in str(caught.value)
    assert not [*tmp_path.iterdir()]


def test_a_run_that_is_there_is_not_written_over(run, images):
    told = re.escape(
        f"{run.directory} exists; go on with it by resume={str(run.directory)!r}, or choose "
        "another output"
    )
    with pytest.raises(ValueError, match=f"{told}$"):
        covpool.fit(images, output=run.directory, **SMALL)


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ("choose another --output", "choose another output"),
        ("by --resume 'my run', or", "by resume='my run', or"),
        ("by --resume runs/x-2, or", "by resume='runs/x-2', or"),
        ("--train.epochs with a larger number", "epochs with a larger number"),
        (
            "--model.backbone resnet50 --model.pretrained true",
            "backbone='resnet50' pretrained=True",
        ),
        ("in colour by --data.channels 3", "in colour by data={'channels': 3}"),
    ],
)
def test_options_are_named_as_arguments(told, text):
    assert fitting.in_python(told) == text


def test_without_images_it_trains_on_the_embedded_ones_by_their_recipe(tmp_path, monkeypatch):
    class Reached(Exception):
        pass

    def reached(config, **options):
        raise Reached(yaml.safe_dump(config.to_dict()))

    monkeypatch.setattr(fitting, "prepared_run", reached)
    for options in ({}, {"recipe": "typefaces"}):
        with pytest.raises(Reached) as caught:
            covpool.fit(epochs=3, **options)
        made = yaml.safe_load(str(caught.value))
        wanted = fitting.read_recipe("typefaces").config.to_dict()
        wanted["train"]["epochs"] = 3
        assert made == wanted
    with pytest.raises(Reached) as caught:
        covpool.fit("birds")
    wanted = fitting.RunConfig().to_dict()
    wanted["data"]["root"] = "birds"
    assert yaml.safe_load(str(caught.value)) == wanted


@quick.parametrize(
    ("name", "module", "extra"),
    [
        ("fit", "lightning", "train"),
        ("fit", "timm", "train"),
        ("load_model", "yaml", "train"),
        ("create_model", "timm", "models"),
    ],
    keep=lambda case: case[0] == "create_model",
)
def test_a_missing_extra_is_one_line_that_says_what_to_install(name, module, extra):
    program = f"import sys; sys.modules[{module!r}] = None; import covpool; covpool.{name}"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.returncode == 1
    assert found.stderr.splitlines()[-1] == (
        f"ModuleNotFoundError: covpool.{name} needs {module}; install it, from the checkout, with: "
        f"pip install '.[{extra}]'"
    )
    assert found.stderr.count("Traceback") == 1


@pytest.mark.parametrize(("name", "extra"), covpool._EXTRAS.items())
def test_each_name_tells_its_extra(name, extra, monkeypatch):
    def missing(home):
        raise ModuleNotFoundError(name="lightning.pytorch")

    monkeypatch.setattr("covpool.lazy.import_module", missing)
    message = re.escape(f"covpool.{name} needs lightning; install it, from the checkout, with: pip")
    with pytest.raises(ModuleNotFoundError, match=rf"{message} install '\.\[{extra}\]'$"):
        covpool.__getattr__(name)
