"""Published models that others made: every entry of config.json is checked, nothing is fetched or
opened beside the directory, and what is published names no path of the publisher's machine."""

import copy
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import covpool
from covpool.cli import main
from covpool.data import DataConfig, Preprocessing
from covpool.train.config import ModelConfig, RunConfig
from covpool.train.prediction import TrainedModel
from covpool.train.published import PublishedDirectory, write_published

CLASSES = ("a", "b", "c")
PREPROCESSING = Preprocessing(channels=3, image_size=8, resize=8, mean=(0.5,) * 3, std=(0.2,) * 3)
ROW = {"epoch": 1, "method": "isqrt-cov", "test_top1": 0.5, "test_top5": 1.0, "test_loss": 0.7}
IMAGES = {"number": 9, "digest": "0" * 64}


def trained_model(**of_data: Any) -> TrainedModel:
    """Untrained, of the smallest size, with every entry that a published config.json may have."""
    torch.manual_seed(0)
    model = covpool.create_model("small-convnet", 3, method="isqrt-cov", width=4, hidden_features=5)
    config = RunConfig(
        data=DataConfig(augment="timm", augment_options={"hflip": 0.5}, **of_data),
        model=ModelConfig(backbone_options={"width": 4}, hidden_features=5),
    )
    metadata = {
        "version": covpool.__version__,
        "config": config.to_dict(),
        "classes": [*CLASSES],
        "vector_layout": "triu-row-major-v1",
        "schedule": "isqrt-cov",
        "preprocessing": PREPROCESSING.to_dict(),
        "images": {"train": dict(IMAGES), "test": dict(IMAGES)},
        "epoch": 0,
        "checkpoint": "best",
        "data": "letters",
        "scores": {"final": dict(ROW), "best": dict(ROW)},
    }
    return TrainedModel(
        model=model.eval(), preprocessing=PREPROCESSING, classes=CLASSES, metadata=metadata
    )


@pytest.fixture
def published(tmp_path):
    trained = trained_model()
    path = tmp_path / "published"
    write_published(path, trained.model.state_dict(), trained.metadata, "# card\n")
    return path


@pytest.fixture
def image(tmp_path):
    Image.new("L", (8, 8), 90).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def rewrite(path: Path, metadata: Any) -> None:
    (path / "config.json").write_text(json.dumps(metadata))


def changed(path: Path, **entries: Any) -> Path:
    """With entries of config.json put in by their place, as in config__model__backbone."""
    metadata = json.loads((path / "config.json").read_text())
    for place, value in entries.items():
        *parents, last = place.split("__")
        inner = metadata
        for name in parents:
            inner = inner[name]
        inner[last] = value
    rewrite(path, metadata)
    return path


VALUES = [None, True, -1, 0, 10**30, 0.5, float("nan"), "x", "", [], [None], {}]
"""What stands in each field in turn: every type of JSON, its edges, and values of other kinds."""


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Where every entry is, those that hold others included."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from places(inner, (*path, number))


