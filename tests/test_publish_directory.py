"""Published directories: written, read, evaluated, predicted with, and refused when damaged."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import covpool
from covpool.cli import main
from covpool.train.checkpoint import METADATA, read_checkpoint
from covpool.train.published import model_weights, read_published, write_published
from tiny_images import OPTIONS, make_tiny_images


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_tiny_images(tmp_path_factory.mktemp("data") / "textures")


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    options = [*OPTIONS, "--model.schedule", "0:isqrt-cov,1:svd-pade"]
    assert main(["train", "--data.root", str(images), "--output", str(path), *options]) == 0
    return path


@pytest.fixture
def published(run, tmp_path):
    checkpoint = read_checkpoint(run / "best.ckpt")
    path = tmp_path / "published"
    write_published(path, model_weights(checkpoint), checkpoint[METADATA], "# card\n")
    return path


def error_of(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith("covpool: error: ")
    assert message.count("\n") == 1
    return message


def test_weights_and_metadata_come_back(run, published):
    weights, metadata = read_published(published)
    checkpoint = torch.load(run / "best.ckpt", weights_only=True)
    assert metadata == checkpoint["covpool"]
    assert {f"model.{name}" for name in weights} == set(checkpoint["state_dict"])
    for name, value in weights.items():
        assert torch.equal(value, checkpoint["state_dict"][f"model.{name}"])
        assert value.dtype == checkpoint["state_dict"][f"model.{name}"].dtype
    assert (published / "model.safetensors").stat().st_mode & 0o777 == (
        published / "config.json"
    ).stat().st_mode & 0o777


def test_evaluate_takes_it(run, published, images, capsys):
    assert main(["evaluate", str(run)]) == 0
    of_run = capsys.readouterr().out.splitlines()
    assert main(["evaluate", str(published), "--data.root", str(images)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split(maxsplit=1)[1] == of_run[-1].split(maxsplit=1)[1]


def test_predict_takes_it(run, published, images, capsys):
    image = str(images / "test" / "stripes" / "0.png")
    printed = []
    for path in (run, published):
        assert main(["predict", str(path), image]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_load_model_from_each_form(run, published, images):
    image = images / "test" / "checks" / "1.png"
    state = torch.get_rng_state()
    loaded = [covpool.load_model(path) for path in (run, run / "best.ckpt", str(published))]
    assert torch.equal(torch.get_rng_state(), state)
    best = json.loads((run / "summary.json").read_text())["best"]
    for trained in loaded:
        assert not trained.model.training
        assert trained.model.method == best["method"]
        assert trained.predict(image) == loaded[0].predict([image])
        assert [name for name, _ in trained.predict(image, top=2)[0].likeliest] == [
            name for name, _ in loaded[0].predict(image)[0].likeliest[:2]
        ]
    assert "nowhere" in loaded[0].predict("nowhere.png")[0].error


def test_load_model_needs_no_training_packages(run, published, images):
    image = str(next(images.rglob("*.png")))
    code = (
        "import sys\n"
        "for name in ('lightning', 'jsonargparse', 'matplotlib', 'rich', 'scipy'):\n"
        "    sys.modules[name] = None\n"
        "import covpool\n"
        "for path in sys.argv[2:]:\n"
        "    [prediction] = covpool.load_model(path).predict(sys.argv[1])\n"
        "    print(prediction.likeliest[0][0])\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, image, str(run), str(published)],
        capture_output=True,
        text=True,
        check=False,
    )
    expected = covpool.load_model(run).predict(image)[0].likeliest[0][0]
    assert told.stdout.split() == [expected] * 2, told.stderr


def test_first_difference_of_weights_is_named(published, images, capsys):
    weights = load_file(published / "model.safetensors")
    weights["classifier.weight"] = weights["classifier.weight"][:, :-1].contiguous()
    save_file(weights, published / "model.safetensors")
    for command in (("predict", published, images), ("evaluate", published, "--data.root", images)):
        message = error_of(capsys, *command)
        assert "classifier.weight" in message
        assert "(3, 35)" in message
        assert "(3, 36)" in message
        assert str(published) in message


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("model.safetensors", b"\x08\0\0\0\0\0\0\0no JSON!", "model.safetensors is damaged"),
        ("config.json", b"{", "config.json is damaged"),
        ("config.json", b"[1]", "lacks version, config"),
        ("config.json", b'{"version": "9"}', "lacks config, classes"),
    ],
)
def test_damage_is_named(published, name, content, expected, capsys):
    (published / name).write_bytes(content)
    assert expected in error_of(capsys, "predict", published, "image.png")


def test_another_layout_of_the_vector_is_refused(published, capsys):
    metadata = json.loads((published / "config.json").read_text())
    metadata["vector_layout"] = "triu-column-major-v0"
    (published / "config.json").write_text(json.dumps(metadata))
    message = error_of(capsys, "predict", published, "image.png")
    assert "triu-column-major-v0" in message
    assert message.endswith("; get it again, or use the version that wrote it\n")


def test_what_is_no_model_is_refused(tmp_path, images):
    with pytest.raises(ValueError, match="nowhere does not exist"):
        covpool.load_model(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="neither a published model"):
        covpool.load_model(images)
    with pytest.raises(ValueError, match=r"no model.safetensors and no config.json"):
        read_published(images)
    with pytest.raises(ValueError, match="lacks version"):
        write_published(tmp_path / "new", {}, {}, "")
    assert not (tmp_path / "new").exists()


def test_training_starts_from_it(run, published, images, tmp_path, capsys):
    options = [*OPTIONS, "--data.root", str(images), "--train.epochs", "1"]
    start = ["--model.init_from", str(published), "--output", str(tmp_path / "next")]
    assert main(["train", *options, *start]) == 0
    told = capsys.readouterr()
    assert "loaded: backbone" in told.out + told.err
    notes = json.loads((tmp_path / "next" / "summary.json").read_text())["notes"]
    assert any(str(published) in note and "classifier" in note for note in notes)


def test_starting_weights_are_the_published_ones(run, published):
    from covpool.train.starting_weights import read_starting_weights

    found, expected = read_starting_weights(published), read_starting_weights(run)
    assert found.about == expected.about
    assert set(found.weights) == set(expected.weights)
    assert all(torch.equal(found.weights[k], expected.weights[k]) for k in expected.weights)
