#!/usr/bin/env python3
"""Whether the quick tests notice faults: each one, made by hand, is put into a copy of the source.

    python3 env.py python tools/mutations.py
    python3 env.py python tools/mutations.py powers.py svd.py      # those of these files

For each row of `FAULTS` the tests named there run on a copy of `src` with the fault, without the
slow ones, up to the first failure. Ends with 1 if any fault survives. Rows are changed where the
source is: `tests/test_mutations.py` fails where a row's text does not occur exactly once.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import hypothesis  # noqa: F401 - see main
import mpmath  # noqa: F401
import pytest
import scipy.linalg  # noqa: F401
import torch

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "covpool"
OPTIONS = (
    *("-x", "--disable-plugin-autoload", "-p", "no:cacheprovider"),
    *("-p", "xdist.plugin", "-n0"),  # the configuration has options of xdist
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),
)


class Fault(NamedTuple):
    """`old` is replaced by `new` in `file`, below src/covpool; `tests` are names of test files."""

    file: str
    old: str
    new: str
    tests: str

    def text(self) -> str:
        """The file with the fault.

        Raises:
            ValueError: the old text does not occur exactly once.
        """
        source = (PACKAGE / self.file).read_text(encoding="utf-8")
        if (count := source.count(self.old)) != 1:
            raise ValueError(
                f"{self.file} has {self.old!r} {count} times, not once; write the row of "
                "tools/mutations.py anew"
            )
        return source.replace(self.old, self.new)


FAULTS = [
    # linalg: what everything shares
    Fault(
        "linalg/spectrum.py",
        "return size * torch.finfo(dtype).eps",
        "return size**2 * torch.finfo(dtype).eps",
        "diagnostics",
    ),
    Fault("linalg/spectrum.py", "return half + half.mH", "return half + half.mT", "complex"),
    Fault("linalg/spectrum.py", "return half - half.mH", "return half + half.mH", "svd"),
    Fault("linalg/spectrum.py", "left * right.conj()", "left * right", "complex"),
    Fault(
        "linalg/spectrum.py", "eigenvalues <= threshold", "eigenvalues < 0 * threshold", "pooling"
    ),
    Fault("linalg/spectrum.py", "return largest * torch.linalg", "return torch.linalg", "forward"),
    Fault(
        "linalg/precision.py",
        "torch.exp2(2 * ((exponent - exponent.clamp(-edge, edge)) / 2).round())",
        "torch.exp2((exponent - exponent.clamp(-edge, edge)) / 4)",
        "range",
    ),
    Fault("linalg/checks.py", "ROUNDING_SLACK = 16", "ROUNDING_SLACK = 16e3", "per_sample"),
    Fault(
        "linalg/checks.py",
        "bad = (rank < needed) & restricted",
        "bad = (rank < 0) & restricted",
        "functions",
    ),
    # linalg/functions
    Fault(
        "linalg/functions/powers.py",
        "reciprocal_().nan_to_num_(nan=torch.nan, posinf=0)",
        "reciprocal_().nan_to_num_(nan=torch.nan, posinf=1)",
        "functions gradient",
    ),
    Fault("linalg/functions/powers.py", "regular = -1 / (u + v)", "regular = 1 / (u + v)", "floor"),
    Fault(
        "linalg/functions/powers.py", "-1 / u / v / (u + v))", "-1 / u / v / (u + u))", "functions"
    ),
    Fault(
        "linalg/functions/powers.py",
        "-(1 / b + 1 / (u * v) + 1 / a)",
        "-(1 / b + 1 / (u * v))",
        "functions_transforms",
    ),
    Fault(
        "linalg/functions/powers.py",
        "quotient = torch.where(tied, magnitude, quotient)",
        "quotient = torch.where(tied, 1, quotient)",
        "functions",
    ),
    Fault(
        "linalg/functions/powers.py",
        "(p - m - 1) / (m + 2)",
        "(p - m - 1) / (m + 1)",
        "scalar_lift scalar",
    ),
    Fault(
        "linalg/functions/powers.py",
        "* torch.log(a) + b**p * log_difference",
        "* torch.log(b) + b**p * log_difference",
        "scalar_lift scalar",
    ),
    Fault(
        "linalg/functions/powers.py",
        "-total * product, total * total * product",
        "total * product, total * total * product",
        "scalar_lift scalar",
    ),
    Fault(
        "linalg/functions/powers.py", "return lifted * half * half", "return lifted * half", "range"
    ),
    Fault(
        "linalg/functions/powers.py",
        "return torch.where(self.beside(like) == 1, torch.ones_like(like), 0)",
        "return torch.zeros_like(like)",
        "functions",
    ),
    Fault(
        "linalg/functions/logarithms.py",
        "(-1) ** (m + 1) / (m + 2)",
        "(-1) ** (m + 1) / (m + 1)",
        "scalar_lift scalar",
    ),
    Fault(
        "linalg/functions/logarithms.py",
        "(log_difference(a, b) - torch.log(a) / a) / b",
        "(log_difference(a, b) + torch.log(a) / a) / b",
        "functions_transforms",
    ),
    Fault(
        "linalg/functions/logarithms.py",
        "torch.where(zero, 0, b * log_difference(a, lower))",
        "torch.where(zero, 0, a * log_difference(a, lower))",
        "scalar_lift scalar",
    ),
    Fault(
        "linalg/functions/piecewise.py",
        "- slope * y) - (self.value(x)",
        "- slope * y) + (self.value(x)",
        "scalar_lift scalar",
    ),
    Fault(
        "linalg/functions/smooth.py",
        "return -2 * torch.tanh(x)",
        "return 2 * torch.tanh(x)",
        "scalar_lift scalar",
    ),
    Fault(
        "linalg/functions/floored.py",
        "clamp.divided_difference(b, c) * clamp.divided_difference(a, c)",
        "clamp.divided_difference(a, c)",
        "floor",
    ),
    Fault(
        "linalg/functions/base.py",
        "self.confluent_difference(b, a), self.confluent_difference(b, c)",
        "self.confluent_difference(b, c), self.confluent_difference(b, a)",
        "scalar_lift scalar",
    ),
    Fault(
        "linalg/functions/differences.py",
        "(a - b) / spread * above",
        "(b - c) / spread * above",
        "scalar_lift scalar",
    ),
    Fault(
        "linalg/functions/differences.py",
        "TAYLOR_TERMS = 12",
        "TAYLOR_TERMS = 5",
        "scalar_lift scalar",
    ),
    Fault(
        "linalg/functions/differences.py",
        "second * current + third * previous",
        "second * current - third * previous",
        "scalar_lift scalar",
    ),
    Fault(
        "linalg/quadrature.py",
        "values = t**power * values",
        "values = t ** (power + 1) * values",
        "scalar_lift scalar",
    ),
    Fault(
        "linalg/quadrature.py",
        "0.190350578064785409913256402421014",
        "0.190350578064785409913256402421014 + 1e-9",
        "scalar_lift scalar",
    ),
    Fault(
        "linalg/elementwise.py",
        "better = agrees & (of_mean <= of_quotient)",
        "better = agrees & (of_mean > of_quotient)",
        "scalar_lift matrix_function",
    ),
    # linalg/gradients
    Fault(
        "linalg/gradients/base.py",
        "return Loewner(damped.masked_fill_(zero, 0))",
        "return Loewner(damped)",
        "functions",
    ),
    Fault(
        "linalg/gradients/base.py",
        "damped.add_(self.kernel.asymmetry",
        "damped.sub_(self.kernel.asymmetry",
        "functions",
    ),
    Fault(
        "linalg/gradients/kernels.py",
        "return (gap * self.limit).clamp_max(1)",
        "return (gap * self.limit).clamp_max(2)",
        "kernels",
    ),
    Fault(
        "linalg/gradients/kernels.py",
        "log1p_().mul_(self.degree + 1)",
        "log1p_().mul_(self.degree)",
        "kernels",
    ),
    Fault(
        "linalg/gradients/kernels.py",
        "_geometric_sum(larger, gap, self.steps - 1)",
        "_geometric_sum(larger, gap, self.steps)",
        "kernels",
    ),
    Fault(
        "linalg/gradients/kernels.py",
        "(self.epsilon * larger / gap).square()",
        "(self.epsilon * larger / gap)",
        "kernels",
    ),
    Fault(
        "linalg/gradients/kernels.py",
        "mul_(SUM_RATIO).clamp_max_(1)",
        "mul_(SUM_RATIO).clamp_max_(2)",
        "kernels",
    ),
    Fault(
        "linalg/gradients/kernels.py",
        "later = index[:, None] > index",
        "later = index[:, None] < index",
        "kernels",
    ),
    Fault(
        "linalg/gradients/lyapunov.py",
        "c * (quartic - quartic.mH)",
        "c * (quartic + quartic.mH)",
        "gradient",
    ),
    Fault(
        "linalg/gradients/lyapunov.py",
        "- 3 * symmetric_part(product @ block)",
        "- 2 * symmetric_part(product @ block)",
        "gradient",
    ),
    # linalg/forwards
    Fault(
        "linalg/forwards/top_n.py",
        "round(self.kept_fraction * int(size))",
        "int(self.kept_fraction * int(size))",
        "forward",
    ),
    Fault("linalg/forwards/top_n.py", "| (rank < count)", "| (rank <= count)", "forward"),
    Fault(
        "linalg/forwards/coupled.py",
        "(0.5 * value - slope * normalised) * scale",
        "(0.5 * value + slope * normalised) * scale",
        "gradient",
    ),
    Fault("linalg/forwards/coupled.py", "half = 0.5 * s * t", "half = 0.5 * s", "gradient"),
    Fault("linalg/forwards/approximants.py", "(k - 1.5) / k", "(k - 0.5) / k", "forward"),
    Fault(
        "linalg/forwards/approximants.py",
        "first = 0.5 if inverse else 1.0",
        "first = 1.0 if inverse else 0.5",
        "iterations",
    ),
    Fault(
        "linalg/forwards/base.py",
        "torch.where(zero, 0, divisor.sqrt() * symmetric_part(root))",
        "torch.where(zero, 0, symmetric_part(root))",
        "forward",
    ),
    Fault(
        "linalg/minimax_coefficients.py",
        "2.069665007468255",
        "2.069665008468255",
        "forward iterations",
    ),
    # linalg/autograd
    Fault(
        "linalg/autograd/lift.py",
        "        if adjoint:",
        "        if not adjoint:",
        "functions",
    ),
    Fault("linalg/autograd/lift.py", " + cotangent @ null @ solution)", ")", "gradient"),
    Fault(
        "linalg/autograd/lift.py",
        " + null @ direction @ slope\n",
        "\n",
        "gradient functions_transforms",
    ),
    Fault(
        "linalg/autograd/eigh.py",
        "strict + torch.diag_embed(diagonal.real) + strict.mH",
        "strict + torch.diag_embed(diagonal.real) + strict.mT",
        "complex_decompositions",
    ),
    Fault(
        "linalg/autograd/eigh.py",
        "return weights.mT * odd",
        "return weights * odd",
        "drop_in gradient",
    ),
    Fault(
        "linalg/autograd/eigh.py", "torch.where(close & rounding, 0, odd)", "odd", "gauge gradient"
    ),
    Fault(
        "linalg/autograd/eigh.py",
        "eigenvectors @ (ctx.kernel.matrix(eigenvalues).mT * inner)",
        "eigenvectors @ (ctx.kernel.matrix(eigenvalues) * inner)",
        "decomposition_transforms",
    ),
    Fault(
        "linalg/autograd/svd.py",
        "signed = upper.triu(1) - lower.tril(-1)",
        "signed = upper.triu(1) + lower.tril(-1)",
        "svd",
    ),
    Fault(
        "linalg/autograd/svd.py",
        "gradient = left @ vh + u @ _outside",
        "gradient = left @ vh - u @ _outside",
        "svd",
    ),
    Fault(
        "linalg/autograd/svd.py",
        "tangent_v = v @ (summed - apart)",
        "tangent_v = v @ (summed + apart)",
        "decomposition_transforms",
    ),
    Fault(
        "linalg/autograd/root.py",
        "parts.append(-inverse[0] @",
        "parts.append(inverse[0] @",
        "iterations functions",
    ),
    Fault(
        "linalg/autograd/root.py",
        "            change = -(product + product.mH)",
        "            change = product + product.mH",
        "gradient",
    ),
    Fault(
        "linalg/autograd/pooled.py",
        "centred @ centred.mH / x.shape[-1]",
        "centred @ centred.mH / (x.shape[-1] - 1)",
        "transforms",
    ),
    # linalg/covariance and what is around it
    Fault("linalg/covariance.py", "weights.sub_(null)", "weights.sub_(0 * null)", "pooling"),
    Fault(
        "linalg/covariance.py",
        "result.mul_(2).to(features.dtype)",
        "result.mul_(1).to(features.dtype)",
        "pooling",
    ),
    Fault(
        "linalg/covariance.py",
        "half = half + moved * slope.null",
        "half = half - moved * slope.null",
        "transforms",
    ),
    Fault("linalg/covariance.py", "positions**-0.5", "(positions - 1) ** -0.5", "pooling"),
    Fault(
        "linalg/decompositions.py",
        "solve_triangular(factor.mH, vectors",
        "solve_triangular(factor.mT, vectors",
        "spectral_values",
    ),
    Fault(
        "linalg/diagnostics.py",
        "largest / torch.where(singular, 1, smallest)",
        "smallest / torch.where(singular, 1, largest)",
        "diagnostics",
    ),
    Fault(
        "linalg/diagnostics.py",
        "-torch.special.xlogy(share, share)",
        "torch.special.xlogy(share, share)",
        "diagnostics",
    ),
    Fault("linalg/gauge.py", "several = tied & (tied", "several = ~tied & (tied", "gauge"),
    Fault(
        "linalg/engine/factorisation.py", "PROBE_SLACK = 64", "PROBE_SLACK = 64e15", "decomposition"
    ),
    # pooling
    Fault(
        "pooling.py",
        "features.shape[-1] - correction)",
        "features.shape[-1] + correction)",
        "pooling",
    ),
    Fault("pooling.py", "math.sqrt(2)", "2", "pooling spectral_values"),
    Fault("pooling.py", "row * size + column", "column * size + row", "pooling"),
    Fault("pooling.py", "pooled if unit is None else pooled * unit", "pooled", "range"),
    Fault("pooling.py", "size * (size + 1) // 2 if", "size * (size - 1) // 2 if", "pooling"),
    Fault(
        "pooling.py",
        "_covariance(features / unit, correction) * unit * unit",
        "_covariance(features / unit, correction) * unit",
        "range",
    ),
]


def caught(fault: Fault) -> bool:
    """Whether the fault's tests fail, in a process that is to end afterwards."""
    with tempfile.TemporaryDirectory(prefix="covpool-fault-") as folder:
        shutil.copytree(PACKAGE, Path(folder) / "covpool")
        (Path(folder) / "covpool" / fault.file).write_text(fault.text(), encoding="utf-8")
        # For this process and those that the tests start.
        sys.path.insert(0, folder)
        os.environ["PYTHONPATH"] = folder
        tests = [str(ROOT / "tests" / f"test_{name}.py") for name in fault.tests.split()]
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            status = pytest.main([*OPTIONS, *tests])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"{fault} ended pytest with {status!r}:\n{said.getvalue()}")
    return status != pytest.ExitCode.OK


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="ends of paths, as powers.py; all by default")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="faults at a time")
    arguments = parser.parse_args()
    wanted = tuple(arguments.files)
    chosen = [fault for fault in FAULTS if not wanted or fault.file.endswith(wanted)]
    # Forked, so that what takes seconds to import is imported once, without covpool.
    torch.set_num_threads(1)
    pytest.main([*OPTIONS, "--version"])
    context = multiprocessing.get_context("fork")
    survived = 0
    with context.Pool(arguments.jobs, maxtasksperchild=1) as pool:
        for fault, found in zip(chosen, pool.imap(caught, chosen), strict=True):
            survived += not found
            verdict = "caught  " if found else "SURVIVED"
            print(f"{verdict} {fault.file}: {fault.old} -> {fault.new}", flush=True)
    print(f"{len(chosen) - survived} of {len(chosen)} faults caught")
    return 1 if survived or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
