"""Functions of symmetric matrices as a layer."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from covpool.linalg import checks
from covpool.linalg.elementwise import get_function
from covpool.linalg.evaluate import evaluate, get_pairing
from covpool.linalg.functions import FUNCTIONS, Floored, ScalarFunction
from covpool.linalg.methods import Method
from covpool.linalg.names import FunctionName, MethodName
from covpool.linalg.products import SUBSTITUTE, NoProductForm, roots_in_products
from covpool.linalg.spectrum import symmetric_part
from covpool.linalg.transforms import as_leaf


@torch.fx.wrap  # one call in a graph of torch.fx, as it decides by shapes and values
def _evaluated(
    function: str | Callable[[Tensor], Tensor] | ScalarFunction,
    matrix: Tensor,
    parameter: Tensor | float | None,
    floor: Tensor | float | None,
    method: Method,
    compute_dtype: torch.dtype | None,
    check: bool,
) -> Tensor:
    chosen = get_function(function)
    caller = f"MatrixFunction({chosen.name!r})"
    return evaluate(
        caller, (chosen,), matrix, (parameter,), method, compute_dtype, check, False, floor
    )[0]


@torch.fx.wrap
def _in_products(matrix: Tensor, method: Method, dtype: torch.dtype, root: bool) -> Tensor:
    """√A or A^(−1/2) in matrix products. The entries of A have the precision in which it is given,
    and so the steps are those for that."""
    steps = method.forward.product_steps(matrix.dtype)
    assert steps is not None
    wide = symmetric_part(matrix.to(torch.promote_types(matrix.dtype, dtype)))
    found = roots_in_products(wide, *steps)
    return found[0 if root else 1].to(matrix.dtype)


def _shape(value: Tensor | float) -> torch.Size:
    return value.shape if isinstance(value, Tensor) else torch.Size()


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
        floor: as for `matrix_function`: a number, or a tensor, which becomes a buffer.
        compute_dtype: as for `matrix_sqrt`.
        check: as for `matrix_sqrt`.

    Raises:
        ValueError: an unknown function or method, a method that does not offer the function (the
            message names those that do), a missing or superfluous parameter, a number that is not
            finite, a floor that is not positive, or another compute_dtype than float32 and
            float64; in `forward`, as the function.

    Source: that of the function.

    >>> import torch, covpool
    >>> layer = covpool.MatrixFunction("power", exponent=torch.nn.Parameter(torch.tensor(0.5)))
    >>> layer(torch.eye(3).expand(8, 3, 3)).shape
    torch.Size([8, 3, 3])
    """

    _function: str | ScalarFunction
    floor: Tensor | float | None

    def __init__(
        self,
        function: FunctionName | Callable[[Tensor], Tensor] | ScalarFunction = "sqrt",
        method: MethodName | Method = "exact",
        *,
        parameter: Tensor | float | None = None,
        exponent: Tensor | float | None = None,
        floor: Tensor | float | None = None,
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
            checks.parameter("MatrixFunction", chosen.parameter, parameter, _shape(parameter))
            self._keep(chosen.parameter, parameter)
        self._parameter = chosen.parameter
        if floor is not None:
            checks.floor("MatrixFunction", floor, _shape(floor))
        self._keep("floor", floor)
        checks.compute_dtype("MatrixFunction", compute_dtype)
        self.method = method
        self.compute_dtype = compute_dtype
        self.check = check
        self.products: torch.dtype | None = None

    def _keep(self, name: str, value: Tensor | float | None) -> None:
        """As an attribute: a buffer of tensors that are not learnt."""
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            self.register_buffer(name, value)
        else:
            setattr(self, name, value)

    @property
    def function(self) -> str:
        """The function's name."""
        return get_function(self._function).name

    @property
    def method(self) -> Method:
        """The row in use; assign a name or a row."""
        return self._method

    @method.setter
    def method(self, method: MethodName | Method) -> None:
        function = get_function(self._function)
        if self.floor is not None:
            function = Floored(function)
        self._method = get_pairing("MatrixFunction", function, method)

    def in_matrix_products(self, dtype: torch.dtype) -> str | None:
        """Compute by matrix products alone from now on, see `covpool.exportable`.

        Returns:
            What stands in for the method, if it is another one.

        Raises:
            NoProductForm: another function than the root and its inverse, or one with a floor.
        """
        if self.function not in ("sqrt", "inv_sqrt") or self.floor is not None:
            floored = "" if self.floor is None else " with a floor"
            raise NoProductForm(
                f"the function {self.function!r}{floored} of a matrix; 'sqrt' and 'inv_sqrt' have "
                "one"
            )
        kept = self._method.forward.product_steps(dtype) is not None
        if not kept:
            self.method = SUBSTITUTE
        self.products = dtype
        return None if kept else SUBSTITUTE

    def forward(self, matrix: Tensor) -> Tensor:
        if (leaf := as_leaf(self, matrix)) is not None:
            return leaf
        if self.products is not None:
            return _in_products(matrix, self._method, self.products, self.function == "sqrt")
        parameter = None if self._parameter is None else getattr(self, self._parameter)
        return _evaluated(
            self._function,
            matrix,
            parameter,
            self.floor,
            self._method,
            self.compute_dtype,
            self.check,
        )

    def extra_repr(self) -> str:
        shown = [f"{self.function!r}", f"method={self._method.name!r}"]
        shown += [f"{name}={value}" for name, value in self._method.constants.items()]
        for name in (self._parameter, "floor"):
            value = None if name is None else getattr(self, name)
            if isinstance(value, Tensor):
                kind = "parameter" if isinstance(value, nn.Parameter) else "buffer"
                number = f"{value.item():.4g}, " if value.numel() == 1 else ""
                value = f"<{number}{kind} of shape {tuple(value.shape)}>"
            if value is not None:
                shown.append(f"{name}={value}")
        return ", ".join(shown)
