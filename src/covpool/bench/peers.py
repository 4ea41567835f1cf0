"""PEERS, the one table of other projects' code that ours is measured beside.

No code of theirs is here: the user's own clone is read (`--peer NAME=CHECKOUT`), or the installed
package (`--peer NAME`). Each row says how that project's own parts do a task, as its own training
code calls them. The task "pooling" is the root of the covariance of features (B, C, H, W); "inverse
root" is A^(-1/p) of one matrix; the others are functions of matrices (B, n, n) by name.
"""

import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from covpool.bench.checkouts import as_published, load_module
from covpool.bench.timing import Case, Step
from covpool.linalg.tables import choose
from covpool.machine import commit_of

Output = Literal["matrix", "triangle"]
Root = Callable[[Tensor], Tensor]
Source = Callable[[str], ModuleType]


@dataclass(frozen=True)
class PeerRow:
    """One of a peer's functions.

    Attributes:
        name: what the peer calls it.
        build: from a loader of the peer's modules to the function; for pooling, features → root.
        counterparts: our pooling methods that it is compared with, the nearest first.
        triangle: the peer's own gathering of the upper triangle, root → vector; None where `build`
            does it already, so that the layer gives nothing else, and our side is given the same.
        note: what differs from the other rows, for the results.
        task: what it computes.
    """

    name: str
    build: Callable[[Source], Callable[..., Any]]
    counterparts: tuple[str, ...] = ()
    triangle: Callable[[Source], Root] | None = None
    note: str = ""
    task: str = "pooling"


@dataclass(frozen=True)
class Peer:
    """A project, and its functions.

    Attributes:
        name: as in `--peer`.
        home: where it is to be had.
        rows: its functions.
        files: what a checkout of it holds; empty for an installed package.
        package: the installed package's name for importing; None for a checkout.
    """

    name: str
    home: str
    rows: tuple[PeerRow, ...]
    files: tuple[str, ...] = ()
    package: str | None = None

    def rows_of(self, *tasks: str) -> list[PeerRow]:
        return [row for row in self.rows if row.task in tasks]

    @property
    def installed(self) -> bool:
        return self.package is not None and importlib.util.find_spec(self.package) is not None


@dataclass(frozen=True)
class OpenPeer:
    """A peer that is there: its table row, where its modules come from, and its version."""

    peer: Peer
    source: Source
    version: str | None
    device: torch.device

    def function(self, row: PeerRow, output: Output = "matrix") -> Callable[..., Any]:
        """The row's function; of a pooling, with that output.

        Raises:
            Exception: whatever its code raises when it is imported.
        """
        with as_published(self.device):
            function = row.build(self.source)
            if output == "triangle" and row.triangle is not None:
                gather = row.triangle(self.source)
                return lambda x: gather(function(x))
        return function

    def case(
        self,
        row: PeerRow,
        make: Callable[..., Step],
        *,
        name: str,
        facts: Mapping[str, Any] = MappingProxyType({}),
        output: Output = "matrix",
    ) -> Case:
        """The row as a contender: `make` gives the step of its function and the inputs.

        Its modules are imported when the step is prepared, so that a failure there is the case's
        and not the run's.
        """
        return Case(
            name=name,
            kind="peer",
            prepare=lambda *inputs: make(self.function(row, output), *inputs),
            facts=facts,
            context=partial(as_published, self.device),
        )


_MPNCOV = "src/representation/MPNCOV.py"
_TORCH_UTILS = "torch_utils.py"
_SO_VIT_MPN = "So-ViT/src/normalization/MPN.py"
_SO_VIT_COVARIANCE = "So-ViT/src/representation/covariance.py"
_SPD_LEARN = "spd_learn.functional"
_SHAMPOO = "distributed_shampoo/preconditioner/matrix_functions.py"


def _layer(name: str, source: Source, **options: Any) -> Root:
    return getattr(source(f"src/representation/{name}.py"), name)(**options)


def _newton_schulz(file: str, source: Source) -> Root:
    module = source(file)
    return lambda x: module.SqrtmLayer(module.CovpoolLayer(x), 5)


def _newton_schulz_triangle(file: str, source: Source) -> Root:
    root, gather = _newton_schulz(file, source), _triuvec(file, source)
    return lambda x: gather(root(x))


def _triuvec(file: str, source: Source) -> Root:
    return source(file).TriuvecLayer


