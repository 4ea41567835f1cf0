"""Weights to start from: another run's, a plain network's; what is loaded and what is refused."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from covpool.cli import main
from covpool.data import DataConfig
from covpool.models import create_model
from covpool.train.config import ModelConfig, RunConfig
from covpool.train.published import model_weights, write_published
from covpool.train.starting_weights import (
    StartingWeights,
    read_starting_weights,
    standardised_as,
)
from tiny_images import CLASSES, OPTIONS, make_tiny_images


def reduced(method="isqrt-cov", classes=3, channels=8, width=16):
    return create_model(
        "small-convnet",
        classes,
        method=method,
        reduced_channels=channels,
        in_chans=1,
        width=width,
    )


def loaded(path, model, config=None, classes=CLASSES):
    """What is said, and the names of the weights that have become the file's."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    told = read_starting_weights(path).load(model, config or ModelConfig(), classes)
    after = model.state_dict()
    return told, {name for name in before if not torch.equal(before[name], after[name])}


def weights_of(names):
    """Without the counters and the batch statistics, which are equal in fresh networks."""
    return {name for name in names if name.endswith("weight") and ".1." not in name}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return str(make_tiny_images(tmp_path_factory.mktemp("images")))


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    options = [*OPTIONS, "--model.reduced_channels", "6"]
    assert main(["train", "--data.root", images, "--output", str(path), *options]) == 0
    return path


def test_a_run_directory_stands_for_its_best_checkpoint(run, images, tmp_path, capsys):
    path = tmp_path / "next"
    options = [*OPTIONS, "--model.reduced_channels", "6", "--model.init_from", str(run)]
    rate = ["--optim.learning_rate", "1e-30"]
    command = ["train", "--data.root", images, "--output", str(path), *options, *rate]
    assert main(command) == 0
    told = f"starts from {run / 'best.ckpt'} (epoch "
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(told))
    assert "3 classes); loaded: backbone and reduction and classifier; images are" in line
    source, here = (torch.load(p / "best.ckpt", weights_only=True) for p in (run, path))
    # With no rate to speak of, the weights that do not follow the batches are still the source's.
    for name, value in source["state_dict"].items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(here["state_dict"][name], value), name


def test_starting_weights_are_not_loaded_again(run, images, tmp_path):
    moved = run.with_name("moved")
    path = tmp_path / "next"
    options = [*OPTIONS, "--model.reduced_channels", "6", "--model.init_from", str(run)]
    assert main(["train", "--data.root", images, "--output", str(path), *options]) == 0
    run.rename(moved)
    try:
        assert main(["train", "--resume", str(path), "--train.epochs", "3"]) == 0
        assert main(["evaluate", str(path)]) == 0
    finally:
        moved.rename(run)


def test_the_last_checkpoint_serves_where_there_is_no_best(run, tmp_path):
    (tmp_path / "last.ckpt").write_bytes((run / "last.ckpt").read_bytes())
    assert read_starting_weights(tmp_path).path == tmp_path / "last.ckpt"


def test_a_published_model_serves_as_its_run_does(run, tmp_path):
    checkpoint = torch.load(run / "best.ckpt", weights_only=True)
    write_published(tmp_path, model_weights(checkpoint), checkpoint["covpool"], "a card")
    told, changed = loaded(tmp_path, reduced(channels=6, width=8))
    assert told.endswith("3 classes); loaded: backbone and reduction and classifier")
    assert {"backbone.features.0.weight", "classifier.weight"} <= changed


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (("checks", "grain"), "3 classes"),
        (("a", "b", "c"), "3 classes of other names or in another order"),
        (("grain", "checks", "stripes"), "3 classes of other names or in another order"),
    ],
)
def test_the_classifier_of_other_classes_stays_fresh(run, classes, said):
    model = reduced(classes=len(classes), channels=6, width=8)
    told, changed = loaded(run, model, classes=classes)
    assert f"{said}); loaded: backbone and reduction; fresh: classifier" in told
    assert told.endswith("not used of it: classifier")
    assert {"backbone.features.0.weight", "pool.reduction.0.weight"} <= changed
    assert "classifier.weight" not in changed


def plain(path, network, content):
    weights = content(network.state_dict())
    save_file(weights, path) if path.suffix == ".safetensors" else torch.save(weights, path)


def prefixed(prefix):
    return lambda weights: {prefix + name: value for name, value in weights.items()}


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("plain.pth", dict),
        ("plain.safetensors", dict),
        ("data-parallel.pt", prefixed("module.")),
        ("lightning.ckpt", lambda weights: {"state_dict": prefixed("model.")(weights)}),
        ("timm.pth.tar", lambda weights: {"model": prefixed("_orig_mod.")(weights), "epoch": 3}),
        (
            "before-0.4.1.pth",
            lambda weights: {k: v for k, v in weights.items() if "num_batches" not in k},
        ),
    ],
)
def test_a_plain_network_gives_its_backbone(tmp_path, file, content):
    torch.manual_seed(1)
    network = timm.create_model("resnet10t", num_classes=7)
    plain(tmp_path / file, network, content)
    model = create_model("resnet10t", 3, method="isqrt-cov", reduced_channels=8)
    told, changed = loaded(tmp_path / file, model, ModelConfig(backbone="resnet10t"))
    assert told.endswith("loaded: backbone; fresh: reduction and classifier; not used of it: fc")
    assert not {name for name in changed if not name.startswith("backbone.")}
    images = torch.randn(2, 3, 64, 64)
    features = model.eval().forward_features(images)
    assert torch.equal(features, network.eval().forward_features(images))


