"""`tools/gpu.py`, rehearsed on the CPU: every part measures, and none is lost."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "tools" / "gpu.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rehearse(script, monkeypatch, folder, *options):
    command = ["gpu.py", "--out", str(folder), "--device", "cpu", "--tiny", *map(str, options)]
    monkeypatch.setattr("sys.argv", command)
    assert script.main() == 0
    return json.loads((folder / "gpu.json").read_text())


def failures(found, path=""):
    """Where an error stands in the results."""
    if isinstance(found, dict):
        for key, value in found.items():
            if key == "error" and value is not None:
                yield f"{path}: {value}"
            yield from failures(value, f"{path}/{key}")
    if isinstance(found, list):
        for number, value in enumerate(found):
            yield from failures(value, f"{path}/{number}")


@pytest.mark.slow
def test_every_part_measures(script, monkeypatch, tmp_path):
    results = rehearse(script, monkeypatch, tmp_path / "new")
    assert list(results["parts"]) == list(script.PARTS)
    assert all(results["parts"].values())
    assert list(failures(results["parts"])) == []
    assert results["parts"]["tests"]["tests/test_cuda.py"]["status"] == 0
    counted = results["parts"]["counts"]["cov_pool exact, checked"]
    assert counted["operations"] > counted["host_reads"]


def test_a_part_that_fails_is_named_and_the_others_go_on(script, monkeypatch, tmp_path):
    def broken(bench):
        yield "first", {"value": 1}
        raise ValueError("out of order")

    parts = {"small": broken, "agreement": script.agreement}
    monkeypatch.setattr(script, "PARTS", parts)
    found = rehearse(script, monkeypatch, tmp_path, "--parts", "small,agreement")["parts"]
    assert found["small"] == {
        "first": {"value": 1},
        "failed": {"error": "ValueError: out of order"},
    }
    assert "exact" in found["agreement"]


def test_what_there_is_no_time_for_is_named(script, monkeypatch, tmp_path):
    found = rehearse(script, monkeypatch, tmp_path, "--seconds", 0)["parts"]
    assert all("no time left" in part["not measured"] for part in found.values())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--parts", "speed"), "--parts speed: choose from tests, "),
        (("--device", "cpu", "--peer", "nobody=/nowhere"), "nobody"),
    ],
)
def test_mistakes_are_told(script, monkeypatch, capsys, tmp_path, options, told):
    monkeypatch.setattr("sys.argv", ["gpu.py", "--out", str(tmp_path), "--device", "cpu", *options])
    with pytest.raises(SystemExit) as stopped:
        script.main()
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err
