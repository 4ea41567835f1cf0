"""`covpool bench NAME`: the longer measurements run, go on where they stopped, and judge."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from covpool.bench import resume
from covpool.bench.options import MEASUREMENTS
from covpool.bench.resume import differences, kills_of
from covpool.cli import main
from covpool.train.progress import EPOCH_HEADER
from made_up_peer import make_clone
from tiny_images import OPTIONS, make_tiny_images

RESULTS = Path(__file__).parents[1] / "results"
TINY = ("--rounds", "1", "--warm-up", "1", "--threads", "1")


@pytest.fixture
def bench(monkeypatch, capsys):
    """Runs the command, and returns its exit status and what it printed."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")

    def run(*arguments):
        return main(["bench", *map(str, arguments)]), capsys.readouterr()

    return run


@pytest.mark.parametrize("name", [*list(MEASUREMENTS)[1:], "goals"])
def test_help(name, bench):
    status, shown = bench(name, "--help")
    assert status == 0
    assert f"usage: covpool bench {name}" in shown.out
    assert "<function" not in shown.out
    assert name in bench("--help")[1].out


def test_a_mistaken_name_is_told(bench):
    status, shown = bench("grwoth")
    assert status == 2
    assert "unknown measurement 'grwoth'" in shown.err
    assert "did you mean growth?" in shown.err


def test_growth_goes_on_and_plots(bench, tmp_path):
    output = tmp_path / "growth.json"
    options = ("--methods", "exact", "--channels", 4, "--positions", 4, *TINY, "--output", output)
    status, _ = bench("growth", "--batches", "1,2", "--sizes", "3", *options)
    assert status == 0
    first = json.loads(output.read_text())
    assert [shape["shape"] for shape in first["shapes"]] == ["1x4x4", "2x4x4", "4x3x6"]
    status, shown = bench("growth", "--batches", "1,2,3", "--sizes", "3", *options)
    assert status == 0
    assert "going on after 3 shapes" in shown.err
    more = json.loads(output.read_text())
    assert more["shapes"][:2] == first["shapes"][:2]
    assert len(more["shapes"]) == 4
    for suffix in (".svg", ".png"):
        assert output.with_suffix(suffix).stat().st_size > 1000
    status, shown = bench("growth", "--batches", "1", "--sizes", "3", *options, "--seed", 1)
    assert status == 2
    assert "in settings, seed was 0 and is 1" in shown.err


def test_results_of_older_versions_are_read(bench, tmp_path):
    output = tmp_path / "growth.json"
    options = ("--methods", "exact", "--channels", 4, "--positions", 4, *TINY, "--output", output)
    bench("growth", "--batches", "1", "--sizes", "3", *options)
    written = json.loads(output.read_text())
    for name in ("time", "batches", "sizes", "channels", "positions", "batch"):
        del written["settings"][name]
    written["shapes"][0]["mark"] = "kept"
    output.write_text(json.dumps(written))
    assert bench("growth", "--batches", "1", "--sizes", "3", *options)[0] == 0
    assert json.loads(output.read_text())["shapes"][0]["mark"] == "kept"

    judged = bench("goals", RESULTS / "resnet-share" / "cpu.json")[1].out
    assert "resnet50, batch 16, cpu: step with exact over gap's ≤ 1.05: " in judged
    output.write_text((RESULTS / "resume" / "cpu.json").read_text())
    status, shown = bench("resume", "--output", output)
    assert status == 2
    assert "does not hold results of format 1; write to another file" in shown.err


@pytest.mark.parametrize("name", ["growth", "resume"])
def test_what_goes_on_with_its_results_needs_a_file(name, bench):
    status, shown = bench(name)
    assert status == 2
    assert f"bench {name} goes on with the results of --output FILE, which is missing" in shown.err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no process groups there")
