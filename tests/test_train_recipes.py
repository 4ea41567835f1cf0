"""Recipes: their figures, how they are chosen, and two epochs of each on a miniature data set."""

import json
import re
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
import yaml

import quick
from covpool.cli import main
from covpool.train.job import warn_of_milestones
from covpool.train.recipe import EMBEDDED, FINE_TUNING, read_recipes
from covpool.train.run_directory import RunDirectory
from miniatures import write_miniature

RECIPES = {recipe.name: recipe for recipe in read_recipes()}

KEYS = (
    *("data.name", "data.image_size", "data.resize", "data.augment", "data.batch_size"),
    *("model.backbone", "model.last_stride", "train.epochs", "optim.learning_rate"),
    *("optim.milestones", "optim.weight_decay", "optim.clip_norm", "optim.classifier_multiplier"),
)

CROP, BIRDS, DOGS = (224, 256, "crop"), (448, 448, "flip"), (448, (512, 512), "flip")

FIGURES = {
    "imagenet-alexnet": (
        *("imagenet", *CROP, 128, "alexnet", None),
        *(30, 0.0794, (10, 20), 5e-4, 5, 1),
    ),
    "imagenet-resnet50": (
        *("imagenet", *CROP, 256, "resnet50", None),
        *(60, 0.0794, (30, 45), 1e-4, 5, 1),
    ),
    "imagenet-resnet101": (
        *("imagenet", *CROP, 256, "resnet101", None),
        *(60, 0.0794, (30, 45), 1e-4, 5, 1),
    ),
    "imagenet-resnet50-fast-mpn-cov": (
        *("imagenet", *CROP, 160, "resnet50", 1),
        *(65, 0.1, (30, 45, 60), 1e-4, None, 1),
    ),
    "birds": (
        *("birds", *BIRDS, 10, "resnet50", None),
        *(200, 3e-3, (50, 100), 1e-4, 5, 20),
    ),
    "dogs": (
        *("dogs", *DOGS, 10, "resnet50", None),
        *(200, 3e-3, (50, 100), 1e-4, 5, 20),
    ),
    "cars": (
        *("cars", 448, (448, 448), "flip", 10, "resnet50", None),
        *(200, 3e-3, (50, 100), 1e-4, 5, 10),
    ),
    "aircraft": (
        *("aircraft", *DOGS, 8, "resnet50", None),
        *(50, 3e-3, (21, 40), 1e-3, 5, 5),
    ),
    "finetune-isqrt-cov": (
        *("auto", *BIRDS, 10, "resnet50", 1),
        *(100, 1.2e-3, (), 1e-4, None, 5),
    ),
    "two-stage-classifier": (
        *("auto", *BIRDS, 40, "resnet50", None),
        *(100, 1e-3, (), 5e-4, None, 1),
    ),
    "two-stage-all": (
        *("auto", *BIRDS, 10, "resnet50", None),
        *(100, 1e-3, (), 5e-4, None, 1),
    ),
}
"""The figures of the released scripts, by KEYS."""


def test_every_recipe_is_in_the_tables_of_this_file():
    own = {name for name, recipe in RECIPES.items() if recipe.embedded}
    assert {EMBEDDED, FINE_TUNING} <= own
    assert set(RECIPES) == {*FIGURES, *own} == {*RUNS, *own}


@pytest.mark.parametrize("name", FIGURES)
def test_figures(name):
    config = RECIPES[name].config
    found = [getattr(getattr(config, key.split(".")[0]), key.split(".")[1]) for key in KEYS]
    assert dict(zip(KEYS, found, strict=True)) == dict(zip(KEYS, FIGURES[name], strict=True))
    optim = config.optim
    assert (optim.decay, optim.factor, optim.momentum, optim.nesterov) == ("step", 0.1, 0.9, False)
    assert config.model.reduced_channels == 256
    assert optim.trained == ("classifier" if name == "two-stage-classifier" else "all")


@pytest.mark.parametrize("name", RECIPES)
def test_a_file_says_where_its_figures_are_from(name):
    file = resources.files("covpool.train") / "recipes" / f"{name}.yaml"
    text = file.read_text(encoding="utf-8")
    comment = re.match(r"(?:#.*\n)+", text)
    assert comment is not None
    assert RECIPES[name].embedded or "# Source: " in comment[0]
    assert max(map(len, text.splitlines())) <= 100
    assert RECIPES[name].reproduces


