"""From command line and YAML to `RunConfig`: the fields of its dataclasses, with their types and
docstrings, are the options."""

import argparse
import ast
import difflib
import inspect
import re
import types
import typing
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from covpool.cli import ArgumentParser, UserError, say
from covpool.data.types import check_value, fits

if TYPE_CHECKING:
    from covpool.train.config import RunConfig
    from covpool.train.recipe import Recipe


def nearest(name: str, names: Iterable[str]) -> str:
    """ "; did you mean …?" with the nearest of the names, or nothing."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]}?" if near else ""


SYNONYMS = {
    option: meant
    for meant, options in {
        "data.augment_options": "aa auto_augment",
        "data.batch_size": "b batch bs",
        "data.image_size": "image img_size imgsz input_size res resolution size",
        "data.random_erasing": "random_erase reprob",
        "data.root": "data data_dir dataset dir path train_dir",
        "data.workers": "num_workers",
        "model.backbone": "arch backbone_name model model.name net network",
        "model.drop_rate": "drop dropout",
        "model.hidden_features": "hidden",
        "model.init_from": "checkpoint init initial_checkpoint weights",
        "model.method": "method.name pool pooling",
        "optim.clip_norm": "clip clip_grad grad_clip gradient_clip_val max_grad_norm",
        "optim.decay": "lr_schedule lr_scheduler optim.schedule sched scheduler",
        "optim.decay_options": "cooldown_epochs min_lr warmup_lr",
        "optim.factor": "decay_rate gamma lr_gamma",
        "optim.label_smoothing": "smoothing",
        "optim.learning_rate": "lr lr0",
        "optim.milestones": "decay_epochs decay_milestones lr_steps step_size",
        "optim.name": "algorithm opt optimiser optimizer",
        "optim.options": "betas eps opt_args opt_betas opt_eps",
        "optim.trained": "freeze freeze_backbone",
        "optim.warmup_epochs": "warmup warmup_steps",
        "optim.weight_average": "ema ema_decay model_ema model_ema_decay",
        "optim.weight_decay": "wd",
        "train.accelerator": "device",
        "train.accumulate": "accumulate_grad_batches grad_accum_steps",
        "train.compile": "torchcompile",
        "train.devices": "gpus world_size",
        "train.epochs": "max_epochs n_epochs num_epochs",
        "train.precision": "amp bf16 fp16",
        "train.seed": "random_seed",
        "train.sync_batchnorm": "sync_bn",
    }.items()
    for option in options.split()
}
"""What other projects call options, by which no nearest name would be found, or a wrong one."""


ALIASES = {
    "batch-size": "data.batch_size",
    "data": "data.root",
    "epochs": "train.epochs",
    "keep": "train.keep",
    "lr": "optim.learning_rate",
    "on-nonfinite": "train.on_nonfinite",
}
"""Short names of options, in every command that takes the option."""

COMMON = (
    "data.root",
    "data.image_size",
    "data.batch_size",
    "data.workers",
    "model.backbone",
    "model.method",
    "model.pretrained",
    "optim.name",
    "optim.learning_rate",
    "train.epochs",
    "train.seed",
    "train.accelerator",
    "train.precision",
)
"""The options of a run that --help shows where a command takes all; --help-all shows the rest."""


NO_CONFIGURATION = ("config", "print_config", "help", "help_all")
"""The command's own arguments that no configuration holds."""


def nearest_option(name: str, known: Collection[str], *, in_file: bool = False) -> str:
    """As `nearest`, for options such as group.name: by the last word where it fits, since users
    leave out the group, and by what other projects call it.

    Args:
        name: what was written, without dashes.
        known: the options that there are, without dashes; aliases of them need not be among them.
        in_file: whether it was written in a file, where options have no dashes and no aliases.
    """
    whole = name.replace("-", "_")
    word = whole.rpartition(".")[2]
    meant = SYNONYMS.get(whole, SYNONYMS.get(word))
    same = [option for option in known if option.rpartition(".")[2] == word]
    if meant is not None and meant in known:
        same = [meant]
    aliases = [] if in_file else [alias for alias, real in ALIASES.items() if real in known]
    # --method of a command that takes several is its --methods, and --epoch is --epochs.
    plurals = [f"{option.rpartition('.')[2]}s" for option in (*same, word)]
    same = [option for option in (*known, *aliases) if option in plurals] or same
    same = same or difflib.get_close_matches(name, [*known, *aliases], n=1)
    shown = same if in_file else [f"--{option}" for option in same]
    return f"; did you mean {' or '.join(shown)}?" if shown else ""


