"""A study: its file, the choice of rates, the runs that count, and what the summary says."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import yaml

from covpool.experiments.arms import Arm
from covpool.experiments.inference import Spread, holm, p_value, seeds_needed
from covpool.experiments.observations import Claim
from covpool.experiments.outcome import Outcome
from covpool.experiments.results import RunSet
from covpool.experiments.study import chosen_rates, final_runs, read_study, tuning_runs
from covpool.experiments.study_tables import differences_table, doubtful_rates, rates_table
from covpool.experiments.summary import make_sheet
from covpool.report.sources import find_runs
from covpool.train.run_directory import RunDirectory
from inline_grid import command
from tiny_images import OPTIONS, make_tiny_images

STUDIES = Path(__file__).parent.parent / "studies"

ABOUT = {
    "title": "Three textures",
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
            assert set(line["by_epoch"]["effective_rank"]) == {"1", "2"}
        if line["protocol"] == "hybrid":  # its first epoch is that of the run it began from
            trunk = next(o for o in lines if (o["arm"], o["seed"]) == ("isqrt-cov", line["seed"]))
            assert line["by_epoch"]["smoothness"]["1"] == trunk["by_epoch"]["smoothness"]["1"]


def test_the_summary_says_what_the_runs_say(trained):
    _, output = trained
    content = json.loads((output / "summary.json").read_text())
    claims = {claim["claim"]: claim for claim in content["claims"]}
    finals = {
        path.name: 100 * RunDirectory(path).read_summary()["final"]["test_top1"]
        for path in (output / "runs").iterdir()
    }
    claim = claims["exact − isqrt-cov"]
    pairs = [finals[f"exact-seed{seed}"] - finals[f"isqrt-cov-seed{seed}"] for seed in (0, 1)]
    assert list(claim["by_seed"].values()) == pytest.approx(pairs)
    if len(set(pairs)) > 1:
        low, high = scipy.stats.t.interval(0.95, 1, np.mean(pairs), scipy.stats.sem(pairs))
        assert (claim["low"], claim["high"]) == pytest.approx((low, high))
    assert list(claims) == [
        *(f"{arm} − isqrt-cov" for arm in ("gap", "gap-matched", "exact", "hybrid-exact")),
        *(f"{arm} − gap" for arm in ("gap-matched", "exact", "hybrid-exact")),
        "hybrid-exact − exact",
    ]
    text = (output / "summary.md").read_text()
    assert "test split was not used" in text
    assert (output / "summary.svg").read_text().count("<path") > 10


def test_the_same_command_again_trains_nothing(trained, monkeypatch):
    arguments, output = trained
    before = (output / "runs.jsonl").read_text()
    monkeypatch.setattr("covpool.experiments.grid.run_one", None)
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
    text = (tmp_path / "cell" / "summary.md").read_text()
    assert "## Differences" not in text  # one arm has none
    assert "**Not run, or not yet:** gap, gap-matched, isqrt-cov, hybrid-exact." in text


def test_ways_to_train_that_computed_the_same_are_one(trained, tmp_path):
    arguments, output = trained
    folder = tmp_path / "copy"
    shutil.copytree(output, folder)
    # svd-pade's kernel is the exact one wherever eigenvalues are not close.
    for path in sorted((folder / "tuning").glob("exact-*")) + sorted(
        (folder / "runs").glob("exact-*")
    ):
        other = path.with_name(path.name.replace("exact", "svd-pade"))
        shutil.copytree(path, other)
        text = (other / "config.yaml").read_text()
        (other / "config.yaml").write_text(text.replace("method: exact", "method: svd-pade"))
    study = write_study(tmp_path / "textures.yaml", {"arms": [*ABOUT["arms"], "svd-pade"]})
    both = ["study", str(study), *arguments[2:], "--output", str(folder)]
    assert command(*both) == 0
    text = (folder / "summary.md").read_text()
    assert "**The same runs: exact / svd-pade.**" in text
    assert "| exact / svd-pade − gap |" in text
    assert "exact − svd-pade" not in text
    assert len((folder / "runs.jsonl").read_text().splitlines()) == 9


def test_the_plan_trains_nothing(trained, tmp_path, capsys):
    arguments, _ = trained
    assert command(*arguments, "--dry-run", "--output", str(tmp_path / "none")) == 0
    told = capsys.readouterr().out
    assert "hybrid-exact: 0 trials, 1 run, " in told
    assert "isqrt-cov: 2 trials, 2 runs" in told
    assert not (tmp_path / "none").exists()


def test_a_part_of_a_study_leaves_what_is_there(trained, tmp_path, capsys):
    arguments, output = trained
    folder = tmp_path / "copy"
    shutil.copytree(output, folder)
    before = json.loads((folder / "rates.json").read_text())
    assert command(*arguments, "--arms", "gap", "--seeds", "2", "--output", str(folder)) == 0
    assert json.loads((folder / "rates.json").read_text()) == before
    lines = (folder / "runs.jsonl").read_text().splitlines()
    named = {(line["arm"], line["seed"]) for line in map(json.loads, lines)}
    assert len(lines) == 8
    assert {("gap", 1), ("exact", 1), ("hybrid-exact", 0)} <= named
    assert "hybrid-exact" in (folder / "summary.md").read_text()
    capsys.readouterr()
    assert command(*arguments, "--dry-run", "--output", str(folder)) == 0
    assert "gap: 2 trials, 1 run (3 of these are there already), 0" in capsys.readouterr().out


def test_rates_other_than_those_of_the_runs_are_refused(trained, tmp_path, capsys):
    arguments, output = trained
    folder = tmp_path / "copy"
    shutil.copytree(output, folder)
    before = (folder / "rates.json").read_text()
    rates = json.loads(before)
    rates["exact"]["rate"] = 0.3
    other = tmp_path / "rates.json"
    other.write_text(json.dumps(rates))
    options = ["--arms", "gap", "--rates", str(other), "--output", str(folder)]
    assert command(*arguments, *options) == 2
    assert "optim.learning_rate" in capsys.readouterr().err
    assert (folder / "rates.json").read_text() == before


def test_p_values():
    generator = np.random.default_rng(0)
    series = [list(generator.normal(0.3 * i, 1, size=n)) for i, n in enumerate((3, 5, 8))]
    for values in series:
        assert p_value(values) == pytest.approx(scipy.stats.ttest_1samp(values, 0).pvalue)
    assert p_value([1.0]) is None
    assert p_value([0.5, 0.5]) is None


# The second two are the same but for rounding.
@pytest.mark.parametrize(
    ("pairs", "word", "told", "deviation"),
    [
        ([-25.0, -25.0], "not shown", "-25.00, 2 seeds", "0.00"),
        ([0.3 - 0.2, 0.2 - 0.1], "not shown", "+0.10, 2 seeds", "0.00"),
        ([0.0, 0.0, 0.0], "the same", "+0.00, 3 seeds", "0.00"),
        ([0.0], "not shown", "+0.00, 1 seed", "–"),
        ([], "not measured", "not measured", "–"),
    ],
)
def test_the_same_difference_in_all_seeds_has_no_interval(pairs, word, told, deviation):
    by_seed = dict(enumerate(pairs))
    table, (found,) = differences_table([Claim(text="a − b", pairs=by_seed)])
    assert table.rows == [("a − b", word, told, "–", deviation, "–", "–")]
    assert (found["verdict"], found["low"], found["high"]) == (word, None, None)
    spread = Spread.of(by_seed)
    assert spread.sign is None
    assert "[" not in spread.interval_text()
    assert (p_value(pairs), seeds_needed(pairs, 0.5)) == (None, None)


def test_the_table_says_above_not_shown_or_below():
    series = [(1.0, 1.02), (-1.0, 1.0), (-1.0, -1.02)]
    claims = [Claim(text="a − b", pairs=dict(enumerate(pairs))) for pairs in series]
    table, found = differences_table(claims)
    words = ["shown", "not shown", "below"]
    assert [row[1] for row in table.rows] == [each["verdict"] for each in found] == words


def test_holm():
    assert holm([0.01, None, 0.04, 0.03]) == [
        pytest.approx(0.03),
        None,
        pytest.approx(0.06),
        pytest.approx(0.06),
    ]
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.evaluate", "validation"], "data.evaluate validation cannot be used here"),
        (["--model.method", "svd"], "model.method 'svd' cannot be used here: study.arms"),
        (["--optim.learning_rate", "0.3"], "optim.learning_rate 0.3 would have no effect"),
        (["--output", ".."], "exists and is not a study's"),
        (["--rates", "rates.json"], "rates.gap must be a mapping, not 0.1"),
    ],
)
def test_options_that_a_study_does_not_take(
    trained, tmp_path, monkeypatch, capsys, options, message
):
    arguments, _ = trained
    monkeypatch.chdir(tmp_path)
    Path("rates.json").write_text('{"gap": 0.1}')
    assert command(*arguments, *options) == 2
    assert message in capsys.readouterr().err


def test_the_file_must_be_named(capsys):
    assert command("study", "--jobs", "2") == 2
    assert "the following arguments are required: study" in capsys.readouterr().err


def test_a_report_of_a_study_is_of_the_runs_that_count(trained):
    _, output = trained
    found = find_runs([output])
    assert {run.path.parent.name for run in found} == {"runs"}
    assert len(found) == 7


def test_the_summary_judges_its_own_rates(trained):
    _, output = trained
    text = (output / "summary.md").read_text()
    assert "is at the edge of what was tried" in text  # of two rates each is
    assert "seeds for ±0.5 points" in text
    assert "| gap-matched − gap |" in text


def test_a_summary_of_runs_none_of_which_came_to_an_end(tmp_path):
    study = read_study(write_study(tmp_path / "textures.yaml"))
    rates = {arm.label: {"rate": 0.05, "validation_top1": {}} for arm in study.arms}
    planned = final_runs(study, rates, tmp_path, threads=1)
    runs = RunSet(name="textures", config=study.config, runs=planned)
    outcome = Outcome(
        study=study,
        runs=runs.ended({"gap seed 0": "its process died"}),
        rates=rates,
        train_images=64,
        test_images=32,
    )
    sheet = make_sheet(outcome)
    sheet.write(tmp_path)
    assert len(sheet.problems) == 7
    assert "gap seed 0: missing; its process died" in (tmp_path / "summary.md").read_text()
    lines = {(line["arm"], line["seed"]): line for line in outcome.lines()}
    assert lines["gap", 0]["reason"] == "its process died"


DOUBTS = {"edge": "is at the edge of what was tried", "alone": "no other rate was tried"}


@pytest.mark.parametrize(
    ("tried", "rate", "remark", "doubt"),
    [
        ({"0.1": 50.0, "0.2": 60.0, "0.4": 40.0}, 0.2, "–", ""),
        ({"0.1": 50.0, "0.2": 40.0}, 0.1, "the lowest tried", "edge"),
        ({"0.1": 50.0, "0.2": 60.0, "0.4": None}, 0.2, "–", ""),
        ({"0.1": 50.0, "0.333333": 60.0}, 1 / 3, "the highest tried", "edge"),
        ({"0.1": None, "0.2": None}, 0.1, "all diverged; the lowest is taken", "edge"),
        ({}, 0.1, "given, with no trials", "alone"),
        ({"0.1": 50.0, "0.2": 50.0}, 0.1, "all rates are equal here", ""),
        ({"0.1": 50.0}, 0.1, "the only one tried", "alone"),
    ],
)
def test_rates_at_the_edge_are_told(tmp_path, tried, rate, remark, doubt):
    study = read_study(write_study(tmp_path / "textures.yaml"))
    rates = {arm.label: {"rate": rate, "validation_top1": tried} for arm in study.arms}
    planned = final_runs(study, rates, tmp_path, threads=1)
    runs = RunSet(name="textures", config=study.config, runs=planned)
    outcome = Outcome(study=study, runs=runs, rates=rates, train_images=64, test_images=32)
    rows = {row[0]: row for row in rates_table(outcome).rows}
    arms = ["gap", "gap-matched", "isqrt-cov", "exact"]
    assert list(rows) == (arms if tried else [])
    assert [row[-2:] for row in rows.values()] == [[f"{rate:g}", remark]] * len(rows)
    assert doubtful_rates(outcome)[:2] == tuple(arms if doubt == one else [] for one in DOUBTS)
    text = make_sheet(outcome).markdown()
    assert [phrase in text for phrase in DOUBTS.values()] == [doubt == one for one in DOUBTS]


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"arms": ["gap", "svd-pad"]}, r"unknown way to train 'svd-pad'.*svd-pade"),
        ({"references": ["svd"]}, r"study.references has 'svd', which study.arms has not"),
        ({"rates": [0.1, 0.1]}, r"study.rates must name something, and nothing twice"),
        ({"rates": [-1.0]}, r"study.rates must be above 0"),
        ({"seeds": 0}, r"study.seeds must be at least 1, not 0"),
        ({"rates": []}, r"study.rates must name something"),
        ({"decays": [-1.0]}, r"study.decays must be at least 0"),
        ({"decays": 0.1}, r"study.decays must be a list"),
        ({"rates": 0.1}, r"study.rates must be a list, as in \[a, b\], not 0.1"),
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
    trials = tuning_runs(study, tmp_path, threads=1)
    for trial in trials:
        directory = RunDirectory.create(trial.path, trial.config)
        diverged = trial.arm == Arm("exact") and trial.tried["learning_rate"] == 0.05
        outcome = {"status": "diverged", "reason": "Training diverged in step 7."}
        if not diverged:
            row = {"test_top1": 0.5 if trial.tried["learning_rate"] == 0.01 else 0.9}
            outcome = {"status": "finished", "epochs": 30, "final": row, "best": row}
        (directory.path / "summary.json").write_text(json.dumps(outcome))
    rates = chosen_rates(study, trials)
    assert rates["exact"]["rate"] == 0.01
    assert rates["exact"]["validation_top1"] == {"0.01": 50.0, "0.05": None}
    assert rates["isqrt-cov"]["rate"] == 0.05


def write_trials(study, output, summaries):
    trials = tuning_runs(study, output, threads=1)
    for trial in trials:
        directory = RunDirectory.create(trial.path, trial.config)
        final = {"test_top1": trial.tried["learning_rate"]}
        done = {"status": "finished", "epochs": 30, "final": final}
        content = summaries.get(trial.arm.label, done)
        (directory.path / "summary.json").write_text(json.dumps(content))
    return trials


def test_decays_are_tried_with_each_rate(tmp_path):
    study = read_study(write_study(tmp_path / "textures.yaml", {"decays": [1e-3, 0.0]}))
    tops = {(0.01, 0.0): 0.5, (0.01, 1e-3): 0.7, (0.05, 0.0): 0.7, (0.05, 1e-3): 0.6}
    trials = tuning_runs(study, tmp_path, threads=1)
    assert "exact-rate0.05-decay0.001-seed1000" in {trial.path.name for trial in trials}
    for trial in trials:
        directory, own = RunDirectory.create(trial.path, trial.config), trial.config.optim
        final = {"test_top1": tops[own.learning_rate, own.weight_decay]}
        outcome = {"status": "finished", "epochs": 30, "final": final}
        (directory.path / "summary.json").write_text(json.dumps(outcome))
    rates = chosen_rates(study, trials)
    chosen = rates["exact"]
    assert (chosen["rate"], chosen["weight_decay"]) == (0.01, 1e-3)  # of a tie the lower rate
    assert chosen["validation_top1"] == {"0.01": 70.0, "0.05": 70.0}
    planned = final_runs(study, rates, tmp_path, threads=1)
    assert planned[Arm("exact"), 0].config.optim.weight_decay == 1e-3
    runs = RunSet(name="textures", config=study.config, runs=planned)
    outcome = Outcome(study=study, runs=runs, rates=rates, train_images=64, test_images=32)
    table = rates_table(outcome)
    pairs = ["0.01, 0", "0.01, 0.001", "0.05, 0", "0.05, 0.001"]
    assert table.columns == ["validation top-1 at rate, decay", *pairs, "taken", "remark"]
    exact = next(row for row in table.rows if row[0] == "exact")
    assert exact[1:-1] == ["50.00", "70.00", "70.00", "60.00", "0.01, 0.001"]


def test_an_arm_whose_every_trial_diverged_does_not_stop_the_others(tmp_path):
    study = read_study(write_study(tmp_path / "textures.yaml"))
    diverged = {"status": "diverged", "reason": "Training diverged in step 7."}
    rates = chosen_rates(study, write_trials(study, tmp_path, {"exact": diverged}))
    assert rates["exact"] == {"rate": 0.01, "validation_top1": {"0.01": None, "0.05": None}}
    assert rates["gap"]["rate"] == 0.05


def test_no_rate_is_chosen_over_a_trial_that_failed(tmp_path):
    study = read_study(write_study(tmp_path / "textures.yaml"))
    failed = {"status": "failed", "reason": "the disk is full"}
    trials = write_trials(study, tmp_path, {"exact": failed})
    with pytest.raises(ValueError, match=r"2 of the trials .*exact-rate0.01.*the disk is full"):
        chosen_rates(study, trials)


def test_a_part_of_a_study_has_references_of_its_own(tmp_path):
    study = read_study(write_study(tmp_path / "textures.yaml"))
    alone = study.restricted(["hybrid-exact"])
    assert alone.references == alone.arms == (Arm("exact", hybrid=True),)
    assert study.restricted(["exact", "gap"]).references == (Arm("gap"),)


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
    # A network with a channel reduction has a baseline with the same one.
    reduced = path.stem != "icons100-reduced"
    control = Arm("gap", matched=not reduced, reduced=reduced)
    assert set(study.references) == {Arm("isqrt-cov"), Arm("gap"), control}
    assert Arm("gap", matched=True) in study.arms
    assert bool(study.reduced) == path.stem.endswith("-reduced")
    assert study.config.data.drop_duplicates
    assert study.config.train.epochs > study.config.optim.milestones[-1]
