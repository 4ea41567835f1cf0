"""`covpool probe`: features computed once, heads trained on them, and what comes of it."""

import json
import os
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import covpool
from covpool.cli import main, parsers
from covpool.cli.parsers import PROBED
from covpool.experiments import grid
from covpool.experiments.arms import Arm
from covpool.experiments.frozen import features, heads
from covpool.experiments.frozen.features import Extractor, Views, compute, feature_files
from covpool.experiments.frozen.heads import Examples, Head, train_head, train_linear
from covpool.experiments.frozen.plan import Frozen, HeadPlan, bundled, chosen_arms
from covpool.experiments.frozen.reduction import Reduction, forget_maps, maps_bytes
from covpool.experiments.frozen.work import made_of, make_bundle
from covpool.experiments.study import Study, final_runs, tuning_runs
from covpool.poolings import POOLINGS
from covpool.train.config import ModelConfig, RunConfig
from covpool.train.interruption import Interrupted
from covpool.train.job import prepare
from covpool.train.run_directory import RunDirectory
from inline_grid import Inline, command
from tiny_images import make_tiny_images

BASELINES = ["gap", "gap-matched", "gap-reduced", "gap-reduced-matched"]
POOLED = ["exact", "svd", "dropcov", "isqrt-cov"]
TIMED = {"seconds", "test_seconds", "images_per_second"}
OPTIONS = [
    *("--data.image_size", "16"),
    *("--batch-size", "8"),
    *("--model.backbone_options.width", "8"),
    *("--model.reduced_channels", "4"),
    *("--epochs", "2"),
    *("--train.threads", "1"),
    *("--rates", "0.03,0.1"),
    *("--decays", "1e-3"),
    *("--seeds", "2"),
    *("--jobs", "1"),
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return str(write_weights(tmp_path_factory.mktemp("weights") / "weights.pth", seed=0))


def write_weights(path, seed):
    torch.manual_seed(seed)
    model = covpool.create_model("small-convnet", 3, method="gap", in_chans=1, width=8)
    torch.save(model.backbone.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return str(make_tiny_images(tmp_path_factory.mktemp("data") / "textures"))


@pytest.fixture(scope="module")
def probed(images, weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    arguments = ["probe", images, "--model.init_from", weights, *OPTIONS]
    arguments += ["--poolings", ",".join(POOLED)]
    arguments += ["--output", str(folder / "output"), "--features", str(folder / "features")]
    assert command(*arguments) == 0
    return arguments, folder


def test_it_writes_what_every_experiment_writes(probed, capsys):
    _, folder = probed
    output = folder / "output"
    labels = [*BASELINES, *POOLED]
    found = {path.name for path in (output / "runs").iterdir()}
    assert found == {f"{label}-seed{seed}" for label in labels for seed in (0, 1)}
    assert {"summary.md", "summary.svg", "runs.jsonl"} <= {p.name for p in output.iterdir()}
    summary = json.loads((output / "summary.json").read_text())
    described = {claim["claim"]: claim["described"] for claim in summary["claims"]}

    def final(label, seed):
        run = RunDirectory(output / "runs" / f"{label}-seed{seed}")
        return 100 * run.read_summary()["final"]["test_top1"]

    for label in ("exact / svd", "dropcov"):
        pairs = [
            final(label.partition(" ")[0], seed) - final("gap-matched", seed) for seed in (0, 1)
        ]
        assert f"{np.mean(pairs):+.2f} [" in described[f"{label} − gap-matched"]


def test_every_pooling_is_compared_with_the_averages(probed):
    summary = json.loads((probed[1] / "output" / "summary.json").read_text())
    claims = {claim["claim"]: claim["p_by_holm"] for claim in summary["claims"]}
    for name in ("exact / svd", "dropcov", "isqrt-cov"):
        assert {f"{name} − {average}" for average in BASELINES[1:]} <= claims.keys()
    assert "dropcov − isqrt-cov" in claims
    assert not any(claim.startswith(tuple(f"{a} −" for a in BASELINES[1:])) for claim in claims)


@pytest.mark.slow
def test_its_folder_has_a_report(probed, capsys):
    _, folder = probed
    assert main(["report", str(folder / "output")]) == 0
    page = (folder / "output" / "report.html").read_text()
    assert page.count('<section id="setting-') == 1
    assert [name for name in (*BASELINES, *POOLED) if f'<th scope="row">{name}<' not in page] == []


def test_each_pooling_has_the_same_trials_on_held_out_images(probed):
    _, folder = probed
    rates = json.loads((folder / "output" / "rates.json").read_text())
    assert set(rates) == {*BASELINES, *POOLED}
    for label, chosen in rates.items():
        tried = {(t["rate"], t["weight_decay"]): t["validation_top1"] for t in chosen["trials"]}
        assert set(tried) == {(0.03, 1e-3), (0.1, 1e-3)}
        assert tried[chosen["rate"], chosen["weight_decay"]] == max(tried.values())
        for rate, decay in tried:
            name = f"{label}-rate{rate:g}-decay{decay:g}-seed1000"
            trial = RunDirectory(folder / "output" / "tuning" / name)
            assert trial.read_config().data.evaluate == "validation"
            assert trial.read_summary()["evaluated"] == "validation"


def test_roots_that_differ_in_their_gradient_are_one_line(probed):
    _, folder = probed
    assert "exact / svd" in json.loads((folder / "output" / "summary.json").read_text())["the_same"]
    histories = [
        RunDirectory(folder / "output" / "runs" / f"{name}-seed0").read_metrics()
        for name in ("exact", "svd")
    ]
    for one, other in zip(*histories, strict=True):
        assert (one["method"], other["method"]) == ("exact", "svd")
        assert one["test_loss"] == other["test_loss"]


def test_the_same_command_makes_what_is_missing_alone(probed, monkeypatch):
    arguments, folder = probed
    runs = folder / "output" / "runs"
    before = {path.name: RunDirectory(path).read_metrics() for path in runs.iterdir()}
    stamps = {path.name: (path / "summary.json").stat().st_mtime_ns for path in runs.iterdir()}
    for name in ("exact-seed1", "dropcov-seed0"):
        shutil.rmtree(runs / name)
    monkeypatch.setattr(features.FeatureFile, "writer", None)  # nothing is computed again
    monkeypatch.setattr("covpool.experiments.frozen.reduction.train_head", None)
    assert command(*arguments) == 0
    for path in runs.iterdir():
        again = (path / "summary.json").stat().st_mtime_ns != stamps[path.name]
        assert again == (path.name in ("exact-seed1", "dropcov-seed0"))
        for now, then in zip(RunDirectory(path).read_metrics(), before[path.name], strict=True):
            assert {k: v for k, v in now.items() if k not in TIMED} == pytest.approx(
                {k: v for k, v in then.items() if k not in TIMED}
            )


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize("changed", ["images", "weights", "classes"])
def test_runs_of_other_images_or_weights_are_refused(
    changed, dry, probed, images, weights, monkeypatch, capsys
):
    arguments, folder = probed
    picture = next(Path(images).glob("train/*/3.png"))
    file = {"images": picture, "weights": Path(weights), "classes": Path(images) / "classes"}[
        changed
    ]
    before = file.read_bytes() if file.is_file() else b""
    monkeypatch.setattr("covpool.cli.probe.compute", None)
    try:
        if changed == "images":
            file.write_bytes(picture.with_name("4.png").read_bytes())
        elif changed == "weights":
            write_weights(file, seed=1)
        else:
            for split in ("train", "test"):
                (Path(images) / split / picture.parent.name).rename(Path(images) / split / "a-name")
        assert command(*arguments, *dry) == 2
    finally:
        if changed == "classes":
            for split in ("train", "test"):
                (Path(images) / split / "a-name").rename(Path(images) / split / picture.parent.name)
        else:
            file.write_bytes(before)
    told = capsys.readouterr().err.strip()
    assert "other images or weights" in told
    assert str(folder / "output") in told
    assert "\n" not in told


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_other_options_than_those_of_the_runs_are_refused_before_any_work(
    dry, probed, monkeypatch, capsys
):
    arguments, _ = probed
    monkeypatch.setattr("covpool.cli.probe.Extractor", None)
    assert command(*arguments, "--epochs", "3", *dry) == 2
    told = capsys.readouterr().err.strip()
    assert "was begun with train.epochs 2, not 3" in told
    assert "\n" not in told


def test_a_dry_run_tells_sizes_time_and_disk_and_writes_nothing(images, weights, tmp_path, capsys):
    options = ["--output", str(tmp_path / "o"), "--features", str(tmp_path / "f"), "--dry-run"]
    options += ["--poolings", "isqrt-cov,gem"]
    assert command("probe", images, "--model.init_from", weights, *OPTIONS, *options) == 0
    told = capsys.readouterr().out
    # 27 training images, as many mirror images and 12 test images; 8 channels of 4×4 positions.
    assert "66 maps 8×4×4" in told
    assert "isqrt-cov: 4 trials and runs" in told
    assert "MB free" in told
    assert not list(tmp_path.iterdir())


BAD = {
    "--poolings isqrt-cof": "isqrt-cov",
    "--rates 0,1": "--rates '0,1' must be numbers above 0",
    "--rates often": "--rates 'often'",
    "--decays -1": "--decays '-1'",
    "--stages first": "'first' is no stage",
    "--stages 7": "stage",
    "--reduction none": "--reduction must be shared or own",
    "--seeds 0": "--seeds must be at least 1",
    "--optim.name adamw": "optim.name 'adamw' cannot be used here",
    "--optim.clip_norm 5": "optim.clip_norm 5.0 would have no effect here",
    "--optim.trained all": "optim.trained 'all' cannot be used here",
    "--data.augment shift": "data.augment 'shift' cannot be used here",
    "--data.evaluate validation": "data.evaluate 'validation' cannot be used here",
    "--data.mixup 0.2": "data.mixup 0.2 would have no effect here",
    "--model.method exact": "--poolings says what is compared",
    "--train.devices 2": "train.devices 2 cannot be used here",
    "--learning-rate 1": "did you mean",
    "--output .": "is not a probe's",
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_is_told_in_one_line(words, images, weights, tmp_path, monkeypatch, capsys):
    (tmp_path / "kept.txt").write_text("kept")
    monkeypatch.chdir(tmp_path)
    arguments = ["probe", images, "--model.init_from", weights, *OPTIONS, *words.split()]
    assert command(*arguments) == 2
    told = capsys.readouterr().err.strip()
    assert BAD[words] in told
    assert "\n" not in told
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_random_weights_are_refused(images, capsys):
    assert command("probe", images, *OPTIONS) == 2
    needed = "probe needs pretrained weights: add --model.pretrained true or --model.init_from PATH"
    assert needed in capsys.readouterr().err


def test_a_path_that_is_not_there_is_told_before_missing_weights(capsys):
    assert command("probe", "nowhere") == 2
    assert "data.root 'nowhere' does not exist" in capsys.readouterr().err


def test_a_pooling_whose_vectors_do_not_fit_is_refused(
    images, weights, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("covpool.cli.probe_request.free_bytes", lambda folder: 100)
    options = ["--output", str(tmp_path / "o"), "--features", str(tmp_path / "f")]
    assert command("probe", images, "--model.init_from", weights, *OPTIONS, *options) == 2
    assert "model.reduced_channels" in capsys.readouterr().err


# Heads.


def settings(**optim):
    config = RunConfig.from_dict({"data": {"batch_size": 8}, "train": {"epochs": 3}})
    optim = {"learning_rate": 0.05, "weight_decay": 1e-2, **optim}
    return replace(config, optim=replace(config.optim, **optim))


def made_examples(features=12, classes=5, shape=(), train=30, test=11):
    generator = np.random.default_rng(0)
    array = generator.standard_normal((2 * train + test, features, *shape), dtype=np.float32)
    labels = torch.from_numpy(generator.integers(classes, size=train + test))
    return Examples(
        array=array,
        train=torch.arange(train),
        mirror=train,
        labels=labels[:train],
        test=torch.arange(2 * train, 2 * train + test),
        test_labels=labels[train:],
        classes=classes,
    )


def alone(examples, config):
    """The classifier trained by itself, with torch's optimiser."""
    torch.manual_seed(heads.combine_seeds(config.train.seed))
    head = Head(None, examples.array.shape[1], examples.classes)
    head.measure(examples)
    return train_head(examples, head, config, lambda: None)


@pytest.mark.parametrize("budget", [1 << 30, 1])
def test_classifiers_trained_at_once_equal_those_trained_alone(budget, monkeypatch):
    monkeypatch.setattr(heads, "BUDGET", budget)
    base = settings(label_smoothing=0.1, classifier_multiplier=2.0)
    configs = [
        replace(
            base,
            optim=replace(base.optim, learning_rate=rate, weight_decay=decay),
            train=replace(base.train, seed=seed),
        )
        for seed in (0, 1)
        for rate, decay in ((0.05, 1e-2), (0.2, 0.0))
    ]
    together = train_linear(made_examples(), configs, lambda: None)
    for config, found in zip(configs, together, strict=True):
        expected = alone(made_examples(), config)
        assert torch.equal(found.confusion, expected.confusion)
        for ours, theirs in zip(found.history, expected.history, strict=True):
            for name in theirs.keys() - {"method", *TIMED}:
                assert ours[name] == pytest.approx(theirs[name], rel=2e-5)
    losses = {result.history[-1]["train_loss"] for result in together}
    assert len(losses) == len(configs)


def test_one_that_diverges_leaves_the_others_alone():
    configs = [settings(), settings(learning_rate=1e30), settings()]
    found = train_linear(made_examples(), configs, lambda: None)
    assert "not finite" in found[1].reason
    assert [result.reason for result in found[::2]] == ["", ""]
    assert found[0].history[-1]["test_loss"] == pytest.approx(
        alone(made_examples(), settings()).history[-1]["test_loss"], rel=1e-5
    )


def test_seeds_pair_the_order_and_the_mirror_images_of_all_poolings():
    config = settings()
    one, other = made_examples(12), made_examples(7)
    for epoch in (0, 1):
        orders = [[rows for rows, _ in each.epoch(config, epoch)] for each in (one, other)]
        assert all(torch.equal(*rows) for rows in zip(*orders, strict=True))
    seen = torch.cat([rows for rows, _ in one.epoch(config, 0)])
    assert len(set((seen % 30).tolist())) == len(seen)  # each image once
    assert 0 < (seen >= 30).sum() < len(seen)  # some as their mirror images
    changed = replace(config, train=replace(config.train, seed=1))
    again = torch.cat([rows for rows, _ in one.epoch(changed, 0)])
    assert not torch.equal(seen, again)


def test_what_is_standardised_keeps_its_directions():
    vectors = torch.randn(40, 6) * 3 + 5
    layer = heads.Standardise(6)
    layer.measure(vectors)
    found = layer(vectors)
    assert found.mean(0).abs().max() < 1e-4
    assert found.square().sum(1).mean().sqrt() == pytest.approx(heads.LENGTH, rel=1e-5)
    ratio = found / (vectors - vectors.mean(0))
    torch.testing.assert_close(ratio, ratio[:1, :1].expand_as(ratio), rtol=1e-3, atol=1e-3)
    layer.measure(torch.ones(4, 6))  # no pooling at all is told from another by its scale
    assert not layer(torch.ones(4, 6)).any()


# Features.


@pytest.fixture
def job(images, weights):
    return prepare(job_config(images, weights))


def job_config(images, weights, **model):
    options = {group: dict(fields) for group, fields in PROBED.items()}
    options["data"] |= {"root": images, "image_size": 16, "batch_size": 8}
    options["model"] |= {
        "method": "gap",
        "init_from": str(weights),
        "reduced_channels": 4,
        "backbone_options": {"width": 8},
        **model,
    }
    options["train"] |= {"epochs": 2, "threads": 1, "accelerator": "cpu"}
    return RunConfig.from_dict(options)


def files_of(job, cache):
    extractor, views = Extractor(job, [None]), Views.of(job)
    files = feature_files(extractor, views, job.config, cache, views.digest())
    return extractor, views, files


def test_features_are_those_of_the_network_for_both_mirror_images(job, tmp_path):
    extractor, views, files = files_of(job, tmp_path)
    compute(extractor, views, files, lambda done, total: None)
    maps, count = files[0].open(), len(job.splits.train)
    assert (files[0].whole, maps.shape[0]) == (True, 2 * count + len(job.splits.test))
    images = torch.stack([views.train[number][0] for number in range(count)])
    with torch.no_grad():
        for first, own in ((0, images), (count, images.flip(-1))):
            expected = job.model.eval().forward_features(own).numpy()
            np.testing.assert_allclose(maps[first : first + count], expected, atol=1e-5)


def test_features_that_are_stopped_go_on_where_they_were(job, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "BATCH", 8)
    extractor, views, files = files_of(job, tmp_path / "whole")
    compute(extractor, views, files, lambda done, total: None)
    _, _, stopped = files_of(job, tmp_path / "stopped")
    seen = []

    def stop(done, total):
        seen.append(done)
        if len(seen) == 3:
            stopped[0].note(done)
            raise Interrupted(15)

    with pytest.raises(Interrupted):
        compute(extractor, views, stopped, stop)
    assert stopped[0].done == 24
    later = []
    compute(extractor, views, stopped, lambda done, total: later.append(done))
    assert later[0] == 32
    np.testing.assert_array_equal(stopped[0].open(), files[0].open())


def test_a_request_to_stop_at_the_last_batch_is_heard(job, tmp_path):
    extractor, views, files = files_of(job, tmp_path)

    def ask(done, total):
        if done == total:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        compute(extractor, views, files, ask)
    assert files[0].whole


def test_a_request_to_stop_after_the_last_step_of_the_reduction_is_heard(
    images, weights, tmp_path, monkeypatch, capsys
):
    asked = []

    def ask(*given):
        asked.append(given)
        if len(asked) == 3:  # the last: that of the trials, and one for each of two seeds
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("covpool.cli.probe.Reduction.learned", ask)
    options = ["--output", str(tmp_path / "o"), "--features", str(tmp_path / "f")]
    arguments = ["probe", images, "--model.init_from", weights, *OPTIONS, *options]
    assert command(*arguments) == 128 + signal.SIGTERM
    assert not (tmp_path / "o" / "tuning").exists()


def test_a_change_of_what_features_are_made_of_is_noticed(images, weights, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(images, copy)

    def folder(root, own=weights, **data):
        config = job_config(str(root), own)
        config = replace(config, data=replace(config.data, **data))
        return files_of(prepare(config), tmp_path / "cache")[2][0].folder

    same = folder(images)
    assert folder(copy) == same  # content counts, not the place
    assert folder(images, write_weights(tmp_path / "others.pth", seed=1)) != same
    assert folder(images, image_size=12) != same
    assert folder(images, augment="none") != same
    picture = next(Path(copy).glob("train/*/3.png"))
    picture.write_bytes(next(Path(copy).glob("train/*/4.png")).read_bytes())
    assert folder(copy) != same


def test_a_damaged_file_of_features_is_computed_anew(job, tmp_path):
    extractor, views, files = files_of(job, tmp_path)
    compute(extractor, views, files, lambda done, total: None)
    (files[0].folder / features.MAPS).write_bytes(b"nonsense")
    assert files[0].done == 0
    compute(extractor, views, files, lambda done, total: None)
    assert files[0].whole


# Plans.


def frozen_of(job, cache, *, shared=True):
    extractor, views, files = files_of(job, cache)
    compute(extractor, views, files, lambda done, total: None)
    count = len(job.splits.train)
    held = tuple(range(0, count, 5))
    return Frozen(
        features=files[0],
        name="textures",
        classes=job.splits.classes,
        labels=tuple(job.splits.train.labels),
        test_labels=tuple(job.splits.test.labels),
        kept=tuple(number for number in range(count) if number not in held),
        held=held,
        mirrored=True,
        reduction=job.config if shared else None,
    )


def study_of(config, arms, rate=0.1):
    return Study(
        name="probe",
        title="Poolings",
        arms=tuple(arms),
        references=(arms[0],),
        seeds=2,
        rates=(rate,),
        decays=(1e-3,),
        config=config,
    )


def test_trials_meet_neither_test_images_nor_held_out_ones_in_training(job, tmp_path):
    frozen = frozen_of(job, tmp_path)
    examples = frozen.examples(frozen.features.open(), trial=True)
    assert set(examples.test.tolist()) == set(frozen.held)
    assert not set(examples.train.tolist()) & set(frozen.held)
    config = replace(job.config, data=replace(job.config.data, batch_size=4))
    drawn = torch.cat([rows for rows, _ in examples.epoch(config, 0)]) % len(frozen.labels)
    assert set(drawn.tolist()) <= set(frozen.kept)
    whole = frozen.examples(frozen.features.open(), trial=False)
    assert len(whole.train) == len(frozen.labels)
    assert min(whole.test) == 2 * len(frozen.labels)


def test_the_matched_average_has_the_parameters_of_a_covariance(job, tmp_path):
    frozen, counts = frozen_of(job, tmp_path), {}
    for label in ("gap-matched", "gap-reduced-matched", "covariance"):
        (arm,) = (each for each in chosen_arms(label) if each.label == label)
        made = made_of(arm.config(job.config), frozen)
        head = made.head(made.pool(), 3, job.config)
        own = sum(parameter.numel() for parameter in head.parameters())
        counts[label] = own + made.reduction_parameters
    for label in ("gap-matched", "gap-reduced-matched"):
        step = 8 + 3 + 3  # of one more hidden feature
        assert abs(counts[label] - counts["covariance"]) <= step / 2 + 1


def test_each_may_learn_its_own_reduction(job, tmp_path):
    frozen = frozen_of(job, tmp_path / "f", shared=False)
    arms = [Arm("exact"), Arm("svd-pade"), Arm("gap")]
    made = tuning_runs(study_of(job.config, arms), tmp_path / "o", threads=1)
    bundles = bundled(made, frozen)
    assert [len(bundle.members) for bundle in bundles] == [1, 1, 1]
    for bundle in bundles:
        make_bundle(bundle)
    found = {run.arm.label: run.summary() for run in made}
    assert {summary["status"] for summary in found.values()} == {"finished"}
    # Reduction, classifier of the triangle; classifier of the mean.
    assert found["exact"]["parameters"] == 8 * 4 + 2 * 4 + (10 + 1) * 3
    assert found["gap"]["parameters"] == (8 + 1) * 3


@pytest.mark.parametrize("at_once", [1, 40, 1 << 20])
def test_hits_are_counted_in_parts_of_a_bounded_size(monkeypatch, at_once):
    monkeypatch.setattr(heads, "COUNTED_AT_ONCE", at_once)
    logits, labels = torch.randn(2, 24, 5), torch.randint(5, (2, 24))
    sums = heads._Sums(2)
    for part, own in zip(logits.split(4, 1), labels.split(4, 1), strict=True):
        sums.add(part, own)
        assert sum(waiting.numel() for waiting, _ in sums.waiting) < at_once
    for head in range(2):
        found = sums.of(head, "test")
        ranks = logits[head].argsort(-1, descending=True)
        assert found["test_top1"] == (ranks[:, 0] == labels[head]).double().mean()
        loss = torch.nn.functional.cross_entropy(logits[head], labels[head]).item()
        assert found["test_loss"] == pytest.approx(loss, rel=1e-5)
        assert sums.confusion(head).sum() == 24


def of_seed(frozen, seed, trial=False):
    return Reduction(frozen=frozen, channels=4, seed=seed, trial=trial)


def test_each_seed_has_a_reduction_that_its_poolings_share(job, tmp_path):
    frozen, seen = frozen_of(job, tmp_path / "f"), {}
    reduction = partial(of_seed, frozen)
    for seed, trial in ((0, False), (1, False), (0, True)):
        layer = reduction(seed, trial).learned(lambda: None)
        seen[seed, trial] = layer[0].weight
    assert not any(torch.equal(seen[0, False], seen[other]) for other in ((1, False), (0, True)))
    arms = [Arm("exact"), Arm("svd"), Arm("max"), Arm("gap")]
    rates = {arm.label: {"rate": 0.1, "weight_decay": 1e-3} for arm in arms}
    runs = final_runs(study_of(job.config, arms), rates, tmp_path / "o", threads=1)
    bundles = bundled(runs.values(), frozen)
    # Without a reduction all seeds have the same vectors, and are trained at once.
    names = {bundle.name for bundle in bundles}
    assert names == {"exact / svd seed 0", "exact / svd seed 1"} | {
        *(f"max seed {seed}" for seed in (0, 1)),
        "gap, 2 seeds",
    }
    for bundle in bundles:
        make_bundle(bundle)
    maps, one = torch.from_numpy(np.array(frozen.features.open())), Arm("max")
    with torch.no_grad():
        for seed in (0, 1):
            learned = reduction(seed).learned(lambda: None)
            examples = frozen.examples(learned(maps).amax((2, 3)).numpy(), trial=False)
            config = runs[one, seed].config
            (expected,) = train_linear(examples, [config], lambda: None)
            found = runs[one, seed].summary()["final"]
            assert found["test_loss"] == pytest.approx(expected.history[-1]["test_loss"], rel=1e-5)


def test_reduced_maps_are_computed_once_and_forgotten(job, tmp_path, monkeypatch):
    frozen = frozen_of(job, tmp_path / "f")
    layer = of_seed(frozen, 0).learned(lambda: None)
    with torch.no_grad():
        expected = layer(torch.from_numpy(np.array(frozen.features.open())))
    found = of_seed(frozen, 0).maps(lambda: None)
    assert maps_bytes(frozen, 4) == found.nbytes
    torch.testing.assert_close(torch.from_numpy(np.array(found)), expected)
    with monkeypatch.context() as patch:
        patch.setattr("covpool.experiments.frozen.reduction.applied", None)
        assert np.array_equal(of_seed(frozen, 0).maps(lambda: None), found)
    weights = of_seed(frozen, 0).weights
    forget_maps(frozen.features.folder)
    assert {file.name for file in weights.parent.iterdir()} == {
        "maps.npy",
        "done.json",
        weights.name,
    }
    assert np.array_equal(of_seed(frozen, 0).maps(lambda: None), found)


def test_runs_with_one_reduction_for_all_seeds_are_refused(job, tmp_path):
    frozen = frozen_of(job, tmp_path / "f")
    own = replace(frozen, reduction=None)
    run = tmp_path / "o" / "runs" / "exact-seed0"
    run.mkdir(parents=True)
    RunDirectory(run).write_config(job.config)
    own.mark(run)  # as it was before there was a reduction for each seed
    with pytest.raises(ValueError, match="an older covpool made them"):
        frozen.check_runs(tmp_path / "o")


def test_a_request_to_stop_after_the_last_run_is_heard(job, tmp_path, monkeypatch):
    frozen = frozen_of(job, tmp_path / "f", shared=False)
    made = tuning_runs(study_of(job.config, [Arm("exact")]), tmp_path / "o", threads=1)
    monkeypatch.setattr(grid, "_pool", lambda jobs: Inline())

    def ask(state, ended):
        if ended is not None:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        grid.run_grid(bundled(made, frozen), 1, ask, make_bundle)
    assert made[0].settled()


def test_all_is_every_pooling_and_the_averages():
    assert [arm.label for arm in chosen_arms("all")][:4] == BASELINES
    assert {arm.label for arm in chosen_arms("all")} == {*POOLINGS, *BASELINES}


def test_the_default_poolings_are_in_the_table():
    assert set(parsers.DEFAULT_POOLINGS.split(",")) <= set(POOLINGS)


@pytest.mark.slow
def test_every_pooling_goes_through(job, tmp_path):
    config = replace(job.config, model=replace(job.config.model, reduced_channels=32))
    job = replace(job, config=config)
    frozen = frozen_of(job, tmp_path / "f")
    made = tuning_runs(study_of(config, chosen_arms("all"), 0.03), tmp_path / "o", threads=1)
    for bundle in bundled(made, frozen):
        make_bundle(bundle)
    assert {run.summary()["status"] for run in made} == {"finished"}


@pytest.mark.slow
def test_several_stages_in_one_pass_are_those_of_cut_networks(images, weights):
    def options(stage):
        config = job_config(images, weights, backbone="mobilenetv3_small_050", init_from=None)
        model = replace(
            config.model, backbone_options={}, feature_stage=stage, reduced_channels="auto"
        )
        data = replace(config.data, image_size=64)
        optim = replace(config.optim, trained="all")
        return replace(config, model=model, data=data, optim=optim)

    whole = prepare(options(None))
    together = Extractor(whole, [2, None])
    x = torch.randn(2, 1, 64, 64)
    last, stage = together(x)[1], together(x)[0]
    cut = prepare(options(2))
    cut.model.backbone.load_state_dict(whole.model.backbone.state_dict(), strict=False)
    torch.testing.assert_close(Extractor(cut, [2])(x)[0], stage)
    torch.testing.assert_close(Extractor(whole, [None])(x)[0], last)
    assert together.shapes[0][0] != together.shapes[1][0]


@pytest.mark.parametrize("reduced", ["auto", 4, None])
@pytest.mark.parametrize("method", ["exact", "gaussian", "bcnn", "gap"])
def test_what_a_probes_head_is_made_of_is_what_the_network_has(method, reduced, monkeypatch):
    """By one rule: where the network's changes, the probe's does."""
    monkeypatch.setattr("covpool.models.network.REDUCED_CHANNELS", 6)
    for gap_reduction, hidden in (
        (False, None),
        (False, 5),
        *[(True, "matched")] * (method == "gap"),
    ):
        head = {"reduced_channels": reduced, "gap_reduction": gap_reduction}
        head |= {"method": method, "hidden_features": hidden}
        model = covpool.create_model("small-convnet", 3, width=8, **head)
        plan = HeadPlan.of(RunConfig(model=ModelConfig(**head)), model.num_features, 3)
        reduction = model.pool.reduction
        made = None if isinstance(reduction, torch.nn.Identity) else reduction[0].out_channels
        width = (
            None if isinstance(model.hidden, torch.nn.Identity) else model.hidden[0].out_features
        )
        assert (plan.reduced, plan.hidden) == (made, width)
