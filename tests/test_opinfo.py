"""eigh and svd on the sample inputs by which torch tests its own.

They are drawn in a process of their own: to import torch.testing._internal freezes the global flags
of torch.backends, on which other tests depend.
"""

import subprocess
import sys

import pytest
import torch

import covpool
from spectra import relative_error

pytest.importorskip("expecttest", reason="torch.testing._internal needs expecttest")

DRAW = """
import sys, torch
from torch.testing._internal.common_methods_invocations import op_db
drawn = []
for op in op_db:
    if op.name in ("linalg.eigh", "linalg.svd"):
        for dtype in (torch.float32, torch.float64):
            for sample in op.sample_inputs("cpu", dtype, requires_grad=True):
                drawn.append((op.name, sample.input.detach(), sample.kwargs))
torch.save(drawn, sys.argv[1])
"""
PARTS = {"linalg.eigh": ("λ", "V"), "linalg.svd": ("U", "σ", "Vh")}


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    path = tmp_path_factory.mktemp("opinfo") / "samples.pt"
    subprocess.run([sys.executable, "-c", DRAW, path], check=True, capture_output=True)
    return torch.load(path)


def outputs(name, matrix, ours):
    """Without the signs, as torch's tests do."""
    if name == "linalg.eigh":
        symmetric = (matrix + matrix.mT) / 2
        values, vectors = covpool.eigh(symmetric) if ours else torch.linalg.eigh(symmetric)
        return values, vectors.abs()
    u, s, vh = covpool.svd(matrix) if ours else torch.linalg.svd(matrix, full_matrices=False)
    return u.abs(), s, vh.abs()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PARTS)
def test_values_and_gradients_are_torchs(name, dtype, samples, note_error):
    chosen = [
        matrix
        for op, matrix, keywords in samples
        if op == name and matrix.dtype == dtype and not keywords.get("full_matrices", False)
    ]
    assert len(chosen) >= 8
    assert any(matrix.numel() == 0 for matrix in chosen)
    for matrix in chosen:
        for index, part in enumerate(PARTS[name]):
            found = []
            for ours in (True, False):
                leaf = matrix.clone().requires_grad_()
                value = outputs(name, leaf, ours)[index]
                weight = torch.randn(value.shape, dtype=dtype, generator=torch.manual_seed(index))
                found.append((value.detach(), *torch.autograd.grad(value, leaf, weight)))
            (value, gradient), (torchs_value, torchs_gradient) = found
            assert torch.equal(value, torchs_value)
            assert gradient.shape == torchs_gradient.shape
            # The samples are random, so some have close eigenvalues: both are as far off.
            error = relative_error(gradient, torchs_gradient)
            noted = note_error(f"{part}, {dtype}", f"OpInfo {name}", error)
            assert noted <= 1e4 * torch.finfo(dtype).eps
