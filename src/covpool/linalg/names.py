"""The names in the tables as types, by which editors complete them and type checkers find a typo.

Type checkers read no table, so the names stand here once more: `python tools/tables.py` writes this
file. Nothing here imports PyTorch.
"""

from typing import Literal

MethodName = Literal[
    "exact",
    "svd",
    "svd-topn",
    "svd-trunc",
    "svd-pi",
    "svd-newton",
    "svd-taylor",
    "svd-pade",
    "svd-lorentz",
    "isqrt-cov",
    "mtp-lyapunov",
    "mpa-lyapunov",
    "newton-schulz-minimax",
    "halley",
    "halley-identity",
    "halley-lyapunov",
    "halley-identity-lyapunov",
]
"""The keys of `METHODS`."""

PoolingName = Literal[
    "gap",
    MethodName,
    "max",
    "avgmax",
    "gem",
    "simpool",
    "lse-plus",
    "attention-latent",
    "attention-rotary",
    "covariance",
    "power",
    "power-learned",
    "log-e",
    "chebyshev-log",
    "pow-tmlr",
    "scalepow-emlr",
    "maxexp",
    "gamma",
    "hdp",
    "gaussian",
    "sigma-max",
    "frobenius",
    "root-sigma-max",
    "root-frobenius",
    "rank-one-update",
    "seb",
    "cho-tmlr",
    "precision",
    "isice",
    "dropcov",
    "bcnn",
    "tensor-sketch",
    "random-maclaurin",
    "fbn",
    "bdc",
    "sot",
    "so-vit",
    "moment-probing",
]
"""The keys of `POOLINGS`, which `create_model` takes."""

InverseRootName = Literal[
    "exact",
    "coupled-newton",
]
"""The keys of `INVERSE_ROOTS`, the methods of `matrix_inv_root`."""

KernelName = Literal[
    "difference",
    "truncated",
    "taylor",
    "pade",
    "power-iteration",
    "lorentzian",
]
"""The keys of `KERNELS`."""

FunctionName = Literal[
    "sqrt",
    "inv_sqrt",
    "power",
    "log",
    "exp",
    "inverse",
    "inv_root",
    "entropy",
    "sign",
    "abs",
    "positive_part",
    "clamp_min",
    "softplus",
    "tanh",
]
"""The keys of `FUNCTIONS`."""

OddFunctionName = Literal[
    "polar",
    "soft_threshold",
    "hard_threshold",
    "clip",
    "power",
    "pinv",
    "tanh",
    "identity",
]
"""The keys of `ODD_FUNCTIONS`, which `svd_function` takes."""
