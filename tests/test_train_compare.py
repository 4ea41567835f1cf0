"""The grid of methods and seeds: runs, resumption, table."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from scipy import stats

from covpool.cli import main
from covpool.experiments import grid
from covpool.experiments.arms import Arm, standalone
from covpool.experiments.inference import Spread
from covpool.experiments.outcome import Outcome
from covpool.experiments.results import RunSet
from covpool.experiments.runs import make_runs, threads_of
from covpool.experiments.study import Study
from covpool.experiments.summary import make_sheet
from covpool.machine import available_cores
from covpool.train.analysis_rows import read_analysis
from covpool.train.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from covpool.train.interruption import Interrupted
from covpool.train.run_directory import RunDirectory
from inline_grid import command
from tiny_images import OPTIONS, make_tiny_images


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return str(make_tiny_images(tmp_path_factory.mktemp("data") / "textures"))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(command, id="in this process"),
        pytest.param(lambda *words: main([*words]), id="in processes", marks=pytest.mark.slow),
    ],
)
def folder(request, images, tmp_path_factory):
    path = tmp_path_factory.mktemp("comparisons") / "comparison"
    options = ["--methods", "gap,exact", "--seeds", "2", "--jobs", "2", "--output", str(path)]
    options += ["--train.probes", "[conditioning]"]
    assert request.param("compare", "--data.root", images, *options, *OPTIONS) == 0
    return path


def test_each_cell_is_a_run_of_its_method_and_seed(folder):
    for method in ("gap", "exact"):
        for seed in (0, 1):
            directory = RunDirectory.open(folder / f"{method}-seed{seed}")
            config = directory.read_config()
            assert (config.model.method, config.train.seed) == (method, seed)
            summary = directory.read_summary()
            assert summary is not None
            assert summary["status"] == "finished"
            assert summary["final"]["method"] == method


def test_the_table_follows_from_the_runs(folder):
    content = json.loads((folder / "comparison.json").read_text())
    assert content["problems"] == []
    tops = {
        (method, name): [
            100 * json.loads(path.read_text())[name]["test_top1"]
            for path in sorted(folder.glob(f"{method}-seed*/summary.json"))
        ]
        for method in ("gap", "exact")
        for name in ("final", "best")
    }
    text = (folder / "comparison.md").read_text()
    for method in ("gap", "exact"):
        both = (tops[method, name] for name in ("final", "best"))
        cells = " | ".join(f"{sum(own) / 2:.2f} ± {stats.tstd(own):.2f}" for own in both)
        assert f"| {method} | 0.05 | 2 | {cells} |" in text
    (claim,) = content["claims"]
    assert claim["claim"] == "exact − gap"
    pairs = [a - b for a, b in zip(tops["exact", "final"], tops["gap", "final"], strict=True)]
    assert list(claim["by_seed"].values()) == pytest.approx(pairs)
    assert "no other rate was tried" in text
    assert "held-out" not in text
    lines = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    assert {(line["arm"], line["seed"]) for line in lines} == {
        (method, seed) for method in ("gap", "exact") for seed in (0, 1)
    }
    assert not (folder / "rates.json").exists()


def test_the_same_command_repeats_nothing(folder, images, capsys):
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/last.ckpt")}
    options = ["--methods", "gap,exact", "--seeds", "2", "--output", str(folder)]
    assert main(["compare", "--data.root", images, *options, *OPTIONS]) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/last.ckpt")} == before
    out = capsys.readouterr().out
    assert re.search(r"\| gap \| [0-9.]+ \| 2 \|", out)
    assert "[1/4]" not in out


def test_probes_measure_what_they_can_and_may_be_others(folder, images, caplog):
    for seed in (0, 1):
        assert {row["epoch"] for row in read_analysis(folder / f"exact-seed{seed}")} == {1, 2}
        assert read_analysis(folder / f"gap-seed{seed}") == []
    options = ["--methods", "exact,gap", "--seeds", "2", "--output", str(folder)]
    options += ["--train.probes", "[smoothness,fidelity]"]
    assert main(["compare", "--data.root", images, *options, *OPTIONS]) == 0
    said = [each.getMessage() for each in caplog.records if "train.probes" in each.getMessage()]
    assert said == [
        "train.probes: fidelity is left out of trainings with gap, which pools no covariance"
    ]


def test_a_report_says_the_same(folder, capsys):
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(folder / "report.html")
    page = (folder / "report.html").read_text(encoding="utf-8")
    accuracies = json.loads((folder / "comparison.json").read_text())["tables"][0]["rows"]
    assert {row[0] for row in accuracies} == {"gap", "exact"}
    assert all(row[3] in page for row in accuracies)
    assert "processor" in page  # what the run noted of its machine
    assert main(["report", str(folder)]) == 0  # over its own earlier page


def test_a_dry_run_says_what_a_comparison_would_take(folder, images, tmp_path, capsys):
    options = ["--data.root", images, "--methods", "gap,exact", "--seeds", "2", *OPTIONS]
    assert main(["compare", *options, "--dry-run", "--output", str(tmp_path / "none")]) == 0
    told = capsys.readouterr().out
    assert "small-convnet, 2 epochs; 2 ways to train." in told
    assert "exact: 2 runs, 4 epochs; 0.0" in told
    assert "(3 an epoch)" in told  # of 27 images by 8
    assert not (tmp_path / "none").exists()
    assert main(["compare", *options, "--dry-run", "--output", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "exact: 2 runs (2 of these are there already), 0 epochs" in told
    assert "about 0:00 with 1 at a time" in told
    assert "about 0.0 MB on disk" in told
    options[3] = "gem,log-e"  # poolings with parameters of their own
    assert main(["compare", *options, "--dry-run", "--output", str(tmp_path / "none")]) == 0
    assert "gem: 2 runs, 4 epochs; 0.0" in capsys.readouterr().out


def test_a_dry_run_says_how_large_checkpoints_will_be(images, tmp_path, capsys):
    options = ["--data.root", images, "--methods", "isqrt-cov", "--seeds", "1", *OPTIONS]
    options += ["--model.backbone_options.width", "64", "--output", str(tmp_path / "comparison")]
    assert command("compare", *options, "--dry-run") == 0
    about = float(re.search(r"about ([0-9.]+) MB on disk", capsys.readouterr().out)[1])
    assert command("compare", *options) == 0
    written = sum(file.stat().st_size for file in tmp_path.rglob("*.ckpt")) / 1e6
    assert about == pytest.approx(written, rel=0.1)


def test_other_options_are_refused(folder, images, capsys):
    options = ["--methods", "gap,exact", "--output", str(folder), *OPTIONS, "--train.epochs", "5"]
    assert main(["compare", "--data.root", images, *options]) == 2
    error = capsys.readouterr().err
    assert "train.epochs 2, not 5" in error
    assert error.count("\n") == 1


def test_a_run_directory_is_not_taken_for_a_comparison(folder, images, capsys):
    options = ["--methods", "gap", "--output", str(folder / "gap-seed0"), *OPTIONS]
    assert main(["compare", "--data.root", images, *options]) == 2
    told = capsys.readouterr()
    assert "is not a comparison" in told.err
    assert len(told.out.splitlines()) == 2  # what is begun and its defaults; no runs are announced


def make_grid(images, folder, methods=("gap", "exact"), seeds=2, **optim):
    config = RunConfig(
        data=DataConfig(root=images, image_size=16, batch_size=8),
        model=ModelConfig(backbone_options={"width": 8}),
        optim=OptimConfig(**optim),
        train=TrainConfig(epochs=2, threads=1, accelerator="cpu"),
    )
    planned = dict.fromkeys(standalone(*methods), range(seeds))
    return [*make_runs(config, planned, folder, threads=1).values()]


def test_the_grid_divides_the_cores_among_the_jobs():
    for jobs in (1, 1000):
        assert threads_of(RunConfig(), jobs) == max(1, available_cores() // jobs)


def test_the_grid_goes_seed_by_seed(images, tmp_path):
    names = [run.name for run in make_grid(images, tmp_path)]
    assert names == ["gap seed 0", "exact seed 0", "gap seed 1", "exact seed 1"]


def test_an_interrupted_cell_goes_on(images, tmp_path, monkeypatch):
    from covpool.train.recorder import Recorder

    run = make_grid(images, tmp_path)[1]
    original = Recorder.on_train_batch_end

    def hook(self, trainer, module, *rest):
        if module.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, trainer, module, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "on_train_batch_end", hook)
        with pytest.raises(Interrupted):
            grid.run_one(run)
    assert run.summary()["status"] == "interrupted"
    assert not run.settled()
    assert run.epochs_done() == 1
    grid.run_one(run)
    assert run.settled()
    assert [row["epoch"] for row in RunDirectory(run.path).read_metrics()] == [1, 2]


def test_diverged_and_failed_cells_are_told_and_not_averaged(images, tmp_path, folder):
    wild = make_grid(images, tmp_path, methods=["exact"], learning_rate=1e30)[0]
    grid.run_one(wild)
    assert wild.summary()["status"] == "diverged"
    assert wild.settled()

    runs = make_grid(images, folder)
    replaced = [wild if run.name == wild.name else run for run in runs]
    missing = make_grid(images, tmp_path, methods=["svd"])
    found = RunSet(
        name="comparison",
        config=wild.config,
        runs={(run.arm, run.seed): run for run in (*replaced, *missing)},
        failures={"svd seed 0": "OSError: disk full"},
    )
    arms = tuple(found.arms)
    study = Study(
        name="comparison", title="made up", arms=arms, references=arms[:1], config=wild.config
    )
    rates = {arm.label: {"rate": 0.05, "validation_top1": {}} for arm in arms}
    outcome = Outcome(study=study, runs=found, rates=rates, train_images=27, test_images=9)
    sheet = make_sheet(outcome)
    texts = {row[0]: row for row in sheet.tables[0].rows}
    kept = next(run for run in runs if run.name == "exact seed 1").summary()
    final = f"{100 * kept['final']['test_top1']:.2f} (1 of 2)"
    assert texts["exact"][2:4] == ("1", final)
    assert texts["gap"][2] == "2"
    assert texts["svd"][2:] == ("0", "missing", "missing")
    assert outcome.final(Arm("svd")) == {}
    told = "\n".join(sheet.problems)
    assert "exact seed 0: diverged; Training diverged in epoch 1" in told
    assert "svd seed 0: missing; OSError: disk full" in told
    assert "svd seed 1: missing; it has not run" in told


def die(run):
    os._exit(1)


@pytest.mark.slow
def test_a_process_that_dies_fails_its_cell_alone(images, tmp_path):
    runs = make_grid(images, tmp_path, methods=["gap"])
    ended = []
    failures = grid.run_grid(runs, 1, lambda state, run: ended.append(run), die)
    assert list(failures) == ["gap seed 0", "gap seed 1"]
    assert all("died" in reason for reason in failures.values())
    assert [run.name for run in ended if run] == list(failures)


def measure(run):
    """A run that is made otherwise than by training a network, as one on features computed before
    is."""
    with grid.taken(run) as directory:
        directory.write_config(run.config)
        (run.path / "summary.json").write_text('{"status": "finished", "epochs": 2}')


@pytest.mark.slow
def test_a_grid_of_runs_that_are_made_otherwise(images, tmp_path):
    runs = make_grid(images, tmp_path, methods=["gap"])
    runs[1].path.mkdir()
    (runs[1].path / "letter").touch()
    failures = grid.run_grid(runs, 1, lambda state, run: None, measure)
    assert [run.settled() for run in runs] == [True, False]
    assert list(failures) == ["gap seed 1"]
    assert "exists; choose another --output" in failures["gap seed 1"]
    (runs[1].path / "letter").unlink()
    ended = []
    assert grid.run_grid(runs, 1, lambda state, run: ended.append(run), measure) == {}
    assert [run for run in ended if run] == runs[1:]


def linger(run):
    """A run that hears nothing and goes on for long."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    run.path.mkdir(parents=True)
    (run.path / "began").touch()
    time.sleep(30)
    (run.path / "ended").touch()


