"""The command line's shell: help, version, names, and one line for each mistake."""

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

import covpool
from covpool.cli import COMMANDS, main
from covpool.cli.parsing import SYNONYMS
from covpool.linalg.methods import METHODS
from covpool.models import create_model
from covpool.poolings import POOLINGS
from covpool.train.building import single_valued_layers
from covpool.train.config import DataConfig, OptimConfig, RunConfig, TrainConfig
from covpool.train.job import check_batch_statistics
from covpool.train.recipe import read_recipe
from tiny_images import OPTIONS, make_tiny_images


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return str(make_tiny_images(tmp_path / "images"))


def run_fresh(code):
    """Standard output of Python code in a new interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(option):
    code = (
        "import sys; from covpool.cli import main; assert main(['" + option + "']) == 0; "
        "heavy = {'torch', 'numpy', 'lightning', 'timm', 'jsonargparse'} & set(sys.modules); "
        "print('heavy:', heavy or 'none')"
    )
    out = run_fresh(code)
    assert out.endswith("heavy: none\n")
    expected = [covpool.__version__] if option == "--version" else COMMANDS
    assert all(word in out for word in expected)


def test_module_is_the_command():
    command = [sys.executable, "-m", "covpool.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == f"covpool {covpool.__version__}\n"


def test_no_command_shows_the_help(capsys):
    assert main([]) == 0
    assert "compare" in capsys.readouterr().out


def test_methods_lists_every_pooling_with_its_constants(capsys):
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines[1:]] == list(POOLINGS)
    for name, method in METHODS.items():
        row = next(line for line in lines if line.startswith(f"{name}\t"))
        assert method.description in row
        assert all(f"{key}={value}" in row for key, value in method.constants.items())


def test_train_help_describes_every_option(capsys):
    assert main(["train", "--help-all"]) == 0
    out = capsys.readouterr().out
    for group, owner in RunConfig.groups().items():
        for name in owner.__dataclass_fields__:
            assert f"--{group}.{name} " in out
    assert "The optimiser, and the course" in out
    assert "Learning rate at the start" in out
    assert "<function" not in out


def test_print_config_can_be_read_again(capsys, tmp_path):
    assert main(["train", "--optim.milestones", "[1,2]", "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["optim"]["milestones"] == [1, 2]
    file = tmp_path / "run.yaml"
    file.write_text(printed)
    assert main(["train", "--config", str(file), "--train.seed", "7", "--print_config"]) == 0
    again = yaml.safe_load(capsys.readouterr().out)
    assert again == {**yaml.safe_load(printed), "train": {**again["train"], "seed": 7}}


MISTAKES = {
    "unknown command": (["trian"], ["'trian'", "did you mean train?"]),
    "unknown option": (
        ["train", "--model.methd", "x"],
        ["--model.methd", "mean --model.method?"],
    ),
    "unknown group": (
        ["train", "--modle.method", "x"],
        ["--modle.method", "mean --model.method?"],
    ),
    "unknown method": (["train", "--model.method", "svd-pad"], ["'svd-pad'", "'svd-pade'?"]),
    "unknown backbone": (["train", "--model.backbone", "resnet5"], ["'resnet5'", "resnet50"]),
    "unknown constant": (["train", "--model.constants.degre", "5"], ["degre", "iterations"]),
    "constant of gap": (
        ["train", "--model.method", "gap", "--model.constants.degree", "5"],
        ["gap", "degree"],
    ),
    "out of range": (["train", "--train.epochs", "0"], ["train.epochs", "at least 1", "not 0"]),
    "not a number": (["train", "--train.epochs", "many"], ["train.epochs", "int", "'many'"]),
    "not a choice": (["train", "--optim.decay", "linear"], ["optim.decay", "cosine", "'linear'"]),
    "unknown optimiser": (["train", "--optim.name", "adamww"], ["'adamww'", "'adamw'?"]),
    "odd mixing": (
        ["train", "--data.mixup", "0.2", "--data.batch_size", "63"],
        ["63", "odd", "data.batch_size"],
    ),
    "mixing of no mode": (
        ["train", "--data.cutmix", "1", "--data.mixup_options.mode", "bach"],
        ["data.mixup_options.mode", "batch, pair, elem", "'bach'"],
    ),
    "erasing option": (
        ["train", "--data.random_erasing", "0.1", "--data.erasing_options.mod", "pixel"],
        ["data.erasing_options.mod", "did you mean mode?"],
    ),
    "no such file": (["train", "--config", "none.yaml"], ["none.yaml", "No such file"]),
    "no value": (["train", "--train.epochs"], ["train.epochs"]),
    "no such data": (["train", "--data.root", "nowhere"], ["'nowhere'", "does not exist"]),
    "schedule to gap": (["train", "--model.schedule", "0:gap,2:exact"], ["0:gap,2:exact"]),
    "schedule unreadable": (["train", "--model.schedule", "exact"], ["'exact'", "epoch:method"]),
    "schedule falling": (["train", "--model.schedule", "3:svd,1:exact"], ["must rise"]),
    "schedule against method": (
        ["train", "--model.schedule", "0:svd", "--model.method", "exact"],
        ["'svd'", "'exact'"],
    ),
    "no such device": (["train", "--train.accelerator", "abacus"], ["abacus", "machine"]),
    "batch and devices": (
        ["train", "--train.devices", "3", "--data.batch_size", "64"],
        ["64", "multiple of 3"],
    ),
    "no such run": (["train", "--resume", "nowhere"], ["no run directory nowhere"]),
    "resume and output": (["train", "--resume", "a", "--output", "b"], ["exclude each other"]),
    "evaluate nothing": (["evaluate"], ["run"]),
    "evaluate nowhere": (["evaluate", "nowhere"], ["no run directory nowhere"]),
    "compare unknown": (["compare", "--methods", "gap,exat"], ["'exat'", "'exact'?"]),
    "compare no seeds": (["compare", "--seeds", "0"], ["--seeds", "at least 1"]),
    "compare schedule": (["compare", "--model.schedule", "2:svd"], ["2:svd", "--methods"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, parts = MISTAKES[name]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("covpool: error: ")
    assert captured.err.count("\n") == 1
    assert all(part in captured.err for part in parts), captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("model:\n  methd: gap\n", ["model.methd", "did you mean model.method?"]),
        ("modle:\n  method: gap\n", ["modle.method", "did you mean model.method?"]),
        ("train:\n  epochs: 0\n", ["train.epochs", "not 0"]),
        ("model: [\n", ["not readable YAML"]),
        ("- model\n", ["holds no options"]),
    ],
)
def test_mistakes_in_a_configuration_file(text, parts, capsys, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    assert main(["train", "--config", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(part in error for part in parts), error


def test_a_configuration_file_may_set_open_mappings(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text("model:\n  method: svd-taylor\n  constants: {degree: 7}\n")
    assert main(["train", "--config", str(file), "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["constants"] == {"degree": 7}


@pytest.mark.parametrize(
    ("given", "meant"),
    {
        "--optim.lr": "optim.learning_rate",
        "--train.lr": "optim.learning_rate",
        "--learning-rate": "optim.learning_rate",
        "--wd": "optim.weight_decay",
        "--weight-decay": "optim.weight_decay",
        "--opt": "optim.name",
        "--optimizer": "optim.name",
        "--optim.optimizer": "optim.name",
        "--opt-betas": "optim.options",
        "--sched": "optim.decay",
        "--lr-scheduler": "optim.decay",
        "--optim.scheduler": "optim.decay",
        "--optim.schedule": "optim.decay",
        "--gamma": "optim.factor",
        "--decay-rate": "optim.factor",
        "--min-lr": "optim.decay_options",
        "--warmup-epochs": "optim.warmup_epochs",
        "--clip-grad": "optim.clip_norm",
        "--layer-decay": "optim.layer_decay",
        "--smoothing": "optim.label_smoothing",
        "--model-ema-decay": "optim.weight_average",
        "--reprob": "data.random_erasing",
        "--mixup": "data.mixup",
        "--bs": "data.batch_size",
        "--train.batch_size": "data.batch_size",
        "--img-size": "data.image_size",
        "--seed": "train.seed",
        "--max_epochs": "train.epochs",
        "--arch": "model.backbone",
        "--model.name": "model.backbone",
        "--name": "data.name or --optim.name",
        "--pretrained": "model.pretrained",
        "--gpus": "train.devices",
        "--grad-accum-steps": "train.accumulate",
        "--data.num_workers": "data.workers",
        "--data.path": "data.root",
        "--model.pooling": "model.method",
        "--dropout": "model.drop_rate",
        "--output_dir": "output",
        "--model": "model.backbone",
        "--epoch": "epochs",
        "--epohcs": "epochs",
        "--batch-siz": "batch-size",
    }.items(),
)
def test_what_other_projects_call_an_option(given, meant, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", given, "3"]) == 2
    error = capsys.readouterr().err
    assert f"did you mean --{meant}?" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "given", "meant"),
    [
        ("compare", "--method", "methods"),
        ("compare", "--pooling", "methods"),
        ("compare", "--seed", "seeds"),
        ("probe", "--pooling", "poolings"),
        ("probe", "--rate", "rates"),
    ],
)
def test_one_of_an_option_that_takes_several(command, given, meant, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([command, given, "3"]) == 2
    assert f"unknown option {given}; did you mean --{meant}?" in capsys.readouterr().err


def test_synonyms_are_of_options_that_there_are():
    options = {f"{g}.{n}" for g, owner in RunConfig.groups().items() for n in owner.__annotations__}
    assert set(SYNONYMS.values()) <= options
    assert not set(SYNONYMS) & {*options, *(option.partition(".")[2] for option in options)}


def test_a_wrong_option_of_a_command_without_a_run_is_hinted_at_too(capsys):
    assert main(["data", "check", "--data.path", "photos"]) == 2
    assert "--data.path photos; did you mean --data.root?" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "compare"])
def test_images_that_are_not_there(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([command, "birds", "--train.epochs", "1"]) == 2
    assert "data.root 'birds' does not exist" in capsys.readouterr().err


def test_an_argument_too_many(capsys):
    assert main(["evaluate", "run", "birds"]) == 2
    told = capsys.readouterr().err
    assert "unexpected argument birds; images are given by --data.root PATH" in told


def test_a_root_in_the_home_of_nobody(capsys):
    assert main(["train", "--data.root", "~no such user/birds"]) == 2
    assert "data.root '~no such user/birds' does not exist" in capsys.readouterr().err


def test_a_report_of_what_is_not_there(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for path, what in (("runs/nothing", "no directory runs/nothing"), ("file", "file is a file")):
        assert main(["report", path]) == 2
        assert f"{what}; name a run" in capsys.readouterr().err


BATCHES_OF_ONE = {
    "batch": (["--data.batch_size", "1"], 1),
    "parts": (["--data.batch_size", "4", "--train.accumulate", "4"], 4),
    "processes": (["--data.batch_size", "2", "--train.devices", "2"], 2),
    "few images": (["--data.class_limit", "2", "--train.accumulate", "18"], 18),
}


@pytest.mark.parametrize("way", BATCHES_OF_ONE)
def test_batch_norm_of_one_image_is_refused_by_name(way, images, capsys, tmp_path):
    options, parts = BATCHES_OF_ONE[way]
    gap = ["--model.method", "gap", "--model.hidden_features", "matched"]
    if way == "few images":
        options = [*options, "--data.batch_size", "36"]
    assert main(["train", "--data.root", images, *OPTIONS, *gap, *options]) == 2
    error = capsys.readouterr().err
    assert "batch norm needs several in hidden.1;" in error
    assert f"data.batch_size of at least {2 * parts}" in error
    assert not (tmp_path / "runs").exists()


def test_batch_norm_that_sees_one_value_of_a_channel():
    """After the pooling, and on a map of one position; other layers take a batch of one."""
    model = create_model("small-convnet", 3, method="exact", width=8, hidden_features=4)
    assert single_valued_layers(model, 3, 16) == ["hidden.1"]
    narrow = create_model("small-convnet", 3, method="gap", width=8)
    narrow.backbone.features.append(torch.nn.AdaptiveAvgPool2d(1))
    narrow.backbone.features.append(torch.nn.BatchNorm2d(8))
    assert single_valued_layers(narrow, 3, 16) == ["backbone.features.12"]
    splits: Any = SimpleNamespace(train=range(4), channels=3, image_size=16)
    config = RunConfig(data=DataConfig(batch_size=1))
    with pytest.raises(ValueError, match=r"several in backbone\.features\.12; take"):
        check_batch_statistics(config, splits, narrow)
    for harmless in (
        replace(config, data=DataConfig(batch_size=2)),
        replace(config, optim=OptimConfig(trained="classifier")),
        RunConfig(data=DataConfig(batch_size=2), train=TrainConfig(devices=2, sync_batchnorm=True)),
    ):
        check_batch_statistics(harmless, splits, narrow)
    assert model.training
    assert not model.backbone.features[1]._forward_pre_hooks
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(torch.rand(1, 3, 16, 16))
    plain = create_model("small-convnet", 3, method="exact", width=8)
    assert single_valued_layers(plain, 3, 16) == []
    assert plain(torch.rand(1, 3, 16, 16)).isfinite().all()


def test_images_too_small_for_the_backbone(images, capsys):
    options = ["--model.backbone", "alexnet", *OPTIONS[:4]]
    assert main(["train", "--data.root", images, *options]) == 2
    error = capsys.readouterr().err
    assert "alexnet" in error
    assert error.count("\n") == 1


def test_embedded_images_start_from_their_recipe(capsys, tmp_path):
    """No images named: the recipe. Images named, on the command line or in a file: the defaults."""

    def rate(*options):
        assert main(["train", *options, "--print_config"]) == 0
        return yaml.safe_load(capsys.readouterr().out)["optim"]["learning_rate"]

    recipe, default = read_recipe("typefaces").config, RunConfig()
    assert recipe.optim.learning_rate != default.optim.learning_rate
    file = tmp_path / "run.yaml"
    file.write_text("data: {root: somewhere}\n")
    assert rate() == recipe.optim.learning_rate
    assert rate("--optim.learning_rate", "0.01") == 0.01
    assert rate("--data.root", "somewhere") == default.optim.learning_rate
    assert rate("--data.root=somewhere") == default.optim.learning_rate
    assert rate("--config", str(file)) == default.optim.learning_rate


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--hlep"], ["unknown option --hlep"]),
        (["predict", "run"], ["the following arguments are required: IMAGE"]),
        (["methods", "--all"], ["unrecognized arguments: --all"]),
        (
            ["compare", "--methods", "gap,svd-taylor", "--model.constants.iterations", "3"],
            ["model.constants.iterations", "gap, svd-taylor", "degree"],
        ),
    ],
)
def test_mistakes_of_other_commands_are_one_line(capsys, arguments, parts):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("covpool: error: ")
    assert error.count("\n") == 1
    assert all(part in error for part in parts)


@pytest.mark.parametrize("text", ["model: svd-pade\n", "train:\n", "data: [1]\n"])
def test_a_group_that_holds_no_options_is_named(capsys, tmp_path, text):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    assert main(["train", "--config", str(file)]) == 2
    assert f"{text.partition(':')[0]} must hold options" in capsys.readouterr().err
