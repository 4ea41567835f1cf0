"""Probes write what they measure once for each step, and the training does not notice them."""

import copy
import json
from types import SimpleNamespace
from typing import get_args, get_type_hints

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from covpool import CovPool2d
from covpool.analysis import feature_fidelity, measure_conditioning, pooled_gradient, summarise
from covpool.analysis.records import QUANTILES, plain
from covpool.analysis.state import watch_pooling
from covpool.cli import main
from covpool.linalg.methods import METHODS
from covpool.train import engine
from covpool.train.config import RunConfig, TrainConfig
from covpool.train.module import ClassificationModule
from covpool.train.probes import (
    ANALYSIS,
    PROBES,
    ConditioningProbe,
    FidelityProbe,
    SmoothnessProbe,
    read_analysis,
)
from covpool.train.recorder import PROGRESS, Recorder
from covpool.train.trainer import make_trainer, quiet_lightning
from tiny_images import OPTIONS, make_tiny_images

RUN = [
    *OPTIONS,
    *("--train.epochs", "3"),
    *("--model.drop_rate", "0.2"),
    *("--model.schedule", "0:isqrt-cov,1:svd-pade"),
    *("--optim.clip_norm", "1"),
    *("--train.checkpoint_steps", "2"),
]
"""Nine steps with dropout, batch norm, clipping and a switch of the method."""

CLOCK = ("seconds", "test_seconds", "images_per_second")


PROBED = ["--train.probes", f"[{','.join(PROBES)}]", "--train.probe_every", "2"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return str(make_tiny_images(tmp_path_factory.mktemp("images")))


def attach(monkeypatch, make):
    """Let every training of the command line have probes with options of their own."""

    def with_probes(config, callbacks, *rest, **options):
        recorders = [each for each in callbacks if isinstance(each, Recorder)]
        probes = make(recorders[0].directory.path) if recorders else []
        return make_trainer(config, [*callbacks, *probes], *rest, **options)

    monkeypatch.setattr(engine, "make_trainer", with_probes)


def train(images, path, *options):
    return main(["train", "--data.root", images, "--output", str(path), *RUN, *options])


def load(path):
    return torch.load(path / "last.ckpt", weights_only=True)


def without_clock(rows):
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in rows]


@pytest.fixture(scope="module")
def plain_run(images, tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "run"
    assert train(images, path) == 0
    return path


@pytest.fixture(scope="module")
def probed_run(images, tmp_path_factory):
    path = tmp_path_factory.mktemp("probed") / "run"
    assert train(images, path, *PROBED) == 0
    return path


def assert_same_training(path, reference):
    one, other = load(path), load(reference)
    assert one["global_step"] == other["global_step"]
    for key, value in other["state_dict"].items():
        assert torch.equal(one["state_dict"][key], value), key
    momenta = [c["optimizer_states"][0]["state"] for c in (one, other)]
    for index, state in momenta[1].items():
        assert torch.equal(momenta[0][index]["momentum_buffer"], state["momentum_buffer"])
    histories = [without_clock(c[PROGRESS]["history"]) for c in (one, other)]
    assert histories[0] == histories[1]


def test_the_training_is_the_same_bit_for_bit(plain_run, probed_run):
    assert (probed_run / ANALYSIS).is_file()
    assert not (plain_run / ANALYSIS).exists()
    assert_same_training(probed_run, plain_run)


def test_rows_name_their_steps(probed_run):
    rows = read_analysis(probed_run)
    assert len(rows) == 5 * len(PROBES)
    for probe in PROBES:
        own = [row for row in rows if row["probe"] == probe]
        assert [row["step"] for row in own] == [0, 2, 4, 6, 8]
        assert [row["epoch"] for row in own] == [1, 1, 2, 3, 3]
        assert [row["method"] for row in own] == [*["isqrt-cov"] * 2, *["svd-pade"] * 3]
        assert all(row["seconds"] > 0 and row["learning_rate"] > 0 for row in own)
        assert not any("error" in row for row in own)


def first_batch(run, monkeypatch, images):
    """The module of a run before its first step, and the batch of that step."""
    config = RunConfig.from_dict(engine.RunDirectory(run).read_config().to_dict())
    job = engine.prepare(config)
    module = job.module()
    module.use_method_of(0)
    found = {}

    def stop(self, batch, batch_idx):
        found["batch"] = batch
        raise KeyboardInterrupt

    monkeypatch.setattr(ClassificationModule, "training_step", stop)
    with quiet_lightning(), pytest.raises((KeyboardInterrupt, SystemExit)):
        make_trainer(config, []).fit(module, datamodule=engine.ImageDataModule(job.splits, config))
    return module, found["batch"]


def test_figures_are_those_of_the_step(images, tmp_path, monkeypatch):
    path = tmp_path / "run"
    assert train(images, path, *PROBED, "--model.drop_rate", "0", "--train.epochs", "2") == 0
    rows = {row["probe"]: row for row in read_analysis(path) if row["step"] == 0}
    with monkeypatch.context() as patch:
        module, (pictures, labels) = first_batch(path, patch, images)
    smoothing = module.config.optim.label_smoothing

    def gradient(model):
        loss = cross_entropy(model(pictures), labels, label_smoothing=smoothing)
        return torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])

    network = module.model.train()
    here = gradient(copy.deepcopy(network))
    quotients = []
    for multiple in (0.5, 1.0, 2.0, 4.0):
        moved = copy.deepcopy(network)
        eta = multiple * rows["smoothness"]["learning_rate"]
        with torch.no_grad():
            for parameter, slope in zip(moved.parameters(), here, strict=True):
                parameter -= eta * slope
        pairs = zip(gradient(moved), here, strict=True)
        change = sum((a - b).double().square().sum() for a, b in pairs)
        length = sum((eta * a).double().square().sum() for a in here)
        quotients.append((change / length).sqrt().item())
    assert rows["smoothness"]["quotients"] == pytest.approx(quotients, rel=1e-3)
    assert rows["smoothness"]["smoothness"] == max(rows["smoothness"]["quotients"])

    with watch_pooling(network) as record:
        loss = cross_entropy(network(pictures), labels, label_smoothing=smoothing)
    expected = measure_conditioning(record.features)
    row = rows["conditioning"]
    assert row["samples"] == len(pictures) == 8
    assert row["positions"] == record.features.shape[-1]
    rank = plain(summarise(expected.of_features.rank))
    assert row["of_features"]["rank"] == rank
    assert list(row["kernels"]) == [row["method"]]
    assert row["of_features"]["effective_rank"]["quantiles"] == pytest.approx(
        summarise(expected.of_features.effective_rank).quantiles, rel=1e-5
    )

    assert record.gradient is None
    loss.backward()
    arriving = pooled_gradient(
        network, lambda: cross_entropy(network(pictures), labels, label_smoothing=smoothing)
    )[1]
    assert torch.allclose(record.gradient, arriving, rtol=1e-4, atol=1e-7)
    row = rows["fidelity"]
    assert list(row["methods"]) == list(METHODS)
    assert row["methods"]["exact"]["relative_distance"]["quantiles"] == [0.0] * len(QUANTILES)
    for name, figures in feature_fidelity(record.features, cotangent=arriving).items():
        distances = row["methods"][name]["relative_distance"]["quantiles"]
        assert distances == pytest.approx(
            summarise(figures.relative_distance).quantiles, rel=1e-3, abs=1e-9
        ), name


