"""`covpool bench busy`: what is measured, beside how many processes, and that they end."""

import json
import subprocess

import pytest
import torch

import covpool
from covpool.bench import busy
from covpool.cli import main


def test_each_shape_beside_each_number_of_processes(tmp_path, monkeypatch, capsys):
    started = []

    class Noted(subprocess.Popen):
        def __init__(self, command, **options):
            super().__init__(command, **options)
            if "while True" in command[-1]:
                started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    output = tmp_path / "busy.json"
    shapes = ["--shapes", "2x6x4,2x4", "--busy", "0,2", "--rounds", "1", "--warm-up", "0"]
    assert main(["bench", "busy", *shapes, "--output", str(output)]) == 0
    results = json.loads(output.read_text())
    records = {record["shape"]: record["cases"] for record in results["shapes"]}
    assert list(records) == ["2x6x4, 0 busy", "2x6x4, 2 busy", "2x4, 0 busy", "2x4, 2 busy"]
    assert len(started) == 4
    assert all(process.poll() is not None for process in started)
    for name, (ours, theirs) in records.items():
        assert ours["over_torch"] == pytest.approx(ours["median"] / theirs["median"])
        quiet = records[name.replace("2 busy", "0 busy")][0]
        assert ours["over_first"] == pytest.approx(ours["over_torch"] / quiet["over_torch"])
    assert "2x4, 2 busy: forward" in capsys.readouterr().out


@pytest.mark.parametrize("shape", ["2x6x4", "2x4x6", "2x4"])
def test_both_have_the_same_matrices(shape):
    measurement = busy.Busy(busy.BusyOptions(shapes=(shape,), busy=(0,)))
    ((_, point),) = measurement.points()
    (values,) = measurement.inputs(point)
    ours, theirs = (case.prepare(values) for case in measurement.cases(point))
    eigenvalues = theirs()[0]
    result = ours()
    if values.shape[-1] == values.shape[-2]:
        assert torch.equal(result, covpool.matrix_sqrt(values))
        torch.testing.assert_close(torch.linalg.eigvalsh(values), eigenvalues)
    else:
        assert torch.equal(result, covpool.cov_pool(values))
        assert eigenvalues.shape == (2, 4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--shapes", "2x0"], "shape '2x0' must be BATCHxCHANNELSxPOSITIONS or BATCHxN, in whole"),
        (["--shapes", "2"], "BATCHxCHANNELSxPOSITIONS or BATCHxN"),
        (["--shapes", "2x4x4"], "as many channels as positions are taken for matrices"),
        (["--busy=-1"], "busy must be at least 0, got -1"),
        (["--busy", ","], "no busy to measure; give at least one"),
    ],
)
def test_what_cannot_be_measured_is_told(options, expected, capsys):
    assert main(["bench", "busy", *options]) == 2
    assert expected in capsys.readouterr().err
