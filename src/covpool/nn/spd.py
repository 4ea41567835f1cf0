"""The layers of SPDNet (Huang, Van Gool, AAAI 2017) beside functions of matrices."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal

from covpool.linalg import checks
from covpool.linalg.module import MatrixFunction
from covpool.linalg.precision import full_precision
from covpool.pooling import triu_vector


class BiMap(nn.Module):
    """Y = W X Wᵀ with orthonormal rows of W, W Wᵀ = I: (*, n, n) → (*, m, m), m ≤ n.

    What is positive definite stays so, with eigenvalues between the smallest and the largest of X.

    W is `torch.nn.utils.parametrizations.orthogonal(…, orthogonal_map="cayley")`: it moves on the
    Stiefel manifold by the Cayley map of a skew-symmetric matrix. That map has a derivative
    everywhere, which the polar factor of a free matrix lacks where its rank drops. It takes a
    linear solve of n × n a call. Any optimiser will do; weight decay draws W to where it started.
    In the state dict W is `parametrizations.weight.original` and `parametrizations.weight.0.base`.
    `torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")` makes it a plain matrix,
    for export. Until then torch refuses to pickle the layer, so that `torch.save(model)` fails:
    save its `state_dict()`.

    Args:
        in_features: n.
        out_features: m.
        device, dtype: of W, as for torch's layers. A layer that is made in float32 and converted
            by `double()` has rows that are orthonormal to the rounding of float32.

    float16 and bfloat16 input is multiplied in float32. So is W computed where the layer itself is
    in half precision, from parameters that have its rounding; reading `weight` fails there, as
    torch has no solve in half precision. W starts uniformly distributed.

    Raises:
        ValueError: numbers that are not whole or below 1, m > n, in which case Y would be singular;
            in `forward`, another shape.

    Source: Huang, Van Gool, "A Riemannian network for SPD matrix learning", AAAI 2017; Lezcano
    Casado, "Trivializations for gradient-based optimization on manifolds", NeurIPS 2019.
    """

    weight: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.require_integer("BiMap: in_features", in_features, 1)
        checks.require_integer("BiMap: out_features", out_features, 1)
        if out_features > in_features:
            raise ValueError(
                f"BiMap: {out_features} rows of {in_features} entries cannot be orthonormal; "
                "out_features must not exceed in_features"
            )
        self.in_features, self.out_features = in_features, out_features
        given = dtype or torch.get_default_dtype()
        wide = torch.promote_types(given, torch.float32)
        weight = torch.empty(out_features, in_features, device=device, dtype=wide)
        self.weight = nn.Parameter(weight)
        nn.init.orthogonal_(self.weight)
        orthogonal(self, "weight", orthogonal_map="cayley")
        self.to(given)

    def forward(self, matrix: Tensor) -> Tensor:
        checks.square("BiMap", matrix)
        if matrix.shape[-1] != self.in_features:
            raise ValueError(
                f"BiMap needs matrices (*, {self.in_features}, {self.in_features}), got "
                f"{tuple(matrix.shape)}"
            )
        with full_precision(matrix):
            # Under autocast the solve for W is in full precision too.
            weight = self._weight()
            dtype = torch.promote_types(matrix.dtype, weight.dtype)
            weight = weight.to(dtype)
            return (weight @ matrix.to(dtype) @ weight.mT).to(matrix.dtype)

    def _weight(self) -> Tensor:
        """W, of parameters in half precision in float32: torch has no solve in lower precision."""
        if not parametrize.is_parametrized(self, "weight"):
            return self.weight
        parametrizations: Any = self.parametrizations
        source = parametrizations.weight
        if torch.finfo(source.original.dtype).bits >= 32:
            return self.weight
        tensors = (*source.named_parameters(), *source.named_buffers())
        wide = {name: tensor.float() for name, tensor in tensors}
        return torch.func.functional_call(source, wide, ())

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}"


class ReEig(MatrixFunction):
    """max(λ, bound) of each eigenvalue, (*, n, n) → (*, n, n), `MatrixFunction("clamp_min")`.

    Args:
        bound: a number in the unit of the matrix; a tensor, or a parameter, which is learnt.
        options: method, compute_dtype and check of `MatrixFunction`.

    Ties need no care. Matrices may be singular or indefinite; of an eigenvalue at or below the
    bound the derivative is 0. Where only the logarithm follows, `LogEig(floor=bound)` does both by
    one decomposition.

    Raises:
        ValueError: as `MatrixFunction`.

    Source: Huang, Van Gool, "A Riemannian network for SPD matrix learning", AAAI 2017.
    """

    def __init__(self, bound: Tensor | float = 1e-4, **options: Any) -> None:
        super().__init__("clamp_min", parameter=bound, **options)


class LogEig(MatrixFunction):
    """The logarithm, `MatrixFunction("log")`, as a vector: (*, n, n) → (*, n(n+1)/2).

    Args:
        vectorize: whether to give `triu_vector(…, isometric=True)` instead of the matrix, so that
            lengths and angles of vectors are those of the matrices.
        options: method, floor, compute_dtype and check of `MatrixFunction`. Singular matrices are
            refused unless there is a floor, which clamps their eigenvalues from below.

    Ties need no care, as for `matrix_log`.

    Raises:
        ValueError: as `MatrixFunction`; singular matrices without a floor, by index.

    Source: Huang, Van Gool, "A Riemannian network for SPD matrix learning", AAAI 2017.
    """

    def __init__(self, vectorize: bool = True, **options: Any) -> None:
        super().__init__("log", **options)
        self.vectorize = vectorize

    def forward(self, matrix: Tensor) -> Tensor:
        logarithm = super().forward(matrix)
        return triu_vector(logarithm, isometric=True) if self.vectorize else logarithm
