"""Poolings beside the square root, through training, comparison, prediction and publishing."""

import json

import pytest
import torch

import covpool
from covpool.cli import main
from tiny_images import OPTIONS, make_tiny_images


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return str(make_tiny_images(tmp_path_factory.mktemp("poolings") / "images"))


def test_a_pooling_with_its_constants_is_trained_and_read_back(images, tmp_path, capsys):
    run = tmp_path / "run"
    options = ["--model.method", "dropcov", "--model.constants.limit", "0.5"]
    options += ["--optim.weight_average", "0.9", "--output", str(run)]
    assert main(["train", "--data.root", images, *OPTIONS, *options]) == 0
    model = covpool.load_model(run).model
    assert model.method == "dropcov"
    assert model.pool.pooling.regulariser.limit == 0.5
    assert model.pool.row.constants["limit"] == 0.5
    assert main(["export", str(run), "--output", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`dropcov`: the plain covariance, in training" in card
    published = covpool.load_model(tmp_path / "out").model
    x = torch.rand(2, 1, 16, 16)
    assert torch.equal(published.eval()(x), model.eval()(x))


@pytest.mark.slow
def test_poolings_are_compared(images, tmp_path, capsys):
    folder = tmp_path / "compared"
    options = ["--methods", "gap,power", "--seeds", "1", "--output", str(folder)]
    options += ["--model.constants.exponent", "0.3", "--train.probes", "[fidelity]"]
    assert main(["compare", "--data.root", images, *OPTIONS, *options]) == 0
    table = json.loads((folder / "comparison.json").read_text())["tables"][0]
    assert [row[0] for row in table["rows"]] == ["gap", "power"]
    power = covpool.load_model(folder / "power-seed0").model
    assert power.pool.row.constants["exponent"] == 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.method", "bcn"], "did you mean 'bcnn'?"),
        (["--model.method", "power", "--model.constants.degree", "5"], "its constants: exponent"),
        (["--model.method", "power", "--model.constants.exponent", "2"], "exponent must be in (0"),
        (["--model.schedule", "0:bdc,1:exact"], "switches between bdc and another pooling"),
    ],
)
def test_mistakes_are_one_line(options, message, images, tmp_path, capsys):
    output = ["--output", str(tmp_path / "run")]
    assert main(["train", "--data.root", images, *OPTIONS, *output, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
