"""How the command line starts: what help needs, what it shows, and the first line of a training."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

import quick
from covpool.bench.options import DTYPES, MEASUREMENTS, SPECTRA
from covpool.bench.peers import PEERS
from covpool.cli import COMMANDS, main
from covpool.cli.bench import ALONE
from covpool.cli.parsers import DEFAULT_POOLINGS, EVALUATED, NO_EFFECT, PARSERS, train_parser
from covpool.cli.parsing import ALIASES, COMMON
from covpool.cli.train import first_process
from covpool.data.layouts import LAYOUTS
from covpool.experiments.study import RATES
from covpool.experiments.targets import TARGETS
from covpool.linalg.methods import METHODS
from covpool.poolings import POOLINGS
from covpool.publish.convert import CONVERTERS
from covpool.publish.export import FORMATS
from covpool.publish.keys import TRIANGLES
from covpool.train.config import RunConfig
from covpool.train.recipe import read_recipe
from tiny_images import make_tiny_images

HEAVY = {"torch", "numpy", "torchvision", "lightning", "timm", "wandb", "matplotlib", "scipy"}
OPTIONS = {f"{g}.{n}" for g, owner in RunConfig.groups().items() for n in owner.__annotations__}


LIGHT = [
    *([name, "--help"] for name in COMMANDS),
    ["train", "--help-all"],
    ["train", "--print_config"],
    ["train", "photos", "--lr", "0.1", "--print_config"],
    ["compare", "--print_config"],
    ["recipes"],
    ["recipes", "typefaces"],
    ["methods"],
    ["methods", "svd-pade"],
    *([["completion", "bash"]] if find_spec("shtab") else []),
]
"""What needs no tensor."""

MISTAKEN = [
    ["train", "--nonsense"],
    ["export"],
    ["study", "x.yaml", "--lrr", "1"],
    ["methods", "svd-pad"],
    ["recipes", "typeface"],
]


def test_what_needs_no_tensor_and_mistakes_in_options_import_nothing_heavy():
    """In one new process, so that the first to import something is named."""
    program = (
        "import json, sys; from covpool.cli import main\n"
        "heavy, commands = map(json.loads, sys.argv[1:])\n"
        "for command in commands:\n"
        "    status, found = main(command), sorted(set(heavy) & set(sys.modules))\n"
        "    print('\\0', json.dumps([command, status, found]), '\\0', sep='')\n"
    )
    words = [sys.executable, "-c", program, json.dumps(sorted(HEAVY))]
    done = subprocess.run([*words, json.dumps([*LIGHT, *MISTAKEN])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for told in done.stdout.split("\0")[1::2]:
        command, status, found = json.loads(told)
        assert (status, found) == (2 if command in MISTAKEN else 0, []), command
    assert done.stdout.count("\0") == 2 * len([*LIGHT, *MISTAKEN])


MOST_MODULES = 330
"""What help may import at most, 260 today: NumPy alone has more than a hundred."""


@pytest.mark.parametrize("command", ["train --help", "compare --help", "train --print_config"])
def test_help_imports_few_modules(command):
    program = (
        "import sys; before = set(sys.modules); from covpool.cli import main; main(sys.argv[1:])\n"
        "print('\\0', *set(sys.modules) - before)\n"
    )
    words = [sys.executable, "-c", program, *command.split()]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    modules = done.stdout.rpartition("\0")[2].split()
    packages = Counter(name.partition(".")[0] for name in modules)
    assert "covpool" in packages
    assert len(modules) <= MOST_MODULES, packages.most_common(8)


def shown(capsys, *arguments):
    assert main([*arguments]) == 0
    return capsys.readouterr().out


def options_in(text):
    return set(re.findall(r"--(\w+\.\w+)", text.partition("examples:")[0]))


@pytest.mark.parametrize(
    ("command", "names"),
    {
        "bench": [
            *(*PEERS, *DTYPES, *SPECTRA, *ALONE),
            *(f"{n}: {each.about()}" for n, each in MEASUREMENTS.items() if n != "layers"),
        ],
        "convert": [*CONVERTERS, *TRIANGLES, *(row.description for row in CONVERTERS.values())],
        "data": LAYOUTS,
        "export": FORMATS,
        "reproduce": TARGETS,
        "study": [RATES],
    }.items(),
)
def test_words_of_the_help_are_those_of_the_tables(command, names, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "10000")  # nothing is wrapped
    text = shown(capsys, command, "--help")
    assert [name for name in names if name not in text] == []


def test_every_command_has_its_options():
    assert list(PARSERS) == list(COMMANDS)


def test_help_of_train_shows_what_is_common_and_help_all_everything(capsys):
    text = shown(capsys, "train", "--help")
    assert options_in(text) == set(COMMON) <= OPTIONS
    assert text.startswith("usage: covpool train [PATH] [options]\n")
    assert "--help-all" in text
    assert options_in(shown(capsys, "train", "--help-all")) >= OPTIONS


def test_examples_of_the_help_can_be_typed(capsys):
    examples = re.findall(r"\$ covpool train *(.*)", shown(capsys, "train", "--help"))
    assert len(examples) == 3
    for example in examples:
        train_parser().read(shlex.split(example))


@pytest.mark.parametrize("command", ["train", "compare"])
@pytest.mark.parametrize(
    ("words", "whose", "name"),
    [
        ([], "those of recipe typefaces.", "typefaces"),
        (["photos"], "for your own images.", None),
        (["photos", "--model.pretrained", "true"], "those of recipe fine-tuning.", "fine-tuning"),
        (["photos", "--model.init_from", "run"], "those of recipe fine-tuning.", "fine-tuning"),
        (["--recipe", "birds"], "those of recipe birds.", "birds"),
    ],
)
def test_help_tells_whose_defaults_it_shows(command, words, whose, name, capsys):
    text = shown(capsys, command, *words, "--help")
    assert f"The defaults shown are {whose}" in text
    wanted = RunConfig() if name is None else read_recipe(name).config
    rate, optimizer = wanted.optim.learning_rate, wanted.optim.name
    text = re.sub(r"\s+", " ", text)
    assert f"default: {rate})" in text.partition("--optim.learning_rate")[2].partition(" --")[0]
    assert f"default: {optimizer})" in text.partition("--optim.name")[2].partition(" --")[0]


def test_help_of_evaluate_shows_what_it_takes(capsys):
    assert options_in(shown(capsys, "evaluate", "--help")) == set(EVALUATED)


@pytest.mark.parametrize("command", ["compare", "study", "reproduce"])
def test_commands_that_take_every_option_show_the_common_ones(command, capsys):
    assert options_in(shown(capsys, command, "--help")) == set(COMMON)
    assert options_in(shown(capsys, command, "--help-all")) >= OPTIONS


def test_help_of_probe_shows_only_what_it_takes(capsys):
    refused = {f"{group}.{name}" for group, names in NO_EFFECT.items() for name in names}
    refused |= {"data.evaluate", "optim.name", "optim.trained"}
    assert options_in(shown(capsys, "probe", "--help")) == set(COMMON) - refused
    everything = options_in(shown(capsys, "probe", "--help-all"))
    assert everything >= OPTIONS - refused
    assert not everything & refused
    assert "data.augment" in everything


def test_the_examples_of_probe_count_its_poolings(capsys):
    text = re.sub(r"\s+", " ", shown(capsys, "probe", "--help"))
    words = ("no", "one", "two", "three", "four", "five", "six", "seven")
    assert f"{words[len(DEFAULT_POOLINGS.split(','))]} poolings on a folder" in text


def test_the_first_line_is_out_before_pytorch_is_loaded(tmp_path):
    program = (
        "import os, sys\n"
        "class Ends:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'torch': os._exit(7)\n"  # what is not flushed is lost
        "sys.meta_path.insert(0, Ends())\n"
        "from covpool.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    for words, line in (
        (
            ["train", "photos", "--epochs", "3"],
            "training small-convnet with isqrt-cov on photos, 3 epochs;",
        ),
        (
            ["train", "--model.method", "svd-pade"],
            "with svd-pade on the embedded typefaces, 20 epochs;",
        ),
        (["compare", "photos"], "comparing poolings; loading PyTorch"),
        (["study", "study.yaml"], "comparing ways to train; loading PyTorch"),
        (["reproduce", "all"], "reproducing the paper's tables and figures; loading PyTorch"),
    ):
        command = [sys.executable, "-c", program, *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 7, done.stderr
        assert line in done.stdout
        assert done.stdout.count("\n") == 1


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"RANK": "1"},
        {"LOCAL_RANK": "0", "SLURM_PROCID": "3"},
        {"SLURM_PROCID": "3"},
        {"RANK": "0", "LOCAL_RANK": "1"},
        {"JSM_NAMESPACE_RANK": "2"},
    ],
)
def test_the_process_that_speaks_first_is_lightnings(variables, monkeypatch):
    from lightning.fabric.utilities.rank_zero import _get_rank

    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert first_process() == (not _get_rank())


def test_the_list_of_methods_fits_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    plain = re.sub(r"\x1b\[[\d;]*m", "", shown(capsys, "methods"))
    assert max(map(len, plain.splitlines())) <= 80
    assert [n for n in POOLINGS if not re.search(rf"^{n} ", plain, re.MULTILINE)] == []
    words = plain.split()
    for method in METHODS.values():
        assert set(method.description.split()) <= set(words)  # none is broken


@quick.parametrize("name", POOLINGS, keep=["svd-pade", "isqrt-cov", "gap"])
def test_a_method_in_full(name, capsys):
    text = shown(capsys, "methods", name)
    assert re.search(rf"^name: +{name}$", text, re.MULTILINE)
    if method := METHODS.get(name):
        assert method.reference in text
        assert method.forward.title in text
        assert method.gradient.title in text
        assert all(f"{key}={value}" in text for key, value in method.constants.items())
        assert ", ".join(method.functions) in text


def test_a_method_that_there_is_not(capsys):
    assert main(["methods", "svd-pad"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "'svd-pad'" in error
    assert "did you mean 'svd-pade'?" in error


VALUES = {
    "batch-size": "7",
    "data": "photos",
    "epochs": "3",
    "keep": "best",
    "lr": "0.25",
    "on-nonfinite": "skip",
}


@quick.parametrize("command", ["train", "compare"], keep=["train"])
@pytest.mark.parametrize("alias", ALIASES)
def test_a_short_name_is_the_option(alias, command, capsys):
    value = VALUES[alias]
    forms = [f"--{alias}", value], [f"--{alias}={value}"], [f"--{alias.replace('-', '_')}", value]
    wanted = shown(capsys, command, f"--{ALIASES[alias]}", value, "--print_config")
    for form in forms:
        assert shown(capsys, command, *form, "--print_config") == wanted
    group, name = ALIASES[alias].split(".")
    assert str(yaml.safe_load(wanted)[group][name]) == value


@pytest.mark.parametrize("command", ["train", "compare"])
def test_the_help_shows_short_names(command, capsys):
    text = shown(capsys, command, "--help-all")
    assert [alias for alias in ALIASES if f"--{alias}" not in text] == []


@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_path_is_the_images(command, capsys):
    wanted = shown(capsys, command, "--data.root", "photos", "--epochs", "3", "--print_config")
    for words in (["photos", "--epochs", "3"], ["--epochs", "3", "photos"]):
        assert shown(capsys, command, *words, "--print_config") == wanted
    for words in (["a", "b"], ["a", "--data", "b"], ["--data.root=a", "b"]):
        assert main([command, *words]) == 2
        assert re.search("given twice, as [ab] and as [ab];", capsys.readouterr().err)


@pytest.mark.parametrize("words", [["{}"], ["--data", "{}"], ["--data.root", "{}"]], ids=" ".join)
def test_data_check_takes_its_images_as_train_does(words, capsys, tmp_path):
    images = str(make_tiny_images(tmp_path / "images"))
    text = shown(capsys, "data", "check", *(word.format(images) for word in words))
    assert "(data.name folder)" in text
    assert main(["data", "check", images, "--data", images]) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_evaluate_takes_its_short_names_and_names_the_others_in_full(capsys):
    assert main(["evaluate", "nowhere", "--lr", "0.1"]) == 2
    assert "--optim.learning_rate cannot be changed here" in capsys.readouterr().err
    assert main(["evaluate", "nowhere", "--batch-size", "3", "--data", "photos"]) == 2
    assert "no run directory nowhere" in capsys.readouterr().err


def test_a_file_of_a_whole_group_is_still_one(capsys, tmp_path):
    file = tmp_path / "images.yaml"
    file.write_text("batch_size: 5\n")
    data = yaml.safe_load(shown(capsys, "train", "--data", str(file), "--print_config"))["data"]
    assert (data["batch_size"], data["root"]) == (5, None)


def test_lists_need_no_brackets(capsys):
    options = ("--optim.reduction_steps", "--train.probes", "--optim.milestones")
    found = []
    for form in ("{}", "[{}]"):
        values = (form.format(text) for text in ("nog,olr", "fidelity", "2,4"))
        words = [word for pair in zip(options, values, strict=True) for word in pair]
        found.append(shown(capsys, "train", *words, "--print_config"))
    assert found[0] == found[1]
    assert yaml.safe_load(found[0])["optim"]["reduction_steps"] == ["nog", "olr"]


@pytest.mark.parametrize(
    ("words", "help_option"),
    [
        (["--optim.reduction_steps", "nag"], "--help-all"),
        (["--train.epochs", "many"], "--help"),
        (["--resume"], "--help"),
    ],
)
def test_a_mistake_names_the_help_that_has_its_option(words, help_option, capsys):
    assert main(["train", *words]) == 2
    assert f"(see covpool train {help_option})" in capsys.readouterr().err


def test_a_list_in_a_file_is_a_list(capsys, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("train: {loggers: wandb}")
    assert main(["train", "--config", str(file)]) == 2
    told = "train.loggers must be a list, not 'wandb'; write it as [wandb]"
    assert told in capsys.readouterr().err


def test_a_value_that_looks_like_an_option_is_none(capsys):
    assert main(["train", "--epochs", "--lr", "0.1"]) == 2
    assert "train.epochs" in capsys.readouterr().err


COMPLETED = {
    "tr": ["train"],
    "train --l": ["--lr"],
    "train --lr 0.1 --ep": ["--epochs"],
    "train --model.me": ["--model.method"],
    "train --model.method isq": ["isqrt-cov"],
    "train --optim.decay c": ["cosine", "constant"],
    "train --model.pretrained ": ["true", "false"],
    "train --recipe typefaces-": ["typefaces-steps"],
    "train pho": ["photos"],
    "compare pho": ["photos"],
    "data check pho": ["photos"],
    "evaluate run --optim.": [],
    "evaluate pho": ["photos"],
    "methods newton": ["newton-schulz-minimax"],
    "recipes bir": ["birds"],
    "compare --methods bc": ["bcnn"],
    "compare --methods bcnn,isq": ["bcnn,isqrt-cov"],
    "reproduce table3 --methods exact,svd-p": ["exact,svd-pi", "exact,svd-pade"],
    "probe --poolings gamma,bcnn,gau": ["gamma,bcnn,gaussian"],
    "probe --poolings al": ["all"],
    "train --train.probes smoothness,f": ["smoothness,fidelity"],
    "train --optim.reduction_steps ": ["nog", "olr"],
}


def test_the_shell_completes_commands_options_and_values(capsys, tmp_path):
    pytest.importorskip("shtab")
    (tmp_path / "photos").mkdir()
    text = shown(capsys, "completion", "bash")
    assert text == f"{import_module('covpool.cli.completion').script('bash')}\n"  # as it was made
    (tmp_path / "script").write_text(text)
    program = (
        "source ./script; "
        'complete_words() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); '
        '_shtab_covpool covpool "${COMP_WORDS[COMP_CWORD]}"; echo "${COMPREPLY[*]}"; }\n'
    )
    for words in COMPLETED:
        program += f"complete_words covpool {' '.join(shlex.quote(w) for w in words.split(' '))}\n"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    found = {words: line.split() for words, line in zip(COMPLETED, lines, strict=True)}
    assert found == COMPLETED


def test_zsh_is_told_of_words_with_commas_between(capsys):
    pytest.importorskip("shtab")
    text = shown(capsys, "completion", "zsh")
    (compared,) = re.findall(r":methods:(_values -s , methods gap exact .*?)\"", text)[:1]
    assert compared.split()[4:] == [*POOLINGS]
    assert ":poolings:_values -s , poolings gap" in text
    assert ":_values -s , train.probes smoothness conditioning fidelity" in text


def test_completion_without_its_package_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    monkeypatch.delitem(sys.modules, "covpool.cli.completion", raising=False)
    assert main(["completion", "bash"]) == 2
    error = capsys.readouterr().err
    assert "needs shtab; install it, from the checkout, with: pip install '.[completion]'" in error


def test_the_short_names_are_documented():
    text = (Path(__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
    for alias, option in ALIASES.items():
        assert f"| `--{alias}` | `--{option}` |" in text


@pytest.mark.parametrize("command", [["recipes"], ["train", "--help"], ["methods"]])
def test_a_reader_that_has_seen_enough_gets_no_traceback(command):
    """As `covpool methods | head -1` does it."""
    program = f"import sys; from covpool.cli import main; sys.exit(main({command}))"
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run([sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (run.returncode, run.stderr) == (141, b"")


@pytest.mark.parametrize("command", [["methods"], ["recipes"]])
def test_what_loads_no_pytorch_does_not_say_that_it_does(command, monkeypatch, capsys):
    def loading():
        raise AssertionError(f"{command} says that it loads PyTorch")

    monkeypatch.setattr("covpool.cli.loading", loading)
    assert main(command) == 0
