"""`covpool completion`: a script for the shell, made from the commands' own options.

The script holds all words itself, so that pressing Tab starts no Python.
"""

import argparse
import types
import typing
from collections.abc import Sequence
from typing import Any

import shtab

from covpool.cli import COMMANDS, make_parser, say
from covpool.cli.parsers import PARSERS
from covpool.cli.parsing import RunParser, read_as_path
from covpool.linalg.names import MethodName, PoolingName
from covpool.train.config import RunConfig
from covpool.train.recipe import read_recipes

FILES = ("path", "root", "data.root", "model.init_from", "config")
"""What takes a path, beside arguments whose type says so."""


def run(given: argparse.Namespace) -> int:
    """Print the script, and return the exit status."""
    say(script(given.shell))
    return 0


def script(shell: str) -> str:
    """The completion script for one of `shtab.SUPPORTED_SHELLS`."""
    parser, commands = make_parser()
    poolings = typing.get_args(PoolingName)
    recipes = tuple(recipe.name for recipe in read_recipes())
    words = {
        ("methods", "name"): poolings,
        ("recipes", "name"): recipes,
        **{(name, "recipe"): recipes for name in COMMANDS},
        **{(name, "model.method"): poolings for name in COMMANDS},
        **{(name, "model.hybrid"): typing.get_args(MethodName) for name in COMMANDS},
    }
    several = {
        ("compare", "methods"): poolings,
        ("reproduce", "methods"): poolings,
        ("probe", "poolings"): (*poolings, "all"),
    }
    kinds = {
        f"{group}.{name}": kind
        for group, owner in RunConfig.groups().items()
        for name, kind in typing.get_type_hints(owner).items()
    }
    for name, command in COMMANDS.items():
        own = PARSERS[name]()
        options = own.shown(everything=True) if isinstance(own, RunParser) else own
        for action in options._actions:
            kind = kinds.get(action.dest)
            choices = words.get((name, action.dest)) or choices_of(kind)
            item = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else None
            listed = several.get((name, action.dest)) or choices_of(item)
            if listed:
                # shtab looks for this attribute, which argparse's own actions do not have.
                action.complete = comma_separated(action.dest, listed)  # type: ignore[attr-defined]
            elif choices:
                action.choices = choices
            elif action.dest in FILES or read_as_path(action.type):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        commands.add_parser(name, help=command.description)
        commands.choices[name] = options
    return shtab.complete(parser, shell)


def comma_separated(name: str, words: Sequence[str]) -> dict[str, Any]:
    """How shells complete the word after the last comma, as shtab takes it."""
    function, listed = f"_covpool_{name.replace('.', '_')}", " ".join(words)
    last = "${1##*,}"
    body = f'compgen -P "${{1%"{last}"}}" -W "{listed}" -- "{last}"'
    return {
        "bash": function,
        "zsh": f"_values -s , {name} {listed}",
        "preamble": {"bash": f"{function}() {{ {body}; }}"},
    }


def choices_of(kind: Any) -> tuple[str, ...]:
    """The words that a field of that type takes, as far as the type names them."""
    if kind is bool:
        return ("true", "false")
    if typing.get_origin(kind) is typing.Literal:
        return tuple(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return tuple(word for part in typing.get_args(kind) for word in choices_of(part))
    return ()
