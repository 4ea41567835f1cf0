"""Functions of symmetric matrices as a layer."""

from typing import cast

import torch
from torch import Tensor, nn

from covpool.linalg import checks
from covpool.linalg.evaluate import evaluate, get_pairing
from covpool.linalg.functions import FUNCTIONS
from covpool.linalg.methods import Method
from covpool.linalg.tables import choose


@torch.fx.wrap  # one call in a graph of torch.fx, as it decides by shapes and values
def _evaluated(
    function: str,
    matrix: Tensor,
    exponent: Tensor | float | None,
    method: Method,
    compute_dtype: torch.dtype | None,
    check: bool,
) -> Tensor:
    caller, chosen = f"MatrixFunction({function!r})", FUNCTIONS[function]
    result = evaluate(caller, chosen, matrix, exponent, method, compute_dtype, check, False)
    return cast(Tensor, result)


class MatrixFunction(nn.Module):
    """A function of symmetric matrices as a layer: (*, n, n) → (*, n, n).

    Args:
        function: "sqrt", "inv_sqrt", "power" or "log", a key of `FUNCTIONS`: what `matrix_sqrt`,
            `matrix_inv_sqrt`, `matrix_power` and `matrix_log` compute; values and gradients, at
            ties and at deficient rank too, are those of the function.
        method: as for the function. Assign `method` at any time; the pairing is checked then too.
        exponent: for "power" alone: a number, a tensor, which becomes a buffer, or an
            `nn.Parameter`, which is learnt. It must broadcast to the batch shape.
        compute_dtype: as for `matrix_sqrt`.
        check: as for `matrix_sqrt`.

    Raises:
        ValueError: an unknown function or method, a method that does not offer the function (the
            message names those that do), a missing or superfluous exponent, or a number that is not
            finite, another compute_dtype than float32 and float64; in `forward`, as the function.

    Source: that of the function.

    >>> import torch, covpool
    >>> layer = covpool.MatrixFunction("power", exponent=torch.nn.Parameter(torch.tensor(0.5)))
    >>> layer(torch.eye(3).expand(8, 3, 3)).shape
    torch.Size([8, 3, 3])
    """

    exponent: Tensor | float | None

    def __init__(
        self,
        function: str = "sqrt",
        method: str | Method = "exact",
        *,
        exponent: Tensor | float | None = None,
        compute_dtype: torch.dtype | None = None,
        check: bool = True,
    ) -> None:
        super().__init__()
        needs_exponent = choose("function", function, FUNCTIONS).parameter is not None
        # The name, not the function: copies and pickles of the layer keep the table's own.
        self._function = function
        if needs_exponent and exponent is None:
            raise ValueError(f"MatrixFunction: function {function!r} needs an exponent, got None")
        if not needs_exponent and exponent is not None:
            raise ValueError(
                f"MatrixFunction: function {function!r} has no exponent, got {exponent!r}; "
                "function='power' has one"
            )
        if exponent is not None:
            shape = exponent.shape if isinstance(exponent, Tensor) else torch.Size()
            checks.exponent("MatrixFunction", exponent, shape)
        checks.compute_dtype("MatrixFunction", compute_dtype)
        self.method = method
        self.compute_dtype = compute_dtype
        self.check = check
        if isinstance(exponent, Tensor) and not isinstance(exponent, nn.Parameter):
            self.register_buffer("exponent", exponent)
        else:
            self.exponent = exponent

    @property
    def function(self) -> str:
        """The function's name."""
        return self._function

    @property
    def method(self) -> Method:
        """The row in use; assign a name or a row."""
        return self._method

    @method.setter
    def method(self, method: str | Method) -> None:
        self._method = get_pairing("MatrixFunction", FUNCTIONS[self._function], method)

    def forward(self, matrix: Tensor) -> Tensor:
        return _evaluated(
            self._function, matrix, self.exponent, self._method, self.compute_dtype, self.check
        )

    def extra_repr(self) -> str:
        shown = [f"{self.function!r}", f"method={self._method.name!r}"]
        shown += [f"{name}={value}" for name, value in self._method.constants.items()]
        if isinstance(self.exponent, Tensor):
            kind = "parameter" if isinstance(self.exponent, nn.Parameter) else "buffer"
            shape = tuple(self.exponent.shape)
            value = f"{self.exponent.item():.4g}, " if self.exponent.numel() == 1 else ""
            shown.append(f"exponent=<{value}{kind} of shape {shape}>")
        elif self.exponent is not None:
            shown.append(f"exponent={self.exponent}")
        return ", ".join(shown)
