"""The benchmark's data, oracle, clock and results."""

import contextlib
import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import covpool
from covpool.bench import measurement, tables, timing
from covpool.bench.features import Exact, Shape, make_features, make_weight, triangle_weight
from covpool.bench.layers import Layers, floor_cases, floors, own_case, solvers
from covpool.bench.options import MEASUREMENTS
from covpool.cli.bench import Progress
from made_up_peer import SMALL, made_up_case

CPU = torch.device("cpu")
RESULTS = Path(__file__).parents[1] / "results"


def test_shape_is_read_and_written():
    shape = Shape.parse("16x256x196")
    assert (shape.batch, shape.channels, shape.positions) == (16, 256, 196)
    assert str(shape) == "16x256x196"
    assert shape.map_size == (14, 14)
    assert Shape.parse("2x3x14").map_size == (2, 7)
    assert (shape.rank, Shape.parse("2x8x5").rank) == (195, 4)


@pytest.mark.parametrize("text", ["16x256", "axbxc", "", "16x256x49x1", "-1x2x3", "0x4x9", "2x4x1"])
def test_bad_shape_is_echoed(text):
    with pytest.raises(ValueError, match=f"shape {text!r}"):
        Shape.parse(text)


@pytest.mark.parametrize("text", ["3x12x5", "3x5x12", "2x6x7"])
def test_features_have_the_prescribed_spectrum(text):
    shape = Shape.parse(text)
    x = make_features(shape, condition=1e3, dtype=torch.float64)
    assert x.shape == (shape.batch, shape.channels, *shape.map_size)
    torch.testing.assert_close(x.square().mean((1, 2, 3)), torch.ones(shape.batch).double())
    positions = x.flatten(2)
    found = torch.linalg.svdvals(positions - positions.mean(-1, keepdim=True))[:, : shape.rank]
    expected = torch.logspace(0, -3, shape.rank, dtype=torch.float64).expand_as(found)
    torch.testing.assert_close(found / found[:, :1], expected, rtol=1e-10, atol=0)
    assert torch.equal(x, make_features(shape, condition=1e3, dtype=torch.float64))
    assert not torch.equal(x, make_features(shape, condition=1e3, seed=1, dtype=torch.float64))


def test_random_features_are_normal():
    x = make_features(Shape.parse("4x64x64"), spectrum="random")
    assert abs(x.mean()) < 0.05
    assert abs(x.var() - 1) < 0.05


def test_triangle_has_the_same_loss():
    weight = make_weight(Shape.parse("3x5x4"), dtype=torch.float64)
    matrix = torch.linalg.matrix_power(weight, 2)
    vector = covpool.triu_vector(matrix)
    loss = (triangle_weight(weight) * vector).sum(-1)
    torch.testing.assert_close(loss, (weight * matrix).sum((-2, -1)))


@pytest.mark.parametrize("text", ["3x6x4", "3x6x6", "3x6x20"])
def test_oracle_is_the_root_and_its_derivative(text):
    shape = Shape.parse(text)
    x = make_features(shape, condition=10, dtype=torch.float64)
    weight = make_weight(shape, dtype=torch.float64)
    exact = Exact.of(x, weight)
    torch.testing.assert_close(exact.root @ exact.root, covpool.covariance(x))
    assert (torch.linalg.eigvalsh(exact.root) > -1e-12).all()
    direction, step = torch.randn(x.shape, generator=torch.manual_seed(0)).double(), 1e-5
    ahead, behind = (Exact.of(x + sign * step * direction, weight).root for sign in (1, -1))
    slope = ((ahead - behind) * weight).sum((1, 2)) / (2 * step)
    torch.testing.assert_close(
        (exact.gradient * direction).sum((1, 2, 3)), slope, rtol=1e-7, atol=0
    )


def test_errors_are_relative_and_the_worst_samples():
    shape = Shape.parse("3x4x9")
    x, weight = make_features(shape), make_weight(shape)
    exact = Exact.of(x, weight)
    root, gradient = exact.root.clone(), exact.gradient.clone()
    assert exact.errors(root, gradient) == (0, 0)
    root[1] *= 1.5
    gradient[2] *= 1.25
    assert exact.errors(root, gradient) == pytest.approx((0.5, 0.25))
    vector = covpool.triu_vector(root)
    assert exact.errors(vector, gradient) == pytest.approx((0.5, 0.25))
    assert exact.errors(vector[..., None], gradient) == pytest.approx((0.5, 0.25))


