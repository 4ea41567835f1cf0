"""NOG and OLR: steps of the weight before the covariance, against their formulas."""

import numpy as np
import pytest
import scipy.linalg
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from covpool.cli import main
from covpool.models import create_model
from covpool.train.config import OptimConfig
from covpool.train.optimizer import parameter_groups
from covpool.train.reduction_step import (
    ReductionStep,
    nearest_orthogonal,
    optimal_rate,
    reduction_weight,
)
from tiny_images import OPTIONS, make_tiny_images


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.manual_seed(seed))


@pytest.mark.parametrize("shape", [(4, 9, 1, 1), (6, 6), (9, 4, 1, 1), (4, 3, 3, 3)])
def test_nog_is_the_polar_factor(shape):
    gradient = random(*shape)
    found = nearest_orthogonal(gradient)
    assert found.shape == gradient.shape
    matrix = gradient.flatten(1).double().numpy()
    expected = scipy.linalg.polar(matrix)[0]  # the nearest with orthonormal rows, or columns
    np.testing.assert_allclose(found.flatten(1), expected, rtol=0, atol=1e-5)
    assert found.norm().item() == pytest.approx(min(matrix.shape) ** 0.5, rel=1e-5)


def test_nog_leaves_out_what_is_no_direction_of_the_gradient():
    left, right = random(5, 2).double(), random(2, 7, seed=1).double()
    gradient = (left @ right).float()
    found = nearest_orthogonal(gradient)
    assert torch.linalg.matrix_rank(found) == 2
    assert found.norm().item() == pytest.approx(2**0.5, rel=1e-5)
    assert (found * gradient).sum().item() == pytest.approx(
        torch.linalg.svdvals(gradient).sum().item(), rel=1e-5
    )
    assert not nearest_orthogonal(torch.zeros(3, 4)).any()
    broken = torch.tensor([[1.0, torch.nan], [0.0, 1.0]])
    assert nearest_orthogonal(broken) is broken


def test_olr_is_the_formula():
    weight, gradient = random(3, 5, 1, 1), random(3, 5, 1, 1, seed=1)
    w, g = weight.flatten().double().numpy(), gradient.flatten().double().numpy()
    expected = (w @ w) * (g @ w) / ((w @ w) * (g @ g) + 2 * (g @ w) ** 2)
    assert optimal_rate(weight, gradient) == pytest.approx(expected, rel=1e-12)
    assert optimal_rate(weight, torch.zeros_like(gradient)) == 0


class Plain(LightningModule):
    """A network of a user's own, with a constant rate and no schedule."""

    def __init__(self, rate, together=False):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 3, bias=False), nn.Linear(3, 5)
        self.rate, self.together, self.rates = rate, together, []

    def training_step(self, batch):
        return (self.last(self.first(batch)) - batch.sum(-1, keepdim=True)).square().mean()

    def configure_optimizers(self):
        rest = list(self.last.parameters())
        if self.together:
            return torch.optim.SGD([*self.first.parameters(), *rest], lr=self.rate)
        groups = [{"params": list(self.first.parameters())}, {"params": rest}]
        return torch.optim.SGD(groups, lr=self.rate)

    def on_before_zero_grad(self, optimizer):
        self.rates.append([group["lr"] for group in optimizer.param_groups])


def fitted(tmp_path, rate, steps, together=False):
    module = Plain(rate, together)
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[ReductionStep(lambda module: module.first.weight, steps)] if steps else [],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, DataLoader(random(12, 4), batch_size=4))
    return module


QUIET = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")


@QUIET
@pytest.mark.parametrize("steps", [["nog"], ["olr"], ["nog", "olr"]], ids="+".join)
def test_the_callback_takes_the_steps_of_a_plain_loop(steps, tmp_path):
    rate = 0.3
    found = fitted(tmp_path, rate, steps)
    module = Plain(rate)
    taken = []
    for batch in random(12, 4).split(4):
        loss = module.training_step(batch)
        parameters = list(module.parameters())
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(loss, parameters), strict=True
        ):
            own = rate
            if parameter is module.first.weight:
                if "nog" in steps:
                    gradient = torch.from_numpy(scipy.linalg.polar(gradient.numpy())[0])
                if "olr" in steps:
                    w, g = parameter.detach().flatten(), gradient.flatten()
                    best = (w @ w) * (g @ w) / ((w @ w) * (g @ g) + 2 * (g @ w) ** 2)
                    own = best.item() if 0 < best < rate else rate
                taken.append(own)
            parameter.data -= own * gradient
    for one, other in zip(found.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert found.rates == [[rate, rate]] * 3  # between steps the rate is the given one
    assert (len(set(taken)) > 1) == ("olr" in steps)


@QUIET
def test_what_the_callback_refuses(tmp_path):
    with pytest.raises(ValueError, match="unknown step 'ogn'; choose from nog, olr"):
        ReductionStep(lambda module: module.first.weight, ["ogn"])
    with pytest.raises(ValueError, match="shares its parameter group with 2 others"):
        fitted(tmp_path, 0.1, ["olr"], together=True)


def test_the_reduction_has_a_group_of_its_own_for_olr():
    model = create_model("small-convnet", 3, method="isqrt-cov", reduced_channels=4)
    groups = parameter_groups(model, OptimConfig(reduction_steps=("olr",), learning_rate=0.2))
    (own,) = [group for group in groups if group["name"].startswith("reduction")]
    assert own["params"] == [reduction_weight(model)]
    assert own["lr"] == 0.2
    everything = [parameter for group in groups for parameter in group["params"]]
    assert {id(p) for p in everything} == {id(p) for p in model.parameters()}
    assert len(everything) == len(list(model.parameters()))
    assert len(parameter_groups(model, OptimConfig(reduction_steps=("nog",)))) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trained": "classifier"}, "optim.trained must be all with optim.reduction_steps"),
        ({"clip_norm": 1.0}, "optim.clip_norm must be null with optim.reduction_steps"),
        ({"name": "adamw"}, "optim.name must be sgd with optim.reduction_steps"),
    ],
)
def test_what_they_do_not_go_together_with(options, message):
    with pytest.raises(ValueError, match=message):
        OptimConfig(reduction_steps=("nog", "olr"), **options)


@pytest.mark.parametrize("steps", ["[nog]", "nog,olr"])
def test_a_network_without_a_reduction_is_refused(steps, tmp_path, capsys):
    images = make_tiny_images(tmp_path / "images")
    options = ["--optim.reduction_steps", steps, "--model.method", "gap"]
    command = ["train", "--data.root", str(images), "--output", str(tmp_path / "run"), *OPTIONS]
    assert main([*command, *options]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    about = "optim.reduction_steps change the steps of the channel reduction, and pooling 'gap' has"
    assert line.startswith(f"covpool: error: {about} none here; give model.reduced_channels")
    assert not (tmp_path / "run").exists()
