"""How far each method's gradient is from the exact one, in direction and in size.

Compared are gradients of a loss with respect to the features behind the covariance, which is what
training receives: ∂ℓ/∂X of ℓ = ⟨G, √cov X⟩, for one G and every method.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from covpool.analysis.records import Record, check_spectrum
from covpool.analysis.state import (
    matrix_gradient,
    pooling_layer,
    unchanged_buffers,
    unchanged_generators,
    watch_pooling,
)
from covpool.linalg import checks
from covpool.linalg.checks import require_integer
from covpool.linalg.functions import SQRT
from covpool.linalg.methods import METHODS, Method, get_method
from covpool.linalg.names import MethodName
from covpool.linalg.spectrum import clip_to_rank, symmetric_part
from covpool.pooling import cov_pool

SEED = 0
"""Of the cotangents that are drawn where none is given."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fidelity(Record):
    """One method's gradient beside the exact one, of each sample of a batch (*).

    Attributes:
        method: the row's name.
        cosine: of the angle between the two, 1 where they point the same way; 0 where either is
            zero.
        relative_distance: ‖g − g*‖/‖g*‖, g* the exact one; inf where g* alone is zero.
        norm_ratio: ‖g‖/‖g*‖.
    """

    method: str
    cosine: Tensor
    relative_distance: Tensor
    norm_ratio: Tensor

    @property
    def angle(self) -> Tensor:
        """(*), in degrees. Below about 1e-6 it is rounding; the relative distance goes on."""
        return self.cosine.clamp(-1, 1).acos().rad2deg()


def compare(method: str, gradient: Tensor, exact: Tensor, *, sample_dims: int = 2) -> Fidelity:
    """Cosine, relative distance and ratio of norms of two gradients, over the last `sample_dims`.

    Raises:
        ValueError: gradients of different shapes.
    """
    if gradient.shape != exact.shape:
        raise ValueError(
            f"gradients of one shape are compared, got {tuple(gradient.shape)} and "
            f"{tuple(exact.shape)}"
        )
    one, other = (each.detach().double().flatten(-sample_dims) for each in (gradient, exact))
    # Scaled, so that squares neither overflow nor vanish; NaN stays NaN.
    scales = [each.abs().amax(-1, keepdim=True) for each in (one, other)]
    scales = [torch.where(scale == 0, 1, scale) for scale in scales]
    scale = torch.maximum(*scales)
    norms = [
        (each / own).norm(dim=-1) * own.squeeze(-1)
        for each, own in zip((one, other), scales, strict=True)
    ]
    inner = ((one / scales[0]) * (other / scales[1])).sum(-1)
    product = (one / scales[0]).norm(dim=-1) * (other / scales[1]).norm(dim=-1)
    difference = ((one - other) / scale).norm(dim=-1) * scale.squeeze(-1)
    distance = difference / norms[1]
    return Fidelity(
        method=method,
        cosine=torch.where(product == 0, 0, (inner / product).clamp(-1, 1)),
        relative_distance=torch.where(difference == 0, 0, distance),
        norm_ratio=norms[0] / norms[1],
    )


