"""Verdicts and tables from runs that are made up, so that the right answer is known."""

import json
import math
import random
from dataclasses import replace

import pytest
from scipy import stats

from covpool.analysis.records import QUANTILES
from covpool.experiments.arms import METHODS_OF_PAPER, Arm, hybrid, standalone
from covpool.experiments.observations import Claim, observations, observe
from covpool.experiments.results import SMALL, RunSet
from covpool.experiments.runs import Run, path_of
from covpool.experiments.targets import TARGETS
from covpool.train.probes import ANALYSIS
from covpool.train.recipe import read_recipe
from covpool.train.run_directory import RunDirectory

CONFIG = read_recipe(SMALL).config
EPOCHS = CONFIG.train.epochs
NOISE = (0.0, 0.1, -0.1)
"""By seed, common to all methods: pairing takes it out."""


def write_run(path, error, *, beta=1.0, condition=lambda epoch: 1e6, status="finished", own=1.0):
    """A run with that final top-1 error in percent, in every epoch."""
    path.mkdir(parents=True)
    row = {"test_top1": 1 - error / 100, "test_top5": 1 - error / 400, "test_loss": 1.0}
    history = [{"epoch": epoch, "method": "m", **row} for epoch in range(1, EPOCHS + 1)]
    RunDirectory(path).write_metrics(history)
    summary = {"status": status, "reason": "Training diverged in epoch 1.", "epochs": EPOCHS}
    if status == "finished":
        summary |= {"final": history[-1], "best": history[-1]}
    (path / "summary.json").write_text(json.dumps(summary))
    rows = []
    for epoch in range(1, EPOCHS + 1):
        step = 30 * (epoch - 1)
        rows.append({"probe": "smoothness", "step": step, "epoch": epoch, "smoothness": beta * own})
        figure = {"quantiles": [condition(epoch) * own**epoch] * len(QUANTILES)}
        names = ("condition_number_floored", "condition_number_of_range")
        both = {way: dict.fromkeys(names, figure) for way in ("of_features", "of_covariance")}
        rows.append({"probe": "conditioning", "step": step, "epoch": epoch, **both})
    (path / ANALYSIS).write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_setting(folder, errors, *, seeds=3, runs=None, noise=1e-4):
    """A setting of runs with these errors by arm; `runs` says more of some. The noise is each run's
    own, so that pairing does not take it out and intervals have a width."""
    made = {}
    for arm, error in errors.items():
        for seed in range(seeds):
            run = Run(arm=arm, seed=seed, config=CONFIG, path=path_of(folder, arm, seed))
            values = error if isinstance(error, tuple) else [error + e for e in NOISE]
            own = 1 + noise * random.Random(run.path.name).uniform(-1, 1)
            write_run(run.path, values[seed] * own, own=own, **(runs or {}).get(arm, {}))
            made[arm, seed] = run
    return RunSet(name=SMALL, about="made up", config=CONFIG, runs=made)


def as_the_paper_has_it():
    alone = {"isqrt-cov": 20, "svd": 24, "svd-topn": 23, "svd-trunc": 22.5, "svd-pade": 21}
    alone |= {"svd-pi": 22, "svd-newton": 21.5, "svd-taylor": 23, "exact": 21, "gap": 30}
    errors = {Arm(name): error for name, error in alone.items()}
    for place, arm in enumerate(hybrid(*METHODS_OF_PAPER)):
        errors[arm] = 19 + 0.1 * (place % 3)
    return errors


PAPERS = {
    Arm("svd"): {"beta": 50.0, "condition": lambda epoch: 3e14 / epoch},
    Arm("isqrt-cov"): {"beta": 2.0},
}


@pytest.fixture
def paper_like(tmp_path):
    return make_setting(tmp_path, as_the_paper_has_it(), runs=PAPERS)


def verdicts(setting):
    return {each.number: each.verdict for each in observe(setting)}


def test_runs_as_the_papers_show_all_five(paper_like):
    assert verdicts(paper_like) == dict.fromkeys(range(1, 6), "shown")
    first, second, *_ = observe(paper_like)
    claim = first.claims[0]
    pairs = [*claim.pairs.values()]
    assert pairs == pytest.approx([4.0] * 3, abs=0.01)
    interval = stats.ttest_1samp(pairs, 0).confidence_interval(0.95)
    assert claim.interval[1:] == pytest.approx((interval.low, interval.high))
    assert second.claims[0].interval[0] == pytest.approx(math.log10(25), abs=1e-3)
    assert "×25" in second.claims[0].describe()


