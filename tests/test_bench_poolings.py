"""`covpool bench poolings`: every row of POOLINGS beside `exact`."""

import json
import sys

import pytest

from covpool import POOLINGS, Pool2d
from covpool.bench.options import PoolingsOptions
from covpool.bench.poolings import Poolings, overview
from covpool.cli import main

TINY = ("--rounds", "1", "--warm-up", "0", "--threads", "1")


def bench(*options):
    return main(["bench", "poolings", *TINY, *map(str, options)])


def test_poolings_are_measured_beside_exact_and_goes_on(tmp_path, capsys):
    output = tmp_path / "poolings.json"
    chosen = ("--poolings", "gap,sot,bcnn,attention-rotary", "--no-memory", "--output", output)
    assert bench("--shapes", "2x8x9", *chosen) == 0
    (record,) = json.loads(output.read_text())["shapes"]
    rows = {row["name"]: row for row in record["cases"]}
    assert list(rows) == ["exact", "gap", "sot", "bcnn", "attention-rotary"]
    assert rows["exact"]["over_exact"] == 1
    for name in ("exact", "gap", "bcnn"):
        layer = Pool2d(8, name)
        assert rows[name]["out_features"] == layer.out_features
        assert rows[name]["parameters"] == sum(p.numel() for p in layer.parameters())
        ratio = rows[name]["median"] / rows["exact"]["median"]
        assert rows[name]["over_exact"] == pytest.approx(ratio)
    # Poolings of tokens get a class token, which stands in the vector too.
    assert rows["sot"]["out_features"] == Pool2d(8, "sot").out_features + 8
    assert rows["attention-rotary"]["median"] is None
    shown = capsys.readouterr().out
    assert "attention-rotary failed: ValueError: pooling 'attention-rotary': num_heads" in shown
    assert "| sot | 3,464 | 2,328 |" in shown

    assert bench("--shapes", "2x8x9,2x8x4", *chosen, "--resume") == 0
    results = json.loads(output.read_text())
    assert results["shapes"][0] == record
    assert len(results["shapes"]) == 2
    _, header, lines = overview(results)
    assert header[3:5] == ["time over exact, 2x8x9", "memory over exact, 2x8x9"]
    assert [line[0] for line in lines] == list(rows)
    assert lines[0][3] == lines[0][5] == "1"


@pytest.mark.slow
def test_every_pooling_has_its_time_beside_exact(tmp_path):
    output = tmp_path / "poolings.json"
    assert bench("--shapes", "2x64x9", "--no-memory", "--output", output) == 0
    (record,) = json.loads(output.read_text())["shapes"]
    assert {row["name"] for row in record["cases"]} == set(POOLINGS)
    for row in record["cases"]:
        assert row["error"] is None
        assert row["over_exact"] > 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no resource module there")
def test_memory_stands_beside_that_of_exact(tmp_path, capsys):
    output = tmp_path / "poolings.json"
    shape = "16x128x196"
    assert bench("--poolings", "gap,isice", "--shapes", shape, "--output", output) == 0
    (record,) = json.loads(output.read_text())["shapes"]
    rows = {row["name"]: row for row in record["cases"]}
    covariances = 16 * 128 * 128 * 4
    for name in ("exact", "isice"):
        assert rows[name]["memory_error"] is None
        assert rows[name]["memory"] > covariances
        ratio = rows[name]["memory"] / rows["exact"]["memory"]
        assert rows[name]["memory_over_exact"] == pytest.approx(ratio)
    assert rows["gap"]["memory"] < rows["exact"]["memory"] < rows["isice"]["memory"]


def test_a_step_gives_the_gradients_of_features_parameters_and_token():
    options = PoolingsOptions(shapes=("2x8x9",), poolings=("so-vit",), threads=1, dtype="float64")
    measurement = Poolings(options)
    case = next(case for case in measurement.cases("2x8x9") if case.name == "so-vit")
    vector, features, token, *weights = case.prepare(*measurement.inputs("2x8x9"))()
    layer = Pool2d(8, "so-vit", token_features=8)
    assert vector.shape == (2, layer.out_features)
    assert (features.shape, token.shape) == ((2, 8, 3, 3), (2, 8))
    assert [w.shape for w in weights] == [p.shape for p in layer.parameters()]
    assert all(gradient.abs().max() > 0 for gradient in (features, token))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--poolings", "gapp"), "unknown pooling method 'gapp'"),
        (("--shapes", "2x8"), "shape '2x8' must be BATCHxCHANNELSxPOSITIONS"),
        (("--pooling",), "expected one argument"),
    ],
)
def test_mistakes_are_told_in_one_line(options, message, capsys):
    assert bench(*options) == 2
    error = capsys.readouterr().err
    assert error.startswith("covpool: error: ")
    assert len(error.splitlines()) == 1
    assert message in error