def _lyapunov(approximant: str, source: Source) -> Root:
    module = source(_TORCH_UTILS)
    # MPA_Lya calls this name; its comment says to exchange it for the Taylor polynomial.
    module.matrix_pade_approximant = getattr(module, approximant)  # pyright: ignore
    covariance = source(_SO_VIT_COVARIANCE).Covariance()
    return lambda x: module.MPA_Lya.apply(covariance(x))


def _spd_learn(source: Source) -> Root:
    functional = source(_SPD_LEARN)
    return lambda x: functional.matrix_sqrt.apply(functional.covariance(x.flatten(2)))


def _inverse_root(config: str, source: Source, **options: float) -> Callable[..., Tensor]:
    module = source(_SHAMPOO)
    chosen = getattr(module, config)(**options)
    return lambda matrix, root, before: module.matrix_inverse_root(matrix, Fraction(root), chosen)


def _inverse_root_by_qr(source: Source) -> Callable[..., Tensor]:
    module = source(_SHAMPOO)
    chosen = module.QREigendecompositionConfig()

    def solve(matrix: Tensor, root: int, before: Tensor) -> Tensor:
        pairs = module.matrix_eigendecomposition(
            matrix, eigendecomposition_config=chosen, eigenvectors_estimate=before
        )
        return module.matrix_inverse_root_from_eigendecomposition(*pairs, Fraction(root))

    return solve


def _package(name: str, module: str, *rows: PeerRow, **paths: str) -> Peer:
    """An installed package: the rows, and by its task each function of that module."""

    def row(task: str, path: str) -> PeerRow:
        name = path.removesuffix(".apply")
        return PeerRow(name, lambda source: attrgetter(path)(source(module)), task=task)

    functions = (row(task, path) for task, path in paths.items())
    home = f"https://pypi.org/project/{name.lower()}"
    return Peer(name, home, (*rows, *functions), package=module.partition(".")[0])


def _clone(home: str, *rows: PeerRow, files: tuple[str, ...], name: str = "") -> Peer:
    """A checkout from GitHub that holds the files; by default its last word is its name."""
    return Peer(name or home.partition("/")[2], f"https://github.com/{home}", rows, files=files)


def _svd(name: str, method: str, **options: Any) -> PeerRow:
    note = "float64 throughout; the layer gives the upper triangle alone"
    return PeerRow(name, partial(_layer, name, **options), (method, "exact"), note=note)


def _coupled(name: str, build: Callable[[Source], Root], method: str, more: str = "") -> PeerRow:
    """A layer of FastDifferentiableMatSqrt."""
    note, triangle = f"in the features' dtype{more}", partial(_triuvec, _SO_VIT_MPN)
    return PeerRow(name, build, (method, "exact"), triangle, note)


def _root(config: str, **no_ridge: float) -> PeerRow:
    build = partial(_inverse_root, config, **no_ridge)
    return PeerRow(config, build, task="inverse root", note="in the matrix's dtype")


