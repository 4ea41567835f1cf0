"""Hybrid training, a frozen backbone, an average of the weights: alone and across a resumption."""

import math

import pytest
import torch
from timm.data.mixup import Mixup

import quick
from covpool.cli import main
from covpool.data import DataError, Images
from covpool.data.augmentation import MIXING, seeded
from covpool.train.job import prepare
from covpool.train.loaders import ImageDataModule
from covpool.train.module import ClassificationModule
from covpool.train.recorder import PROGRESS
from covpool.train.run_directory import RunDirectory
from covpool.train.weight_average import TRAINED
from test_train_resume import assert_same, interrupt_at, load
from tiny_images import OPTIONS, make_tiny_images

STEPS = [
    *OPTIONS,
    *("--train.epochs", "3"),
    *("--model.reduced_channels", "6"),
    *("--optim.decay", "step"),
    *("--optim.milestones", "[1, 2]"),
]
"""Three epochs of 3 steps; the last decay is at epoch 2, step 6."""

PROTOCOLS = {
    "hybrid": ["--model.hybrid", "svd-pade"],
    "average": ["--optim.weight_average", "0.8", "--model.drop_rate", "0.2"],
    "timm": [
        *("--optim.name", "adamw", "--optim.layer_decay", "0.7"),
        *("--optim.decay_norm_and_bias", "false", "--optim.warmup_epochs", "0.5"),
        *("--optim.decay", "tanh", "--optim.milestones", "[]"),
        *("--data.mixup", "0.4", "--data.cutmix", "1", "--train.accumulate", "2"),
        *("--data.random_erasing", "0.5", "--data.erasing_options.mode", "pixel"),
    ],
    "orthogonal": [
        *("--optim.reduction_steps", "[nog,olr]", "--train.accumulate", "2"),
        *("--optim.learning_rate", "1.0"),
    ],
    "classifier": ["--optim.trained", "classifier", "--model.init_from", "{source}"],
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return str(make_tiny_images(tmp_path_factory.mktemp("images")))


@pytest.fixture(scope="module")
def source(images, tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "run"
    options = [*STEPS, "--train.epochs", "3", "--train.seed", "7"]
    assert main(["train", "--data.root", images, "--output", str(path), *options]) == 0
    return path


def command(images, source, path, protocol):
    options = [option.format(source=source) for option in PROTOCOLS[protocol]]
    return ["train", "--data.root", images, "--output", str(path), *STEPS, *options]


@pytest.fixture(scope="module")
def uninterrupted(images, source, tmp_path_factory):
    paths = {name: tmp_path_factory.mktemp(name) / "run" for name in PROTOCOLS}
    for name, path in paths.items():
        assert main(command(images, source, path, name)) == 0
    return paths


@pytest.mark.parametrize("protocol", PROTOCOLS)
@quick.parametrize("steps", [[2, 5], [3, 6], [7]], keep=[[3, 6]])
def test_resumed_equals_uninterrupted(
    protocol, steps, images, source, uninterrupted, tmp_path, monkeypatch
):
    interrupt_at(steps, monkeypatch)
    path = tmp_path / "run"
    assert main(command(images, source, path, protocol)) == 130
    for _ in steps:
        status = main(["train", "--resume", str(path)])
    assert status == 0
    here, reference = load(path), load(uninterrupted[protocol])
    assert_same(here, reference)
    for name, value in reference.get(TRAINED, {}).items():
        assert torch.equal(here[TRAINED][name], value), name
    best = [torch.load(p / "best.ckpt", weights_only=True) for p in (path, uninterrupted[protocol])]
    for name, value in best[1]["state_dict"].items():
        assert torch.equal(best[0]["state_dict"][name], value), name


def test_hybrid_training_switches_at_the_last_decay(
    uninterrupted, images, source, tmp_path, capsys
):
    checkpoint = load(uninterrupted["hybrid"])
    methods = [row["method"] for row in checkpoint[PROGRESS]["history"]]
    assert methods == ["isqrt-cov", "isqrt-cov", "svd-pade"]
    assert checkpoint["covpool"]["schedule"] == "0:isqrt-cov,2:svd-pade"
    assert checkpoint["covpool"]["config"]["model"]["hybrid"] == "svd-pade"
    path = tmp_path / "schedule"
    schedule = ["--model.schedule", "0:isqrt-cov,2:svd-pade"]
    options = ["--data.root", images, "--output", str(path), *STEPS, *schedule]
    assert main(["train", *options]) == 0
    assert_same(load(path), checkpoint)
    assert capsys.readouterr().out.count("from epoch 3 on the pooling is svd-pade") == 1


@quick.parametrize(("step", "before", "after"), [(5, 0, 1), (6, 0, 1), (7, 1, 0)], keep=[(6, 0, 1)])
def test_the_switch_is_said_once(
    step, before, after, images, source, tmp_path, monkeypatch, capsys
):
    interrupt_at((step,), monkeypatch)
    told = "from epoch 3 on the pooling is svd-pade"
    assert main(command(images, source, tmp_path / "run", "hybrid")) == 130
    assert capsys.readouterr().out.count(told) == before
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.count(told) == after


def test_the_frozen_part_does_not_change(uninterrupted, source):
    """Its batch statistics included."""
    before = torch.load(source / "best.ckpt", weights_only=True)["state_dict"]
    after = load(uninterrupted["classifier"])
    assert "model.backbone.features.1.running_mean" in before
    for name, value in before.items():
        same = torch.equal(value, after["state_dict"][name])
        assert same == (not name.startswith("model.classifier.")), name
    (optimizer,) = after["optimizer_states"]
    groups = [group["name"] for group in optimizer["param_groups"]]
    assert groups == ["classifier 0", "classifier 1"]  # without and with weight decay


def test_a_frozen_backbone_of_random_weights_is_refused(images, capsys):
    assert main(["train", "--data.root", images, "--optim.trained", "classifier"]) == 2
    assert "give model.init_from PATH or model.pretrained true" in capsys.readouterr().err


def test_the_average_is_that_of_the_weights_after_each_step(images, source, tmp_path, monkeypatch):
    path, original, weights = tmp_path / "run", ClassificationModule.optimizer_step, []

    def optimizer_step(self, *args, **options):
        original(self, *args, **options)
        weights.append({k: v.clone() for k, v in self.model.state_dict().items()})

    monkeypatch.setattr(ClassificationModule, "optimizer_step", optimizer_step)
    assert main(command(images, source, path, "average")) == 0
    assert len(weights) == 9
    checkpoint = load(path)
    for name, value in weights[-1].items():
        assert torch.equal(checkpoint[TRAINED]["model." + name], value)
        average = weights[0][name].double()
        for step in range(2, 10):
            decay = min(0.8, 1 - step ** (-2 / 3))
            average = decay * average + (1 - decay) * weights[step - 1][name].double()
        found = checkpoint["state_dict"]["model." + name]
        if value.is_floating_point():
            torch.testing.assert_close(found, average.float(), rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(found, value)
    assert not torch.equal(
        checkpoint["state_dict"]["model.classifier.weight"],
        checkpoint[TRAINED]["model.classifier.weight"],
    )


def test_the_average_is_what_is_evaluated_and_kept(uninterrupted, images, capsys):
    path = uninterrupted["average"]
    best = torch.load(path / "best.ckpt", weights_only=True)
    assert TRAINED not in best
    assert {name.split(".")[0] for name in best["state_dict"]} == {"model"}
    history = load(path)[PROGRESS]["history"]
    capsys.readouterr()
    assert main(["evaluate", str(path)]) == 0
    final, best = capsys.readouterr().out.splitlines()
    assert f"loss {history[-1]['test_loss']:.4f}" in final
    best_row = max(history, key=lambda row: row["test_top1"])
    assert f"loss {best_row['test_loss']:.4f}" in best
    assert all(math.isfinite(row["test_loss"]) for row in history)


def test_an_image_damaged_while_the_average_is_evaluated(
    images, source, uninterrupted, tmp_path, monkeypatch
):
    path, original, met = tmp_path / "run", Images.__getitem__, []

    def damaged(self, index):
        if self.augment is None and index == 9:
            met.append(index)
            if len(met) == 2:
                raise DataError("cannot read image a/b.png")
        return original(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(Images, "__getitem__", damaged)
        assert main(command(images, source, path, "average")) == 2
    assert main(["train", "--resume", str(path)]) == 0
    assert_same(load(path), load(uninterrupted["average"]))


def test_batches_are_mixed_as_timm_mixes_them(images, tmp_path, monkeypatch):
    seen, original = [], ClassificationModule.training_step

    def training_step(self, batch, batch_idx):
        seen.append((self.global_step, *(tensor.clone() for tensor in batch)))
        return original(self, batch, batch_idx)

    monkeypatch.setattr(ClassificationModule, "training_step", training_step)
    path, options = tmp_path / "run", ["--data.mixup", "0.4", "--data.cutmix", "1"]
    command = ["train", "--data.root", images, "--output", str(path), *OPTIONS, *options]
    assert main(command) == 0
    assert [step for step, *_ in seen] == list(range(6))
    config = RunDirectory(path).read_config()
    data = ImageDataModule(prepare(config).splits, config)
    mixup = Mixup(0.4, 1.0, label_smoothing=0.0, num_classes=3)
    for step, mixed, shares in seen:
        (plain, labels), *_ = data.loader_of(lambda at=step: at)
        before = plain.clone()
        with seeded(config.train.seed, step, 0, 0, MIXING):
            wanted = mixup(plain, labels)
        assert torch.equal(mixed, wanted[0])
        assert torch.equal(shares, wanted[1])
        assert not torch.equal(mixed, before)
        torch.testing.assert_close(shares.sum(1), torch.ones(8))


def test_an_average_of_sharded_weights_is_refused(images, capsys):
    options = ["--optim.weight_average", "0.9", "--train.strategy", "fsdp"]
    assert main(["train", "--data.root", images, *options]) == 2
    assert "use ddp" in capsys.readouterr().err