@pytest.mark.parametrize(
    ("backbone", "arguments", "unused"),
    [
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 2}, "head"),
        ("mobilenetv3_small_050", {}, "conv_head, classifier"),
        ("convnext_atto", {}, "head"),
    ],
)
def test_heads_are_told_from_bodies(tmp_path, backbone, arguments, unused):
    network = timm.create_model(backbone, num_classes=5, **arguments)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    model = create_model(backbone, 3, method="gap", image_size=64, **arguments)
    told, _ = loaded(tmp_path / "weights.pt", model, ModelConfig(backbone=backbone))
    assert told.endswith(f"not used of it: {unused}")
    own, theirs = model.backbone.state_dict(), network.state_dict()
    assert all(torch.equal(own[name], theirs[name]) for name in own)


def test_torchvisions_alexnet(tmp_path):
    from torchvision.models import alexnet

    torch.save(alexnet(num_classes=4).state_dict(), tmp_path / "alexnet.pth")
    model = create_model("alexnet", 3, method="isqrt-cov", image_size=64)
    told, _ = loaded(tmp_path / "alexnet.pth", model, ModelConfig(backbone="alexnet"))
    assert told.endswith("fresh: reduction and classifier; not used of it: classifier")


def test_a_model_of_ours_without_metadata(tmp_path):
    torch.manual_seed(1)
    torch.save(reduced().state_dict(), tmp_path / "model.pth")
    model = reduced()
    told, changed = loaded(tmp_path / "model.pth", model)
    assert "loaded: backbone and reduction; fresh: classifier" in told
    assert "pool.reduction.0.weight" in changed
    assert "classifier.weight" not in changed
    gap = reduced(method="gap")
    told, _ = loaded(tmp_path / "model.pth", gap)
    assert told.endswith(
        "loaded: backbone; fresh: classifier; not used of it: reduction and classifier"
    )


def about(**model):
    config = {"backbone": "small-convnet", "method": "isqrt-cov", "last_stride": None, **model}
    return {"epoch": 0, "classes": list(CLASSES), "config": {"model": config}}


def test_from_average_to_covariance_pooling_and_back(tmp_path):
    """The vanilla network's backbone serves; the reduction begins fresh."""
    gap, covariance = reduced(method="gap"), reduced()
    source = StartingWeights(path=tmp_path, weights=gap.state_dict(), about=about(method="gap"))
    told = source.load(covariance, ModelConfig(), CLASSES)
    assert "loaded: backbone; fresh: reduction and classifier" in told
    weights = covariance.state_dict()
    source = StartingWeights(path=tmp_path, weights=weights, about=about())
    told = source.load(reduced(method="gap"), ModelConfig(method="gap"), CLASSES)
    assert "loaded: backbone; fresh: classifier" in told
    assert "not used of it: reduction and classifier" in told


@pytest.mark.parametrize("hidden", [(36, None), (None, 36)], ids=["hidden to none", "none to it"])
def test_a_classifier_goes_with_the_hidden_layer_that_it_reads(tmp_path, hidden):
    """36 is the length of the pooled vector of 8 channels too, so that shapes do not tell."""
    source, model = (
        create_model(
            *("small-convnet", 3), reduced_channels=8, in_chans=1, width=16, hidden_features=width
        )
        for width in hidden
    )
    classifier = model.classifier.weight.clone()
    weights = StartingWeights(path=tmp_path, weights=source.state_dict(), about=about())
    told = weights.load(model, ModelConfig(), CLASSES)
    assert "loaded: backbone and reduction; fresh: classifier" in told
    assert torch.equal(model.classifier.weight, classifier)


def test_another_stride_is_said(tmp_path):
    source = StartingWeights(
        path=tmp_path, weights=reduced().state_dict(), about=about(last_stride=1)
    )
    assert "model.last_stride 1, here None" in source.load(reduced(), ModelConfig(), CLASSES)


@pytest.mark.parametrize(
    ("make", "here", "message"),
    [
        (
            lambda: reduced(channels=4),
            {},
            r"\(4, 16, 1, 1\) pool.reduction.0.weight.*\(8, 16, 1, 1",
        ),
        (lambda: reduced(channels=None), {}, r"has no pool.reduction.0.weight"),
        (lambda: reduced(width=12), {}, r"\(6, 1, 3, 3\) backbone.features.0.weight"),
        (lambda: reduced(), {"backbone": "resnet18"}, "of backbone 'small-convnet'.*'resnet18'"),
    ],
)
def test_another_network_is_refused(tmp_path, make, here, message):
    source = StartingWeights(path=tmp_path, weights=make().state_dict(), about=about())
    with pytest.raises(ValueError, match=message):
        source.load(reduced(), ModelConfig(**here), CLASSES)