def test_resumed_rows_are_those_of_the_uninterrupted_run(images, probed_run, tmp_path, monkeypatch):
    path = tmp_path / "run"
    original = Recorder.on_train_batch_end

    class Killed(BaseException):
        pass

    def hook(self, trainer, module, *rest):
        original(self, trainer, module, *rest)
        if module.global_step == 5:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "on_train_batch_end", hook)
        with pytest.raises(Killed):
            train(images, path, *PROBED)
    # Step 4 was measured, and is taken again: last.ckpt is of the state before it.
    assert load(path)["global_step"] == 4
    assert max(row["step"] for row in read_analysis(path)) == 4
    with (path / ANALYSIS).open("a") as file:
        file.write('{"probe": "smoothness", "st')  # a crash in mid-line
    assert main(["train", "--resume", str(path)]) == 0
    assert without_clock(read_analysis(path)) == without_clock(read_analysis(probed_run))


def test_a_step_too_far_is_reported_and_does_no_harm(images, plain_run, tmp_path, monkeypatch):
    attach(monkeypatch, lambda path: [SmoothnessProbe(path, every=4, multiples=(1e38,))])
    path = tmp_path / "run"
    assert train(images, path) == 0
    rows = read_analysis(path)
    assert [row["step"] for row in rows] == [0, 4, 8]
    assert all("error" in row or row["smoothness"] == "nan" for row in rows)
    assert_same_training(path, plain_run)


