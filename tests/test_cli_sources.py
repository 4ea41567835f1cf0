"""What a command line starts from: files, recipes, runs and studies, each read once, and the words
parsed once whatever they are laid over."""

import os
import sys
import threading
from collections import Counter
from pathlib import Path

import jsonargparse
import pytest
import yaml

from covpool.cli import main
from covpool.train.config import RunConfig
from covpool.train.recipe import read_recipe
from covpool.train.run_directory import RunDirectory

STUDY = Path(__file__).parents[1] / "studies" / "icons100.yaml"

opened: list[str] | None = None


def note(event, arguments):
    if event == "open" and opened is not None and isinstance(arguments[0], str | os.PathLike):
        opened.append(os.fspath(arguments[0]))


sys.addaudithook(note)  # there is no way to remove one


@pytest.fixture
def count(monkeypatch, tmp_path):
    """Runs a command that ends by a mistake; tells how often words were parsed, and how often each
    YAML file of options was opened: of the test's own, and of the package's recipes."""
    monkeypatch.chdir(tmp_path)
    parsed = []
    parse_args = jsonargparse.ArgumentParser.parse_args

    def counted(self, *arguments, **options):
        parsed.append(arguments)
        return parse_args(self, *arguments, **options)

    monkeypatch.setattr(jsonargparse.ArgumentParser, "parse_args", counted)

    def run(*words):
        global opened
        parsed.clear()
        opened = []
        try:
            assert main([*words]) == 2
            sources = [name for name in opened if name.endswith(".yaml")]
            return len(parsed), Counter(Path(name).name for name in sources)
        finally:
            opened = None

    return run


@pytest.mark.parametrize(
    ("words", "sources"),
    [
        (["train"], ["typefaces.yaml"]),
        (["train", "photos", "--recipe", "birds"], ["birds.yaml"]),
        (["compare", "photos", "--model.pretrained", "true"], ["fine-tuning.yaml"]),
        (["probe", "photos"], []),
        (["study", "study.yaml"], ["study.yaml"]),
        (["reproduce", "table3"], ["typefaces-steps.yaml"]),
        (["bench", "throughput", "--output", "results.json"], ["typefaces.yaml"]),
    ],
    ids=lambda words: " ".join(words) or "none",
)
def test_each_source_is_read_once_and_the_words_are_parsed_once(words, sources, count, capsys):
    Path("own.yaml").write_text("train: {threads: 1}\n")
    Path("study.yaml").write_text(STUDY.read_text(encoding="utf-8"), encoding="utf-8")
    read_recipe.cache_clear()
    found = count(*words, "--config", "own.yaml", "--optim.momentum", "2")
    assert "optim.momentum" in capsys.readouterr().err
    assert found == (1, Counter(["own.yaml", *sources]))


@pytest.mark.parametrize("words", [["train", "--resume", "run"], ["evaluate", "run"]], ids=" ".join)
def test_an_earlier_run_is_laid_under_words_that_are_parsed_once(words, count, capsys):
    RunDirectory.create(Path("run"), RunConfig())
    Path("run/last.ckpt").touch()
    Path("own.yaml").write_text("train: {threads: 1}\n")
    found = count(*words, "--config", "own.yaml", "--train.threads", "-1")
    assert "train.threads must be at least 1" in capsys.readouterr().err
    assert found == (1, Counter(["own.yaml", "config.yaml"]))


def test_a_file_of_options_may_be_a_pipe(tmp_path, capsys):
    """As in `covpool train --config <(covpool recipes birds)`, which can be read once only."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("train: {epochs: 3}\n",), daemon=True)
    writer.start()
    assert main(["train", f"--config={pipe}", "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["train"]["epochs"] == 3


def printed(capsys, *words):
    assert main([*words, "--print_config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--output", "x"],
        ["study", str(STUDY)],
        ["study", "--jobs", "2", str(STUDY)],
        ["reproduce", "table1"],
        ["evaluate", "run"],
        ["train", "--resume", "run"],
    ],
    ids=" ".join,
)
def test_every_command_prints_the_configuration_that_it_starts_from(
    words, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    there = RunConfig.from_dict({"train": {"epochs": 11}})
    RunDirectory.create(tmp_path / "run", there)
    (tmp_path / "run" / "last.ckpt").touch()
    found = printed(capsys, *words)
    made = RunConfig.from_dict({group: found[group] for group in RunConfig.groups()})
    if "run" in words:
        assert made == there
    elif "study" in words:
        assert made.model.backbone == yaml.safe_load(STUDY.read_text())["model"]["backbone"]
    else:
        recipe = "typefaces-steps" if "reproduce" in words else "typefaces"
        assert made == read_recipe(recipe).config


def test_entries_of_a_mapping_are_added_and_a_mapping_is_replaced(tmp_path, capsys):
    file = tmp_path / "own.yaml"
    file.write_text("model: {method: svd-taylor, constants: {degree: 7}}\n")
    both = printed(capsys, "train", "--config", str(file), "--model.constants.terms", "4")
    assert both["model"]["constants"] == {"degree": 7, "terms": 4}
    words = ["--config", str(file), "--model.constants", "{degree: 3}"]
    assert printed(capsys, "train", *words)["model"]["constants"] == {"degree": 3}


def test_entries_are_added_to_those_of_the_study(tmp_path, capsys):
    study = yaml.safe_load(STUDY.read_text())
    study["model"]["backbone_options"] = {"width": 8, "depth": 2}
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(study))
    for words, options in (
        (["--model.backbone_options.width", "16"], {"width": 16, "depth": 2}),
        (["--model.backbone_options", "{width: 16}"], {"width": 16}),
    ):
        found = printed(capsys, "study", str(file), *words)
        assert found["model"]["backbone_options"] == options