def spectral_fidelity(
    eigenvalues: Tensor,
    methods: Iterable[MethodName | Method] | None = None,
    *,
    cotangent: Tensor | None = None,
    seed: int = SEED,
) -> dict[str, Fidelity]:
    """Fidelity on prescribed spectra, free of the rounding of any decomposition.

    With Xc/√N = U S Vᵀ the gradient of the features is 2/√N · U ((L ∘ Ĝ) S) Vᵀ within the range,
    L being the method's Loewner matrix of S² and Ĝ = Uᵀ G U; U and V turn both gradients alike, so
    angle and distance depend on L, S and Ĝ alone: that is what is compared, in float64. The
    gradient of directions outside the range of n channels, which do not exist here, is left out:
    give eigenvalues for all C channels, zeros where there are none.

    Args:
        eigenvalues: (*, n) of covariances, not negative, in any order; those at or below n · eps of
            the largest count as zero.
        methods: rows of `METHODS`; None: all.
        cotangent: Ĝ, (*, n, n) or (n, n), in the basis of the ascending eigenvalues; None: one
            symmetric Gaussian matrix, the same for every spectrum.
        seed: of that matrix; torch's own generators are not touched.

    Returns:
        By name, in the order given.

    What it is not: an error of the forward pass. `svd-topn` and those that iterate compute another
    root too, and the gradient of theirs may be right for what they compute.

    Raises:
        ValueError: an unknown method, negative or non-finite eigenvalues, a cotangent of another
            shape.

    Source: the exact gradient, Daleckiĭ, Kreĭn, 1965; the others, the rows' references.
    """
    spectrum = check_spectrum("spectral_fidelity", eigenvalues).double()
    size = spectrum.shape[-1]
    spectrum = clip_to_rank(spectrum, size)
    if cotangent is None:
        cotangent = _draw((size, size), seed)
    if cotangent.shape[-2:] != (size, size):
        raise ValueError(
            f"spectral_fidelity needs a cotangent (*, {size}, {size}), got {tuple(cotangent.shape)}"
        )
    turned = symmetric_part(cotangent.detach().to(spectrum))

    def gradient(method: Method) -> Tensor:
        loewner, trace = method.gradient.loewner(SQRT, spectrum, size)
        inner = loewner * turned
        if trace is not None:
            diagonal = turned.diagonal(dim1=-2, dim2=-1)
            isotropic = (trace * diagonal).sum(-1, keepdim=True)
            inner = inner + torch.diag_embed(isotropic.expand_as(spectrum))
        return inner * spectrum.sqrt()[..., None, :]

    exact = gradient(METHODS["exact"])
    rows = METHODS.values() if methods is None else [get_method(method) for method in methods]
    return {row.name: compare(row.name, gradient(row), exact) for row in rows}


def feature_fidelity(
    features: Tensor,
    methods: Iterable[MethodName | Method] | None = None,
    *,
    cotangent: Tensor | None = None,
    seed: int = SEED,
) -> dict[str, Fidelity]:
    """Fidelity on given features, by the very backward passes that training uses.

    Args:
        features: (*, C, H, W), or (*, C, N) where it has two or three dimensions, such as those
            that `pooled_gradient` takes from a model; computed in float64.
        methods: rows of `METHODS`; None: all.
        cotangent: G = ∂ℓ/∂√cov, (*, C, C) or (C, C): that of a real loss, or None for one symmetric
            Gaussian matrix, the same for every sample.
        seed: of that matrix; torch's own generators are not touched.

    Returns:
        By name, in the order given; figures of each sample.

    Cost: a forward and a backward pass of `cov_pool` in float64 for each method and the exact one.

    What it is not: the change of a whole network's gradient, as G is kept although another root
    would give another one.

    Raises:
        ValueError: an unknown method, a cotangent of another shape; and as `cov_pool`.
    """
    checks.floating("feature_fidelity", features)
    x = features.detach().double()
    sample_dims = 3 if x.ndim >= 4 else 2
    channels = x.shape[-sample_dims] if x.ndim >= 2 else 0
    if cotangent is None:
        cotangent = _draw((channels, channels), seed)
    if cotangent.shape[-2:] != (channels, channels):
        raise ValueError(
            f"feature_fidelity needs a cotangent (*, {channels}, {channels}), got "
            f"{tuple(cotangent.shape)}"
        )
    turned = symmetric_part(cotangent.detach().to(x))

    def gradient(method: Method) -> Tensor:
        leaf = x.clone().requires_grad_()
        with torch.enable_grad():
            pooled = cov_pool(leaf, method)
        return torch.autograd.grad(pooled, leaf, turned.expand_as(pooled))[0]

    exact = gradient(METHODS["exact"])
    rows = METHODS.values() if methods is None else [get_method(method) for method in methods]
    return {
        row.name: compare(row.name, gradient(row), exact, sample_dims=sample_dims) for row in rows
    }


