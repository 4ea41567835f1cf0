"""`covpool bench`: it measures, writes, and tells what it could not measure."""

import json
import re

import pytest
import torch

import covpool
from covpool.cli import main
from made_up_peer import make_clone

CPU = torch.device("cpu")
QUICK = ("--rounds", "2", "--warm-up", "1", "--threads", "1", "--methods", "exact,isqrt-cov")


@pytest.fixture
def clone(tmp_path):
    return make_clone(tmp_path / "clone")


@pytest.fixture
def run_bench(tmp_path, capsys):
    """Runs the command, and returns its exit status, standard output and results."""

    def run(*arguments):
        output = tmp_path / "results" / "bench.json"
        status = main(["bench", *QUICK, *arguments, "--output", str(output)])
        content = json.loads(output.read_text()) if output.exists() else None
        return status, capsys.readouterr(), content

    return run


@pytest.mark.slow
def test_bench_measures_everything_and_goes_on_after_failures(clone, run_bench):
    status, shown, results = run_bench(
        "--shapes", "2x6x4,2x4x9", "--peer", f"DifferentiableSVD={clone}", "--spectrum", "geometric"
    )
    assert status == 0
    environment = results["environment"]
    assert environment["threads"] == 1
    assert environment["cores"] >= 1
    assert environment["cpu"]
    assert environment["versions"]["torch"] == torch.__version__.split("+")[0]
    assert environment["versions"]["covpool"] == covpool.__version__
    assert results["settings"]["peers"] == ["DifferentiableSVD"]
    assert results["peers"]["DifferentiableSVD"] == {
        "home": "https://github.com/KingJamesSong/DifferentiableSVD",
        "version": None,
    }
    assert str(clone) not in json.dumps(results | {"shapes": []})
    assert [measured["shape"] for measured in results["shapes"]] == ["2x6x4", "2x4x9"]
    for measured in results["shapes"]:
        rows = {row["name"]: row for row in measured["cases"]}
        for name in ("exact", "isqrt-cov (triangle)", "DifferentiableSVD/MPNCOV (triangle)"):
            row = rows[name]
            assert row["error"] is None
            assert len(row["rounds"]) == 2
            assert row["lower_quartile"] <= row["median"] <= row["upper_quartile"]
            assert row["memory_error"] is None
            assert row["memory"] >= 0
            assert [entry["condition"] for entry in row["accuracy"]] == [1e4, 1e5, 1e6]
        # The clone's layer computes the root itself, so its errors show that values and gradients
        # arrive: `exact` is right to 1e-5, and so is it at the smaller condition numbers.
        for name in ("exact", "exact (triangle)", "DifferentiableSVD/MPNCOV (triangle)"):
            assert rows[name]["accuracy"][0]["forward"] < 1e-5
        assert rows["exact"]["accuracy"][0]["gradient"] < 1e-5
        assert rows["isqrt-cov"]["accuracy"][0]["forward"] > 1e-3
        pade = rows["DifferentiableSVD/SVD_Pade (triangle)"]
        assert pade["error"] == "NameError: feature_scaling is not defined"
        assert pade["median"] is None
        assert "SVD_Newton.py" in rows["DifferentiableSVD/SVD_Newton (triangle)"]["error"]
        pairs = {(pair["method"], pair["peer"]): pair for pair in measured["pairs"]}
        pair = pairs["isqrt-cov (triangle)", "DifferentiableSVD/MPNCOV (triangle)"]
        expected = rows[pair["peer"]]["median"] / rows[pair["method"]]["median"]
        assert pair["time"] == pytest.approx(expected)
        assert pairs["exact (triangle)", pade["name"]]["time"] is None
        assert set(measured["floor"]) == {"float32", "float64"}
        for floor in measured["floor"].values():
            ratio = rows["exact"]["median"] / floor["median"]
            assert floor["ratios"]["exact"] == pytest.approx(ratio)
    assert "SVD_Pade (triangle) failed: NameError: feature_scaling" in shown.out
    assert "1 thread;" in shown.out
    assert "fewer than 7" in shown.err
    assert "Could not" not in shown.out