def test_killed_runs_end_as_the_one_left_alone(bench, tmp_path):
    output = tmp_path / "resume.json"
    options = ("--processes", "1", "--workers", "0", "--output", output)
    status, shown = bench("resume", "--kills", "1", *options)
    assert status == 0, shown
    (trial, *_) = first = json.loads(output.read_text())["shapes"]
    assert trial["differences"] == []
    assert "1 processes: " in shown.out
    status, shown = bench("resume", "--kills", "1", *options)  # there are as many already
    assert status == 0
    assert json.loads(output.read_text())["shapes"] == first


def test_growth_names_a_mistaken_number(bench, tmp_path):
    status, shown = bench("growth", "--batches", "1,two", "--output", tmp_path / "x.json")
    assert status == 2
    assert "'1,two' must be whole numbers" in shown.err
    status, shown = bench("growth", "--sizes", ",", "--output", tmp_path / "x.json")
    assert status == 2
    assert "no sizes to measure; give at least one" in shown.err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no resource module there")
def test_memory(bench, tmp_path):
    output = tmp_path / "memory.json"
    clone = make_clone(tmp_path / "clone")
    status, shown = bench(
        *("--only", "memory", "--shapes", "2x4x4", "--methods", "exact", "--threads", 1),
        *("--peer", f"DifferentiableSVD={clone}", "--output", output),
    )
    assert status == 0
    (measured,) = json.loads(output.read_text())["shapes"]
    rows = {row["name"]: row for row in measured["cases"]}
    assert rows["exact"]["memory"] >= 0
    assert rows["DifferentiableSVD/MPNCOV (triangle)"]["memory"] >= 0
    assert "NameError" in rows["DifferentiableSVD/SVD_Pade (triangle)"]["memory_error"]
    assert rows["exact"]["median"] is None
    assert "| exact | - | - |" in shown.out


def test_share_of_a_training_step(bench, tmp_path):
    output = tmp_path / "share.json"
    clone = make_clone(tmp_path / "clone")
    status, shown = bench(
        *("step", "--backbone", "resnet18", "--batch", 2, "--size", 64),
        *("--classes", 3, "--methods", "exact", *TINY, "--rows", "MPNCOV,SVD_Pade"),
        *("--peer", f"DifferentiableSVD={clone}", "--output", output),
    )
    assert status == 0
    (record,) = json.loads(output.read_text())["shapes"]
    rows = {row["name"]: row for row in record["cases"]}
    assert rows["gap"]["over_gap"] == 1
    for name in ("exact", "DifferentiableSVD/MPNCOV"):
        row = rows[name]
        assert row["error"] is None
        assert row["over_gap"] == pytest.approx(row["median"] / rows["gap"]["median"])
        assert row["pooling_share"] == pytest.approx(row["pooling_median"] / row["median"])
    assert "NameError" in rows["DifferentiableSVD/SVD_Pade"]["error"]
    assert "DifferentiableSVD/SVD_Pade failed: NameError" in shown.out


def judged(time, floor, error):
    """Results of one shape with our `exact` beside one peer."""
    accuracy = [
        {"condition": 1e6, "forward": error, "gradient": error},
        {"condition": 1e7, "forward": 1.0, "gradient": "not finite"},
    ]
    case = {"name": "exact", "kind": "covpool", "method": "exact", "accuracy": accuracy}
    pair = {"method": "exact", "peer": "fast-MPN-COV/iSQRT-COV", "time": time, "memory": 3.0}
    measured = {
        "shape": "16x256x49",
        "channels": 256,
        "positions": 49,
        "cases": [case],
        "pairs": [pair],
        "floor": {"float32": {"ratios": {"exact": floor}}},
    }
    return {"format": 1, "shapes": [measured]}


def test_bars_are_judged(bench, tmp_path):
    file = tmp_path / "x.json"
    file.write_text(json.dumps(judged(time=20.5, floor=1.39, error=1e-7)))
    status, shown = bench("goals", file)
    assert status == 1  # the other pairs are missing
    lines = [line.strip() for line in shown.out.splitlines()]
    met = [line for line in lines if line.startswith("met")]
    assert any("iSQRT-COV over our exact ≥ 20: 20.5" in line for line in met)
    assert any("exact over the lowest floor ≤ 1.4: 1.39" in line for line in met)
    assert sum("error ≤" in line for line in met) == 2
    assert sum(line.startswith("MISSED") and "not measured" in line for line in lines) == 3
    assert not any("1e+07" in line for line in lines)

    file.write_text(json.dumps(judged(time=19.5, floor=1.41, error=2e-5)))
    status, shown = bench("goals", file)
    assert status == 1
    missed = [
        line for line in shown.out.splitlines() if "MISSED" in line and "not meas" not in line
    ]
    assert len(missed) == 4


