"""What every spectral computation shares: numerical rank, symmetry, precision, refusals.

Shapes: (*, n, n) matrices, eigenvalues (*, m) in ascending order.
"""

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import Function, forward_ad


def rank_tolerance(size: int, dtype: torch.dtype) -> float:
    """The share of the largest eigenvalue below which one counts as zero: n · finfo(dtype).eps.

    The convention of numerical rank (Golub and Van Loan, Matrix Computations, §5.4; numpy's
    `matrix_rank`): the backward error of a symmetric eigendecomposition.
    """
    return size * torch.finfo(dtype).eps


def clip_to_rank(eigenvalues: Tensor, size: int) -> Tensor:
    """Eigenvalues (*, m) with rounding errors, of either sign, set to exactly zero."""
    threshold = rank_tolerance(size, eigenvalues.dtype) * eigenvalues.amax(-1, keepdim=True)
    # The comparison is this way round so that NaN, where it was not looked for, stays NaN.
    return torch.where(eigenvalues <= threshold.clamp_min(0), 0, eigenvalues)


def on_cpu(tensor: Tensor) -> bool:
    """Whether the ways of computing that suit a CPU are taken: tests take the others there too."""
    return tensor.device.type == "cpu"


def symmetric_part(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.mT)


def full_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context in which matrix products keep the precision of their operands, TF32 off too.

    torch.compile does not trace the setting of TF32: what it compiles follows the user's.
    """
    device = tensor.device.type
    autocast = nullcontext()
    if torch.amp.is_autocast_available(device):
        autocast = torch.autocast(device, enabled=False)
    return _WithoutTf32(autocast) if uses_tf32(tensor) else autocast


def uses_tf32(tensor: Tensor) -> bool:
    """Whether float32 products on the tensor's device are rounded to TF32, by the user's setting.

    That is 10 bits of mantissa, which no spectral computation survives.
    """
    if torch.compiler.is_compiling() or tensor.device.type != "cuda":
        return False
    return _Tf32.depth > 0 or torch.backends.cuda.matmul.fp32_precision == "tf32"


class _Tf32:
    """The setting is the process's: of several threads, the first saves it, the last restores."""

    lock = threading.Lock()
    depth = 0
    saved: Any = "none"


class _WithoutTf32(AbstractContextManager[None]):
    def __init__(self, inner: AbstractContextManager[Any]) -> None:
        self._inner = inner

    def __enter__(self) -> None:
        setting = torch.backends.cuda.matmul
        with _Tf32.lock:
            if _Tf32.depth == 0:
                _Tf32.saved = setting.fp32_precision
                # The new interface alone: it leaves what the old one has stored as it was.
                setting.fp32_precision = "ieee"
            _Tf32.depth += 1
        self._inner.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._inner.__exit__(*error)
        setting = torch.backends.cuda.matmul
        with _Tf32.lock:
            _Tf32.depth -= 1
            if _Tf32.depth == 0:
                # "none" is inherited from `torch.backends.fp32_precision`, and goes on to be.
                setting.fp32_precision = "none"
                if setting.fp32_precision != _Tf32.saved:
                    setting.fp32_precision = _Tf32.saved


def product(left: Tensor, right: Tensor) -> Tensor:
    """A B for autograd to differentiate, TF32 being off in its derivatives too."""
    return _Product.apply(left, right) if uses_tf32(left) else left @ right