def test_reversed_runs_show_the_opposite(tmp_path):
    errors = {arm: 60 - error for arm, error in as_the_paper_has_it().items()}
    for place, arm in enumerate(hybrid(*METHODS_OF_PAPER)):
        errors[arm] = 45 + 5 * place
    runs = {
        Arm("svd"): {"beta": 1.0, "condition": lambda epoch: 1e3 * epoch},
        Arm("isqrt-cov"): {"beta": 30.0},
    }
    setting = make_setting(tmp_path, errors, runs=runs)
    assert verdicts(setting) == dict.fromkeys(range(1, 6), "the opposite")


def test_equal_runs_show_nothing(tmp_path):
    arms = (*standalone("gap", *METHODS_OF_PAPER), *hybrid(*METHODS_OF_PAPER))
    setting = make_setting(tmp_path, dict.fromkeys(arms, 20), noise=0)
    assert verdicts(setting) == dict.fromkeys(range(1, 6), "not shown")


def test_differences_that_vary_in_sign_show_nothing(tmp_path):
    errors = as_the_paper_has_it()
    errors[Arm("svd")] = (24.0, 18.0, 21.0)
    assert verdicts(make_setting(tmp_path, errors, runs=PAPERS))[1] == "not shown"


def test_one_seed_shows_nothing(tmp_path):
    setting = make_setting(tmp_path, as_the_paper_has_it(), seeds=1, runs=PAPERS)
    assert verdicts(setting) == dict.fromkeys(range(1, 6), "not shown")


def test_helping_without_evening_out_is_not_the_fifth(tmp_path):
    errors = as_the_paper_has_it()
    for place, arm in enumerate(hybrid(*METHODS_OF_PAPER)):
        errors[arm] = 10 + place
    fifth = observe(make_setting(tmp_path, errors, runs=PAPERS))[4]
    assert [claim.verdict for claim in fifth.claims if claim.decides] == ["shown", "the opposite"]
    assert fifth.verdict == "not shown"


def test_what_has_not_run_is_not_measured(tmp_path):
    setting = make_setting(tmp_path, {Arm("gap"): 20})
    assert verdicts(setting) == dict.fromkeys(range(1, 6), "not measured")


def test_diverged_runs_are_told_and_left_out(paper_like):
    arm = Arm("svd-topn")
    for seed in range(3):
        path = paper_like.runs[arm, seed].path
        content = json.loads((path / "summary.json").read_text())
        content["status"] = "diverged"
        (path / "summary.json").write_text(json.dumps(content))
    third = observe(replace(paper_like))[2]
    assert third.verdict == "shown"
    assert "svd-topn" not in third.claims[0].text
    sheet = TARGETS["table4"].make({SMALL: paper_like})
    assert "svd-topn seed 0: diverged; Training diverged in epoch 1." in sheet.problems
    row = next(row for row in sheet.tables[0].rows if row[0] == "svd-topn")
    assert row[3] == "diverged"


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_quantity_without_a_number_is_not_measured(value):
    assert Claim(text="x", pairs={0: 1.0, 1: value}).verdict == "not measured"


def test_tables_have_ours_beside_the_papers(paper_like):
    results = {SMALL: paper_like}
    table4 = TARGETS["table4"].make(results)
    rows = {row[0]: row for row in table4.tables[0].rows}
    assert rows["svd-pade"][1:4] == ["SVD-Padé", "22.67", "21.00 ± 0.10"]
    assert rows["isqrt-cov"][3] == rows["isqrt-cov"][7]
    assert rows["gap"][1:3] == ["Vanilla ResNet-50", "23.85"]
    assert rows["exact"][1:3] == ["–", "–"]
    assert len(rows) == 10
    assert {row[0] for row in table4.tables[1].rows} == {"isqrt-cov", "svd", "svd-pade", "gap"}
    table5 = TARGETS["table5"].make(results)
    rows = {row[0]: row for row in table5.tables[0].rows}
    assert (
        rows["svd-pade"][2:]
        == ["87.05 / 87.29", "83.40 / 84.34", "92.55 / 92.99"] + ["79.00 ± 0.10"] * 2
    )
    assert rows["svd-topn"][2] == "no convergence / no convergence"
    table2 = TARGETS["table2"].make(results)
    assert table2.data["epochs"] == [1, 6, 11]
    assert table2.tables[0].rows[1][1].startswith("3.00e+14")
    assert table2.tables[0].rows[0][1:] == ["3.41e+14", "5.36e+13", "1.70e+13"]
    table1 = TARGETS["table1"].make(results)
    assert table1.tables[0].rows[2][2] == "+0.59"
    figure1 = TARGETS["figure1"].make(results)
    assert figure1.tables[0].rows[2][1:] == ["25.00 [25.00, 25.00]"] * 3
    assert figure1.figure is not None


def test_the_sheet_of_observations_says_what_was_run(paper_like):
    sheet = observations({SMALL: paper_like})
    assert sheet.scale == "made up"
    assert [row[1] for row in sheet.tables[0].rows] == ["shown"] * 5
    assert "3 seeds" in sheet.markdown()
