"""From command line and YAML to `RunConfig`, by jsonargparse over the configuration's dataclasses.

Unknown keys are looked for before jsonargparse sees them, in both places alike, because its own
message does not name the nearest valid one.
"""

import argparse
import dataclasses
import difflib
import re
import typing
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covpool.cli import UserError, say

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


class PathReader:
    """The type of an option that takes a path; None, its default, stays."""

    def __call__(self, text: str | None) -> Path | None:
        return None if text is None else Path(text)

    def __repr__(self) -> str:
        return "path"  # what help shows; of a function it would be the address


def read_as_path(kind: object) -> bool:
    """Whether an argument of this type takes a path."""
    return kind is Path or isinstance(kind, PathReader)


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
        printed: what --print_config was given, without it None.
    """

    own: argparse.Namespace
    options: Mapping[str, Mapping[str, Any]]
    named: Sequence[tuple[str, str]]
    printed: str | None
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
                if isinstance(value, dict) and not {group, f"{group}.{name}"} & given_whole:
                    value = {**values[group][name], **value}
                values[group][name] = value
        if self.printed is not None:
            say(self.parser.dump(self, base, values))
            raise SystemExit(0)
        try:
            return RunConfig.from_dict(values)
        except (ValueError, TypeError) as error:
            raise self.parser.error(one_line(error)) from error


class RunParser:
    """The options of a command that takes a run's configuration, or a part of it.

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
        import jsonargparse

        from covpool.train.config import RunConfig

        jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
        self.command = command
        self.parser = jsonargparse.ArgumentParser(
            prog=f"covpool {command}", description=description, exit_on_error=False
        )
        self.groups = RunConfig.groups()
        types = {
            f"{group}.{item.name}": typing.get_origin(item.type)
            for group, owner in self.groups.items()
            for item in dataclasses.fields(owner)
        }
        self.known = list(types)
        # What holds a mapping, whose own keys are checked by its reader.
        self.open = {key for key, kind in types.items() if kind is dict}
        self.lists = {key for key, kind in types.items() if kind is tuple}
        self.allowed, self.hidden = allowed, frozenset(hidden)
        self.examples = examples or {}
        self.takes_path = False
        self.base: RunConfig | None = None
        self.flags = {"--help", "--help-all", "--print_config"}
        self.own: list[str] = ["config", "print_config", "help"]
        self.parser.add_argument("--config", action="config", help="YAML file of options")
        if allowed is None:
            self.own.append("help-all")
            self.parser.add_argument("--help-all", action="help", help="show every option")
        for group, owner in self.groups.items():
            self.parser.add_class_arguments(owner, group)

    def set_defaults(self, config: "RunConfig") -> None:
        """Show this configuration instead of the dataclasses' defaults."""
        self.parser.set_defaults(
            {
                f"{group}.{name}": value
                for group, fields in config.to_dict().items()
                for name, value in fields.items()
            }
        )

    def add_recipe(self) -> None:
        """Add --recipe, the configuration that options are laid over."""
        self.add_argument(
            "--recipe", type=str | None, help="start from this one of covpool recipes; options hold"
        )

    def add_sources(self) -> None:
        """Add the arguments that say what a training starts from: PATH and --recipe."""
        self.takes_path = True
        self.add_recipe()

    def add_base(self, options: Mapping[str, Mapping[str, Any]]) -> None:
        """Add PATH, and take these options for what is not given, by group and name."""
        from covpool.train.config import RunConfig

        self.takes_path = True
        self.base = RunConfig.from_dict(options)

    def add_argument(self, name: str, **options: Any) -> None:
        """Add an argument of the command itself, as in argparse."""
        if options.get("type") in (Path, Path | None):
            # As a type, jsonargparse reads it as YAML, which names of files need not be.
            options["type"] = PathReader()
        self.parser.add_argument(name, **options)
        if name.startswith("--"):
            self.own.append(name[2:])
        if options.get("action") == "store_true":
            self.flags.add(name)

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
        if given.printed is not None and (starts_anew or self.base):
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
                words.append(f"{_in_full(name, value)}{equals}{value}")
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
        if self.base is not None:
            self.set_defaults(self.base)
        elif self.takes_path:
            try:
                given = self._parse(words)
            except UserError:
                pass  # a mistake elsewhere on the line does not stand in the way of help
            else:
                with users_input():
                    recipe = chosen_recipe(given)
        if recipe is not None:
            self.set_defaults(recipe.config)
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
        text = parser.format_help().replace(" \b[", "[")  # jsonargparse's own
        if self.examples and not everything:
            lines = (f"  $ {line}\n      {what}" for line, what in self.examples.items())
            text += "\n".join(["\nexamples:", *lines])
        return text.rstrip()

    def shown(self, *, everything: bool) -> Any:
        """The parser to be shown, not to be parsed with: aliases and PATH stand in it, and what
        the command does not take, or what is rarely needed, is hidden."""
        if self.takes_path:
            self.parser.add_argument(
                "path", metavar="PATH", nargs="?", help="the images: short for --data.root PATH"
            )
        names = {real: f"--{alias}" for alias, real in ALIASES.items()}
        configurable = {*self.known, *self.groups}
        for action in self.parser._actions:
            if action.dest in names:
                action.option_strings = [names[action.dest], *action.option_strings]
            if action.dest in configurable and not self._is_shown(action.dest, everything):
                action.help = argparse.SUPPRESS
        return self.parser

    def _is_shown(self, key: str, everything: bool) -> bool:
        if self.allowed is not None:
            return key in self.allowed
        return key not in self.hidden and (everything or key in COMMON)

    def dump(
        self, given: Given, base: "RunConfig", options: Mapping[str, Mapping[str, Any]]
    ) -> str:
        """The answer to --print_config, as YAML.

        Args:
            given: the command line.
            base: what its options were laid over.
            options: the outcome, by group and name; whether it can be trained is not asked here.

        Raises:
            UserError: --print_config was given a word that it does not know.
        """
        flags = dict.fromkeys(("skip_default", "skip_unset"), False)
        for flag in filter(None, (given.printed or "").split(",")):
            if flag not in flags:
                raise self.error(f"--print_config takes {' and '.join(flags)}, not {flag!r}")
            flags[flag] = True
        self.set_defaults(base)
        values = self.parser.get_defaults()
        for group, fields in options.items():
            for name, value in fields.items():
                values[f"{group}.{name}"] = value
        for name, value in vars(given.own).items():
            values[name] = str(value) if isinstance(value, Path) else value
        return self.parser.dump(values, **flags).rstrip()

    def error(self, text: str) -> UserError:
        """A mistake in the options, with the way to their list."""
        named = [key for key in self.known if key in text]
        lists = "--help-all" if any(not self._is_shown(key, False) for key in named) else "--help"
        return UserError(f"{text} (see covpool {self.command} {lists})")

    def _parse(self, words: Sequence[str]) -> Given:
        given = [word[2:].partition("=") for word in words if word.startswith("--")]
        named = [("--", name) for name, *_ in given]
        self._check(named)
        printed = [value for name, _, value in given if name == "print_config"]
        recipes: list[str] = []
        rest: list[str] = []
        for word in words:
            if word.startswith("--config="):
                path = Path(word.partition("=")[2])
                text, content = _read_options(path)
                in_file = [(f"{path}: ", key) for key in _flatten(content, "", self.open)]
                self._check(in_file)
                named += in_file
                recipes += filter(None, [content.get("recipe")])
                word = f"--config={text}"  # jsonargparse takes the content as it takes the name
            if not word.startswith("--print_config"):
                rest.append(_listed(word, self.lists))
        try:
            parsed = self.parser.parse_args(rest, defaults=False).clone(with_meta=False)
        except (argparse.ArgumentError, ValueError, TypeError) as error:
            raise self.error(_readable(one_line(error), self.known)) from error
        options = {name: parsed.pop(name).as_dict() for name in self.groups if name in parsed}
        own = {
            name: value
            for name, value in (vars(self.parser.get_defaults()) | vars(parsed)).items()
            if name not in (*self.groups, "config")
        }
        if recipes := [*recipes, *_values_of("--recipe", words)]:
            own["recipe"] = recipes[-1]
        return Given(
            own=argparse.Namespace(**own),
            options=options,
            named=named,
            printed=printed[-1] if printed else None,
            parser=self,
        )

    def _check(self, named: Iterable[tuple[str, str]]) -> None:
        accepted = {*self.known, *self.own, *self.groups}
        lists = "--help" if self.allowed else "--help-all"
        for where, name in named:
            if name not in accepted and name.rpartition(".")[0] not in self.open:
                hint = nearest_option(name, [*self.known, *self.own], in_file=where != "--")
                raise UserError(
                    f"unknown option {where}{name}{hint} (covpool {self.command} {lists} lists all)"
                )
        if self.allowed is not None:
            self.check_allowed(named, self.allowed)

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


