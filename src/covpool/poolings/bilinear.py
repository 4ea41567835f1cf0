"""Bilinear pooling: B-CNN, its compact forms by random features, and the factorised form."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from covpool.pooling import triu_vector
from covpool.poolings.base import Pooling, PoolingModule, require

FEW_CHANNELS = 64
"""Up to so many, quadratic forms are computed from the second moment: at 64 channels and 49
positions a step takes 0.4 of the time that it takes by positions."""

ROOT_EPSILON = 1e-8
"""ε of sign(b)·√(|b| + ε), which keeps the gradient at 0 below 5,000."""


def signed_root(vectors: Tensor) -> Tensor:
    """sign(b)·√(|b| + ε) of each entry, 0 at 0."""
    return vectors.sign() * (vectors.abs() + ROOT_EPSILON).sqrt()


def second_moment(features: Tensor) -> Tensor:
    """X Xᵀ / N of features (B, C, N)."""
    return features @ features.mT / features.shape[-1]


class Bilinear(PoolingModule):
    """The signed root of X Xᵀ / N, of length 1.

    The upper triangle, entries off the diagonal times √2: lengths and inner products are those of
    the whole matrix, which holds each of them twice.

    Args:
        channels: C.
        as_published: give all C² entries.
    """

    def __init__(self, channels: int, *, as_published: bool = False) -> None:
        super().__init__()
        self.as_published = as_published
        self.out_features = channels**2 if as_published else channels * (channels + 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        root = signed_root(second_moment(x.flatten(2)))
        vector = root.flatten(1) if self.as_published else triu_vector(root, isometric=True)
        return normalize(vector, dim=1)


class TensorSketch(PoolingModule):
    """The count sketch of X Xᵀ: signed root of length 1.

    Channel c has two places h₁(c), h₂(c) below d and two signs; entry (a, b) of the matrix is added
    with both signs to place h₁(a) + h₂(b) mod d. That is the sum over positions of the inverse
    Fourier transform of the product of both sketches' transforms.

    Args:
        channels: C.
        outputs: d.
        seed: of the places and signs, which are buffers and so part of checkpoints.
    """

    places: Tensor
    signs: Tensor

    def __init__(self, channels: int, *, outputs: int = 8192, seed: int = 1) -> None:
        super().__init__()
        _check_outputs(outputs)
        self.out_features = outputs
        generator = torch.Generator().manual_seed(seed)
        places = torch.randint(outputs, (2, channels), generator=generator, device="cpu")
        signs = torch.randint(2, (2, channels), generator=generator, device="cpu")
        self.register_buffer("places", places)
        self.register_buffer("signs", (2 * signs - 1).to(torch.get_default_dtype()))

    def forward(self, x: Tensor) -> Tensor:
        matrix = second_moment(x.flatten(2)) * x.flatten(2).shape[-1]
        first, second = self.signs.to(matrix.dtype)
        signed = (matrix * torch.outer(first, second)).flatten(1)
        place = (self.places[0][:, None] + self.places[1]).flatten() % self.out_features
        sketch = signed.new_zeros(x.shape[0], self.out_features).index_add(1, place, signed)
        return normalize(signed_root(sketch), dim=1)


class RandomMaclaurin(PoolingModule):
    """Σ over positions of (W₁ᵀx) ∘ (W₂ᵀx), entries ±d^(−1/4): signed root of length 1.

    Args:
        channels: C.
        outputs: d.
        seed: of the projections, which are part of checkpoints.
        learned: whether they are parameters, as in the authors' MatConvNet code.
    """

    projections: Tensor

    def __init__(
        self, channels: int, *, outputs: int = 8192, seed: int = 1, learned: bool = False
    ) -> None:
        super().__init__()
        _check_outputs(outputs)
        self.out_features = outputs
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(2, (2, outputs, channels), generator=generator, device="cpu")
        projections = (2 * signs - 1).to(torch.get_default_dtype()) * outputs**-0.25
        if learned:
            self.projections = nn.Parameter(projections)
        else:
            self.register_buffer("projections", projections)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.projections.to(x.dtype)
        matrix = second_moment(x.flatten(2)) * x.flatten(2).shape[-1]
        # Σ (w₁ᵀx)(w₂ᵀx) = w₁ᵀ(XXᵀ)w₂: no array of positions × outputs.
        sums = ((first @ matrix) * second).sum(-1)
        return normalize(signed_root(sums), dim=1)


class Factorised(PoolingModule):
    """y_j = b_j + w_jᵀ x̄ + mean over positions of Σ (f_jkᵀ x)², k = 1 … factors.

    DropFactor: in training each of an output's quadratic terms is kept with a probability, by
    sample; in evaluation all are, multiplied by it.

    Args:
        channels: C.
        outputs: how many y_j.
        factors: quadratic terms of each.
        keep: the probability.
    """

    def __init__(
        self, channels: int, *, outputs: int = 256, factors: int = 20, keep: float = 0.5
    ) -> None:
        super().__init__()
        _check_outputs(outputs)
        whole = isinstance(factors, int) and factors >= 1
        require(whole, "factors", "a whole number of at least 1", factors)
        require(0 < keep <= 1, "keep", "in (0, 1]", keep)
        self.out_features, self.factors, self.keep = outputs, factors, keep
        self.linear = nn.Linear(channels, outputs)
        self.quadratic = nn.Parameter(torch.empty(outputs * factors, channels))
        nn.init.normal_(self.quadratic, std=(channels * factors) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        features = x.flatten(2)
        channels, positions = features.shape[1:]
        few = channels <= min(FEW_CHANNELS, 2 * positions)
        if few and not self.training:
            return self.linear(features.mean(-1)) + self.keep * self._sums(features)
        terms = self._squares(features) if few else self._squares_by_position(features)
        terms = terms.unflatten(1, (self.out_features, self.factors))
        kept = torch.rand_like(terms) < self.keep if self.training else self.keep
        return self.linear(features.mean(-1)) + (terms * kept).sum(-1)

    def _squares_by_position(self, features: Tensor) -> Tensor:
        """The mean over positions of (fᵀx)² for each f."""
        return (self.quadratic @ features).square().mean(-1)

    def _squares(self, features: Tensor) -> Tensor:
        """The same as inner products of ffᵀ and the second moment, a single product for all
        samples; of both, as they are symmetric, the upper triangle."""
        channels = features.shape[1]
        row, column = torch.triu_indices(channels, channels, device=features.device)
        entries = self.quadratic.mT.contiguous()
        outer = entries.index_select(0, row) * entries.index_select(0, column)
        moment = second_moment(features)
        return triu_vector(moment.triu() + moment.triu(1)) @ outer

    def _sums(self, features: Tensor) -> Tensor:
        """The sum of each output's squares, where none is dropped: Σ ffᵀ is one matrix for it."""
        by_output = self.quadratic.unflatten(0, (self.out_features, self.factors))
        return second_moment(features).flatten(1) @ (by_output.mT @ by_output).flatten(1).mT


