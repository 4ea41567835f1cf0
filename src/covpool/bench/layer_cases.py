"""The layers that are measured: our methods, the peers' layers, and the floor, as cases.

Each prepares its step from features (B, C, H, W) and the weight of the loss (B, C, C). The step
does forward and backward once and returns the root and the features' gradient (the floor: the last
products of either).
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from covpool.bench.checkouts import as_published
from covpool.bench.features import triangle_weight
from covpool.bench.peers import OpenPeer, Output, PeerRow, Root
from covpool.bench.timing import Case, Step
from covpool.linalg.covariance import centre, works_on_gram
from covpool.linalg.engine.symmetric import EIGENDECOMPOSITION
from covpool.linalg.methods import METHODS
from covpool.pooling import cov_pool, triu_vector

Solver = Callable[[Tensor], tuple[Tensor, ...]]


def with_output(name: str, output: Output) -> str:
    """The name of a case with that output."""
    return name if output == "matrix" else f"{name} (triangle)"


def differentiated(function: Root, output: Output, features: Tensor, weight: Tensor) -> Step:
    """The step that computes `function` and the gradient of ⟨weight, root⟩."""
    if output == "triangle":
        weight = triangle_weight(weight)

    def step() -> tuple[Tensor, Tensor]:
        x = features.detach().requires_grad_()
        root = function(x)
        (gradient,) = torch.autograd.grad(root, x, weight.to(root.dtype).reshape(root.shape))
        return root.detach(), gradient

    return step


def own_case(method: str, output: Output, compute_dtype: torch.dtype | None = None) -> Case:
    """`cov_pool` by that method, with the upper triangle gathered for the output "triangle"."""

    def pool(x: Tensor) -> Tensor:
        root = cov_pool(x, METHODS[method], compute_dtype=compute_dtype)
        return root if output == "matrix" else triu_vector(root)

    return Case(
        name=with_output(method, output),
        prepare=partial(differentiated, pool, output),
        facts={"method": method, "output": output, "note": ""},
    )


def peer_output(row: PeerRow, vector: bool) -> Output:
    """The triangle where it is asked for, or where the layer gives nothing else."""
    return "triangle" if vector or row.triangle is None else "matrix"


def peer_case(opened: OpenPeer, row: PeerRow, vector: bool) -> Case:
    """A peer's layer. Its modules are imported when the step is prepared, so that a failure there
    is the case's and not the run's."""
    output = peer_output(row, vector)

    def prepare(features: Tensor, weight: Tensor) -> Step:
        return differentiated(opened.function(row, output), output, features, weight)

    return Case(
        name=f"{opened.peer.name}/{with_output(row.name, output)}",
        kind="peer",
        prepare=prepare,
        facts={
            "method": row.name,
            "peer": opened.peer.name,
            "output": output,
            "counterparts": [with_output(method, output) for method in row.counterparts],
            "note": row.note,
        },
        context=partial(as_published, opened.device),
    )


def make_cases(
    methods: Sequence[str],
    peers: Iterable[OpenPeer] = (),
    *,
    vector: bool = False,
    compute_dtype: torch.dtype | None = None,
) -> list[Case]:
    """Our methods and the peers' rows.

    Our side has the form of output that the peer's has: where a peer's layer gives the triangle
    alone, the methods that it is compared with are measured with the triangle too.
    """
    theirs = [
        peer_case(opened, row, vector) for opened in peers for row in opened.peer.rows_of("pooling")
    ]
    compared = {name for case in theirs for name in case.facts["counterparts"]}
    plain: Output = "triangle" if vector else "matrix"
    ours = [own_case(method, plain, compute_dtype) for method in methods]
    gathered = [own_case(method, "triangle", compute_dtype) for method in methods]
    return [*ours, *(case for case in gathered if not vector and case.name in compared), *theirs]


def floor_cases(dtypes: Iterable[torch.dtype], device: torch.device) -> list[Case]:
    """The least work: the bare decomposition in float64 and the matrix products around it.

    One case for each batched solver that there is, so that the faster one is taken, and for each
    dtype of the products that do not hang on small singular values. No elementwise work is in them.
    """
    return [
        Case(
            name=f"floor: {name}, products in {(note := str(dtype).removeprefix('torch.'))}",
            kind="floor",
            prepare=partial(_floor, solver, dtype),
            facts={"method": name, "output": "matrix", "note": note},
        )
        for dtype in dict.fromkeys(dtypes)
        for name, solver in solvers(device).items()
    ]


def solvers(device: torch.device) -> dict[str, Solver]:
    """torch's batched eigendecomposition, and the one that is spread over the CPU's cores."""
    found: dict[str, Solver] = {"torch.linalg.eigh": torch.linalg.eigh}
    return found | {"covpool's": EIGENDECOMPOSITION} if device.type == "cpu" else found


def _floor(solver: Solver, dtype: torch.dtype, features: Tensor, weight: Tensor) -> Step:
    x = centre(features.detach().flatten(2), torch.float64)
    weight = weight.to(dtype)

    @torch.no_grad()
    def gram() -> tuple[Tensor, Tensor]:
        _, right = solver(x.mT @ x)
        left = (x @ right).to(dtype)
        root = left @ left.mT
        product = weight @ left
        return root, (left @ (left.mT @ product) + product) @ right.to(dtype).mT

    @torch.no_grad()
    def covariance() -> tuple[Tensor, Tensor]:
        _, exact = solver(x @ x.mT)
        left = exact.to(dtype)
        root = left @ left.mT
        inner = left @ (left.mT @ weight @ left)
        if dtype == x.dtype:
            return root, inner @ left.mT @ x
        # In lower precision the matrix before x loses what small singular values are multiplied
        # by, and with it the gradient: the product with x has to come first, in float64.
        return root, inner @ (exact.mT @ x).to(dtype)

    # The same choice as the layers': the smaller of the two matrices with the same eigenvalues.
    return gram if works_on_gram(x) else covariance