def pooled_gradient(
    model: nn.Module, closure: Any, *, method: MethodName | Method | None = None
) -> tuple[Tensor, Tensor]:
    """The features that a model pools, and the loss's gradient of the pooled matrix.

    `feature_fidelity(features, cotangent=cotangent)` of both says how far each method's gradient
    is from the exact one on a real network, batch and loss.

    Args:
        model: with one `CovPool2d`.
        closure: evaluates the loss, as for `effective_smoothness`.
        method: the method of the forward pass; None: the layer's own.

    Returns:
        Features (B, C, N) and symmetric gradients (B, C, C), detached.

    The model, its method, buffers and `.grad`, and torch's generators, are left as they were.

    Raises:
        ValueError: no CovPool2d or several, or a loss that does not depend on it.
    """
    layer = pooling_layer(model)
    outputs: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        outputs.append(output)

    own = layer.method
    handle = layer.register_forward_hook(keep)
    try:
        layer.method = own if method is None else method
        with (
            watch_pooling(model) as record,
            unchanged_buffers(model),
            unchanged_generators(model.parameters()),
            torch.enable_grad(),
        ):
            loss = closure()
            if not outputs or record.features is None or not outputs[-1].requires_grad:
                raise ValueError(
                    "pooled_gradient: the closure did not call the model's pooling layer with "
                    "parameters that need a gradient"
                )
            (gradient,) = torch.autograd.grad(loss, outputs[-1])
    finally:
        layer.method = own
        handle.remove()
    return record.features, matrix_gradient(layer, gradient)


def _draw(shape: tuple[int, int], seed: int) -> Tensor:
    require_integer("seed", seed, 0)
    generator = torch.Generator().manual_seed(seed)
    return symmetric_part(torch.randn(shape, generator=generator, dtype=torch.float64))


def gap_spectra(gaps: Sequence[float], *, size: int = 64, condition_number: float = 1e4) -> Tensor:
    """Spectra of pairs of neighbours with a prescribed relative gap: (len(gaps), size) float64.

    The larger of each pair are spaced evenly in logarithm from 1 to 1/condition_number; each
    partner is (1 − gap) times it. Ascending.

    Raises:
        ValueError: an odd size, gaps not in [0, 1), or a condition number below 1.
    """
    _check_spectra("gap_spectra", size, condition_number)
    if size % 2 or not gaps or not all(0 <= gap < 1 for gap in gaps):
        raise ValueError(
            f"gap_spectra needs an even size and gaps in [0, 1), got size {size} and gaps {gaps}"
        )
    exponents = torch.linspace(0, 1, size // 2, dtype=torch.float64)
    larger = condition_number**-exponents
    partner = larger * (1 - torch.tensor(list(gaps), dtype=torch.float64)[:, None])
    return torch.cat([larger.expand_as(partner), partner], -1).sort(-1).values


def rank_spectra(ranks: Sequence[int], *, size: int = 64, condition_number: float = 1e4) -> Tensor:
    """Spectra of prescribed rank, (len(ranks), size) float64: the rest of the eigenvalues are zero.

    Those that are not are spaced evenly in logarithm from 1 to 1/condition_number. Ascending.

    Raises:
        ValueError: ranks not in 1 to size, or a condition number below 1.
    """
    _check_spectra("rank_spectra", size, condition_number)
    for rank in ranks:
        require_integer("rank_spectra: rank", rank, 1)
    if not ranks or max(ranks) > size:
        raise ValueError(f"rank_spectra needs ranks from 1 to size {size}, got {ranks}")
    spectra = torch.zeros(len(ranks), size, dtype=torch.float64)
    for spectrum, rank in zip(spectra, ranks, strict=True):
        exponents = torch.linspace(1, 0, rank, dtype=torch.float64)
        spectrum[size - rank :] = condition_number**-exponents
    return spectra


def _check_spectra(caller: str, size: int, condition_number: float) -> None:
    require_integer(f"{caller}: size", size, 1)
    if not 1 <= condition_number < float("inf"):
        raise ValueError(
            f"{caller} needs a condition number of at least 1, got {condition_number!r}"
        )