class _Product(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(left: Tensor, right: Tensor) -> Tensor:
        with full_precision(left):
            return left @ right

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        left, right = ctx.saved_tensors
        of_left = product(grad_outputs[0], right.mT).sum_to_size(left.shape)
        return of_left, product(left.mT, grad_outputs[0]).sum_to_size(right.shape)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        left, right = ctx.saved_tensors
        return product(tangents[0], right) + product(left, tangents[1])


def nested_forward_mode() -> AbstractContextManager[Any]:
    """A context for the body of a Function's `jvp`, in which outer forward derivatives go on.

    torch switches forward mode off there, so that `jacfwd(jacfwd(f))` silently lacks every term
    that comes from the `jvp` itself (pytorch issue 197867, torch 2.11 to 2.15).
    """
    return forward_ad._set_fwd_grad_enabled(True)  # pyright: ignore[reportPrivateUsage]


def traced() -> bool:
    """Whether torch.jit.trace is recording."""
    # Documented by torch, but not listed in its `__all__`.
    return torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def apply_function(function: type[Function], both_modes: type[Function], *arguments: Any) -> Any:
    """An autograd function, and outside torch.compile, which refuses it, its forward mode.

    torch.jit.trace cannot save a call of one; it gets what the forward pass does.
    """
    if torch.compiler.is_compiling():
        return function.apply(*arguments)
    if traced():
        return function.forward(*arguments)
    return both_modes.apply(*arguments)


def recorded() -> bool:
    """Whether a graph is being recorded for other programs to run, without backward passes."""
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    return traced()


def refuse_onnx(what: str) -> None:
    """Refuse an operation that ONNX lacks, while a graph is being recorded for it.

    Raises:
        RuntimeError: in torch.onnx.export, which shows the message at the end of its own.
    """
    if recorded() and _in_onnx_export():
        if not torch.compiler.is_dynamo_compiling():
            # torch.compile's tracer, by which the exporter tries again, takes it for False.
            torch.compiler.assume_constant_result(_in_onnx_export)
        raise RuntimeError(
            f"covpool: ONNX has no {what}; what can be exported is cov_pool and CovPool2d with "
            "method 'newton-schulz-minimax', which is the root of 'exact' to rounding, or "
            "'isqrt-cov': assign it to the layer's method"
        )


def _in_onnx_export() -> bool:
    return torch.onnx.is_in_onnx_export()


def transformed(tensor: Tensor) -> bool:
    """Whether the tensor is inside a transform of torch.func, and not being compiled."""
    if torch.compiler.is_compiling():
        return False
    # torch has no public test for it (2.11 to 2.15).
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor  # pyright: ignore[reportAttributeAccessIssue]
    return wrapped(tensor)


def unreadable(tensor: Tensor) -> bool:
    """Whether there are no values to look at."""
    return (
        torch.compiler.is_compiling()
        or traced()
        or tensor.is_meta
        or isinstance(tensor, FakeTensor)
        or transformed(tensor)
    )


def name_samples(bad: Tensor) -> str:
    """'samples [3, 17] of 64', from a mask over the batch; '' where there is no batch."""
    if bad.ndim == 0:
        return ""
    found = bad.nonzero().tolist()
    shown = [index[0] if bad.ndim == 1 else tuple(index) for index in found[:8]]
    more = ", …" if len(found) > 8 else ""
    listed = ", ".join(map(str, shown))
    return f" in {len(found)} of {bad.numel()} samples: [{listed}{more}]"


class _NoSecondDerivative(Function):
    """The identity, with a derivative that is refused by name rather than silently wrong."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, reason: str, samples: Tensor | None) -> Tensor:
        return gradient.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, ctx.reason, samples = inputs
        ctx.save_for_backward(samples)
        ctx.save_for_forward(samples)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        return _refuse(grad_outputs[0], ctx.reason, *ctx.saved_tensors), None, None


class _NoSecondDerivativeEither(_NoSecondDerivative):
    """The same in forward mode, which `torch.compile` does not accept."""

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Tensor:
        return _refuse(grad_inputs[0], ctx.reason, *ctx.saved_tensors)


def _refuse(derivative: Tensor, reason: str, samples: Tensor | None) -> Tensor:
    if samples is None:
        raise RuntimeError(reason)
    if not unreadable(samples) and bool(samples.any()):
        raise RuntimeError(reason + name_samples(samples))
    samples = samples.reshape(*samples.shape, *(1,) * (derivative.ndim - samples.ndim))
    return torch.where(samples, torch.nan, derivative)


def refuse_second_derivative(
    gradient: Tensor, reason: str, samples: Tensor | None = None
) -> Tensor:
    """The gradient, whose derivative is refused: of the samples in the mask (*), if there is one.

    Where the mask cannot be read, inside torch.func transforms, theirs is NaN.
    """
    if torch.compiler.is_compiling():
        if not torch.is_grad_enabled():
            return gradient
        return _NoSecondDerivative.apply(gradient, reason, samples)
    return _NoSecondDerivativeEither.apply(gradient, reason, samples)