def mutations(metadata: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The metadata with one entry removed, or with each of `VALUES` in its place."""
    for place in places(metadata):
        for value in (KeyError, *VALUES):
            mutant = copy.deepcopy(metadata)
            inner = mutant
            for name in place[:-1]:
                inner = inner[name]
            if value is KeyError:
                del inner[place[-1]]
            else:
                inner[place[-1]] = value
            yield f"{'.'.join(map(str, place))} = {value!r}", mutant


def test_every_single_field_changed(published, image, tmp_path, capsys):
    """Each command succeeds, or says in one line what is wrong: never a traceback."""
    metadata = json.loads((published / "config.json").read_text())
    output = tmp_path / "out"
    predict = ["predict", str(published), str(image)]
    export = ["export", str(published), "--formats", "safetensors", "--output", str(output)]
    outcomes = Counter()
    problems = []
    for name, mutant in mutations(metadata):
        rewrite(published, mutant)
        for words in (predict, export):
            try:
                status = main(words)
            except BaseException as error:
                status, told = 1, f"{type(error).__name__}: {error}"
                capsys.readouterr()
            else:
                told = capsys.readouterr().err
            outcomes[words[0], status] += 1
            shutil.rmtree(output, ignore_errors=True)
            if status == 2 and told.startswith("covpool: error: ") and told.count("\n") == 1:
                break
            if status != 0:
                problems.append(f"{words[0]}: {name}: {told!r}")
    assert not problems, "\n".join([f"{len(problems)} of {outcomes.total()}", *problems])
    # Both outcomes occur often, and what predicts can be exported again.
    assert outcomes["predict", 0] == outcomes["export", 0] > 100
    assert outcomes["predict", 2] > 800


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("command", ["predict", "evaluate", "export", "push", "pull"])
def test_weights_are_finite(published, image, tmp_path, capsys, command, value):
    weights = load_file(published / "model.safetensors")
    weights["classifier.weight"][1, 2] = value
    save_file(weights, published / "model.safetensors")
    new = ["--output", tmp_path / "new"]
    others = {"predict": [image], "push": [tmp_path / "hub"], "pull": new, "export": new}
    words = [command, published, *others.get(command, [])]
    assert main([str(word) for word in words]) == 2
    told = capsys.readouterr().err
    assert "classifier.weight holds NaN, infinity" in told
    assert told.count("\n") == 1


def test_finite_weights_may_give_no_finite_result(published, image, capsys):
    weights = load_file(published / "model.safetensors")
    weights["backbone.features.0.weight"].fill_(-3e38)
    save_file(weights, published / "model.safetensors")
    assert main(["predict", str(published), str(image)]) == 2
    assert f"no result for {image}: " in capsys.readouterr().err


def test_weights_of_changed_bytes(published, image, capsys):
    """Each byte of the header, in turn."""
    file = published / "model.safetensors"
    content = file.read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    for position in range(0, length, 7):
        for change in (1, 0x80):
            damaged = bytearray(content)
            damaged[position] ^= change
            file.write_bytes(damaged)
            status = main(["predict", str(published), str(image)])
            told = capsys.readouterr().err
            assert status == 0 or (status == 2 and told.count("\n") == 1), told


@pytest.mark.parametrize("content", [b"[" * 100_000, b"9" * 5000, b"\xff", b'{"a": 1e999}', b""])
def test_what_is_no_json(published, image, capsys, content):
    (published / "config.json").write_bytes(content)
    assert main(["predict", str(published), str(image)]) == 2
    told = capsys.readouterr().err
    assert "config.json" in told
    assert told.count("\n") == 1


EXTERNAL = {
    "a hub": ("backbone", "hf-hub:somebody/something"),
    "a folder": ("backbone", "local-dir:/etc"),
    "a file": ("backbone_options", {"checkpoint_path": "/etc/passwd"}),
    "a source": ("backbone_options", {"pretrained_cfg": {"hf_hub_id": "somebody/something"}}),
    "an overlay": ("backbone_options", {"pretrained_cfg_overlay": {"file": "/etc/passwd"}}),
}


@pytest.mark.parametrize("case", EXTERNAL)
@pytest.mark.parametrize("command", ["predict", "evaluate", "export"])
def test_nothing_is_fetched_or_opened_elsewhere(
    published, image, capsys, monkeypatch, case, command
):
    """Unless it is allowed: then what would do it is asked, which a stand-in answers here."""
    option, value = EXTERNAL[case]
    changed(published, **{f"config__model__{option}": value})
    asked = []

    def create_model(*arguments, **options):
        asked.append((arguments, options))
        raise RuntimeError("it was asked for")

    monkeypatch.setattr("timm.create_model", create_model)
    others = {"predict": [str(image)], "export": ["--output", str(image.with_name("new"))]}
    words = [command, str(published), *others.get(command, [])]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert "--allow-external" in told
    assert str(next(iter(value)) if isinstance(value, dict) else value) in told
    assert told.count("\n") == 1
    assert not asked
    if option == "backbone":
        assert main([*words, "--allow-external"]) == 2
        assert "it was asked for" in capsys.readouterr().err
        assert asked


def test_images_of_a_hub_are_not_fetched(published, capsys, monkeypatch):
    changed(published, config__data__name="hfds/somebody/something")
    monkeypatch.setattr(
        "covpool.data.timm_readers.read_timm", lambda *arguments: pytest.fail("it was asked for")
    )
    for words in (["evaluate", str(published)], ["export", str(published), "--output", "x"]):
        assert main(words) == 2
        assert "--allow-external" in capsys.readouterr().err


def test_the_machine_is_not_chosen_by_others(published):
    changed(published, config__train__threads=100_000, config__data__workers=100_000)
    config = PublishedDirectory.open(published).read_config()
    assert (config.train.threads, config.data.workers) == (None, 0)