class Foreign(LightningModule):
    """Somebody else's module: a dictionary as result, no attribute that is ours."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), CovPool2d(4, None), nn.Linear(10, 2)
        )

    def training_step(self, batch, batch_idx):
        return {"loss": cross_entropy(self.net(batch[0]), batch[1])}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit_foreign(callbacks, module=None):
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(24, 1, 6, 6, generator=generator)
    loader = DataLoader(TensorDataset(pictures, torch.arange(24) % 2), batch_size=4)
    module = module or Foreign()
    with quiet_lightning():
        trainer = Trainer(
            max_epochs=2,
            accelerator="cpu",
            accumulate_grad_batches=2,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, loader)
    return module.state_dict()


def test_in_somebody_elses_training_with_accumulated_gradients(tmp_path):
    expected = fit_foreign([])
    path = tmp_path / "new"
    probes = [
        SmoothnessProbe(path, every=3),
        ConditioningProbe(path, every=3, methods=["svd", "isqrt-cov"]),
        FidelityProbe(path, every=3, samples=2),
    ]
    found = fit_foreign(probes)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    rows = read_analysis(path)
    own = {probe: [row for row in rows if row["probe"] == probe] for probe in PROBES}
    for found in own.values():
        assert [(row["step"], row["epoch"]) for row in found] == [(0, 1), (3, 2)]
        assert not any("error" in row for row in found)
    assert own["fidelity"][0]["samples"] == 2
    kernels = own["conditioning"][0]["kernels"]
    assert list(kernels) == ["svd", "isqrt-cov"]
    # Four images of 4 channels with 16 positions: 6 pairs each, none tied.
    assert sum(kernels["svd"]["histogram"]) == kernels["svd"]["pairs"] == 24
    assert kernels["svd"]["ties"] == kernels["svd"]["nonfinite"] == 0
    assert kernels["isqrt-cov"]["bound"] is None
    assert all(json.dumps(row, allow_nan=False) for row in rows)


def test_a_pooling_layer_that_calls_no_hooks_is_warned_of(tmp_path):
    class Unwatched(Foreign):
        def training_step(self, batch, batch_idx):
            return self.net[3](batch[0].flatten(1)[:, :10]).square().mean()

    for probe in (ConditioningProbe, FidelityProbe):
        with pytest.warns(UserWarning, match=f"{probe.__name__} saw no features"):
            fit_foreign([probe(tmp_path, every=1)], Unwatched())
    assert read_analysis(tmp_path) == []


def test_a_loss_without_a_gradient_of_the_pooling_is_told(tmp_path):
    class Detached(Foreign):
        def training_step(self, batch, batch_idx):
            return self.net[0](batch[0]).square().mean() + 0 * self.net(batch[0]).detach().sum()

    fit_foreign([FidelityProbe(tmp_path, every=6)], Detached())
    (row,) = read_analysis(tmp_path)
    assert row["error"] == "no gradient of the loss has reached the pooling layer"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SmoothnessProbe(".", every=0), "SmoothnessProbe: every must be .* got 0"),
        (lambda: SmoothnessProbe(".", multiples=(0.0,)), r"positive numbers, got \(0.0,\)"),
        (lambda: ConditioningProbe(".", samples=0), "samples must be .* got 0"),
        (lambda: ConditioningProbe(".", methods=["sdv"]), "did you mean 'svd'"),
        (lambda: FidelityProbe(".", samples=0), "FidelityProbe: samples must be .* got 0"),
        (
            lambda: RunConfig(train=TrainConfig(probes=("smoothness",), strategy="fsdp")),
            "train.probes smoothness .* 'fsdp' shards them",
        ),
        (lambda: TrainConfig(probes=("gradient",)), "train.probes must be a list out of smoothn"),
        (lambda: TrainConfig(probe_every=0), "train.probe_every must be at least 1 or null, not 0"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_network_without_covariance_pooling_has_no_conditioning():
    trainer = SimpleNamespace(strategy=SimpleNamespace(broadcast=lambda value: value))
    with pytest.raises(ValueError, match="exactly one CovPool2d"):
        ConditioningProbe(".").setup(trainer, nn.Linear(2, 2), "fit")


def test_of_average_pooling_smoothness_alone_is_measured(images, tmp_path, caplog):
    path = tmp_path / "run"
    options = ["--model.method", "gap", "--model.schedule", "null", "--train.epochs", "1"]
    assert train(images, path, *PROBED, *options) == 0
    assert {row["probe"] for row in read_analysis(path)} == {"smoothness"}
    (said,) = [record for record in caplog.records if "train.probes" in record.getMessage()]
    assert "conditioning and fidelity are left out of trainings with gap" in said.getMessage()


def test_the_options_names_are_those_of_the_table():
    (kinds, *_) = get_args(get_type_hints(TrainConfig)["probes"])
    assert list(get_args(kinds)) == list(PROBES)


def test_by_default_three_measurements_an_epoch_of_the_weights_in_training(images, tmp_path):
    """With an average beside the weights that are trained, there are two pooling layers."""
    path = tmp_path / "run"
    options = ["--train.probes", "[conditioning]", "--optim.weight_average", "0.9"]
    assert train(images, path, *options, "--data.batch_size", "4", "--train.epochs", "2") == 0
    # Six steps an epoch.
    assert [row["step"] for row in read_analysis(path)] == [0, 2, 4, 6, 8, 10]
    resumed = ["--train.probes", "[fidelity]", "--train.probe_every", "6", "--train.epochs", "3"]
    assert main(["train", "--resume", str(path), *resumed]) == 0
    assert [row["step"] for row in read_analysis(path)] == [0, 2, 4, 6, 8, 10, 12]


def test_sharded_parameters_are_refused():
    trainer = SimpleNamespace(strategy=FSDPStrategy())
    with pytest.raises(ValueError, match="sharded over processes, as FSDPStrategy"):
        SmoothnessProbe(".").setup(trainer, nn.Linear(2, 2), "fit")


def test_no_rows_where_no_run_was_measured(tmp_path):
    assert read_analysis(tmp_path) == []