def one_line(error: BaseException) -> str:
    """An exception's text without line breaks."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.strerror}: {error.filename}"
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def users_input() -> Iterator[None]:
    """Within it, ValueError and OSError are the user's mistakes, and so is too little memory;
    outside, they are the program's faults."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise UserError(one_line(error)) from error
    except MemoryError as error:
        raise UserError("not enough memory; end other programs, or take a smaller model") from error


@contextmanager
def holding(directory: Path) -> Iterator[None]:
    """Within it no other covpool command writes into the directory; that one does is the user's
    mistake."""
    from covpool.train.claim import claimed

    with ExitStack() as held:
        with users_input():
            held.enter_context(claimed(directory))
        yield


def add_allow_external(parser: Any) -> None:
    """Add --allow-external, for the commands that build a network which others may have made."""
    parser.add_argument(
        "--allow-external",
        action="store_true",
        help="let the model's configuration fetch from a hub (hf-hub:…, hfds/…), with your token, "
        "or open other files of this machine (local-dir:…, checkpoint_path)",
    )


FileProgress = Callable[[int, int], None]
"""Called with (files checked, files in all)."""


@contextmanager
def checking_files() -> Iterator[FileProgress]:
    """Shows how the check of image files goes on, where standard error is a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("opening the images and building the model") as status:
        yield lambda done, total: status.update(f"checking image files: {done:,} of {total:,}")


@dataclass(frozen=True, kw_only=True)
class Given:
    """A command line with its files, read and parsed once; what its options change comes later.

    Attributes:
        own: the command's own arguments.
        options: the run's options that were given, by group and name.
        named: those options as they were written, each after where: "--", or the file's name.
        printed: whether --print_config was given.
    """

    own: argparse.Namespace
    options: Mapping[str, Mapping[str, Any]]
    named: Sequence[tuple[str, str]]
    printed: bool
    parser: "RunParser"

    def config(
        self, base: "RunConfig | None" = None, *, allowed: Collection[str] | None = None
    ) -> "RunConfig":
        """The configuration: the given options laid over another one.

        Args:
            base: that one; None: the dataclasses' defaults. Of a mapping of which single entries
                were given, as --model.constants.degree, its other entries stay.
            allowed: the options that may be given; None: all.

        Raises:
            UserError: an option that is not allowed, or options that do not fit together.
            SystemExit: after --print_config, which is answered here.
        """
        from covpool.train.config import RunConfig

        if allowed is not None:
            self.parser.check_allowed(self.named, allowed)
        base = base or RunConfig()
        values = base.to_dict()
        given_whole = {name for _, name in self.named}
        for group, fields in self.options.items():
            for name, value in fields.items():
                if isinstance(value, dict) and f"{group}.{name}" not in given_whole:
                    value = {**values[group][name], **value}
                values[group][name] = value
        if self.printed:
            own = {
                name: str(value) if isinstance(value, Path) else value
                for name, value in vars(self.own).items()
                if name not in NO_CONFIGURATION
            }
            say(yaml.safe_dump({**values, **own}, sort_keys=False, allow_unicode=True).rstrip())
            raise SystemExit(0)
        try:
            return RunConfig.from_dict(values)
        except (ValueError, TypeError) as error:
            raise self.parser.error(one_line(error)) from error


class RunParser:
    """The options of a command that takes a run's configuration, or a part of it.

    Those of the run are read here, in the order in which they were written; argparse reads the
    command's own, and shows all of them.

    Args:
        command: the sub-command, for the usage line.
        description: what it does.
        allowed: the configuration's keys that the command accepts; None: all.
        hidden: those that the help does not show, since the command refuses what differs from
            its own choice.
        examples: command lines, each with what it does, shown at the end of --help.
    """

    def __init__(
        self,
        command: str,
        description: str,
        *,
        allowed: Collection[str] | None = None,
        hidden: Collection[str] = (),
        examples: Mapping[str, str] | None = None,
    ) -> None:
        from covpool.train.config import RunConfig

        self.command = command
        self.parser = ArgumentParser(
            prog=f"covpool {command}", description=description, add_help=False, allow_abbrev=False
        )
        self.kinds = {
            f"{group}.{name}": kind
            for group, owner in RunConfig.groups().items()
            for name, kind in typing.get_type_hints(owner).items()
        }
        self.defaults = RunConfig()
        self.allowed, self.hidden = allowed, frozenset(hidden)
        self.examples = examples or {}
        self.takes_path = False
        self.base: RunConfig | None = None
        self.flags: set[str] = set()
        self.own: list[str] = []
        self.add_argument("--help", action="store_true", help="show this and exit")
        if allowed is None:
            self.add_argument("--help-all", action="store_true", help="show every option and exit")
        self.add_argument("--config", help="YAML file of options")
        self.add_argument(
            "--print_config", action="store_true", help="print the configuration as YAML and exit"
        )

    def add_recipe(self) -> None:
        """Add --recipe, the configuration that options are laid over."""
        self.add_argument("--recipe", help="start from this one of covpool recipes; options hold")

    def add_sources(self) -> None:
        """Add the arguments that say what a training starts from: PATH and --recipe."""
        self.takes_path = True
        self.add_recipe()

    def add_base(self, options: Mapping[str, Mapping[str, Any]]) -> None:
        """Add PATH, and take these options for what is not given, by group and name."""
        from covpool.train.config import RunConfig

        self.takes_path = True
        self.base = self.defaults = RunConfig.from_dict(options)

    def add_argument(self, name: str, **options: Any) -> None:
        """Add an argument of the command itself, as in argparse."""
        default = options.get("default")
        if isinstance(default, str | int | Path) and "(default:" not in options["help"]:
            options["help"] += f" (default: {default})"
        action = self.parser.add_argument(name, **options)
        self.own += [option[2:] for option in action.option_strings]
        if action.nargs == 0:
            self.flags.update(action.option_strings)

    def read(self, arguments: Sequence[str]) -> Given:
        """What the arguments give.

        What needs nothing but the options themselves ends here, before PyTorch is imported.

        Raises:
            UserError: an unknown option, a value that does not fit, a file that cannot be read, or
                a path that is given twice.
            SystemExit: after --help and --help-all, and after --print_config where only a recipe
                stands behind the defaults.
        """
        words = self.expand(arguments)
        if asked := {"-h", "--help", "--help-all"} & set(words):
            self._show_help([w for w in words if w not in asked], "--help-all" in asked)
            raise SystemExit(0)
        given = self._parse(words)
        starts_anew = "recipe" in self.own and getattr(given.own, "resume", None) is None
        if given.printed and (starts_anew or self.base):
            with users_input():
                recipe = None if self.base else chosen_recipe(given)
            given.config(recipe.config if recipe else self.base)
        return given

    def expand(self, arguments: Sequence[str]) -> list[str]:
        """The arguments with each option by its own name, in one word with its value, and PATH as
        data.root.

        Raises:
            UserError: more than one path, or data.root beside it.
        """
        words: list[str] = []
        paths: list[str] = []
        queue = deque(arguments)
        while queue:
            word = queue.popleft()
            if word.startswith("--"):
                name, equals, value = word.partition("=")
                if not equals and name not in self.flags and queue and queue[0][:2] != "--":
                    equals, value = "=", queue.popleft()
                words.append(f"{_in_full(name)}{equals}{value}")
            elif word.startswith("-") or not self.takes_path:
                words.append(word)
            else:
                paths.append(word)
        roots = [*paths, *_values_of("--data.root", words)]
        if paths and len(roots) > 1:
            raise UserError(f"images are given twice, as {roots[0]} and as {roots[1]}; give one")
        return [*words, *(f"--data.root={path}" for path in paths)]

    def _show_help(self, words: Sequence[str], everything: bool) -> None:
        recipe = None
        if self.takes_path and self.base is None:
            try:
                given = self._parse(words)
            except UserError:
                pass  # a mistake elsewhere on the line does not stand in the way of help
            else:
                with users_input():
                    recipe = chosen_recipe(given)
        if recipe is not None:
            self.defaults = recipe.config
        say(self.help(everything=everything))
        if self.takes_path and self.base is None:
            whose = "for your own images" if recipe is None else f"those of recipe {recipe.name}"
            say(f"The defaults shown are {whose}. PATH, --model.pretrained true and --recipe NAME")
            say("have others, which --help shows beside them.")

    def help(self, *, everything: bool) -> str:
        """The text of --help, or of --help-all."""
        parser = self.shown(everything=everything)
        positionals = [
            f"[{action.metavar}]" if action.nargs == "?" else action.metavar or action.dest.upper()
            for action in parser._actions
            if not action.option_strings
        ]
        parser.usage = " ".join([f"covpool {self.command}", *map(str, positionals), "[options]"])
        text = parser.format_help()
        if self.examples and not everything:
            lines = (f"  $ {line}\n      {what}" for line, what in self.examples.items())
            text += "\n".join(["\nexamples:", *lines])
        return text.rstrip()

    def shown(self, *, everything: bool) -> argparse.ArgumentParser:
        """The parser to be shown, not to be parsed with: the run's options, aliases and PATH stand
        in it too, without what the command does not take and, unless everything is wanted, what is
        rarely needed."""
        if self.takes_path:
            self.parser.add_argument(
                "path", metavar="PATH", nargs="?", help="the images: short for --data.root PATH"
            )
        names = {real: [f"--{alias}"] for alias, real in ALIASES.items()}
        for group, options in self.defaults.to_dict().items():
            title, about = _docs_of(type(getattr(self.defaults, group)))
            section = self.parser.add_argument_group(title)
            for name, value in options.items():
                key = f"{group}.{name}"
                if self._is_shown(key, everything):
                    section.add_argument(
                        *names.get(key, ()),
                        f"--{key}",
                        dest=key,
                        metavar=_metavar(name, self.kinds[key]),
                        help=f"{about[name]} (default: {_shown(value)})".replace("%", "%%"),
                    )
        return self.parser

    def _is_shown(self, key: str, everything: bool) -> bool:
        if self.allowed is not None:
            return key in self.allowed
        return key not in self.hidden and (everything or key in COMMON)

    def error(self, text: str) -> UserError:
        """A mistake in the options, with the way to their list."""
        return UserError(f"{text} (see covpool {self.command} --help)")

    def _parse(self, words: Sequence[str]) -> Given:
        options: dict[str, dict[str, Any]] = {}
        named: list[tuple[str, str]] = []
        rest: list[str] = []
        for word in words:
            name, equals, text = word[2:].partition("=")
            if not word.startswith("--"):
                rest.append(word)
                continue
            if name == "config" and equals:
                found = _flatten(_read_options(Path(text)), "", self._open_keys())
                items = [(f"{text}: ", key, value) for key, value in found]
            else:
                items = [("--", name, _value(text, self.kinds.get(name, Any)))]
            for where, key, value in items:
                named.append((where, key))
                self._check(where, key)
                if key not in self.own:
                    if where == "--" and not equals:
                        raise self.error(f"--{key} needs a value")
                    self._note(options, key, value)
                elif where == "--":
                    rest.append(word)
                elif f"--{key}" in self.flags:
                    rest += [f"--{key}"] * bool(value)
                elif value is not None:
                    rest.append(f"--{key}={value}")
        own, unread = self.parser.parse_known_args(rest)
        if unread:
            raise self.error(
                f"unexpected argument {unread[0]}; images are given by --data.root PATH"
            )
        return Given(own=own, options=options, named=named, printed=own.print_config, parser=self)

    def _note(self, options: dict[str, dict[str, Any]], name: str, value: Any) -> None:
        """Take an option's value, or that of an entry of a mapping."""
        group, field, *entry = name.split(".")
        own = options.setdefault(group, {})
        if entry:
            value = {**own.get(field, {}), entry[0]: value}
        kind = self.kinds[f"{group}.{field}"]
        try:
            check_value(f"{group}.{field}", value, kind)
        except ValueError as error:
            raise self.error(str(error)) from None
        numbers = typing.get_args(kind) or (kind,)
        is_float = type(value) is int and float in numbers and int not in numbers
        own[field] = float(value) if is_float else value

    def _open_keys(self) -> list[str]:
        """Keys that hold a mapping, whose own keys are checked by its reader."""
        return [key for key, kind in self.kinds.items() if typing.get_origin(kind) is dict]

    def _check(self, where: str, name: str) -> None:
        entry = name.count(".") == 2 and name.rpartition(".")[0] in self._open_keys()
        if name not in self.kinds and name not in self.own and not entry:
            hint = nearest_option(name, [*self.kinds, *self.own], in_file=where != "--")
            lists = "--help" if self.allowed else "--help-all"
            raise UserError(
                f"unknown option {where}{name}{hint} (covpool {self.command} {lists} lists all)"
            )
        if self.allowed is not None:
            self.check_allowed([(where, name)], self.allowed)

    def check_allowed(self, named: Iterable[tuple[str, str]], allowed: Collection[str]) -> None:
        """Raise a UserError for the first of a run's options that is not among the allowed."""
        for where, name in named:
            root = ".".join(name.split(".")[:2])
            if name not in self.own and root not in allowed:
                raise UserError(
                    f"option {where}{name} cannot be changed here: the run's own configuration "
                    f"holds; free are {', '.join(allowed)}"
                )


