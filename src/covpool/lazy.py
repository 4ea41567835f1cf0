"""Names of a package that are looked up when they are first used, so that importing it is quick."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, str], extras: Mapping[str, str] = MappingProxyType({})
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__`.

    Args:
        package: its name.
        homes: each name that it offers, and the module that defines it.
        extras: names that need optional dependencies of the distribution, and which.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            value = getattr(import_module(homes[name]), name)
        except ModuleNotFoundError as error:
            missing = (error.name or package).partition(".")[0]
            if name not in extras or missing == package:
                raise
            raise ModuleNotFoundError(
                f"{package}.{name} needs {missing}; install it, from the checkout, with: "
                f"pip install '.[{extras[name]}]'",
                name=missing,
            ) from None
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return get, names