def test_bars_of_the_training_step(bench, tmp_path):
    def row(name, median):
        return {"name": name, "median": median, "over_gap": median and median / 10}

    results = {
        "settings": {"device": "cuda", "backbone": "resnet50", "batch": 128},
        "rows": [row("gap", 10), row("exact", 10.9), row("DifferentiableSVD/SVD_Pade", 219)],
    }
    file = tmp_path / "x.json"
    file.write_text(json.dumps(results))
    status, shown = bench("goals", file)
    assert (status, "2 of 2 met" in shown.out) == (0, True)
    results["rows"][1] = row("exact", 11.1)
    file.write_text(json.dumps(results))
    assert bench("goals", file)[0] == 1


def test_bars_refuse_what_is_not_there(bench, tmp_path):
    status, shown = bench("goals", tmp_path / "none.json")
    assert status == 2
    assert "none.json" in shown.err


@pytest.mark.parametrize(
    ("measurement", "option", "value", "expected"),
    [
        ("throughput", "--warm_up", "0", "warm_up must be at least 1, got 0"),
        ("throughput", "--workers", ",", "no workers to measure; give at least one"),
        ("resume", "--processes", "0", "processes must be at least 1, got 0"),
        ("step", "--batch", "0", "batch must be at least 1, got 0"),
        ("step", "--precision", "half", "unknown precision 'half'; choose from float32, bfloat16"),
    ],
)
def test_what_cannot_be_measured_with_is_refused(
    measurement, option, value, expected, bench, tmp_path
):
    output = tmp_path / "x.json"
    status, shown = bench(measurement, option, value, "--output", output)
    assert (status, output.exists()) == (2, False)
    assert expected in shown.err


def test_throughput_names_the_limit(bench, tmp_path):
    images = make_tiny_images(tmp_path / "images")
    output = tmp_path / "throughput.json"
    sizes = ("--steps", 2, "--warm_up", 1, "--workers", "0")
    options = (*OPTIONS, "--train.accumulate", 2, "--data.root", images, "--output", output)
    status, shown = bench("throughput", *sizes, *options)
    assert status == 0
    results = json.loads(output.read_text())
    rates = {record["what"]: record["images_per_second"] for record in results["shapes"]}
    assert rates["both"] > 0
    limit = "loader" if rates["loader alone"] < rates["step alone"] else "step"
    assert f"the limit is the {limit}" in shown.out


def test_resume_knows_when_training_begins(tmp_path):
    """By the header over the epochs, which `covpool train` prints before the first step."""
    log = tmp_path / "log"
    log.write_text(EPOCH_HEADER)
    run = object.__new__(resume.Run)
    run.log, run.start = log, 0
    run.process = SimpleNamespace(poll=lambda: None if time.monotonic() < late else 1)
    late = time.monotonic() + 60
    assert run.wait_for_training()
    log.write_text("no images\n")
    late = 0
    assert not run.wait_for_training()


def test_resume_sees_one_flipped_bit():
    weights = torch.rand(3)
    flipped = weights.clone()
    flipped.view(torch.int32)[1] ^= 1
    one = {"a": weights, "b": 1}
    assert differences(one, {"a": weights.clone(), "b": 1}) == []
    assert differences(one, {"a": flipped, "b": 1}) == ["a"]
    assert differences(one, {"a": weights}) == ["b"]
    kills = [{"goes_on_from_step": step} for step in (None, 3, 9)]
    trials = [{"steps": 9, "kills": kills, "differences": found} for found in ([], ["a"])]
    assert (kills_of(trials), kills_of(trials, same=True)) == (4, 2)