def chosen_recipe(given: Given) -> "Recipe | None":
    """The recipe to start from: the one that is named, on the command line or in a file, else as
    `default_recipe` has it.

    Raises:
        ValueError: no such recipe.
    """
    from covpool.train.recipe import default_recipe, read_recipe

    named = given.own.recipe
    return default_recipe(given.options) if named is None else read_recipe(named)


def refuse_methods(config: Any, instead: str) -> None:
    """Refuse options of the method where the command itself says which are trained.

    Args:
        config: a `RunConfig`.
        instead: what says it, as a clause.

    Raises:
        ValueError: model.schedule, model.hybrid or model.method is set.
    """
    for option in ("schedule", "hybrid", "method"):
        value = getattr(config.model, option)
        if value != getattr(type(config.model), option):
            raise ValueError(f"model.{option} {value!r} cannot be used here: {instead}")


def _in_full(option: str) -> str:
    """The option's own name, where it is an alias."""
    name = option[2:].replace("_", "-")
    return f"--{ALIASES[name]}" if name in ALIASES else option


def _values_of(option: str, words: Iterable[str]) -> list[str]:
    """The values of an option in words as `RunParser.expand` makes them."""
    return [word.partition("=")[2] for word in words if word.startswith(f"{option}=")]


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as in Python."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _value(text: str, kind: Any) -> Any:
    """What a word of the command line says: text where the option takes that, else what YAML makes
    of the word."""
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError:
        return text
    if value is None and text not in (
        "null",
        "~",
    ):  # an empty word, or what YAML takes for a comment
        return text
    is_text = isinstance(value, str) and kind is not Any
    return text if fits(text, kind) and (is_text or not fits(value, kind)) else value


