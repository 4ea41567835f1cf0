"""TF32 is off inside, the user's setting as it was afterwards; on a CPU, by a made-up device."""

import subprocess
import sys
import threading

import pytest
import torch

import covpool
from covpool.linalg import precision
from covpool.linalg.autograd import product

SETTINGS = {
    "the old flag": "torch.backends.cuda.matmul.allow_tf32 = True",
    "the old name": "torch.set_float32_matmul_precision('high')",
    "lower still": "torch.set_float32_matmul_precision('medium')",
    "the new name": "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "all backends": "torch.backends.fp32_precision = 'tf32'",
    "none": "pass",
}

PROGRAM = """
import warnings
warnings.simplefilter("error")
import torch
from covpool.linalg import precision
{setting}
class OnCuda:
    device = torch.device("cuda")
def state():
    found = []
    for read in (
        lambda: torch.backends.cuda.matmul.fp32_precision,
        lambda: torch.backends.fp32_precision,
        torch.get_float32_matmul_precision,
        torch._C._get_cublas_allow_tf32,
    ):
        try:
            found.append(read())
        except RuntimeError:  # the old interface refuses where the new one was used
            found.append("refused")
    return found
before = state()
for _ in range(2):
    with precision.full_precision(OnCuda()):
        assert torch.backends.cuda.matmul.fp32_precision in ("ieee", "none")
        with precision.full_precision(OnCuda()):
            assert torch.backends.cuda.matmul.fp32_precision in ("ieee", "none")
        assert torch.backends.cuda.matmul.fp32_precision in ("ieee", "none")
    assert state() == before, (state(), before)
try:
    with precision.full_precision(OnCuda()):
        raise KeyError
except KeyError:
    pass
assert state() == before, (state(), before)
torch.backends.fp32_precision = "ieee"
print("inherited" if torch.backends.cuda.matmul.fp32_precision == "ieee" else "own", before[0])
"""


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_setting_is_off_inside_and_restored(setting):
    program = PROGRAM.format(setting=SETTINGS[setting])
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr
    own, precision = run.stdout.split()
    assert precision == ("none" if setting == "none" else "tf32")
    assert own == ("inherited" if setting in ("all backends", "none") else "own")


def test_several_threads_share_one_setting(monkeypatch):
    class Setting:
        fp32_precision = "tf32"

    class OnCuda:
        device = torch.device("cuda")

    setting = Setting()
    monkeypatch.setattr(torch.backends.cuda, "matmul", setting)
    inside, leave = threading.Event(), threading.Event()

    def first():
        with precision.full_precision(OnCuda()):
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(60)
    with precision.full_precision(OnCuda()):
        leave.set()
        thread.join()
        assert setting.fp32_precision == "ieee"
    assert setting.fp32_precision == "tf32"


def test_products_that_autograd_differentiates_keep_their_precision_backward(monkeypatch):
    """With each product made by the function for TF32, every derivative is what it was."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 9, generator=generator, dtype=torch.float64)

    def pooled(x):
        return covpool.matrix_sqrt(covpool.covariance(x), "isqrt-cov")

    def derivatives():
        value, pull = torch.func.vjp(pooled, x)
        (gradient,) = pull(torch.ones_like(value))
        _, change = torch.func.jvp(pooled, (x,), (x.cos(),))
        mapped = torch.vmap(torch.func.grad(lambda x: pooled(x).square().sum()))(x)
        return value, gradient, change, mapped

    plain = derivatives()
    calls = []
    monkeypatch.setattr(product, "uses_tf32", lambda tensor: calls.append(tensor) or True)
    for one, other in zip(derivatives(), plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert calls
    assert torch.autograd.gradcheck(pooled, x.clone().requires_grad_(), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(pooled, x[:1, :3].clone().requires_grad_())
