"""`covpool bench small`: functions of small matrices beside their peers."""

import json
from importlib.metadata import version

import pytest
import torch

from covpool.bench import peers
from covpool.bench.options import SmallOptions
from covpool.bench.peers import Peer, PeerRow
from covpool.bench.small import FUNCTIONS, Small, plain_ways
from covpool.cli import main

TINY = ("--rounds", "1", "--warm-up", "1", "--threads", "1")


def fail(matrix):
    raise RuntimeError("no such root")


@pytest.fixture
def failing_peer(monkeypatch):
    """An installed peer whose square root fails."""
    row = PeerRow("root", lambda source: fail, task="sqrt")
    monkeypatch.setattr(
        peers, "PEERS", {"jinja2": Peer("jinja2", "home", (row,), package="jinja2")}
    )


def test_all_is_measured_and_what_fails_is_named(failing_peer, tmp_path, capsys):
    file = tmp_path / "small.json"
    options = ("--shapes", "2x2,1x3", "--functions", "sqrt,eigh", *TINY, "--output", str(file))
    assert main(["bench", "small", *options]) == 0
    results = json.loads(file.read_text())
    assert results["peers"] == {"jinja2": {"home": "home", "version": version("jinja2")}}
    assert [record["shape"] for record in results["shapes"]] == ["2x2", "1x3"]
    for record in results["shapes"]:
        found = {row["name"]: row for row in record["cases"]}
        assert found.pop("sqrt: jinja2")["error"] == "RuntimeError: no such root"
        assert found["eigh: covpool"]["over_ours"] == 1
        for name in ("sqrt: covpool", "sqrt: covpool, unchecked", "sqrt: 30 lines"):
            assert found[name]["median"] > 0
        assert all(row["median"] > 0 for row in found.values())
    shown = capsys.readouterr().out
    assert "sqrt: jinja2 failed: RuntimeError: no such root" in shown
    (header,) = {line for line in shown.splitlines() if line.startswith("| function |")}
    assert header.startswith("| function | covpool | covpool, unchecked | 30 lines |")
    assert sum(line.startswith("| eigh |") for line in shown.splitlines()) == 2
    assert sum(line.startswith("| sqrt |") and "| failed |" in line for line in shown.splitlines())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--shapes", "1x"), "shape '1x' must be BATCHxN, in whole numbers from 1 on"),
        (("--functions", ","), "no functions to measure; give at least one"),
        (("--functions", "sqr"), "unknown function 'sqr'; choose from sqrt, inv_sqrt"),
    ],
)
def test_mistakes_are_named(options, message, capsys):
    assert main(["bench", "small", *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if FUNCTIONS[name].value])
def test_every_way_has_the_same_value_and_gradient(name, dtype):
    measured = Small(SmallOptions(functions=(name,), dtype=dtype))
    (matrix,) = measured.inputs("3x5")
    found = {}
    for way, function in plain_ways(FUNCTIONS[name], dtype):
        leaf = matrix.clone().requires_grad_()
        value = function(leaf)
        found[way] = (value.detach(), *torch.autograd.grad(value.sum(), leaf))
    ours = found.pop("covpool")
    assert len(found) >= (5 if dtype == "float32" else 3)
    bound = 1e-12 if dtype == "float64" else 1e-4
    for theirs in found.values():
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == other.dtype
            torch.testing.assert_close(other, one, rtol=bound, atol=bound)


def test_peers_that_are_installed_compute_the_same():
    """Each by the function of that name, on torch's tensors."""
    measured = Small(SmallOptions())
    (matrix,) = measured.inputs("3x5")
    theirs = [
        case for case in measured.cases("3x5") if case.facts["case"] in measured.options.peers
    ]
    if not theirs:
        pytest.skip("none is installed")
    ours = {
        case.facts["function"]: case
        for case in measured.cases("3x5")
        if case.facts["case"] == "covpool"
    }
    for case in theirs:
        with case.context():
            gradient = case.prepare(matrix)()
        expected = ours[case.facts["function"]].prepare(matrix)()
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9, msg=case.name)
