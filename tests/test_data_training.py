"""Published layouts, sizes and views through the command line: train, evaluate, predict."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from covpool.cli import main
from covpool.data import DataConfig, open_images
from covpool.train.checkpoint import read_checkpoint
from covpool.train.config import RunConfig
from covpool.train.engine import evaluate
from covpool.train.job import prepare
from covpool.train.loaders import ImageDataModule
from covpool.train.prediction import load_model
from covpool.train.run_directory import RunDirectory
from miniatures import Pictures, write_miniature, write_shards
from tiny_images import OPTIONS


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    base = tmp_path_factory.mktemp("views")
    root = write_miniature("cars", base / "data", test=3)
    options = ["--data.resize", "[20,24]", "--data.augment", "flip", "--data.views", "ten-crop"]
    assert (
        main(["train", "--data.root", str(root), *OPTIONS, *options, "--output", str(base / "run")])
        == 0
    )
    return base / "run"


def by_hand(run, views):
    """Test loss and first image's probabilities, view by view from the checkpoint's model."""
    config = RunConfig.from_dict(read_checkpoint(run / "last.ckpt")["covpool"]["config"])
    checkpoint = read_checkpoint(run / "last.ckpt")
    model = prepare(config, checkpoint=checkpoint).model
    prefix = "model."
    weights = {key.removeprefix(prefix): value for key, value in checkpoint["state_dict"].items()}
    model.load_state_dict(weights)
    model.eval()
    data = DataConfig(**{**config.to_dict()["data"], "views": views})
    test = open_images(data).test
    images = torch.stack([test[number][0] for number in range(len(test))])
    images = images if images.ndim == 5 else images[:, None]
    with torch.no_grad():
        logits = torch.stack([model(images[:, view]) for view in range(images.shape[1])]).mean(0)
    return images.shape[1], cross_entropy(logits, torch.tensor(test.labels)).item(), logits


@pytest.mark.parametrize(("views", "number"), [("center", 1), ("mirror", 2), ("ten-crop", 10)])
def test_evaluation_averages_the_logits_of_the_views(run, views, number, capsys):
    found, loss, _ = by_hand(run, views)
    assert found == number
    config = RunConfig.from_dict(read_checkpoint(run / "last.ckpt")["covpool"]["config"])
    changed = RunConfig.from_dict(
        {**config.to_dict(), "data": {**config.to_dict()["data"], "views": views}}
    )
    assert evaluate(run / "last.ckpt", changed)["test_loss"] == pytest.approx(loss, rel=1e-5)
    assert main(["evaluate", str(run), "--data.views", views]) == 0
    assert f"loss {loss:.4f}" in capsys.readouterr().out.splitlines()[0]


def test_the_runs_own_views_are_those_of_its_metrics_and_predictions(run):
    _, loss, logits = by_hand(run, "ten-crop")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["final"]["test_loss"] == pytest.approx(loss, rel=1e-5)
    config = RunConfig.from_dict(read_checkpoint(run / "last.ckpt")["covpool"]["config"])
    test = open_images(config.data).test
    [prediction] = load_model(run / "last.ckpt").predict(test.source.paths[0], top=3)
    expected = dict(
        zip(open_images(config.data).classes, logits[0].softmax(0).tolist(), strict=True)
    )
    assert dict(prediction.likeliest) == pytest.approx(expected, rel=1e-5)


def test_a_batch_of_several_views_is_no_larger(run):
    """Else ten crops of large images would need ten times the memory in every loader."""
    config = RunDirectory(run).read_config()
    data = ImageDataModule(open_images(config.data), config)
    shapes = [images.shape for images, _ in data.val_dataloader()]
    assert sum(shape[0] for shape in shapes) == 9
    assert {shape[1] for shape in shapes} == {10}
    assert max(shape[0] * shape[1] for shape in shapes) <= max(config.data.batch_size, 10)
    config = replace(config, data=replace(config.data, batch_size=40))
    data = ImageDataModule(open_images(config.data), config)
    assert max(len(labels) for _, labels in data.val_dataloader()) == 3


def test_images_in_shards_are_called_by_their_names(tmp_path):
    root = write_shards(tmp_path, Pictures(classes=3, train=4, test=2, size=32))
    data = DataConfig(name="wds/letters", root=str(root), image_size=16, batch_size=4)
    names = ImageDataModule(open_images(data), RunConfig(data=data)).names(0)
    assert len(names) == 4
    assert all(name.startswith(str(root)) and ".tar:" in name for name in names)


def test_views_that_do_not_fit_are_refused_by_evaluate(tmp_path, capsys):
    root = write_miniature("folder", tmp_path / "data")
    options = ["--data.root", str(root), *OPTIONS, "--data.resize", "16", "--train.epochs", "1"]
    assert main(["train", *options, "--output", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--data.views", "ten-crop"]) == 2
    assert "would take the same crop five times" in capsys.readouterr().err


def test_timms_options_and_statistics_from_the_command_line(tmp_path):
    root = write_shards(tmp_path, Pictures(classes=3, train=4, test=2, size=32))
    options = [
        *("--data.root", str(root), "--data.name", "wds/letters", "--data.augment", "timm"),
        *("--data.augment_options.auto_augment", "rand-m9-mstd0.5"),
        *("--data.augment_options.scale", "[0.5,1.0]"),
        *("--data.mean", "[0.5]", "--data.std", "[0.5,0.4,0.3]", "--train.epochs", "1"),
    ]
    assert main(["train", *OPTIONS, *options, "--output", str(tmp_path / "run")]) == 0
    about = read_checkpoint(tmp_path / "run" / "last.ckpt")["covpool"]
    given = {"auto_augment": "rand-m9-mstd0.5", "scale": [0.5, 1.0]}
    assert about["config"]["data"]["augment_options"] == given
    assert about["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert about["preprocessing"]["std"] == [0.5, 0.4, 0.3]


def test_a_layout_needs_its_root(capsys):
    assert main(["train", "--data.name", "birds"]) == 2
    assert "data.name 'birds' needs data.root" in capsys.readouterr().err