def test_bench_goes_on_with_what_is_there(run_bench):
    options = ("--no-memory", "--no-floor", "--accuracy-conditions", "100")
    _, _, first = run_bench("--shapes", "2x4x4", *options)
    status, shown, both = run_bench("--shapes", "2x4x4,2x4x9", *options, "--resume")
    assert status == 0
    assert "going on after 1 shapes" in shown.err
    assert both["shapes"][:1] == first["shapes"]
    assert len(both["shapes"]) == 2
    status, shown, _ = run_bench("--shapes", "2x4x4", *options, "--resume", "--rounds", "3")
    assert status == 2
    assert "in settings, rounds was 2 and is 3; write to another file" in shown.err


def test_bench_without_peers_memory_or_floor(run_bench):
    status, shown, results = run_bench(
        *("--shapes", "2x4x4", "--no-memory", "--no-floor", "--vector", "--dtype", "float64"),
        *("--spectrum", "random", "--accuracy-conditions", "100", "--compute-dtype", "float64"),
    )
    assert status == 0
    (measured,) = results["shapes"]
    assert [row["name"] for row in measured["cases"]] == [
        "exact (triangle)",
        "isqrt-cov (triangle)",
    ]
    assert measured["pairs"] == []
    assert measured["floor"] == {}
    row = measured["cases"][0]
    assert row["memory"] is None
    assert row["accuracy"][0]["forward"] < 1e-12
    assert "normally distributed" in shown.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "16x256"], "shape '16x256' must be BATCHxCHANNELSxPOSITIONS"),
        (["--shapes", ""], "no shapes to measure"),
        (["--methods", "exactly"], "unknown method 'exactly'; .* did you mean 'exact'"),
        (["--dtype", "float16"], "unknown dtype 'float16'; choose from float32, float64"),
        (["--compute-dtype", "half"], "unknown compute_dtype 'half'"),
        (["--spectrum", "flat"], "unknown spectrum 'flat'"),
        (["--rounds", "0"], "rounds must be at least 1, got 0"),
        (["--threads", "0"], "threads must be at least 1, got 0"),
        (["--condition", "0.5"], "condition must be at least 1 and finite, got 0.5"),
        (["--condition", "inf"], "condition must be at least 1 and finite, got inf"),
        (["--accuracy-conditions", "1e4,big"], "'1e4,big' must be numbers"),
        (["--device", "tpuu"], "unknown device 'tpuu'"),
        (["--device", "meta"], "device 'meta' cannot be measured on"),
        (["--device", "cuda:99"], "no device 'cuda:99': torch finds"),
        (["--peer", "nobody=x"], "unknown peer 'nobody'"),
        (["--peer", "spd-learn", "--peer", "spd-learn"], "spd-learn is given twice|not installed"),
        (["--output", "."], "is a folder"),
        (["--resume"], "--resume goes on with the results of --output FILE, which is missing"),
        (["--shape"], "expected one argument"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("covpool: error: ")
    assert len(error.splitlines()) == 1
    assert re.search(message, error)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_bench_on_a_gpu(clone, run_bench):
    status, _, results = run_bench(
        *("--shapes", "2x6x4,2x4x9", "--device", "cuda", "--peer", f"DifferentiableSVD={clone}")
    )
    assert status == 0
    assert results["environment"]["device_name"]
    for measured in results["shapes"]:
        rows = {row["name"]: row for row in measured["cases"]}
        for name in ("exact", "DifferentiableSVD/MPNCOV (triangle)"):
            assert rows[name]["error"] is None
            assert rows[name]["memory"] > 0
            assert rows[name]["accuracy"][0]["forward"] < 1e-5
        assert all(floor["solver"] == "torch.linalg.eigh" for floor in measured["floor"].values())


@pytest.mark.parametrize(
    ("measurement", "remedy"),
    [
        ([], "go on with it by --resume, or remove it"),
        (["step"], "remove it, or choose another name"),
        (["throughput"], "remove it, or choose another name"),
    ],
)
def test_earlier_results_are_not_written_over(measurement, remedy, tmp_path, capsys):
    file = tmp_path / "results.json"
    file.write_text("kept")
    assert main(["bench", *measurement, "--output", str(file)]) == 2
    told = capsys.readouterr().err
    assert f"--output {file} exists; {remedy}" in told
    assert told.count("\n") == 1
    assert file.read_text() == "kept"