def _check_outputs(outputs: int) -> None:
    whole = isinstance(outputs, int) and outputs >= 1
    require(whole, "outputs", "a whole number of at least 1", outputs)


_COMPACT = "Gao, Beijbom, Zhang, Darrell: Compact bilinear pooling, CVPR 2016"

BILINEAR: tuple[Pooling, ...] = (
    Pooling(
        name="bcnn",
        representation="second-moment",
        normalisation="signed root of entries, length 1",
        make=Bilinear,
        reduced=False,
        paper="Lin, RoyChowdhury, Maji: Bilinear CNN models for fine-grained visual recognition, "
        "ICCV 2015",
        description="the uncentred second moment, by its entries' signed roots",
        caution="The published code gives each entry off the diagonal twice; here once, times √2. "
        "as_published=True gives all C².",
    ),
    Pooling(
        name="tensor-sketch",
        representation="sketch of the second moment",
        normalisation="signed root of entries, length 1",
        make=TensorSketch,
        reduced=False,
        paper=_COMPACT,
        description="the second moment compressed to 8192 sums of random entries",
        caution="Fixed signs; the authors' MatConvNet code trains them.",
    ),
    Pooling(
        name="random-maclaurin",
        representation="random projections of the second moment",
        normalisation="signed root of entries, length 1",
        make=RandomMaclaurin,
        reduced=False,
        paper=_COMPACT,
        description="8192 products of two random projections, summed over positions",
        caution="Fixed projections; the authors' MatConvNet code trains them: learned=True.",
    ),
    Pooling(
        name="fbn",
        representation="quadratic forms of low rank",
        regulariser="DropFactor",
        make=Factorised,
        reduced=False,
        paper="Li, Wang, Liu, Hou: Factorized bilinear models for image recognition, ICCV 2017",
        description="learned quadratic forms of low rank, averaged over positions",
        caution="In the paper the outputs are the logits: take outputs=CLASSES and remove the "
        "classifier by reset_classifier(0). How the paper draws DropFactor's mask was not at hand: "
        "here by sample, output and factor.",
    ),
)
