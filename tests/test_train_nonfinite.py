"""A loss or gradient that is not finite: the run stops and says why, or leaves the step out."""

import json

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import MixedPrecision

from covpool.cli import main
from covpool.data import Images
from covpool.models import create_model
from covpool.train.divergence import explain_forward, explain_gradient
from covpool.train.module import ClassificationModule
from covpool.train.run_directory import RunDirectory
from covpool.train.sampling import TrainBatchSampler
from test_train_resume import RUN, assert_same, interrupt_at, load
from tiny_images import make_tiny_images

SECOND_EPOCH = list(TrainBatchSampler(27, 8, seed=0, step=lambda: 3))
SKIP = ("--on-nonfinite", "skip")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return str(make_tiny_images(tmp_path_factory.mktemp("images")))


@pytest.fixture
def poisoned(monkeypatch):
    """An image that is infinite in the second step of the second epoch."""
    original = Images.__getitem__

    def get(self, index):
        image, label = original(self, index)
        return (image / 0 if index == SECOND_EPOCH[1][4] else image), label

    monkeypatch.setattr(Images, "__getitem__", get)


def train(images, path, *options):
    return main(["train", "--data.root", images, "--output", str(path), *RUN, *options])


def test_a_bad_image_stops_the_run_by_its_name(images, poisoned, tmp_path, capsys):
    path = tmp_path / "run"
    assert train(images, path, "--train.checkpoint_steps", "1") == 1
    error = capsys.readouterr().err
    assert "training diverged in epoch 2, step 2 of 3" in error
    assert "last.ckpt holds the last good state" in error
    assert "the first layer whose output is not finite is backbone.features.0 (Conv2d)" in error
    order = sorted((tmp_path.parent / images).glob("train/*/*.png"))
    assert f"the input itself is not finite in {order[SECOND_EPOCH[1][4][1]]}" in error
    assert load(path)["global_step"] == 4
    assert json.loads((path / "summary.json").read_text())["status"] == "diverged"


def test_a_skipped_step_changes_nothing_but_the_count(
    images, poisoned, tmp_path, monkeypatch, caplog
):
    states, original = {}, ClassificationModule.on_train_batch_end

    def note(self, *arguments):
        state = self.trainer.optimizers[0].state
        momenta = [state[p]["momentum_buffer"].clone() for p in self.model.parameters()]
        weights = [*self.model.state_dict().values(), *self.average.state_dict().values()]
        states[self.global_step] = [*(value.clone() for value in weights), *momenta]
        original(self, *arguments)

    monkeypatch.setattr(ClassificationModule, "on_train_batch_end", note)
    path = tmp_path / "run"
    assert train(images, path, *SKIP, "--optim.weight_average", "0.8") == 0
    assert all(map(torch.equal, states[4], states[5]))
    assert not all(map(torch.equal, states[5], states[6]))
    assert "skipped epoch 2, step 2 of 3" in caplog.text
    rows = RunDirectory(path).read_metrics()
    assert [row["skipped_steps"] for row in rows] == [0, 1, 0]
    assert json.loads((path / "summary.json").read_text())["skipped_steps"] == 1
    assert all(torch.isfinite(value).all() for value in load(path)["state_dict"].values())


def test_resuming_after_a_skipped_step_is_exact(images, poisoned, tmp_path, monkeypatch):
    assert train(images, tmp_path / "whole", *SKIP) == 0
    interrupt_at((5,), monkeypatch)
    assert train(images, tmp_path / "run", *SKIP) == 130
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert_same(load(tmp_path / "run"), load(tmp_path / "whole"))


@pytest.fixture
def bad_gradient(monkeypatch):
    """A loss whose value is as ever and whose gradient is NaN, in the fifth step."""
    original = ClassificationModule.training_step

    def step(self, batch, batch_idx):
        loss = original(self, batch, batch_idx)
        if self.global_step == 4:
            loss = loss + (self.model.classifier.bias * 0).sqrt().sum()
        return loss

    monkeypatch.setattr(ClassificationModule, "training_step", step)


