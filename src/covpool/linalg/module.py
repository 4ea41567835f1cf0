"""Functions of symmetric matrices as a layer."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from covpool.linalg import checks
from covpool.linalg.elementwise import get_function
from covpool.linalg.evaluate import evaluate, get_pairing
from covpool.linalg.functions import FUNCTIONS, ScalarFunction
from covpool.linalg.methods import Method


@torch.fx.wrap  # one call in a graph of torch.fx, as it decides by shapes and values
def _evaluated(
    function: str | Callable[[Tensor], Tensor] | ScalarFunction,
    matrix: Tensor,
    parameter: Tensor | float | None,
    method: Method,
    compute_dtype: torch.dtype | None,
    check: bool,
) -> Tensor:
    chosen = get_function(function)
    caller = f"MatrixFunction({chosen.name!r})"
    result = evaluate(caller, chosen, matrix, parameter, method, compute_dtype, check, False)
    return cast(Tensor, result)


class MatrixFunction(nn.Module):
    """A function of symmetric matrices as a layer: (*, n, n) → (*, n, n).

    Args:
        function: as for `matrix_function`; values and gradients, at ties and at deficient rank too,
            are those of the function. Parameters that one of your own closes over are not learnt.
        method: as for the function. Assign `method` at any time; the pairing is checked then too.
        parameter: for functions that have one ("power": its exponent, "inv_root": its root,
            "clamp_min": its bound): a number, a tensor, which becomes a buffer, or an
            `nn.Parameter`, which is learnt. It must broadcast to the batch shape. It is an
            attribute by its own name, `layer.exponent`.
        exponent: the same for "power".
        compute_dtype: as for `matrix_sqrt`.
        check: as for `matrix_sqrt`.

    Raises:
        ValueError: an unknown function or method, a method that does not offer the function (the
            message names those that do), a missing or superfluous parameter, or a number that is
            not finite, another compute_dtype than float32 and float64; in `forward`, as the
            function.

    Source: that of the function.

    >>> import torch, covpool
    >>> layer = covpool.MatrixFunction("power", exponent=torch.nn.Parameter(torch.tensor(0.5)))
    >>> layer(torch.eye(3).expand(8, 3, 3)).shape
    torch.Size([8, 3, 3])
    """

    _function: str | ScalarFunction

    def __init__(
        self,
        function: str | Callable[[Tensor], Tensor] | ScalarFunction = "sqrt",
        method: str | Method = "exact",
        *,
        parameter: Tensor | float | None = None,
        exponent: Tensor | float | None = None,
        compute_dtype: torch.dtype | None = None,
        check: bool = True,
    ) -> None:
        super().__init__()
        chosen = get_function(function)
        # By name what is in the table: copies and pickles of the layer keep the table's own row.
        # Past the registry of submodules: a function that is one would show parameters that get no
        # gradient.
        named = FUNCTIONS.get(chosen.name) is chosen
        object.__setattr__(self, "_function", chosen.name if named else chosen)
        if exponent is not None and chosen.parameter != "exponent":
            raise ValueError(
                f"MatrixFunction: function {chosen.name!r} has no exponent, got {exponent!r}; "
                "function='power' has one"
            )
        if parameter is not None and exponent is not None:
            raise ValueError("MatrixFunction: parameter and exponent are the same; give one")
        parameter = exponent if parameter is None else parameter
        if chosen.parameter is None:
            if parameter is not None:
                raise ValueError(
                    f"MatrixFunction: function {chosen.name!r} has no parameter, got {parameter!r}"
                )
        elif parameter is None:
            article = "an" if chosen.parameter == "exponent" else "a"
            raise ValueError(
                f"MatrixFunction: function {chosen.name!r} needs {article} {chosen.parameter}, "
                "got None"
            )
        else:
            shape = parameter.shape if isinstance(parameter, Tensor) else torch.Size()
            checks.parameter("MatrixFunction", chosen.parameter, parameter, shape)
            if isinstance(parameter, Tensor) and not isinstance(parameter, nn.Parameter):
                self.register_buffer(chosen.parameter, parameter)
            else:
                setattr(self, chosen.parameter, parameter)
        self._parameter = chosen.parameter
        checks.compute_dtype("MatrixFunction", compute_dtype)
        self.method = method
        self.compute_dtype = compute_dtype
        self.check = check

    @property
    def function(self) -> str:
        """The function's name."""
        return get_function(self._function).name

    @property
    def method(self) -> Method:
        """The row in use; assign a name or a row."""
        return self._method

    @method.setter
    def method(self, method: str | Method) -> None:
        self._method = get_pairing("MatrixFunction", get_function(self._function), method)

    def forward(self, matrix: Tensor) -> Tensor:
        parameter = None if self._parameter is None else getattr(self, self._parameter)
        return _evaluated(
            self._function, matrix, parameter, self._method, self.compute_dtype, self.check
        )

    def extra_repr(self) -> str:
        shown = [f"{self.function!r}", f"method={self._method.name!r}"]
        shown += [f"{name}={value}" for name, value in self._method.constants.items()]
        if self._parameter is None:
            return ", ".join(shown)
        parameter = getattr(self, self._parameter)
        if isinstance(parameter, Tensor):
            kind = "parameter" if isinstance(parameter, nn.Parameter) else "buffer"
            value = f"{parameter.item():.4g}, " if parameter.numel() == 1 else ""
            parameter = f"<{value}{kind} of shape {tuple(parameter.shape)}>"
        return ", ".join([*shown, f"{self._parameter}={parameter}"])
