"""`covpool probe`: features computed once, heads trained on them, and what comes of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import covpool
from covpool.cli import main
from covpool.experiments.frozen import features, heads
from covpool.experiments.frozen.heads import Examples, Head, train_head, train_linear
from covpool.train.config import RunConfig
from covpool.train.run_directory import RunDirectory
from inline_grid import command
from tiny_images import make_tiny_images

OPTIONS = [
    *("--data.image_size", "16"),
    *("--data.batch_size", "8"),
    *("--model.backbone_options.width", "8"),
    *("--model.reduced_channels", "4"),
    *("--train.epochs", "2"),
    *("--train.threads", "1"),
    *("--poolings", "isqrt-cov,exact,svd,covariance,gem,bcnn"),
    *("--rates", "0.03,0.1"),
    *("--decays", "1e-3"),
    *("--seeds", "2"),
    *("--jobs", "1"),
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    model = covpool.create_model("small-convnet", 3, method="gap", in_chans=1, width=8)
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(model.backbone.state_dict(), path)
    return str(path)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return str(make_tiny_images(tmp_path_factory.mktemp("data") / "textures"))


@pytest.fixture(scope="module")
def probed(images, weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    arguments = ["probe", images, "--model.init_from", weights, *OPTIONS]
    arguments += ["--output", str(folder / "output"), "--features", str(folder / "features")]
    assert command(*arguments) == 0
    return arguments, folder


def test_it_writes_what_every_experiment_writes(probed, capsys):
    _, folder = probed
    output = folder / "output"
    labels = ["gap", "gap-matched", "gap-reduced", "gap-reduced-matched"]
    labels += ["isqrt-cov", "exact", "svd", "covariance", "gem", "bcnn"]
    found = {path.name for path in (output / "runs").iterdir()}
    assert found == {f"{label}-seed{seed}" for label in labels for seed in (0, 1)}
    summary = json.loads((output / "summary.json").read_text())
    assert set(summary["rates"]) == set(labels)
    assert {"summary.md", "summary.svg", "runs.jsonl"} <= {p.name for p in output.iterdir()}
    assert main(["report", str(output)]) == 0
