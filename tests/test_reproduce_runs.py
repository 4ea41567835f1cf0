"""From the command to the runs: a small grid once, its resumption, and what the images decide."""

import html
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from covpool.cli import main
from covpool.data import DataConfig
from covpool.experiments.arms import METHODS_OF_PAPER, Arm, hybrid, standalone
from covpool.experiments.reproduce import changed_options, plan
from covpool.experiments.results import SMALL
from covpool.experiments.targets import TARGETS
from covpool.train.config import RunConfig
from covpool.train.probes import read_analysis
from covpool.train.recipe import read_recipe
from covpool.train.recorder import PROGRESS
from covpool.train.run_directory import RunDirectory
from inline_grid import command
from miniatures import write_miniature
from tiny_images import OPTIONS, make_tiny_images

METHODS = "isqrt-cov,svd"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return str(make_tiny_images(tmp_path_factory.mktemp("data") / "textures"))


def arguments(images, output, *targets):
    options = [*OPTIONS, "--optim.milestones", "[1]", "--methods", METHODS, "--seeds", "2"]
    return ["reproduce", *targets, "--data.root", images, "--output", str(output), *options]


@pytest.fixture(scope="module")
def output(images, tmp_path_factory):
    path = tmp_path_factory.mktemp("reproduce") / "output"
    assert command(*arguments(images, path, "all")) == 0
    return path


def runs_of(output):
    return output / "runs" / SMALL


def test_each_run_is_trained_once_for_all_targets(output):
    names = {path.name for path in runs_of(output).iterdir() if path.is_dir()}
    labels = ("isqrt-cov", "svd", "hybrid-svd")
    assert names == {f"{label}-seed{seed}" for label in labels for seed in (0, 1)}
    config = RunDirectory.open(runs_of(output) / "hybrid-svd-seed1").read_config()
    assert (config.model.method, config.model.hybrid, config.train.seed) == ("isqrt-cov", "svd", 1)


def test_each_target_is_written(output):
    for name in (*TARGETS, "observations"):
        content = json.loads((output / f"{name}.json").read_text())
        assert (output / f"{name}.md").read_text().startswith(f"# {content['title']}")
        assert content["paper_scale"] is (name in ("table3", "table6"))
        if name not in ("table3", "table6"):
            assert "textures: 3 classes, 27 training images; 2 epochs" in content["scale"]
            assert "not on the paper's images nor at its scale" in content["scale"]
    for name in ("figure1", "figure2"):
        text = (output / f"{name}.svg").read_text()
        assert text.count("<path") > 10
        assert "svd" in text


def test_the_papers_cells_do_not_stand_beside_own_images(output):
    """They are in the file for programs alone."""
    for name in (name for name, target in TARGETS.items() if target.trained):
        text = (output / f"{name}.md").read_text()
        assert ": paper" not in text
        assert "the paper, epochs" not in text
    table = (output / "table1.md").read_text()
    assert "| method | paper's name | top-1 error % | top-5 error % |" in table
    assert '"paper"' in (output / "table1.json").read_text()


def test_figures_follow_from_the_runs(output):
    content = json.loads((output / "table4.json").read_text())
    rows = {(row["method"], row["protocol"]): row for row in content["ResNet-50"]}
    for label, key in {"svd": ("svd", "standalone"), "hybrid-svd": ("svd", "hybrid")}.items():
        for seed in (0, 1):
            summary = RunDirectory(runs_of(output) / f"{label}-seed{seed}").read_summary()
            expected = 100 * (1 - summary["final"]["test_top1"])
            assert rows[key]["errors"]["test_top1"][str(seed)] == pytest.approx(expected)
    assert rows["svd", "hybrid"]["paper"] == [22.79, 6.50]


def test_probes_measured_along_the_runs_of_table_1(output):
    for label in ("svd", "isqrt-cov"):
        rows = read_analysis(runs_of(output) / f"{label}-seed0")
        assert {row["probe"] for row in rows} == {"smoothness", "conditioning", "fidelity"}
        assert {row["epoch"] for row in rows} == {1, 2}
        assert not any("error" in row for row in rows)
    assert read_analysis(runs_of(output) / "hybrid-svd-seed0") == []
    assert "not measured" not in str(json.loads((output / "table2.json").read_text())["rows"])


def test_the_report_of_the_folder_shows_the_observations(output, tmp_path):
    page = tmp_path / "report.html"
    assert main(["report", str(output), "--output", str(page)]) == 0
    text = html.unescape(page.read_text(encoding="utf-8"))
    (found,) = json.loads((output / "observations.json").read_text())["settings"].values()
    for each in found:
        assert f"({each['number']}) {each['statement']}</th>" in text
        assert f'<td data-label="here">{each["verdict"]}</td>' in text
        for claim in each["claims"]:
            shown = claim["decides"] or claim["verdict"] != "not measured"
            assert (claim["described"] in text) is shown
    # Claims are long: their cells break lines on a narrow page too.
    assert text.count('<td class="wide" data-label="from">') == len(found)
    for figure in ("smoothness", "conditioning", "kernels", "gradients"):
        assert f'<figure id="s1-{figure}"' in text


TIMED = ("seconds", "test_seconds", "images_per_second")


