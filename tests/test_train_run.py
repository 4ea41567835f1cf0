"""What a run leaves behind, and what evaluates and predicts from it."""

import base64
import csv
import io
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import covpool
from covpool.cli import main
from covpool.data import open_images
from covpool.pooling import VECTOR_LAYOUT
from covpool.train.config import RunConfig
from covpool.train.engine import evaluate
from covpool.train.module import ClassificationModule
from covpool.train.progress import EPOCH_HEADER, epoch_line
from covpool.train.recorder import Recorder
from covpool.train.run_directory import RunDirectory, best_row, make_numbered
from tiny_images import CLASSES, OPTIONS, make_tiny_images


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_tiny_images(tmp_path_factory.mktemp("data") / "textures")


@pytest.fixture(scope="module")
def run(images, drawn, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    options = [*OPTIONS, "--train.epochs", "3", "--model.schedule", "0:isqrt-cov,1:svd-pade"]
    assert main(["train", "--data.root", str(images), "--output", str(path), *options]) == 0
    return path


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy")


def load(path):
    return torch.load(path, weights_only=True)


def save_changed(path, change):
    checkpoint = load(path)
    change(checkpoint)
    torch.save(checkpoint, path)


def test_files_of_a_run(run):
    names = {path.name for path in run.iterdir()}
    assert names == {
        *("config.yaml", "metrics.csv", "metrics.jsonl", "last.ckpt", "best.ckpt"),
        *(
            "curves.svg",
            "confusion.png",
            "confusions.csv",
            "examples.json",
            "summary.json",
            "summary.md",
        ),
    }
    with Image.open(run / "confusion.png") as picture:
        picture.verify()
    curves = (run / "curves.svg").read_text()
    assert curves.rstrip().endswith("</svg>")


SAID = {
    "own": (
        [],
        "for your own images: model.backbone small-convnet, untrained, optim.name sgd, ",
    ),
    "given": (
        ["--lr", "0.1", "--optim.name", "adamw"],
        "for your own images: model.backbone small-convnet, untrained, optim.decay cosine, ",
    ),
    "pretrained": (
        ["--model.init_from", "{run}", "--optim.decay", "constant"],
        "for fine-tuning on your own images: optim.name adamw, optim.learning_rate 0.0003, ",
    ),
    "recipe": (["--recipe", "birds", "--model.init_from", "{run}"], None),
}


@pytest.mark.parametrize("command", ["train", "compare"])
@pytest.mark.parametrize("case", SAID)
def test_defaults_for_own_images_are_said_in_a_line(
    case, command, run, images, tmp_path, capsys, monkeypatch
):
    options, wanted = SAID[case]
    monkeypatch.setattr("covpool.cli.experiment.run_study", lambda request: 0)
    options = [option.format(run=run / "best.ckpt") for option in options]
    if case == "recipe":
        options += ["--data.name", "folder", "--data.resize", "16"]
        options += ["--model.backbone", "small-convnet", "--model.reduced_channels", "null"]
    capsys.readouterr()
    path = str(tmp_path / "made")
    assert main([command, str(images), *OPTIONS, *options, "--output", path]) == 0
    told = capsys.readouterr().out.splitlines()
    lines = [line for line in told if line.startswith("defaults ")]
    assert len(lines) == (wanted is not None)
    if wanted:
        assert lines[0].startswith(f"defaults {wanted}")
        assert "data.augment crop" in lines[0]  # found out from the images
        assert "train.epochs" not in lines[0]  # which is given


def test_metrics_agree_in_both_formats(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    with (run / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [{k: str(v) for k, v in row.items()} for row in rows] == table
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["method"] for row in rows] == ["isqrt-cov", "svd-pade", "svd-pade"]
    for row in rows:
        assert 0 <= row["test_top1"] <= row["test_top5"] == 1
        assert row["test_top1"] * 12 == pytest.approx(round(row["test_top1"] * 12))
        assert row["train_top1"] * 24 == pytest.approx(round(row["train_top1"] * 24))


def test_summary_has_final_and_best(run):
    summary = json.loads((run / "summary.json").read_text())
    rows = RunDirectory(run).read_metrics()
    assert summary["status"] == "finished"
    assert summary["final"] == rows[-1]
    assert summary["best"]["test_top1"] == max(row["test_top1"] for row in rows)
    text = (run / "summary.md").read_text()
    for row in (summary["final"], summary["best"]):
        assert f"{100 * row['test_top1']:.2f}" in text


def test_best_is_the_earliest_of_equals():
    rows = [{"epoch": i, "test_top1": share} for i, share in enumerate([0.1, 0.5, 0.5, 0.2])]
    assert best_row(rows)["epoch"] == 1


def test_checkpoints_say_what_they_mean(run, images):
    for name, epoch in (("last.ckpt", 2), ("best.ckpt", None)):
        about = load(run / name)["covpool"]
        assert about["version"] == covpool.__version__
        assert tuple(about["classes"]) == CLASSES
        assert about["vector_layout"] == VECTOR_LAYOUT
        assert about["schedule"] == "0:isqrt-cov,1:svd-pade"
        assert epoch is None or about["epoch"] == epoch
        config = RunConfig.from_dict(about["config"])
        assert config == RunDirectory(run).read_config()
        splits = open_images(config.data)
        assert about["preprocessing"] == splits.preprocessing.to_dict()


def test_confusions_add_up_to_the_errors(run):
    with (run / "confusions.csv").open(newline="") as file:
        wrong = sum(int(row["images"]) for row in csv.DictReader(file))
    final = RunDirectory(run).read_metrics()[-1]
    assert wrong == round(12 * (1 - final["test_top1"]))


def test_examples_are_images_of_both_classes_of_each_confusion(run, images):
    with (run / "confusions.csv").open(newline="") as file:
        wanted = {row[name] for row in csv.DictReader(file) for name in ("class", "called")}
    examples = json.loads((run / "examples.json").read_text())
    assert set(examples) == wanted != set()
    for name, pictures in examples.items():
        for number, picture in enumerate(pictures):
            with Image.open(io.BytesIO(base64.b64decode(picture))) as found:
                shown = np.asarray(found.convert("L"), dtype=float)
            with Image.open(images / "test" / name / f"{number}.png") as found:
                assert (
                    abs(shown - np.asarray(found, dtype=float)).mean() < 12
                )  # JPEG, at quality 85
        assert len(pictures) == 2


def test_evaluate_repeats_the_summary(run, capsys):
    assert main(["evaluate", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    summary = json.loads((run / "summary.json").read_text())
    for line, name in zip(lines, ("final", "best"), strict=True):
        row = summary[name]
        assert line.startswith(name.capitalize())
        assert f"top-1 {100 * row['test_top1']:.2f}%" in line
        assert f"loss {row['test_loss']:.4f}" in line
        assert f"epoch {row['epoch']}, {row['method']}, 12 images" in line


def test_evaluate_takes_the_same_weights_once_and_shows_progress(copy, monkeypatch, capsys):
    evaluated = []
    shutil.copy(copy / "last.ckpt", copy / "best.ckpt")

    def count(path, *arguments, **options):
        evaluated.append(path.name)
        return evaluate(path, *arguments, **options)

    monkeypatch.setattr("covpool.cli.evaluate.evaluate", count)
    monkeypatch.setattr("covpool.train.progress.LINE_SECONDS", 0)
    assert main(["evaluate", str(copy), "--data.batch_size", "5"]) == 0
    told = capsys.readouterr()
    assert evaluated == ["last.ckpt"]
    final, best = told.out.splitlines()
    assert final.removeprefix("Final") == best.removeprefix("Best ")
    assert [line.split("  ")[0] for line in told.err.splitlines()] == [
        f"evaluated {number} of 12 images" for number in (5, 10)
    ]


def test_the_lines_of_epochs_fit_a_terminal_under_their_header():
    row = {
        "epoch": 100,
        "method": "mtp-lyapunov",
        "train_loss": 10.0,
        "test_loss": 10.0,
        "train_top1": 1.0,
        "test_top1": 1.0,
        "learning_rate": 7.7e-05,
        "seconds": 9999,
        "images_per_second": 99999,
    }
    line = epoch_line(row, 200, 1.0)
    header = EPOCH_HEADER.splitlines()[1]
    assert len(line) == len(header) <= 80
    assert len(line.split()) == len(header.split())
    for name in ("method", "rate"):
        assert line[header.index(name) - 1] == " " != line[header.index(name)]


def test_evaluate_takes_any_batch_size(images, tmp_path):
    """Also one that the parts of a training step do not divide."""
    path = tmp_path / "run"
    options = [*OPTIONS, "--train.accumulate", "2", "--train.epochs", "1"]
    assert main(["train", "--data.root", str(images), "--output", str(path), *options]) == 0
    assert main(["evaluate", str(path), "--data.batch_size", "3"]) == 0


def test_evaluate_on_other_images_of_the_same_classes(run, tmp_path, capsys):
    other = make_tiny_images(tmp_path / "other", train=1, test=2)
    assert main(["evaluate", "--data.root", str(other), str(run / "last.ckpt")]) == 0
    assert "6 images" in capsys.readouterr().out


def test_evaluate_refuses_other_classes(run, tmp_path, capsys):
    other = make_tiny_images(tmp_path / "other")
    for split in ("train", "test"):
        (other / split / "grain").rename(other / split / "gravel")
    assert main(["evaluate", str(run), "--data.root", str(other)]) == 2
    error = capsys.readouterr().err
    assert "grain, gravel" in error
    assert error.count("\n") == 1


def test_predict_gives_probabilities_without_the_training_images(run, images, tmp_path, capsys):
    away = tmp_path / "away"
    shutil.copytree(run, away)
    config = yaml.safe_load((away / "config.yaml").read_text())
    config["data"]["root"] = str(tmp_path / "gone")
    (away / "config.yaml").write_text(yaml.safe_dump(config))
    picture = images / "test" / "checks" / "0.png"
    assert main(["predict", str(away), str(picture), str(picture)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(picture)
    assert lines[:4] == lines[4:]
    shares = {line.split()[1]: float(line.split()[0].rstrip("%")) for line in lines[1:4]}
    assert set(shares) == set(CLASSES)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert sum(shares.values()) == pytest.approx(100, abs=0.02)


def test_predict_agrees_with_evaluate(run, images, capsys):
    pictures = sorted((images / "test").glob("*/*.png"))
    arguments = ["predict", "--top", "1", str(run / "last.ckpt"), *map(str, pictures)]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    named = [line.split()[1] for line in lines[1::2]]
    right = sum(name == picture.parent.name for name, picture in zip(named, pictures, strict=True))
    final = RunDirectory(run).read_metrics()[-1]
    assert right == round(12 * final["test_top1"])


def test_predict_names_bad_images_and_goes_on(run, images, tmp_path, capsys):
    good = images / "test" / "stripes" / "0.png"
    truncated, text = tmp_path / "truncated.png", tmp_path / "text.png"
    truncated.write_bytes(good.read_bytes()[:60])
    text.write_text("not an image")
    arguments = [str(run), str(truncated), str(good), str(text), "missing.png"]
    assert main(["predict", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0] == str(good)
    assert len(captured.out.splitlines()) == 4
    errors = captured.err.splitlines()
    for name, line in zip(("truncated.png", "text.png", "missing.png"), errors, strict=False):
        assert name in line
        assert "skip_damaged" not in line  # an option of training
    assert errors[-1] == "covpool: error: no result for 3 of 4 images"


def test_an_existing_directory_is_refused_and_kept(copy, images, capsys):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    options = ["--data.root", str(images), "--output", str(copy), *OPTIONS]
    assert main(["train", *options]) == 2
    error = capsys.readouterr().err
    assert f"run directory {copy} exists" in error
    assert f"--resume {copy}" in error
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_default_directories_are_numbered(tmp_path):
    for name in ("run", "run-2", "run-3"):
        assert make_numbered(tmp_path / "run") == tmp_path / name
        assert (tmp_path / name).is_dir()


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_a_damaged_checkpoint_is_named(kept, copy, capsys):
    content = (copy / "last.ckpt").read_bytes()
    (copy / "last.ckpt").write_bytes(content[:kept])
    (copy / "previous.ckpt").write_bytes(content[:kept])
    for command in (["evaluate", str(copy)], ["train", "--resume", str(copy)]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert f"{copy / 'last.ckpt'} is damaged" in error
        assert error.count("\n") == 1
    assert (copy / "last.ckpt").read_bytes() == content[:kept]


def test_a_checkpoint_with_code_in_it_is_not_run(copy, capsys):
    class Payload:
        def __reduce__(self):
            return (print, ("payload ran",))

    torch.save({"covpool": Payload()}, copy / "last.ckpt")
    assert main(["evaluate", str(copy)]) == 2
    captured = capsys.readouterr()
    assert "payload ran" not in captured.out
    assert "last.ckpt" in captured.err


def test_a_foreign_checkpoint_is_named(copy, capsys):
    torch.save({"state_dict": {}}, copy / "last.ckpt")
    assert main(["evaluate", str(copy)]) == 2
    assert "last.ckpt is not a checkpoint that covpool wrote" in capsys.readouterr().err


def test_a_checkpoint_of_another_layout_is_refused(copy, capsys):
    save_changed(copy / "last.ckpt", lambda c: c["covpool"].update(vector_layout="tril-v0"))
    assert main(["predict", str(copy / "last.ckpt"), "x.png"]) == 2
    error = capsys.readouterr().err
    assert "'tril-v0'" in error
    assert VECTOR_LAYOUT in error


def test_a_checkpoint_of_another_model_is_named(copy, capsys):
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["model"]["backbone_options"]["width"] = 12
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    for command in (["evaluate", str(copy)], ["train", "--resume", str(copy), "--train.epochs=9"]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert f"{copy / 'last.ckpt'} is of another model: model.backbone" in error
        assert error.count("\n") == 1


def test_a_checkpoint_of_another_run_is_told_by_its_options(copy, capsys):
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["model"]["schedule"] = "0:isqrt-cov,1:svd-taylor"
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    for command in (["evaluate", str(copy)], ["train", "--resume", str(copy), "--train.epochs=9"]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "model.schedule is '0:isqrt-cov,1:svd-pade' in it" in error
        assert "'0:isqrt-cov,1:svd-taylor' in the run's configuration" in error
        assert error.count("\n") == 1


def test_a_best_checkpoint_is_not_resumed(copy, capsys):
    shutil.copy(copy / "best.ckpt", copy / "last.ckpt")
    assert main(["train", "--resume", str(copy), "--train.epochs", "9"]) == 2
    assert "last.ckpt holds weights only (a best.ckpt)" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["vector_layout", "preprocessing", "images", "epoch"])
def test_what_a_checkpoint_lacks_is_named(key, copy, capsys):
    save_changed(copy / "last.ckpt", lambda c: c["covpool"].pop(key))
    for command in (["evaluate", str(copy)], ["predict", str(copy / "last.ckpt"), "x.png"]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "last.ckpt is not a checkpoint that covpool wrote" in error
        assert f"lacks covpool.{key}" in error


def test_evaluate_tells_that_its_test_images_changed(tmp_path, capsys, caplog):
    images, path = make_tiny_images(tmp_path / "images"), tmp_path / "run"
    assert main(["train", "--data.root", str(images), "--output", str(path), *OPTIONS]) == 0
    other = shutil.copytree(images, tmp_path / "other")
    for root in (images, other):
        (root / "test" / "grain" / "0.png").unlink()
    assert main(["evaluate", str(path / "last.ckpt"), "--data.root", str(other)]) == 0
    assert not caplog.messages
    assert main(["evaluate", str(path / "last.ckpt")]) == 0
    assert caplog.messages == [
        "the test images of images (11) are not those that the run was trained with (12)"
    ]


def test_an_unreadable_configuration_is_named(copy, capsys):
    for text in ("model: [", "- model", "model: {metod: gap}"):
        (copy / "config.yaml").write_text(text)
        assert main(["evaluate", str(copy)]) == 2
        error = capsys.readouterr().err
        assert str(copy / "config.yaml") in error
        assert error.count("\n") == 1


def test_divergence_is_said_and_keeps_the_last_good_state(images, tmp_path, capsys):
    path = tmp_path / "run"
    options = [*OPTIONS, "--optim.learning_rate", "1e30", "--model.method", "gap"]
    assert main(["train", "--data.root", str(images), "--output", str(path), *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("covpool: training diverged in epoch 1, step")
    assert error.count("\n") == 1
    summary = json.loads((path / "summary.json").read_text())
    assert summary["status"] == "diverged"
    assert "final" not in summary


def test_divergence_inside_the_pooling_is_divergence_too(images, tmp_path, capsys):
    path = tmp_path / "run"
    options = [*OPTIONS, "--optim.learning_rate", "1e30", "--model.method", "exact"]
    assert main(["train", "--data.root", str(images), "--output", str(path), *options]) == 1
    assert "training diverged in epoch 1, step" in capsys.readouterr().err


def poison(module):
    with torch.no_grad():
        next(module.parameters()).fill_(float("nan"))


def check_diverged_after(path, steps):
    """The run's files hold what was finite, and nothing else."""
    checkpoint = load(path / "last.ckpt")
    assert checkpoint["global_step"] == steps
    assert all(tensor.isfinite().all() for tensor in checkpoint["state_dict"].values())
    for name in ("metrics.jsonl", "summary.json"):
        assert not (path / name).exists() or '": NaN' not in (path / name).read_text()
    assert json.loads((path / "summary.json").read_text())["status"] == "diverged"


@pytest.mark.parametrize("method", ["gap", "isqrt-cov"])
def test_divergence_that_evaluation_finds(method, images, tmp_path, monkeypatch, capsys):
    path, original = tmp_path / "run", ClassificationModule.on_validation_epoch_start

    def hook(self):
        original(self)
        if self.global_step == 6:
            poison(self)

    monkeypatch.setattr(ClassificationModule, "on_validation_epoch_start", hook)
    options = ["--data.root", str(images), "--output", str(path), "--model.method", method]
    policy = "skip" if method == "gap" else "stop"
    assert main(["train", *options, *OPTIONS, "--on-nonfinite", policy]) == 1
    error = capsys.readouterr().err
    assert error.startswith("covpool: training diverged in the evaluation after epoch 2: ")
    assert ("or --on-nonfinite skip" in error) == (policy == "stop")
    assert error.count("\n") == 1
    check_diverged_after(path, 3)
    assert len(RunDirectory(path).read_metrics()) == 1


@pytest.mark.parametrize(("bad", "steps"), [(2, 1), (6, 5)])
def test_weights_that_are_not_finite_are_not_saved(
    bad, steps, images, tmp_path, monkeypatch, capsys
):
    path, original = tmp_path / "run", Recorder.on_train_batch_end

    def hook(self, trainer, module, *rest):
        if module.global_step == bad:
            # The evaluation does not see it: dead weight, which the loss does not depend on.
            monkeypatch.setattr(module.model, "forward", lambda x: x.new_zeros(len(x), 3))
            poison(module)
        original(self, trainer, module, *rest)

    monkeypatch.setattr(Recorder, "on_train_batch_end", hook)
    options = ["--data.root", str(images), "--output", str(path), "--train.checkpoint_steps", "1"]
    assert main(["train", *options, *OPTIONS]) == 1
    where = f"epoch {(bad + 2) // 3}, step {(bad - 1) % 3 + 1} of 3"
    assert f"diverged in {where}: weights are no longer finite" in capsys.readouterr().err
    check_diverged_after(path, steps)


@pytest.mark.parametrize("method", ["gap", "isqrt-cov"])
def test_evaluate_of_weights_that_give_no_finite_result(method, images, tmp_path, capsys):
    path = tmp_path / "run"
    options = ["--data.root", str(images), "--output", str(path), "--model.method", method]
    assert main(["train", *options, *OPTIONS]) == 0
    for value, problem in (
        (-3e38, f"checkpoint {path / 'last.ckpt'} gives no finite result"),
        (float("nan"), f"{path / 'last.ckpt'}: backbone.features.0.weight holds NaN"),
    ):
        save_changed(
            path / "last.ckpt",
            lambda c, value=value: next(iter(c["state_dict"].values())).fill_(value),
        )
        assert main(["evaluate", str(path / "last.ckpt")]) == 2
        error = capsys.readouterr().err
        assert problem in error
        assert error.count("\n") == 1