def printed(capsys, *options):
    assert main(["train", *options, "--print_config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_a_recipe_then_a_file_then_options(tmp_path, capsys):
    file = tmp_path / "own.yaml"
    file.write_text("optim: {learning_rate: 0.5, momentum: 0.8}\ntrain: {epochs: 7}\n")
    options = ["--recipe", "birds", "--config", str(file), "--optim.learning_rate", "0.25"]
    found = printed(capsys, *options)
    assert found["optim"]["learning_rate"] == 0.25
    assert found["optim"]["momentum"] == 0.8
    assert found["train"]["epochs"] == 7
    assert found["optim"]["milestones"] == [50, 100]
    assert found["data"]["name"] == "birds"


@pytest.mark.parametrize("name", ["cars", EMBEDDED])
def test_a_printed_recipe_is_a_file_of_options(name, tmp_path, capsys):
    whole = printed(capsys, f"--recipe={name}")
    assert main(["recipes", name]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# ")
    assert "reproduces" not in text
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    assert {**printed(capsys, "--config", str(file)), "recipe": name} == whole


def test_a_file_of_options_may_name_its_recipe(tmp_path, capsys):
    file = tmp_path / "own.yaml"
    file.write_text("recipe: aircraft\ntrain: {epochs: 7}\n")
    found = printed(capsys, "--config", str(file))
    assert (found["train"]["epochs"], found["data"]["batch_size"]) == (7, 8)
    file.write_text("recipe: {title: mine}\n")
    assert main(["train", "--config", str(file)]) == 2
    assert "recipe must be a recipe's name" in capsys.readouterr().err


def test_recipes_are_listed(capsys):
    assert main(["recipes"]) == 0
    header, *lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert header == ["name", "network", "data set", "epochs", "reproduces"]
    rows = {line[0]: line for line in lines}
    assert list(rows) == list(RECIPES)
    assert rows["imagenet-resnet101"][1:] == [
        *("resnet101", "ImageNet (ILSVRC2012)", "60"),
        "Table 4, ResNet-101, standalone and hybrid",
    ]
    assert rows["imagenet-resnet50-fast-mpn-cov"][1] == "resnet50, last stride 1"


def test_the_list_fits_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")  # no colours
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    words = " ".join(lines).split()
    for recipe in RECIPES.values():
        text = f"{recipe.name} {recipe.data} reproduces {recipe.reproduces}"
        assert set(text.split()) <= {*words, *(word.removesuffix(",") for word in words)}


def test_the_documentation_has_the_same_table(capsys):
    page = Path(__file__).parents[1] / "docs" / "training.md"
    section = page.read_text(encoding="utf-8").partition("## Recipes")[2].partition("\n## ")[0]
    found = re.findall(r"^\| `(.+)` \| (.+) \|$", section, re.MULTILINE)
    assert main(["recipes"]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert [[name, *cells.split(" | ")] for name, cells in found] == [
        line.split("\t") for line in lines
    ]


@pytest.mark.parametrize("command", [["train", "--recipe"], ["compare", "--recipe"], ["recipes"]])
def test_an_unknown_recipe_names_the_nearest(command, capsys):
    assert main([*command, "imagenet-resnet5"]) == 2
    error = capsys.readouterr().err
    assert "unknown recipe 'imagenet-resnet5'" in error
    assert "did you mean 'imagenet-resnet50'?" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", ["train", "compare"])
def test_what_only_the_user_has_is_asked_for(command, tmp_path, capsys):
    assert main([command, "--recipe", "birds"]) == 2
    error = capsys.readouterr().err
    assert "trains on Caltech-UCSD Birds-200-2011: give its place as --data.root" in error
    assert main([command, "--recipe", "birds", "--data.root", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "starts from an ImageNet model with covariance pooling: give a run" in error


def test_a_resumed_run_takes_no_recipe(tmp_path, capsys):
    assert main(["train", "--resume", str(tmp_path), "--recipe", "birds"]) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_a_shortened_recipe_says_which_decays_it_loses(caplog):
    config = RECIPES["birds"].config
    for epochs, told in ((200, []), (100, ["at epoch 100 "]), (40, ["at epoch 50 and 100 "])):
        caplog.clear()
        warn_of_milestones(replace(config, train=replace(config.train, epochs=epochs)))
        assert len(caplog.messages) == len(told)
        assert all(part in caplog.text for part in told)


SMALL = {"model.backbone": "test_resnet", "data.image_size": "64"}
RUNS = {
    "imagenet-alexnet": ("imagenet", None, {"data.image_size": "64"}),
    "imagenet-resnet50": (
        "imagenet/kaggle",
        None,
        {"data.image_size": "48", "model.hybrid": "svd-pade"},
    ),
    "imagenet-resnet101": ("imagenet/folders", None, SMALL),
    "imagenet-resnet50-fast-mpn-cov": ("imagenet", None, SMALL),
    "birds": ("birds", "imagenet-resnet101", {**SMALL, "model.method": "svd-pade"}),
    "dogs": ("dogs", "imagenet-resnet101", {**SMALL, "data.views": "mirror"}),
    "cars": ("cars", "imagenet-resnet101", {**SMALL, "model.method": "svd-trunc"}),
    "aircraft": ("aircraft", "imagenet-resnet101", SMALL),
    "finetune-isqrt-cov": ("birds", "imagenet-resnet50-fast-mpn-cov", SMALL),
    "two-stage-classifier": ("dogs", "imagenet-resnet101", SMALL),
    "two-stage-all": ("dogs", "two-stage-classifier", SMALL),
}
"""Recipe → layout of its miniature, recipe whose run it starts from, what makes it small."""


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """Runs a recipe, and what it starts from before it, once each."""
    images, runs = {}, {}

    def run(name):
        if name in runs:
            return runs[name]
        layout, start, small = RUNS[name]
        if layout not in images:
            images[layout] = write_miniature(layout, tmp_path_factory.mktemp("data"))
        config, path = RECIPES[name].config, tmp_path_factory.mktemp("runs") / "run"
        assert config.data.image_size is not None
        scale = int(small["data.image_size"]) / config.data.image_size
        resize = config.data.resize
        sides = [round(scale * s) for s in (resize if isinstance(resize, tuple) else [resize])]
        options = {
            "recipe": name,
            "data.root": str(images[layout]),
            "data.resize": str(sides if isinstance(resize, tuple) else sides[0]),
            "data.batch_size": "4",
            "train.epochs": "2",
            "train.threads": "1",
            "train.accelerator": "cpu",
            "output": str(path),
            **({"optim.milestones": "[1]"} if config.optim.milestones else {}),
            **({"model.init_from": str(run(start))} if start else {}),
            **small,
        }
        assert main(["train", *(f"--{key}={value}" for key, value in options.items())]) == 0
        runs[name] = path
        return path

    return run


@quick.parametrize(
    "name",
    RUNS,
    keep=["imagenet-resnet101", "birds", "two-stage-classifier", "two-stage-all"],
)
def test_two_epochs_on_a_miniature(name, run_of, capsys):
    directory = RunDirectory(run_of(name))
    rows, recipe = directory.read_metrics(), RECIPES[name].config
    assert [row["epoch"] for row in rows] == [1, 2]
    rates = [row["learning_rate"] / recipe.optim.learning_rate for row in rows]
    assert rates == pytest.approx([1, 0.1 if recipe.optim.milestones else 1])
    _, start, small = RUNS[name]
    methods = [row["method"] for row in rows]
    first = small.get("model.method", "isqrt-cov")
    assert methods == [first, small.get("model.hybrid", first)]
    summary = json.loads((directory.path / "summary.json").read_text())
    assert summary["status"] == "finished"
    config = directory.read_config()
    for key in KEYS[6:]:
        group, field = key.split(".")
        if key not in ("train.epochs", "optim.milestones"):
            assert getattr(getattr(config, group), field) == FIGURES[name][KEYS.index(key)]
    if start:
        told = summary["notes"][0]
        assert str(run_of(start)) in told
        whole = " and classifier" if name == "two-stage-all" else "; fresh: classifier"
        assert f"loaded: backbone and reduction{whole}" in told