def same_training(one: Path, other: Path):
    states = [torch.load(path / "last.ckpt", weights_only=True) for path in (one, other)]
    assert states[0]["global_step"] == states[1]["global_step"]
    for key, value in states[1]["state_dict"].items():
        assert torch.equal(states[0]["state_dict"][key], value), key
    histories = [
        [{k: v for k, v in row.items() if k not in TIMED} for row in state[PROGRESS]["history"]]
        for state in states
    ]
    assert histories[0] == histories[1]


def test_a_hybrid_run_is_that_of_newton_schulz_until_the_switch(output):
    histories = [
        RunDirectory(runs_of(output) / f"{label}-seed0").read_metrics()
        for label in ("isqrt-cov", "hybrid-svd")
    ]
    assert [row["method"] for row in histories[1]] == ["isqrt-cov", "svd"]
    alone, hybrid = (
        {k: v for k, v in history[0].items() if k not in TIMED} for history in histories
    )
    assert alone == hybrid


def test_the_same_command_trains_what_is_missing(output, images, tmp_path, capsys):
    lost = runs_of(output) / "hybrid-svd-seed1"
    kept = tmp_path / "kept"
    shutil.move(lost, kept)
    others = {path: path.stat().st_mtime_ns for path in runs_of(output).glob("*/last.ckpt")}
    assert command(*arguments(images, output, "figure2")) == 0
    printed = capsys.readouterr().out
    assert "[4/4] hybrid-svd seed 1: Final" in printed
    assert "[3/4]" not in printed
    assert {path: path.stat().st_mtime_ns for path in others} == others
    same_training(lost, kept)


def test_other_options_are_refused(output, images, tmp_path, capsys):
    options = [*arguments(images, output, "table1"), "--optim.learning_rate", "0.1"]
    assert main(options) == 2
    assert "optim.learning_rate 0.35, not 0.1" in capsys.readouterr().err
    folder = tmp_path / "runs" / SMALL
    shutil.copytree(runs_of(output) / "svd-seed0", folder / "isqrt-cov-seed0")
    assert main(arguments(images, tmp_path, "table1")) == 2
    assert "was begun with model.method 'svd', not 'isqrt-cov'" in capsys.readouterr().err


def test_a_dry_run_trains_nothing(images, tmp_path, capsys):
    assert main([*arguments(images, tmp_path / "none", "table4"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "6 runs (3 ways to train, 2 seeds; 0 are there already)" in printed
    assert "hybrid-svd: 2 runs, 4 epochs; 0.0" in printed
    assert "with 1 at a time" in printed
    assert not (tmp_path / "none").exists()


def test_a_dry_run_leaves_out_what_is_there(output, images, capsys):
    assert main([*arguments(images, output, "table4"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "svd: 2 runs (2 of these are there already), 0 epochs" in printed
    assert "about 0:00 with 1 at a time" in printed


def test_embedded_images_take_the_small_recipe():
    made = plan(RunConfig(), TARGETS)
    assert set(made.arms) == {SMALL}
    assert made.left_out == {}
    everything = {*standalone("gap", *METHODS_OF_PAPER), *hybrid(*METHODS_OF_PAPER)}
    assert set(made.arms[SMALL]) == everything
    assert len(made.arms[SMALL]) == 18


@pytest.mark.parametrize(
    ("layout", "recipes", "left_out"),
    [
        (
            "imagenet",
            {
                "imagenet-resnet50-fast-mpn-cov": 2,
                "imagenet-alexnet": 10,
                "imagenet-resnet50": 18,
                "imagenet-resnet101": 6,
            },
            {"table5"},
        ),
        ("birds", {"birds": 9}, {"table1", "table2", "table4", "figure1", "figure2"}),
    ],
)
def test_the_papers_images_take_its_recipes(layout, recipes, left_out, tmp_path):
    root = write_miniature(layout, tmp_path)
    made = plan(RunConfig(data=DataConfig(root=str(root))), TARGETS)
    assert {recipe: len(arms) for recipe, arms in made.arms.items()} == recipes
    assert set(made.left_out) == left_out
    assert SMALL not in made.arms


def test_a_target_of_other_images_is_refused(tmp_path, capsys):
    root = write_miniature("birds", tmp_path)
    assert main(["reproduce", "table4", "--data.root", str(root)]) == 2
    assert "table4 cannot be made: it is of imagenet, and data.root holds birds" in (
        capsys.readouterr().err
    )


def test_every_recipe_allows_its_arms():
    for target in TARGETS.values():
        for recipe, arms in {**target.trainings, SMALL: target.small}.items():
            config = read_recipe(recipe).config
            for arm in arms:
                made = arm.config(config)
                assert made.model.hybrid == (arm.method if arm.hybrid else None)
                assert made.model.method == ("isqrt-cov" if arm.hybrid else arm.method)


def test_a_changed_option_is_no_longer_the_papers_scale():
    recipe = read_recipe("imagenet-resnet50").config
    free = replace(recipe, data=replace(recipe.data, root="images", workers=8))
    assert changed_options(free, recipe) == []
    short = replace(recipe, train=replace(recipe.train, epochs=50))
    assert changed_options(short, recipe) == ["train.epochs 50"]
    assert Arm("svd-pade").config(recipe).model.method == "svd-pade"