@pytest.mark.parametrize("clip", ["1", "null"])
def test_a_bad_gradient_stops_the_run_by_its_layer(clip, images, bad_gradient, tmp_path, capsys):
    path = tmp_path / "run"
    options = ("--optim.clip_norm", clip, "--train.checkpoint_steps", "1")
    assert train(images, path, *options) == 1
    error = capsys.readouterr().err
    assert "epoch 2, step 2 of 3" in error
    assert "the gradient of classifier.bias is not finite" in error
    assert "the worst spectrum is that of" in error
    assert load(path)["global_step"] == 4


def test_a_bad_gradient_is_skipped(images, bad_gradient, tmp_path):
    path = tmp_path / "run"
    assert train(images, path, *SKIP) == 0
    assert [row["skipped_steps"] for row in RunDirectory(path).read_metrics()] == [0, 1, 0]


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = create_model("small-convnet", 3, in_chans=1, image_size=16, width=8, method="exact")
    return model.train()


def test_the_first_layer_is_named(model):
    with torch.no_grad():
        model.backbone.features[4].weight[0] = torch.nan
        model.classifier.weight[0] = torch.nan
    told = explain_forward(model, torch.rand(2, 1, 16, 16), ["a.png", "b.png"])
    assert "the first layer whose output is not finite is backbone.features.4 (Conv2d)" in told
    assert "the pooled features are not finite in a.png, b.png" in told
    assert "spectrum" not in told


def test_the_worst_spectrum_is_that_of_the_worst_conditioned_image(model):
    images = torch.rand(3, 1, 16, 16)
    images[1] *= torch.linspace(0, 1, 16) > 0.8  # few positions that differ
    with torch.no_grad():
        model.classifier.weight[0] = torch.nan
    features = []
    model.pool.reduction.register_forward_hook(lambda *call: features.append(call[2].detach()))
    told = explain_forward(model, images, ["a", "b", "c"])
    assert "the first layer whose output is not finite is classifier (Linear)" in told
    spectra = [np.linalg.eigvalsh(np.cov(f.flatten(1).double(), bias=True)) for f in features[0]]
    ranks = [int((s > 8 * 2**-52 * s[-1]).sum()) for s in spectra]
    conditions = [s[-1] / s[0] if r == 8 else np.inf for s, r in zip(spectra, ranks, strict=True)]
    worst = min(range(3), key=lambda i: (-conditions[i], ranks[i]))
    gap = min(np.diff(spectra[worst]) / spectra[worst][1:])
    which = f"{'abc'[worst]}: condition number {conditions[worst]:.3g}"
    assert f"the worst spectrum is that of {which}, " in told
    assert f"rank {ranks[worst]} of 8" in told
    assert ranks[worst] < 8 or f"smallest relative gap {gap:.3g}" in told


def test_the_gradient_nearest_to_the_loss_is_named(model):
    for name, parameter in model.named_parameters():
        bad = name.startswith(("backbone.features.0", "backbone.features.1"))
        parameter.grad = torch.full_like(parameter, torch.nan if bad else 1)
    assert explain_gradient(model).startswith("the gradient of backbone.features.1.bias")


def test_float16s_scaler_takes_a_skipped_step_as_one_of_its_own(
    images, poisoned, tmp_path, monkeypatch
):
    """Lightning has no float16 on a CPU, PyTorch has."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)

    def make(*, precision, plugins, **options):
        return Trainer(plugins=[*plugins, plugin], **options)

    monkeypatch.setattr("covpool.train.trainer.Trainer", make)
    path = tmp_path / "run"
    assert train(images, path, *SKIP, "--model.schedule", "0:isqrt-cov") == 0
    assert [row["skipped_steps"] for row in RunDirectory(path).read_metrics()] == [0, 1, 0]
    assert scaler.get_scale() == 512
    assert all(torch.isfinite(value).all() for value in load(path)["state_dict"].values())