def test_a_deeper_plain_network_is_refused(tmp_path):
    deep = timm.create_model("resnet26t", num_classes=3)
    torch.save(deep.state_dict(), tmp_path / "deep.pth")
    model = create_model("resnet10t", 3, method="gap")
    with pytest.raises(ValueError, match=r"deep.pth is of another network: it has .*layer1"):
        loaded(tmp_path / "deep.pth", model, ModelConfig(backbone="resnet10t"))


def test_a_longer_network_of_the_same_blocks_is_refused(tmp_path):
    """All that the model has is there; what is left over belongs to no head."""
    long = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=3)
    torch.save(long.state_dict(), tmp_path / "long.pth")
    model = create_model("vit_tiny_patch16_224", 3, image_size=64, depth=2)
    with pytest.raises(ValueError, match=r"it has \(192,\) blocks.2.norm1.weight, .* no;"):
        loaded(tmp_path / "long.pth", model, ModelConfig(backbone="vit_tiny_patch16_224"))


OTHERS = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}


@pytest.mark.parametrize(
    ("source", "model", "data", "mean"),
    [
        ({"about": {"preprocessing": OTHERS}}, {}, {}, (0.1, 0.2, 0.3)),
        ({"about": {"preprocessing": OTHERS}}, {}, {"mean": (0.5,)}, (0.5,)),
        ({"channels": 3}, {"backbone": "resnet10t"}, {}, (0.485, 0.456, 0.406)),
        ({"channels": 3}, {"backbone": "alexnet"}, {}, (0.485, 0.456, 0.406)),
        ({"channels": 3}, {"backbone": "vit_tiny_patch16_224"}, {}, (0.5, 0.5, 0.5)),
        ({"channels": 1}, {"backbone": "resnet10t"}, {}, None),
        (None, {"backbone": "vit_tiny_patch16_224", "pretrained": True}, {}, (0.5,)),
        (None, {"backbone": "resnet18", "pretrained": True}, {}, None),
        (None, {"backbone": "vit_tiny_patch16_224"}, {}, None),
    ],
)
def test_images_are_standardised_as_the_weights_are_used_to(source, model, data, mean, tmp_path):
    if source is not None:
        weights = {"backbone.conv1.weight": torch.zeros(8, source.get("channels", 3), 3, 3)}
        source = StartingWeights(path=tmp_path, weights=weights, about=source.get("about"))
    config = RunConfig(model=ModelConfig(**model), data=DataConfig(**data))
    assert standardised_as(source, config).mean == mean


def test_the_standardisation_stays_with_the_weights(tmp_path, capsys):
    data = make_tiny_images(tmp_path / "images", train=4, test=2)
    path, own = tmp_path / "run", ["--model.reduced_channels", "6", "--data.augment", "none"]
    command = ["train", "--data.root", str(data), "--output", str(path), *OPTIONS, *own]
    assert main([*command, "--data.mean", "[0.3]", "--data.std", "[0.2]"]) == 0
    assert (
        main(
            [
                *command[:3],
                "--output",
                str(tmp_path / "next"),
                *OPTIONS,
                *own,
                "--model.init_from",
                str(path),
            ]
        )
        == 0
    )
    assert "images are standardised as its own were" in capsys.readouterr().out
    next_about = torch.load(tmp_path / "next" / "last.ckpt", weights_only=True)["covpool"]
    assert next_about["preprocessing"]["mean"] == [0.3]
    assert main(["evaluate", str(tmp_path / "next")]) == 0


class Anything:
    pass


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not weights", "cannot be read as weights"),
        (Anything(), "cannot be read as weights"),
        ({"weights": 3}, "holds no state dict.*'weights' in it is no tensor"),
        ({}, "holds no state dict"),
    ],
)
def test_files_that_hold_no_weights(tmp_path, content, message):
    file = tmp_path / "weights.pth"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(ValueError, match=message):
        read_starting_weights(file)


def test_damaged_safetensors(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"not weights")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        read_starting_weights(tmp_path / "weights.safetensors")


def test_places_without_weights(tmp_path):
    with pytest.raises(ValueError, match="nothing does not exist"):
        read_starting_weights(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"is a folder without best.ckpt, last.ckpt or model.safe"):
        read_starting_weights(tmp_path)


def test_the_vector_layout_is_checked(run, tmp_path):
    checkpoint = torch.load(run / "best.ckpt", weights_only=True)
    checkpoint["covpool"]["vector_layout"] = "column-major"
    torch.save(checkpoint, tmp_path / "old.ckpt")
    with pytest.raises(ValueError, match="vector layout 'column-major'"):
        read_starting_weights(tmp_path / "old.ckpt")
