"""eigh, svd, polar and pinv on the sample inputs by which torch tests its own, called as it does.

They are drawn in a process of their own: to import torch.testing._internal freezes the global flags
of torch.backends, on which other tests depend.
"""

import subprocess
import sys

import pytest
import torch

import covpool
from covpool.linalg.spectrum import symmetric_part
from spectra import relative_error

pytest.importorskip("expecttest", reason="torch.testing._internal needs expecttest")
pytestmark = pytest.mark.slow  # torch takes ten seconds to draw its samples

DRAW = """
import sys, torch
from torch.testing._internal.common_methods_invocations import op_db
drawn = []
for op in op_db:
    if op.name in ("linalg.eigh", "linalg.svd", "linalg.pinv", "linalg.polar"):
        for dtype in (torch.float32, torch.float64, torch.complex64, torch.complex128):
            for sample in op.sample_inputs("cpu", dtype, requires_grad=True):
                drawn.append((op.name, sample.input.detach(), sample.args, sample.kwargs))
torch.save(drawn, sys.argv[1])
"""
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
OURS = {"linalg.eigh": covpool.eigh, "linalg.svd": covpool.svd}
TORCHS = {"linalg.eigh": torch.linalg.eigh, "linalg.svd": torch.linalg.svd}


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    path = tmp_path_factory.mktemp("opinfo") / "samples.pt"
    subprocess.run([sys.executable, "-c", DRAW, path], check=True, capture_output=True)
    return torch.load(path)


def invariant(name, result):
    """What has a gradient in torch's tests: no signs or phases, no columns beyond min(m, n)."""
    if name == "linalg.eigh":
        return {"eigenvalues": result.eigenvalues, "eigenvectors": result.eigenvectors.abs()}
    k = result.S.shape[-1]
    return {"U": result.U[..., :k].abs(), "S": result.S, "Vh": result.Vh[..., :k, :].abs()}


def rebuilt(name, result):
    if name == "linalg.eigh":
        return (result.eigenvectors * result.eigenvalues[..., None, :]) @ result.eigenvectors.mH
    k = result.S.shape[-1]
    return (result.U[..., :k] * result.S[..., None, :]) @ result.Vh[..., :k, :]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OURS)
def test_values_and_gradients_are_torchs(name, dtype, samples, note_error):
    chosen = [sample[1:] for sample in samples if sample[0] == name and sample[1].dtype == dtype]
    assert len(chosen) >= 8
    assert any(matrix.numel() == 0 for matrix, _, _ in chosen)
    assert any(matrix.shape[-1] != matrix.shape[-2] for matrix, _, _ in chosen) or "eigh" in name
    eps = torch.finfo(dtype).eps
    for matrix, arguments, keywords in chosen:
        found = []
        for call in (OURS[name], TORCHS[name]):
            leaf = matrix.clone().requires_grad_()
            result = call(leaf, *arguments, **keywords)
            gradients = []
            for index, part in enumerate(invariant(name, result).values()):
                draw = torch.manual_seed(index)
                weight = torch.randn(part.shape, dtype=part.dtype, generator=draw)
                (gradient,) = torch.autograd.grad(part, leaf, weight, retain_graph=True)
                # Of eigh torch gives the whole gradient, also of changes that are not Hermitian.
                gradients.append(symmetric_part(gradient) if name == "linalg.eigh" else gradient)
            found.append((result, gradients))
        (ours, our_gradients), (torchs, torchs_gradients) = found
        for one, other in zip(ours, torchs, strict=True):
            assert (one.shape, one.dtype) == (other.shape, other.dtype)
        values, torchs_values = invariant(name, ours), invariant(name, torchs)
        for part, expected in torchs_values.items():
            # The samples are random, so some have close values, and vectors that are as far off.
            assert relative_error(values[part], expected) <= 1e4 * eps
        assert relative_error(rebuilt(name, ours), rebuilt(name, torchs)) <= 100 * eps
        for basis in ours:
            if basis.ndim == matrix.ndim and basis.shape[-1] == basis.shape[-2]:
                identity = torch.eye(basis.shape[-1], dtype=dtype)
                assert ((basis.mH @ basis - identity).abs() <= 100 * eps).all()
        for part, gradient, expected in zip(values, our_gradients, torchs_gradients, strict=True):
            assert gradient.shape == matrix.shape
            error = relative_error(gradient, expected)
            assert note_error(f"{part}, {dtype}", f"OpInfo {name}", error) <= 1e4 * eps


OF_FULL_RANK = {
    "linalg.pinv": (
        lambda a: (covpool.svd_function(a, "pinv"),),
        lambda a: (torch.linalg.pinv(a),),
    ),
    "linalg.polar": (covpool.polar, getattr(torch.linalg, "polar", None)),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OF_FULL_RANK)
def test_functions_of_any_shape_are_torchs_at_full_rank(name, dtype, samples, note_error):
    chosen = [
        matrix
        for drawn, matrix, arguments, keywords in samples
        if (drawn, matrix.dtype) == (name, dtype)
        and not arguments
        and not keywords.get("hermitian")
    ]
    if OF_FULL_RANK[name][1] is None:
        pytest.skip("this torch has no linalg.polar")
    assert len(chosen) >= 4
    eps = torch.finfo(dtype).eps
    for matrix in chosen:
        found = []
        for call in OF_FULL_RANK[name]:
            leaf = matrix.clone().requires_grad_()
            results = call(leaf)
            for index, part in enumerate(results):
                draw = torch.manual_seed(index)
                weight = torch.randn(part.shape, dtype=part.dtype, generator=draw)
                (gradient,) = torch.autograd.grad(part, leaf, weight, retain_graph=True)
                found.append((part.detach(), gradient))
        count = len(found) // 2
        for ours, torchs in zip(found[:count], found[count:], strict=True):
            for one, other in zip(ours, torchs, strict=True):
                assert one.shape == other.shape
                error = relative_error(one, other) if one.numel() else 0.0
                assert note_error(f"values, {dtype}", f"OpInfo {name}", error) <= 1e4 * eps