_TABLE = (
    _clone(
        "KingJamesSong/DifferentiableSVD",
        _svd("SVD_Original", "svd"),
        _svd("SVD_TopN", "svd-topn"),
        _svd("SVD_Trunc", "svd-trunc"),
        _svd("SVD_PI", "svd-pi"),
        _svd("SVD_Newton", "svd-newton", iterNum=10),
        _svd("SVD_Taylor", "svd-taylor"),
        _svd("SVD_Pade", "svd-pade"),
        PeerRow(
            "MPNCOV",
            partial(_newton_schulz_triangle, _MPNCOV),
            ("isqrt-cov", "exact"),
            note="float64 throughout; 5 iterations; its class cannot be constructed (NameError), "
            "so its functions are called; triangle, as in its forward",
        ),
        files=(_MPNCOV, "src/representation/SVD_Pade.py"),
    ),
    _clone(
        "jiangtaoxie/fast-MPN-COV",
        PeerRow(
            "iSQRT-COV",
            partial(_newton_schulz, _MPNCOV),
            ("isqrt-cov", "exact"),
            partial(_triuvec, _MPNCOV),
            "in the features' dtype; 5 iterations",
        ),
        files=(_MPNCOV,),
    ),
    _clone(
        "KingJamesSong/FastDifferentiableMatSqrt",
        _coupled("MPA_Lya", partial(_lyapunov, "matrix_pade_approximant"), "mpa-lyapunov"),
        _coupled(
            "MTP_Lya",
            partial(_lyapunov, "matrix_taylor_polynomial"),
            "mtp-lyapunov",
            "; its polynomial overwrites the identity that its gradient reads",
        ),
        _coupled("NS", partial(_newton_schulz, _SO_VIT_MPN), "isqrt-cov", "; 5 iterations"),
        files=(_TORCH_UTILS, _SO_VIT_MPN, _SO_VIT_COVARIANCE),
    ),
    _package(
        "spd-learn",
        _SPD_LEARN,
        PeerRow(
            "matrix_sqrt",
            _spd_learn,
            ("exact",),
            lambda source: partial(source(_SPD_LEARN).sym_to_upper, preserve_norm=False),
            "in the features' dtype; its own covariance",
        ),
        **{task: f"matrix_{task}.apply" for task in ("sqrt", "inv_sqrt", "power", "log", "exp")},
    ),
    _package(
        "pyRiemann",
        "pyriemann.utils.base",
        sqrt="sqrtm",
        inv_sqrt="invsqrtm",
        power="powm",
        log="logm",
        exp="expm",
    ),
    _package(
        "geoopt",
        "geoopt.linalg",
        sqrt="sym_sqrtm",
        inv_sqrt="sym_inv_sqrtm1",
        log="sym_logm",
        exp="sym_expm",
    ),
    _clone(
        "facebookresearch/optimizers",
        _root("EigenConfig"),
        _root("CoupledNewtonConfig"),
        _root("CoupledHigherOrderConfig", rel_epsilon=0.0, abs_epsilon=0.0),
        PeerRow(
            "QREigendecompositionConfig",
            _inverse_root_by_qr,
            task="inverse root",
            note="in the matrix's dtype; one iteration from the eigenvectors of the step before",
        ),
        files=(_SHAMPOO,),
        name="Shampoo",
    ),
)
PEERS: Mapping[str, Peer] = MappingProxyType({peer.name: peer for peer in _TABLE})


def open_peers(
    texts: Sequence[str], device: torch.device, tasks: Iterable[str] = ("pooling",)
) -> list[OpenPeer]:
    """The peers that the texts say, each as by `open_peer`.

    Raises:
        ValueError: one is not there, is given twice, or does none of the tasks.
    """
    opened = [open_peer(text, device) for text in texts]
    for one in opened:
        if not one.peer.rows_of(*tasks):
            able = [name for name, peer in PEERS.items() if peer.rows_of(*tasks)]
            raise ValueError(
                f"--peer {one.peer.name} has nothing that is measured here; choose from "
                f"{', '.join(able)}"
            )
    names = [one.peer.name for one in opened]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"--peer {min(twice)} is given twice; give one checkout of it")
    return opened


def installed_peers(*tasks: str) -> tuple[str, ...]:
    """The peers whose installed package does any of the tasks."""
    return tuple(name for name, peer in PEERS.items() if peer.rows_of(*tasks) and peer.installed)


def open_peer(text: str, device: torch.device) -> OpenPeer:
    """The peer that `NAME=CHECKOUT`, or `NAME` for an installed package, says.

    Raises:
        ValueError: an unknown name, no checkout or another project's, or a package that is not
            installed.
    """
    name, equals, path = text.partition("=")
    peer: Peer = choose("peer", name, PEERS)
    if peer.package is not None:
        if equals:
            raise ValueError(
                f"--peer {text}: {name} is an installed package; give --peer {name}, without a path"
            )
        if not peer.installed:
            raise ValueError(
                f"--peer {name}: {peer.package} is not installed here; pip install {name}"
            )
        return OpenPeer(peer, importlib.import_module, importlib.metadata.version(name), device)
    folder = Path(os.path.expanduser(path))
    missing = [file for file in peer.files if not (folder / file).is_file()]
    if not path:
        wrong = f"{name} is read from your clone of it"
    elif not folder.is_dir():
        wrong = f"no directory {folder}"
    elif missing:
        wrong = f"no {missing[0]} in it, so not a clone of {name}"
    else:
        return OpenPeer(
            peer, lambda file: load_module(folder / file, device), commit_of(folder), device
        )
    raise ValueError(
        f"--peer {text}: {wrong}; git clone {peer.home} and give --peer {name}=ITS_FOLDER"
    )