@pytest.mark.parametrize("output", ["matrix", "triangle"])
def test_own_cases_meet_the_oracle(output):
    shape = Shape.parse("2x8x9")
    x, weight = make_features(shape, condition=100), make_weight(shape)
    root, gradient = own_case("exact", output).prepare(x, weight)()
    assert max(Exact.of(x, weight).errors(root, gradient)) < 1e-5
    assert not root.requires_grad


@pytest.mark.parametrize("text", ["2x6x5", "2x6x6", "2x6x7", "2x6x20"])
def test_floor_decomposes_the_smaller_matrix(text, monkeypatch):
    shape = Shape.parse(text)
    seen = []

    def solver(matrix):
        seen.append((matrix.shape[-1], matrix.dtype))
        return torch.linalg.eigh(matrix)

    monkeypatch.setattr("covpool.bench.layers.solvers", lambda device: {"counted": solver})
    x, weight = make_features(shape), make_weight(shape)
    for case in floor_cases((torch.float32, torch.float64), CPU):
        root, gradient = case.prepare(x, weight)()
        assert root.shape == (2, 6, 6)
        assert gradient.shape == (2, 6, shape.positions)
        assert str(root.dtype) == str(gradient.dtype) == f"torch.{case.facts['note']}"
    assert set(seen) == {(min(shape.channels, shape.positions), torch.float64)}


def test_solvers_decompose():
    matrix = torch.randn(3, 5, 5, dtype=torch.float64, generator=torch.manual_seed(0))
    matrix = matrix + matrix.mT
    for solver in solvers(CPU).values():
        values, vectors = solver(matrix)
        torch.testing.assert_close((vectors * values[:, None, :]) @ vectors.mT, matrix)


def test_every_round_is_in_another_order():
    names = ["a", "b", "c", "d", "e"]
    rounds = [timing.turn(names, number) for number in range(10)]
    assert all(sorted(order) == names for order in rounds)
    assert len({order[0] for order in rounds[::2]}) == len(names)
    followers = {pair for order in rounds for pair in itertools.pairwise(order)}
    assert {("a", "b"), ("b", "a")} <= followers
    assert timing.turn([], 3) == []


def test_cases_take_turns_and_failures_are_told():
    calls = []

    def step(name):
        calls.append(name)
        if name == "b" and calls.count("b") > 3:
            raise RuntimeError("out of\nluck")

    names = ["a", "b", "c"]
    timings = timing.time_cases(
        [timing.Case(name=name, prepare=lambda name=name: lambda: step(name)) for name in names],
        rounds=3,
        warm_up=2,
        device=CPU,
    )
    turns = [name for name, _ in itertools.groupby(calls)]
    orders = [name for number in range(3) for name in timing.turn(names, number)]
    survivors = [name for name, _ in itertools.groupby(n for n in orders if n != "b")]
    tried = orders.index("b")
    assert turns[:3] == names
    assert [n for n, _ in itertools.groupby(n for n in turns[3:] if n != "b")] == survivors
    assert turns[3 + tried] == "b"
    assert turns[4 + tried :].count("b") == 0
    assert timings["b"].error == "RuntimeError: out of luck"
    assert timings["b"].median is None
    for name in "ac":
        assert len(timings[name].seconds) == 3
        low, high = timings[name].quartiles
        assert low <= timings[name].median <= high


def test_a_failure_in_the_warm_up_leaves_the_case_out():
    def fail():
        raise ValueError

    case = timing.Case(name="a", prepare=lambda: fail)
    timings = timing.time_cases([case], rounds=2, warm_up=1, device=CPU)
    assert timings["a"].error == "ValueError"
    assert timings["a"].seconds == []
    assert timings["a"].quartiles is None


def test_threads_are_left_as_found():
    before = torch.get_num_threads()
    with contextlib.suppress(KeyError), timing.fixed_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before


def test_earlier_shapes_are_not_measured_again(tmp_path):
    measured = []

    class Quick(Layers):
        def measure(self, shape):
            self.say("measuring")
            measured.append(shape)
            return {}

    said = []
    *_, (_, first) = Quick(SMALL).run(said.append)
    assert said == ["2x4x4: measuring"]
    file = tmp_path / "deep" / "results.json"
    assert measurement.read_results(file) is None
    measurement.write_results(first, file)
    assert [path.name for path in file.parent.iterdir()] == ["results.json"]
    earlier = measurement.read_results(file)
    more = replace(SMALL, shapes=("2x4x4", "2x4x9"))
    *_, (_, done) = Quick(more).run(earlier=earlier)
    assert measured == ["2x4x4", "2x4x9"]
    assert [entry["shape"] for entry in done["shapes"]] == measured
    # What is there and was not asked for is not lost.
    others = replace(SMALL, shapes=("2x4x16", "2x4x9"))
    *_, (_, kept) = Quick(others).run(earlier=done)
    assert [entry["shape"] for entry in kept["shapes"]] == ["2x4x4", "2x4x9", "2x4x16"]
    other = replace(SMALL, rounds=3)
    with pytest.raises(ValueError, match="in settings, rounds was 1 and is 3; write to another"):
        next(Quick(other).run(earlier=earlier))
    earlier["environment"]["cpu"] = "abacus"
    with pytest.raises(ValueError, match="in environment, cpu was 'abacus'"):
        next(Quick(SMALL).run(earlier=earlier))