@pytest.mark.slow
def test_a_second_interruption_ends_the_running_cells(images, tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "GRACE_SECONDS", 0.1)
    runs = make_grid(images, tmp_path, methods=["gap"])[:1]

    def report(state, ended):
        if (runs[0].path / "began").exists():
            raise Interrupted(signal.SIGINT)

    with pytest.raises(Interrupted):
        grid.run_grid(runs, 1, report, linger)
    assert not (runs[0].path / "ended").exists()


@pytest.mark.slow
def test_cells_end_with_a_comparison_that_was_killed(images, tmp_path):
    folder = tmp_path / "comparison"
    options = ["--methods", "gap", "--seeds", "1", "--output", str(folder), *OPTIONS]
    options += ["--train.epochs", "100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "covpool.cli", "compare", "--data.root", images, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    run = RunDirectory(folder / "gap-seed0")
    try:
        while not run.last.exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
        process.wait()
        deadline = time.monotonic() + 60
        while run.read_summary() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        summary = run.read_summary()
        assert summary is not None
        assert summary["status"] == "interrupted"
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_the_interval_is_students():
    values = [1.5, 2.5, 0.5, 3.0, 1.0]
    found = Spread.of(dict(enumerate(values)))
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found.mean == pytest.approx(1.7)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.text() == "1.70 ± 1.04"
    assert found.interval_text() == f"+1.70 [+{expected.low:.2f}, +{expected.high:.2f}]"


def test_few_values_have_no_deviation_and_no_interval():
    none, one = Spread.of({}), Spread.of({3: 2.0})
    assert (none.mean, none.deviation, none.low, none.high) == (None,) * 4
    assert (one.mean, one.deviation, one.low, one.high) == (2.0, None, None, None)
    assert (none.text(), one.text(), one.interval_text()) == ("–", "2.00", "+2.00")
