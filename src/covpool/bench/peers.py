"""PEERS, the one table of other projects' covariance pooling that ours is measured beside.

No code of theirs is here: the user's own clone is read (`--peer NAME=CHECKOUT`), or the installed
package (`--peer NAME`). Each row says how that project's own parts make the root of the covariance
of features (B, C, H, W), as its own training code calls them.
"""

import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from covpool.bench.checkouts import as_published, load_module
from covpool.linalg.tables import choose
from covpool.machine import commit_of

Output = Literal["matrix", "triangle"]
Root = Callable[[Tensor], Tensor]
Source = Callable[[str], ModuleType]


@dataclass(frozen=True, kw_only=True)
class PeerRow:
    """One of a peer's layers.

    Attributes:
        name: what the peer calls it.
        build: from a loader of the peer's modules to the layer, features → root.
        triangle: the peer's own gathering of the upper triangle, root → vector; None where `build`
            does it already, so that the layer gives nothing else, and our side is given the same.
        counterparts: our methods that it is compared with, the nearest first.
        note: what differs from the other rows, for the results.
    """

    name: str
    build: Callable[[Source], Root]
    counterparts: tuple[str, ...]
    triangle: Callable[[Source], Root] | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A project, and its layers.

    Attributes:
        name: as in `--peer`.
        home: where it is to be had.
        files: what a checkout of it holds; empty for an installed package.
        package: the installed package's name for importing; None for a checkout.
        rows: its layers.
    """

    name: str
    home: str
    rows: tuple[PeerRow, ...]
    files: tuple[str, ...] = ()
    package: str | None = None


@dataclass(frozen=True)
class OpenPeer:
    """A peer that is there: its table row, where its modules come from, and its version."""

    peer: Peer
    source: Source
    version: str | None
    device: torch.device

    def layer(self, row: PeerRow, output: Output) -> Root:
        """The row's layer with that output.

        Raises:
            Exception: whatever its code raises when it is imported.
        """
        with as_published(self.device):
            root = row.build(self.source)
            if output == "triangle" and row.triangle is not None:
                gather = row.triangle(self.source)
                return lambda x: gather(root(x))
        return root


_REPRESENTATION = "src/representation"


def _iccv_layer(name: str, source: Source, **options: Any) -> Root:
    module = source(f"{_REPRESENTATION}/{name}.py")
    return getattr(module, name)(**options)


def _newton_schulz(file: str, source: Source) -> Root:
    module = source(file)
    return lambda x: module.SqrtmLayer(module.CovpoolLayer(x), 5)


def _newton_schulz_triangle(file: str, source: Source) -> Root:
    module = source(file)
    return lambda x: module.TriuvecLayer(module.SqrtmLayer(module.CovpoolLayer(x), 5))


def _triuvec(file: str, source: Source) -> Root:
    return source(file).TriuvecLayer


_TORCH_UTILS = "torch_utils.py"
_SO_VIT = "So-ViT/src"


def _lyapunov(approximant: str, source: Source) -> Root:
    module = source(_TORCH_UTILS)
    # MPA_Lya calls this name; its comment says to exchange it for the Taylor polynomial.
    module.matrix_pade_approximant = getattr(module, approximant)  # pyright: ignore
    covariance = source(f"{_SO_VIT}/representation/covariance.py").Covariance()
    return lambda x: module.MPA_Lya.apply(covariance(x))


def _spd_learn(source: Source) -> Root:
    functional = source("spd_learn.functional")
    return lambda x: functional.matrix_sqrt.apply(functional.covariance(x.flatten(2)))


def _spd_learn_triangle(source: Source) -> Root:
    return partial(source("spd_learn.functional").sym_to_upper, preserve_norm=False)


def _iccv_row(name: str, method: str, **options: Any) -> PeerRow:
    return PeerRow(
        name=name,
        build=lambda source: _iccv_layer(name, source, **options),
        counterparts=(method, "exact"),
        note="float64 throughout; the layer gives the upper triangle alone",
    )


_MPNCOV = f"{_REPRESENTATION}/MPNCOV.py"
_SO_VIT_MPN = f"{_SO_VIT}/normalization/MPN.py"

PEERS: Mapping[str, Peer] = MappingProxyType(
    {
        peer.name: peer
        for peer in (
            Peer(
                name="DifferentiableSVD",
                home="https://github.com/KingJamesSong/DifferentiableSVD",
                files=(_MPNCOV, f"{_REPRESENTATION}/SVD_Pade.py"),
                rows=(
                    _iccv_row("SVD_Original", "svd"),
                    _iccv_row("SVD_TopN", "svd-topn"),
                    _iccv_row("SVD_Trunc", "svd-trunc"),
                    _iccv_row("SVD_PI", "svd-pi"),
                    _iccv_row("SVD_Newton", "svd-newton", iterNum=10),
                    _iccv_row("SVD_Taylor", "svd-taylor"),
                    _iccv_row("SVD_Pade", "svd-pade"),
                    PeerRow(
                        name="MPNCOV",
                        build=partial(_newton_schulz_triangle, _MPNCOV),
                        counterparts=("isqrt-cov", "exact"),
                        note="float64 throughout; 5 iterations; its class cannot be constructed "
                        "(NameError), so its functions are called; triangle, as in its forward",
                    ),
                ),
            ),
            Peer(
                name="fast-MPN-COV",
                home="https://github.com/jiangtaoxie/fast-MPN-COV",
                files=(_MPNCOV,),
                rows=(
                    PeerRow(
                        name="iSQRT-COV",
                        build=partial(_newton_schulz, _MPNCOV),
                        triangle=partial(_triuvec, _MPNCOV),
                        counterparts=("isqrt-cov", "exact"),
                        note="in the features' dtype; 5 iterations",
                    ),
                ),
            ),
            Peer(
                name="FastDifferentiableMatSqrt",
                home="https://github.com/KingJamesSong/FastDifferentiableMatSqrt",
                files=(_TORCH_UTILS, _SO_VIT_MPN, f"{_SO_VIT}/representation/covariance.py"),
                rows=(
                    PeerRow(
                        name="MPA_Lya",
                        build=partial(_lyapunov, "matrix_pade_approximant"),
                        triangle=partial(_triuvec, _SO_VIT_MPN),
                        counterparts=("mpa-lyapunov", "exact"),
                        note="in the features' dtype",
                    ),
                    PeerRow(
                        name="MTP_Lya",
                        build=partial(_lyapunov, "matrix_taylor_polynomial"),
                        triangle=partial(_triuvec, _SO_VIT_MPN),
                        counterparts=("mtp-lyapunov", "exact"),
                        note="in the features' dtype; its polynomial overwrites the identity that "
                        "its gradient reads",
                    ),
                    PeerRow(
                        name="NS",
                        build=partial(_newton_schulz, _SO_VIT_MPN),
                        triangle=partial(_triuvec, _SO_VIT_MPN),
                        counterparts=("isqrt-cov", "exact"),
                        note="in the features' dtype; 5 iterations",
                    ),
                ),
            ),
            Peer(
                name="spd-learn",
                home="https://pypi.org/project/spd-learn",
                package="spd_learn",
                rows=(
                    PeerRow(
                        name="matrix_sqrt",
                        build=_spd_learn,
                        triangle=_spd_learn_triangle,
                        counterparts=("exact",),
                        note="in the features' dtype; its own covariance",
                    ),
                ),
            ),
        )
    }
)


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
        return _open_package(peer, peer.package, device)
    folder = Path(os.path.expanduser(path))
    remedy = f"git clone {peer.home} and give --peer {name}=ITS_FOLDER"
    if not path:
        raise ValueError(f"--peer {text}: {name} is read from your clone of it; {remedy}")
    if not folder.is_dir():
        raise ValueError(f"--peer {text}: no directory {folder}; {remedy}")
    missing = [file for file in peer.files if not (folder / file).is_file()]
    if missing:
        raise ValueError(
            f"--peer {text}: no {missing[0]} in it, so not a clone of {name}; {remedy}"
        )
    return OpenPeer(
        peer, lambda file: load_module(folder / file, device), commit_of(folder), device
    )


def _open_package(peer: Peer, package: str, device: torch.device) -> OpenPeer:
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"--peer {peer.name}: {package} is not installed here; pip install {peer.name}"
        )
    return OpenPeer(peer, importlib.import_module, importlib.metadata.version(peer.name), device)
