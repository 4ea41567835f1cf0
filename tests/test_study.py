"""A study: its file, the choice of rates, the runs that count, and what the summary says."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import yaml

from covpool.reproduce.arms import Arm
from covpool.study.design import read_study
from covpool.study.phases import chosen_rates, final_cells, tuning_cells
from covpool.study.plan import seeds_needed
from covpool.train.run_directory import RunDirectory
from inline_grid import command
from tiny_images import OPTIONS, make_tiny_images

STUDIES = Path(__file__).parent.parent / "studies"

ABOUT = {
    "title": "Three textures",
    "stands_for": "table4",
    "arms": ["gap", "gap-matched", "isqrt-cov", "exact", "hybrid-exact"],
    "leading": ["isqrt-cov", "exact"],
    "references": ["isqrt-cov", "gap"],
    "seeds": 1,
    "leading_seeds": 2,
    "rates": [0.01, 0.05],
}
CONFIG = {
    "optim": {"decay": "step", "milestones": [1]},
    "train": {"probes": ["smoothness", "conditioning"], "probe_every": 2},
}


def write_study(path, about=None, **groups):
    content = {"study": {**ABOUT, **(about or {})}, **CONFIG, **groups}
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return str(make_tiny_images(tmp_path_factory.mktemp("data") / "textures"))


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    study = write_study(folder / "textures.yaml")
    arguments = ["study", str(study), "--data.root", images, *OPTIONS]
    output = folder / "output"
    assert command(*arguments, "--output", str(output)) == 0
    return arguments, output


def test_rates_are_chosen_without_the_test_images(trained):
    _, output = trained
    trials = {path.name for path in (output / "tuning").iterdir()}
    tuned = ("gap", "gap-matched", "isqrt-cov", "exact")
    assert trials == {f"{name}-rate{rate}-seed1000" for name in tuned for rate in (0.01, 0.05)}
    for path in (output / "tuning").iterdir():
        config = RunDirectory(path).read_config()
        assert (config.data.evaluate, config.train.probes) == ("validation", ())
    rates = json.loads((output / "rates.json").read_text())
    for name in tuned:
        finals = {
            rate: RunDirectory(output / "tuning" / f"{name}-rate{rate}-seed1000").read_summary()
            for rate in (0.01, 0.05)
        }
        accuracies = {rate: found["final"]["test_top1"] for rate, found in finals.items()}
        assert accuracies[rates[name]["rate"]] == max(accuracies.values())


def test_runs_that_count(trained):
    _, output = trained
    seeds = {"gap": 1, "gap-matched": 1, "isqrt-cov": 2, "exact": 2, "hybrid-exact": 1}
    runs = {path.name for path in (output / "runs").iterdir()}
    assert runs == {f"{name}-seed{seed}" for name, count in seeds.items() for seed in range(count)}
    rates = json.loads((output / "rates.json").read_text())
    for name in seeds:
        config = RunDirectory(output / "runs" / f"{name}-seed0").read_config()
        tuned = "isqrt-cov" if name == "hybrid-exact" else name
        assert config.optim.learning_rate == rates[tuned]["rate"]
        assert config.data.evaluate == "test"
    matched = RunDirectory(output / "runs" / "gap-matched-seed0").read_config()
    assert (matched.model.method, matched.model.hidden_features) == ("gap", "matched")


def test_a_line_for_each_run(trained):
    _, output = trained
    lines = [json.loads(line) for line in (output / "runs.jsonl").read_text().splitlines()]
    assert len(lines) == 7
    for line in lines:
        summary = RunDirectory(output / "runs" / f"{line['arm']}-seed{line['seed']}").read_summary()
        assert line["final"] == summary["final"]
        assert line["machine"]["Python"]
        measured = {"smoothness"} if line["method"] == "gap" else set(line["by_epoch"])
        assert set(line["by_epoch"]) == measured
        if line["method"] != "gap":
            assert {"condition_number", "effective_rank", "smoothness"} <= measured
            assert set(line["by_epoch"]["effective_rank"]) <= {"1", "2"}


def test_the_summary_says_what_the_runs_say(trained):
    _, output = trained
    content = json.loads((output / "summary.json").read_text())
    claims = {claim["question"]: claim for claim in content["claims"]}
    finals = {
        path.name: 100 * RunDirectory(path).read_summary()["final"]["test_top1"]
        for path in (output / "runs").iterdir()
    }
    claim = claims["is isqrt-cov better than exact?"]
    pairs = [finals[f"isqrt-cov-seed{seed}"] - finals[f"exact-seed{seed}"] for seed in (0, 1)]
    assert list(claim["by_seed"].values()) == pytest.approx(pairs)
    if len(set(pairs)) > 1:
        low, high = scipy.stats.t.interval(0.95, 1, np.mean(pairs), scipy.stats.sem(pairs))
        assert (claim["low"], claim["high"]) == pytest.approx((low, high))
    assert "does exact beat gap-matched?" in claims
    assert "does hybrid training help exact?" in claims
    text = (output / "summary.md").read_text()
    assert "test split was not used" in text
    assert "77.19" in text  # the paper's iSQRT-COV stands beside ours
    assert (output / "summary.svg").read_text().count("<path") > 10


def test_the_same_command_again_trains_nothing(trained, monkeypatch):
    arguments, output = trained
    before = (output / "runs.jsonl").read_text()
    monkeypatch.setattr("covpool.train.grid.run_cell", None)
    assert command(*arguments, "--output", str(output)) == 0
    assert (output / "runs.jsonl").read_text() == before


def test_one_arm_with_the_rates_of_the_whole(trained, tmp_path):
    arguments, output = trained
    own = ["--arms", "exact", "--seeds", "1", "--rates", str(output / "rates.json")]
    assert command(*arguments, *own, "--output", str(tmp_path / "cell")) == 0
    assert not (tmp_path / "cell" / "tuning").exists()
    again, first = (
        RunDirectory(folder / "runs" / "exact-seed0").read_summary()["final"]["test_top1"]
        for folder in (tmp_path / "cell", output)
    )
    assert again == first


def test_the_plan_trains_nothing(trained, tmp_path, capsys):
    arguments, _ = trained
    assert command(*arguments, "--dry-run", "--output", str(tmp_path / "none")) == 0
    told = capsys.readouterr().out
    assert "hybrid-exact: 0 trials, 1 runs" in told
    assert "isqrt-cov: 2 trials, 2 runs" in told
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"arms": ["gap", "svd-pad"]}, r"unknown way to train 'svd-pad'.*svd-pade"),
        ({"references": ["svd"]}, r"study.references has 'svd', which study.arms has not"),
        ({"rates": [0.1, 0.1]}, r"study.rates must name something, and nothing twice"),
        ({"rates": [-1.0]}, r"study.rates must be above 0"),
        ({"seeds": 0}, r"study.seeds must be at least 1, not 0"),
        ({"stands_for": "table9"}, r"study.stands_for must be one of table4, table5"),
        ({"sedes": 3}, r"study.sedes is unknown; known are .*seeds"),
    ],
)
def test_a_file_that_says_what_it_may_not(tmp_path, about, message, capsys):
    path = write_study(tmp_path / "bad.yaml", about)
    assert command("study", str(path)) == 2
    assert capsys.readouterr().err.startswith("covpool: error:")
    with pytest.raises(ValueError, match=message):
        read_study(path)


def test_a_rate_that_diverges_is_not_chosen(tmp_path):
    study = read_study(write_study(tmp_path / "textures.yaml"))
    trials = tuning_cells(study, tmp_path, threads=1)
    for (arm, rate, _), cell in trials.items():
        directory = RunDirectory.create(cell.path, cell.config)
        diverged = arm == Arm("exact") and rate == 0.05
        outcome = {"status": "diverged", "reason": "Training diverged in step 7."}
        if not diverged:
            row = {"test_top1": 0.5 if rate == 0.01 else 0.9}
            outcome = {"status": "finished", "epochs": 30, "final": row, "best": row}
        (directory.path / "summary.json").write_text(json.dumps(outcome))
    rates = chosen_rates(study, trials)
    assert rates["exact"]["rate"] == 0.01
    assert rates["exact"]["validation_top1"] == {"0.01": 50.0, "0.05": None}
    assert rates["isqrt-cov"]["rate"] == 0.05


def test_hybrid_runs_begin_from_the_newton_schulz_run(tmp_path):
    study = read_study(write_study(tmp_path / "textures.yaml"))
    rates = {arm.label: {"rate": 0.1} for arm in study.arms}
    cells = final_cells(study, rates, tmp_path, threads=1)
    cell = cells[Arm("exact", hybrid=True), 0]
    assert cell.trunk == cells[Arm("isqrt-cov"), 0].path
    assert cell.inherited == 1
    alone = study.restricted(["hybrid-exact"])
    assert alone.references == alone.arms
    cell = final_cells(alone, rates, tmp_path, threads=1)[Arm("exact", hybrid=True), 0]
    assert (cell.trunk, cell.inherited) == (None, 0)


@pytest.mark.parametrize("half_width", [0.5, 1.0, 3.0])
def test_seeds_that_an_interval_needs(half_width):
    pairs = [1.0, 2.0, 0.5, 1.5]
    number = seeds_needed(pairs, half_width)
    deviation = np.std(pairs, ddof=1)

    def width(seeds):
        return scipy.stats.t.ppf(0.975, seeds - 1) * deviation / math.sqrt(seeds)

    assert width(number) <= half_width
    assert number == 2 or width(number - 1) > half_width
    assert seeds_needed(pairs[:1], half_width) is None


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_studies_that_come_with_the_project(path):
    study = read_study(path)
    assert study.name == path.stem
    assert set(study.references) == {Arm("isqrt-cov"), Arm("gap")}
    assert Arm("gap", matched=True) in study.arms
    assert bool(study.reduced) == path.stem.endswith("-reduced")
    assert study.config.data.drop_duplicates
    assert study.config.train.epochs > study.config.optim.milestones[-1]