def _readable(text: str, known: Collection[str]) -> str:
    """jsonargparse's report of what does not fit, in the words of the other messages."""
    if found := re.match(r"unrecognized arguments: ([^-].*)$", text):
        return f"unexpected argument {found[1]}; images are given by --data.root PATH"
    if found := re.match(r"Parser key \"(\w+)\": Unable to load config '(.*?)'", text):
        hint = nearest_option(found[1], known)
        return f"--{found[1]} {found[2]}: no such YAML file of the options --{found[1]}.NAME{hint}"
    text = re.sub(r"<class '(\w+)'>", r"\1", text)
    text = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", text)
    text = re.sub(
        r'^Parser key "([^"]+)": Expected a tuple\. Got value: (.*)$',
        r"\1 must be a list, not '\2'; write it as [\2]",
        text,
    )
    return re.sub(
        r'^Parser key "([^"]+)": Expected an? (.*)\. Got value: (.*)$',
        r"\1 must be \2, not '\3'",
        text,
    )


def _in_full(option: str, value: str) -> str:
    """The option's own name, where it is an alias. --data FILE.yaml, which jsonargparse takes for
    the whole group of that name, stays."""
    name = option[2:].replace("_", "-")
    if name not in ALIASES or (name == "data" and value.endswith((".yaml", ".yml"))):
        return option
    return f"--{ALIASES[name]}"


def _listed(word: str, lists: Collection[str]) -> str:
    """The word; of an option that takes a list with brackets, which are a pattern to shells."""
    name, equals, value = word.partition("=")
    bare = name[2:] in lists and value[:1] not in ("", "[")
    return f"{name}{equals}[{value}]" if bare else word


def _values_of(option: str, words: Iterable[str]) -> list[str]:
    """The values of an option in words as `RunParser.expand` makes them."""
    return [word.partition("=")[2] for word in words if word.startswith(f"{option}=")]


def _read_options(path: Path) -> tuple[str, Mapping[Any, Any]]:
    """A YAML file of options, as text and as what it holds.

    Raises:
        UserError: it cannot be read, or holds no mapping.
    """
    import yaml

    from covpool.train.config import RunConfig

    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
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
    if not isinstance(name := content.get("recipe"), str | None):
        raise UserError(f"--config {path}: recipe must be a recipe's name, not {name!r}")
    return text, content


def _flatten(content: Mapping[Any, Any], prefix: str, open_keys: Collection[str]) -> Iterator[str]:
    """The dotted keys."""
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name not in open_keys:
            yield from _flatten(value, f"{name}.", open_keys)
        else:
            yield name
