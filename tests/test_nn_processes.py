"""Layers with statistics in two processes are what one process gives on the joined batch."""

import subprocess
import sys

import pytest
import torch

PROGRAM = """
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import covpool
from covpool.nn import RiemannianBatchNorm, Whitening

folder, rank, world = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
if world > 1:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world)


def random(*shape, seed):
    return torch.randn(shape, dtype=torch.float64, generator=torch.manual_seed(seed))


# Parts of different size, of which one is a single sample.
whole = slice(None)
part = [slice(0, 1), slice(1, None)][rank] if world > 1 else whole
found = {}
for name, layer, batch in (
    ("zca", Whitening(4, groups=2), random(5, 4, 1, 1, seed=0)),
    ("cholesky", Whitening(4, kind="cholesky", momentum=None), random(5, 4, seed=1)),
    ("riemannian", RiemannianBatchNorm(3, dispersion=True, steps=2), None),
):
    if batch is None:
        batch = covpool.covariance(random(5, 3, 9, seed=2))
    weight = random(*batch.shape, seed=3)
    leaf = batch[part].clone().requires_grad_()
    layer = layer.double()
    model = DistributedDataParallel(layer) if world > 1 else layer
    y = model(leaf)
    (y * weight[part]).sum().backward()
    buffers = {key: value for key, value in layer.state_dict().items() if "running" in key}
    layer.eval()
    found[name] = {
        "gradient": leaf.grad,
        "value": y.detach(),
        "evaluated": layer(batch[part]).detach(),
        "buffers": buffers,
        "parameters": {key: value.grad * world for key, value in layer.named_parameters()},
    }

if world > 1:
    alone = Whitening(4, synchronize=False).double()
    try:
        alone(random(1, 4, seed=0))
    except ValueError:
        found["refused alone"] = True
    try:  # by all processes: one that went on would wait for the others
        Whitening(4).double()(random(1 - rank, 4, seed=0))
    except ValueError:
        found["refused together"] = True
    plain, module = Whitening(4).double(), Whitening(4).double()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    results = []
    for call in (plain, compiled):
        leaf = random(3, 4, seed=rank).requires_grad_()
        y = call(leaf)
        results.append((y.detach(), *torch.autograd.grad((y * y * y).sum(), leaf)))
    found["compiled"] = all(map(torch.allclose, *results))
    dist.destroy_process_group()
torch.save(found, f"{folder}/{world}.{rank}.pt")
"""


@pytest.mark.slow
def test_two_processes_are_one_on_the_joined_batch(tmp_path):
    """Values, statistics, and gradients of features and of parameters, which DDP averages."""
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path), str(rank), str(world)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, world in ((0, 1), (0, 2), (1, 2))
    ]
    for run in runs:
        _, errors = run.communicate(timeout=300)
        assert run.returncode == 0, errors
    (joined,), parts = (
        [torch.load(tmp_path / f"{world}.{rank}.pt") for rank in range(world)] for world in (1, 2)
    )
    for name, expected in joined.items():
        for key in ("value", "gradient", "evaluated"):
            together = torch.cat([part[name][key] for part in parts])
            torch.testing.assert_close(together, expected[key], rtol=1e-10, atol=1e-10)
        for part in parts:
            for key in ("buffers", "parameters"):
                assert part[name][key]
                torch.testing.assert_close(part[name][key], expected[key], rtol=1e-10, atol=1e-10)
    for part in parts:
        assert part["refused alone"]
        assert part["refused together"]
        assert part["compiled"]