@pytest.mark.parametrize("content", ["[]", "{", '{"format": 0}'])
def test_other_files_are_not_taken_for_results(content, tmp_path):
    file = tmp_path / "x.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"x\.json does not hold results"):
        measurement.read_results(file)


def test_values_that_are_not_finite_are_written_as_words(tmp_path):
    shape = Shape.parse("2x4x4")

    def prepare(features, weight):
        return lambda: (weight * torch.nan, features * torch.inf)

    case = replace(made_up_case("bad"), prepare=prepare)
    found = Layers(SMALL).errors(str(shape), [case])["bad"]
    assert {entry["forward"] for entry in found} == {"not finite"}
    assert {entry["gradient"] for entry in found} == {"not finite"}
    measurement.write_results({"found": found}, tmp_path / "x.json")


def test_the_faster_solver_is_the_floor():
    def row(kind, method, median, note=""):
        return {"name": method, "kind": kind, "method": method, "median": median, "note": note}

    rows = [
        row("floor", "slow", 3.0, "float64"),
        row("floor", "fast", 2.0, "float64"),
        row("floor", "broken", None, "float64"),
        row("covpool", "exact", 5.0),
        row("covpool", "failed", None),
        row("peer", "theirs", 9.0),
    ]
    expected = {"solver": "fast", "median": 2.0, "ratios": {"exact": 2.5}}
    assert floors(rows) == {"float64": expected}


def test_tables_show_what_was_not_measured():
    row = {
        "name": "a",
        "kind": "covpool",
        "error": None,
        "median": 0.0123,
        "note": "",
        "lower_quartile": 0.012,
        "upper_quartile": 0.013,
        "memory": 3 << 20,
        "memory_error": "RuntimeError: x",
        "accuracy": [{"condition": 1e4, "error": "no"}],
    }
    failed = row | {"name": "b", "error": "E: y", "median": None, "accuracy": []}
    measured = {"shape": "s", "cases": [row, failed], "pairs": [], "floor": {}}
    ((title, header, rows),) = Layers.tables(measured)
    assert title == "s: forward + backward"
    assert len(header) == len(rows[0]) == len(rows[1])
    assert list(rows[0]) == ["a", "12.3", "12 to 13", "3.0", "failed"]
    assert list(rows[1])[:2] == ["b", "failed"]
    told = list(tables.failures(measured))
    assert "a: peak memory not measured: RuntimeError: x" in told
    assert "a: errors at cond 1e+04 not measured: no" in told
    assert "b failed: E: y" in told


def test_progress_is_a_line_now_and_then(capsys):
    now_and_then, always = Progress(seconds=3600), Progress(seconds=0)
    for progress in (now_and_then, always):
        with progress as say:
            say("half way")
    assert capsys.readouterr().err == "half way\n"


def test_progress_on_a_terminal_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Progress() as say:
        say("half way")
        say("there")
    shown = capsys.readouterr().err
    assert "\n" not in shown
    assert shown.endswith("\r\x1b[K")
    assert shown.index("half way") < shown.index("there")


RECORDED = {"bench": "layers", "growth": "growth", "memory": "layers"} | {
    name: name for name in ("poolings", "small", "roots", "busy") if (RESULTS / name).is_dir()
}


@pytest.mark.parametrize("folder", RECORDED)
def test_results_that_are_recorded_are_shown(folder):
    kind = MEASUREMENTS[RECORDED[folder]].measured_by()
    files = sorted((RESULTS / folder).glob("*.json"))
    assert files
    for file in files:
        results = measurement.read_results(file)
        assert results["environment"]["cpu"] in kind.preamble(results)
        for record in results["shapes"]:
            for title, header, rows in kind.tables(record):
                assert title.startswith(record["shape"])
                assert {len(row) for row in rows} == {len(header)}