def _read_options(path: Path) -> Mapping[Any, Any]:
    """What a YAML file of options holds.

    Raises:
        UserError: it cannot be read, or holds no mapping.
    """
    from covpool.train.config import RunConfig

    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UserError(f"--config {one_line(error)}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} is not readable YAML: {one_line(error)}") from error
    if not isinstance(content, Mapping):
        raise UserError(f"--config {path} holds no options; write them as `model: {{method: …}}`")
    for group in RunConfig.groups():
        if not isinstance(content.get(group, {}), Mapping):
            raise UserError(
                f"--config {path}: {group} must hold options, as in `{group}: {{…: …}}`, not "
                f"{content[group]!r}"
            )
    return content


def _flatten(
    content: Mapping[Any, Any], prefix: str, open_keys: Collection[str]
) -> Iterator[tuple[str, Any]]:
    """The values with their dotted keys."""
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name not in open_keys:
            yield from _flatten(value, f"{name}.", open_keys)
        else:
            yield name, value


def choices_of(kind: Any) -> tuple[str, ...]:
    """The words that a field of that type takes, as far as the type names them."""
    if kind is bool:
        return ("true", "false")
    if typing.get_origin(kind) is typing.Literal:
        return tuple(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return tuple(word for part in typing.get_args(kind) for word in choices_of(part))
    return ()


def _metavar(name: str, kind: Any) -> str:
    """What stands for an option's value in the help."""
    if kind is bool or typing.get_origin(kind) is typing.Literal:
        return f"{{{','.join(choices_of(kind))}}}"
    return {dict: "{KEY: …}", tuple: "[ITEM,…]"}.get(typing.get_origin(kind), name.upper())


def _shown(value: Any) -> str:
    """A default as YAML has it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _docs_of(owner: type) -> tuple[str, dict[str, str]]:
    """The first words of a dataclass's docstring, and the text below each of its fields."""
    body = ast.parse(inspect.getsource(owner)).body[0]
    assert isinstance(body, ast.ClassDef)
    return re.split("[.;]", ast.get_docstring(body) or "")[0], {
        ast.unparse(field.target): " ".join(str(ast.literal_eval(text.value)).split())
        for field, text in pairwise(body.body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }
