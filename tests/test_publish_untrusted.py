"""Published models that others made: every entry of config.json is checked, nothing is fetched or
opened beside the directory, and what is published names no path of the publisher's machine."""

import copy
import json
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch
from huggingface_hub import HfApi
from PIL import Image
from safetensors.torch import load_file, save_file

import covpool
import quick
from covpool.cli import main
from covpool.data import DataConfig, Preprocessing
from covpool.publish.export import FORMATS, export_model
from covpool.publish.hub import pull, push
from covpool.publish.images import Sample
from covpool.train.config import ModelConfig, RunConfig
from covpool.train.metadata import without_local_paths
from covpool.train.prediction import TrainedModel
from covpool.train.published import PublishedDirectory, write_published

CLASSES = ("a", "b", "c")
PREPROCESSING = Preprocessing(channels=3, image_size=8, resize=8, mean=(0.5,) * 3, std=(0.2,) * 3)
ROW = {"epoch": 1, "method": "isqrt-cov", "test_top1": 0.5, "test_top5": 1.0, "test_loss": 0.7}
IMAGES = {"number": 9, "digest": "0" * 64}


def trained_model(hidden: int | None = 5, **of_data: Any) -> TrainedModel:
    """Untrained, of the smallest size, with every entry that a published config.json may have."""
    torch.manual_seed(0)
    model = covpool.create_model(
        "small-convnet", 3, method="isqrt-cov", width=4, hidden_features=hidden
    )
    config = RunConfig(
        data=DataConfig(augment="timm", augment_options={"hflip": 0.5}, **of_data),
        model=ModelConfig(backbone_options={"width": 4}, hidden_features=hidden),
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


def mutations(metadata: dict[str, Any], step: int) -> Iterator[tuple[str, Any]]:
    """The metadata with one entry removed, or with one of `VALUES` in its place.

    Args:
        metadata: what is changed.
        step: of all changes of all entries in a row, each so many-th is made.
    """
    changes = (KeyError, *VALUES)
    assert step == 1 or len(changes) % step  # else some values would stand nowhere
    for first, place in enumerate(places(metadata)):
        for value in changes[-first * len(changes) % step :: step]:
            mutant = copy.deepcopy(metadata)
            inner = mutant
            for name in place[:-1]:
                inner = inner[name]
            if value is KeyError:
                del inner[place[-1]]
            else:
                inner[place[-1]] = value
            yield f"{'.'.join(map(str, place))} = {value!r}", mutant


@quick.parametrize("step", [1, 5], keep=[5])
def test_every_single_field_changed(step, published, image, tmp_path, capsys):
    """Each command succeeds, or says in one line what is wrong: never a traceback."""
    metadata = json.loads((published / "config.json").read_text())
    output = tmp_path / "out"
    predict = ["predict", str(published), str(image)]
    export = ["export", str(published), "--formats", "safetensors", "--output", str(output)]
    outcomes = Counter()
    problems = []
    for name, mutant in mutations(metadata, step):
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
    assert outcomes["predict", 0] == outcomes["export", 0] > 100 / step
    assert outcomes["predict", 2] > 800 / step


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
    """Bytes all over the header, in turn."""
    file = published / "model.safetensors"
    content = file.read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    for position in range(0, length, 31):
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


@pytest.mark.parametrize("root", ["/etc", "../birds", ".", "..", "~somebody", ""])
def test_images_elsewhere_on_the_machine_are_not_opened(published, capsys, monkeypatch, root):
    changed(published, config__data__root=root)
    opened = []

    def evaluate(path, config, **options):
        opened.append(config.data.root)
        raise ValueError("they were opened")

    monkeypatch.setattr("covpool.cli.evaluate.evaluate", evaluate)
    for words in (["evaluate", str(published)], ["export", str(published), "--output", "x"]):
        assert main(words) == 2
        assert f"data.root {root!r} from" in capsys.readouterr().err
    assert not opened
    for own in (["--data.root", "/etc"], ["--allow-external"]):
        assert main(["evaluate", str(published), *own]) == 2
    assert opened == ["/etc", root]


def test_images_that_the_user_names_are_not_the_publishers(published, capsys, monkeypatch):
    def evaluate(path, config, **options):
        raise ValueError(f"{config.data.name} is opened")

    monkeypatch.setattr("covpool.cli.evaluate.evaluate", evaluate)
    changed(published, config__data__name="hfds/somebody/something")
    assert main(["evaluate", str(published), "--data.name", "hfds/mine"]) == 2
    assert "hfds/mine is opened" in capsys.readouterr().err
    assert main(["evaluate", str(published), "--data.root", "mine"]) == 2
    assert "--allow-external" in capsys.readouterr().err


def test_the_machine_is_not_chosen_by_others(published):
    changed(published, config__train__threads=100_000, config__data__workers=100_000)
    config = PublishedDirectory.open(published).read_config()
    assert (config.train.threads, config.data.workers) == (None, 0)


SECRET = b"secret-place"
"""A folder of the publisher's machine, which nothing that is published may name."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Of a run whose configuration names paths wherever one can stand."""
    trained = trained_model(None, root=f"/home/{SECRET.decode()}/letters")
    config = trained.metadata["config"]
    config["model"] |= {"init_from": f"../{SECRET.decode()}/start.pth"}
    config["data"]["augment_options"] = {"hflip": 0.5, "file": f"~/{SECRET.decode()}/policy"}
    path = tmp_path_factory.mktemp("exported") / "model"
    formats = [row for row in FORMATS.values() if row is not None]
    torch.manual_seed(0)
    sample = Sample(images=torch.rand(3, 3, 8, 8), source="noise")
    export_model(trained, path, formats, sample, title="letters")
    return path, sample


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Each file's bytes, and those of the files that an archive holds."""
    for file in folder.iterdir():
        yield file.name, file.read_bytes()
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                yield from ((f"{file.name}/{n}", archive.read(n)) for n in archive.namelist())


def test_what_is_exported_names_no_local_path(exported):
    folder, _ = exported
    local = [SECRET, *(str(Path(m.__file__).parent).encode() for m in (covpool, torch))]
    found = {
        (name, path.decode())
        for name, content in contents(folder)
        for path in local
        if path in content
    }
    assert not found
    config = json.loads((folder / "config.json").read_text())["config"]
    assert (config["data"]["root"], config["model"]["init_from"]) == ("letters", "start.pth")


def test_what_is_exported_holds_no_image(exported):
    """torch.export keeps the example that it was given."""
    folder, sample = exported
    pixels = sample.images[0, 0, 0, :4].numpy().tobytes()
    assert not [name for name, content in contents(folder) if pixels in content]


PATHS = {
    "/home/me/birds": "birds",
    "C:\\me\\birds": "birds",
    "hfds//home/me/birds": "hfds/birds",
    "hfds/owner/birds": "hfds/owner/birds",
    "local-dir:me/net": "local-dir:net",
    "hf-hub:owner/net": "hf-hub:owner/net",
    "rand-m9-mstd0.5": "rand-m9-mstd0.5",
}


@pytest.mark.parametrize("text", PATHS)
def test_the_last_component_stays(text):
    config = {"data": {"name": text, "root": None}, "model": {"backbone_options": {"x": [text]}}}
    found = without_local_paths({"config": config, "classes": ["/m/01"]})
    assert found["config"]["data"] == {"name": PATHS[text], "root": None}
    assert found["config"]["model"] == {"backbone_options": {"x": [PATHS[text]]}}
    assert found["classes"] == ["/m/01"]


ROOTS = {".": None, "": None, "..": None, "a/..": None, "~bob": None, "/": None, "~/birds": "birds"}


@pytest.mark.parametrize("root", ROOTS)
def test_a_path_without_a_name_of_its_own_is_left_out(root):
    found = without_local_paths({"config": {"data": {"root": root}}})
    assert found["config"]["data"]["root"] == ROOTS[root]


def test_push_refuses_local_paths(published, tmp_path):
    changed(published, config__data__root="/home/me/birds")
    with pytest.raises(ValueError, match=r"config\.json names files of this machine"):
        push(published, str(tmp_path / "hub"))
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize("name", ["README.md", "model.onnx", "config.json"])
def test_links_are_neither_pushed_nor_pulled(published, tmp_path, name):
    original = published / name
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(original.read_bytes() if original.exists() else b"key")
    original.unlink(missing_ok=True)
    original.symlink_to(elsewhere)
    api = create_autospec(HfApi, instance=True, spec_set=True)
    for call in (
        lambda: push(published, str(tmp_path / "hub")),
        lambda: push(published, "owner/name", api=api),
        lambda: pull(str(published), tmp_path / "new"),
    ):
        with pytest.raises(ValueError, match=rf"{name} is a link"):
            call()
    assert not api.mock_calls
    assert {path.name for path in tmp_path.iterdir()} == {"published", "elsewhere"}
