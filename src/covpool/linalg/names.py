"""The names in the tables as types, by which editors complete them and type checkers find a typo.

Type checkers read no table, so the names stand here once more; a test holds them against the
tables. Nothing here imports PyTorch.
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
]
"""The keys of `METHODS`."""

PoolingName = Literal["gap", MethodName]
"""What `create_model` takes: `POOLINGS`."""

KernelName = Literal["difference", "truncated", "taylor", "pade", "power-iteration", "lorentzian"]
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
