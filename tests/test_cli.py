"""The command line's shell: help, version, names, and one line for each mistake."""

import subprocess
import sys

import pytest
import yaml

import covpool
from covpool.cli import COMMANDS, main
from covpool.linalg.methods import METHODS
from covpool.pooling import POOLINGS
from covpool.train.config import RunConfig
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
    from covpool.train.config import RunConfig

    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    for group, owner in RunConfig.groups().items():
        for name in owner.__dataclass_fields__:
            assert f"--{group}.{name} " in out
    assert "Stochastic gradient descent" in out
    assert "Learning rate at the start" in out


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
    "unknown option": (["train", "--model.methd", "x"], ["--model.methd", "model.method?"]),
    "unknown group": (["train", "--modle.method", "x"], ["--modle.method", "model.method?"]),
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
