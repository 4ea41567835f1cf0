"""Loading single modules of another project's checkout, and running them without a GPU."""

import importlib.util
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn


@contextmanager
def as_published(device: torch.device) -> Iterator[None]:
    """Within it, the code of a peer runs on `device`; its warnings are neither shown nor logged.

    On a CPU `.cuda()` returns the tensor or module itself: the reference code calls it when it is
    imported and in every pass.
    """
    with warnings.catch_warnings(), ExitStack() as replaced:
        warnings.simplefilter("ignore")
        replaced.callback(logging.disable, logging.root.manager.disable)
        logging.disable(logging.WARNING)
        if device.type == "cpu":
            for owner in (Tensor, nn.Module):
                replaced.enter_context(mock.patch.object(owner, "cuda", _stay))
        yield


def _stay(self: Any, *arguments: Any, **options: Any) -> Any:
    return self


def load_module(file: Path, device: torch.device) -> ModuleType:
    """The module of that file and what it imports; the packages around it stay empty.

    Writes no byte code into the checkout, and leaves mpmath's precision as it was.

    Raises:
        Exception: whatever the module raises when it is imported.
    """
    name = f"covpool_peer_{abs(hash(file.resolve()))}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python module")
    module = importlib.util.module_from_spec(spec)
    no_bytecode = mock.patch.object(sys, "dont_write_bytecode", True)
    with no_bytecode, as_published(device), _mpmath_precision(), _empty_packages(file.resolve()):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _empty_packages(file: Path) -> Iterator[None]:
    """The file can import its neighbours, and nothing runs that the packages around it begin with.

    Nothing of them stays among the imported modules.
    """
    folders = []
    while (file := file.parent).joinpath("__init__.py").is_file():
        folders.append(file)
    top = folders[-1].name if folders else None
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_in(top, name)}
    for folder in folders:
        package = ModuleType(".".join(folder.relative_to(file).parts))
        package.__path__ = [str(folder)]
        sys.modules[package.__name__] = package
    try:
        yield
    finally:
        for name in [name for name in sys.modules if _is_in(top, name)]:
            del sys.modules[name]
        sys.modules.update(before)


def _is_in(package: str | None, module: str) -> bool:
    return module.partition(".")[0] == package


@contextmanager
def _mpmath_precision() -> Iterator[None]:
    """The modules set mpmath's digits for the whole process."""
    try:
        from mpmath import mp
    except ImportError:  # the module says so itself if it needs it
        yield
        return
    with mp.workprec(mp.prec):
        yield
