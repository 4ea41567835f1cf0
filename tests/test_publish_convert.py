"""Checkpoints of other projects: names and triangle by formula, and logits of their own code.

With COVPOOL_PEERS naming a folder that holds clones of DifferentiableSVD and fast-MPN-COV, their
own networks are built with random weights, and the converted ones must give the same logits.
"""

import importlib
import json
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional

import covpool
import quick
from covpool.bench.checkouts import as_published, load_module
from covpool.cli import main
from covpool.publish.convert import CONVERTERS, Options, class_names, convert
from covpool.publish.keys import RESNET_LAYOUTS, efficientnet_lite_to_timm, lower_to_upper, renamed
from covpool.publish.weights import check_weights
from covpool.train.prediction import load_model
from covpool.train.published import read_published
from covpool.train.starting_weights import read_starting_weights

CPU = torch.device("cpu")
FEATURES = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
"""Where the children of their ResNet stand in nn.Sequential(*children)."""


def peer(name):
    folder = os.environ.get("COVPOOL_PEERS")
    if not folder:
        pytest.skip("COVPOOL_PEERS names no folder with clones of the peers")
    return Path(folder) / name


def with_random_statistics(module):
    """Random weights everywhere, running statistics included, that keep activations of order 1."""
    generator = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor, low, high in (
                (layer.weight, 0.5, 1.0),
                (layer.bias, -0.2, 0.2),
                (layer.running_mean, -0.2, 0.2),
                (layer.running_var, 0.5, 1.5),
            ):
                tensor.detach().uniform_(low, high, generator=generator)
    return module.eval()


def as_named(weights):
    """Our names → those of MPNCOVResNet."""
    pairs = (
        ("backbone.", ""),
        ("pool.reduction.0.", "layer_reduce."),
        ("pool.reduction.1.", "layer_reduce_bn."),
        ("classifier.", "fc."),
    )
    return {rename(name, pairs): value for name, value in weights.items()}


def as_fine_tuned(weights):
    """Our names → those of main.py with a pretrained MPNCOVResNet, its features in DataParallel."""
    pairs = (
        *((f"backbone.{name}.", f"features.module.{i}.") for name, i in FEATURES.items()),
        ("pool.reduction.0.", "features.module.8."),
        ("pool.reduction.1.", "features.module.9."),
    )
    return {rename(name, pairs): value for name, value in weights.items()}


def as_represented(weights):
    """Our names → those of main.py with a representation, the whole in DataParallel."""
    pairs = (
        *((f"backbone.{name}.", f"module.features.{i}.") for name, i in FEATURES.items()),
        ("pool.reduction.", "module.representation.conv_dr_block."),
        ("classifier.", "module.classifier."),
    )
    return {rename(name, pairs): value for name, value in weights.items()}


def rename(name, pairs):
    for old, new in pairs:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    model = covpool.create_model(
        "resnet50", 7, method="isqrt-cov", reduced_channels=8, last_stride=1
    )
    return with_random_statistics(model)


LAYOUTS = {"named": as_named, "fine-tuned": as_fine_tuned, "represented": as_represented}


@pytest.mark.parametrize(
    ("layout", "stride"), [("named", 1), ("fine-tuned", 1), ("represented", None)]
)
def test_names_by_formula(resnet, layout, stride):
    own = resnet.state_dict()
    theirs = LAYOUTS[layout](own)
    plain = {name.replace("module.", ""): value for name, value in theirs.items()}
    (found,) = [row for row in RESNET_LAYOUTS if row.sign in plain]
    assert found.last_stride == stride
    back = renamed(plain, found.patterns)
    assert set(back) == set(own)
    assert all(back[name] is own[name] for name in own)


def test_from_the_command_line(resnet, tmp_path, capsys):
    weights = {
        name: value
        for name, value in as_represented(resnet.state_dict()).items()
        if not name.endswith("num_batches_tracked")  # as before PyTorch 0.4.1
    }
    file = tmp_path / "checkpoint.pth.tar"
    torch.save({"epoch": 3, "arch": "resnet50", "state_dict": weights}, file)
    names = tmp_path / "names.txt"
    names.write_text("\n".join("abcdefg") + "\n")
    options = ["--from", "fast-mpn-cov", "--last-stride", "1", "--classes", str(names)]
    output = tmp_path / "converted"
    assert main(["convert", str(file), *options, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    for words in ("resnet50", "7 classes", "8 channels", "isqrt-cov", "stride 1"):
        assert words in printed
    trained = load_model(output)
    assert trained.classes == tuple("abcdefg")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(trained.model(images), resnet(images))
    card = (output / "README.md").read_text()
    assert CONVERTERS["fast-mpn-cov"].home in card
    assert "None were measured here" in card
    assert main(["export", str(output), "--formats", "safetensors", "--output", f"{output}2"]) == 0


def test_triangle_by_formula():
    """A linear form of a symmetric matrix's triangle is the same number in either order."""
    generator = np.random.default_rng(0)
    size = 6
    matrix = generator.normal(size=(size, size))
    matrix = matrix + matrix.T
    form = generator.normal(size=size * (size + 1) // 2)
    lower = matrix[np.tril_indices(size)]
    columns = lower_to_upper(size).numpy()
    ours = covpool.triu_vector(torch.from_numpy(matrix)).numpy()
    np.testing.assert_array_equal(lower[columns], ours)
    np.testing.assert_allclose(form[columns] @ ours, form @ lower, rtol=1e-13)


def test_lower_triangle_permutes_the_classifier(resnet, tmp_path):
    file = tmp_path / "old.pth"
    torch.save(as_named(resnet.state_dict()), file)
    convert(file, "fast-mpn-cov", tmp_path / "out", Options(triangle="lower"), title="old")
    weights, _ = read_published(tmp_path / "out")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        matrix = covpool.cov_pool(
            resnet.pool.reduction(resnet.forward_features(images)), "isqrt-cov"
        )
        rows, columns = np.tril_indices(8)
        expected = resnet.classifier(matrix[:, rows, columns])
        model = load_model(tmp_path / "out").model
        torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-5)
    assert not torch.equal(weights["classifier.weight"], resnet.classifier.weight)


def damaged(change):
    weights = {
        "layer_reduce.weight": torch.zeros(4, 16, 1, 1),
        "fc.weight": torch.zeros(3, 10),
        **{f"layer3.{i}.conv3.weight": torch.zeros(1) for i in range(6)},
    }
    weights.update(change)
    return {name: value for name, value in weights.items() if value is not None}


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (damaged({"fc.weight": torch.zeros(3, 16)}), "the whole 4×4 matrix"),
        (damaged({"fc.weight": None}), "no classifier"),
        (damaged({"branch.scale": torch.zeros(2)}), r"branch.scale \(2,\), which is not known"),
        (damaged({"layer_reduce.weight": None}), "no weights of a channel reduction"),
        (damaged({"layer3.5.conv3.weight": None}), "has 5 bottlenecks"),
        (damaged({}), r"backbone.conv1.weight has shape none in it, \(64, 3, 7, 7\)"),
    ],
)
def test_what_does_not_fit_is_named(weights, expected, tmp_path):
    torch.save(weights, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=expected) as raised:
        convert(tmp_path / "x.pth", "differentiable-svd", tmp_path / "out", Options(), title="")
    assert "x.pth" in str(raised.value)
    assert not (tmp_path / "out").exists()


class Harmful:
    def __reduce__(self):
        return os.system, ("touch harmed",)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"x": Harmful()}, "more than tensors"),
        (b"no checkpoint", "is damaged"),
        (torch.arange(3), "holds no state_dict but a Tensor"),
        ({"epoch": 3}, "epoch is no tensor"),
    ],
)
def test_files_that_are_no_weights(content, expected, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "x.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    arguments = ["convert", str(file), "--from", "fast-mpn-cov", "--output", "out"]
    assert main(arguments) == 2
    assert expected in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"x.pth"}


def test_class_names():
    assert class_names(None, 12)[:2] == ["00", "01"]
    names = class_names(None, 1000)
    assert (names[0], names[-1]) == ("n01440764", "n15075141")  # tench, toilet tissue
    assert names == sorted(names)
    with pytest.raises(ValueError, match="has 12 classes, and 1 names"):
        class_names(["a"], 12)


def peer_package(checkout, name):
    """Their `src` as a package of its own name, so that two checkouts do not collide.

    Without its `__init__` files, whose star imports hide the modules that the networks mean.
    """
    for part in ("", ".network", ".representation"):
        package = ModuleType(name + part)
        package.__path__ = [str(checkout / "src" / part[1:])]
        sys.modules[name + part] = package
    return lambda module: importlib.import_module(f"{name}.{module}")


@pytest.fixture
def no_bytecode(monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


@pytest.mark.parametrize("depth", [50, 101])
@pytest.mark.usefixtures("no_bytecode")
def test_fast_mpn_cov_gives_the_same_logits(depth, tmp_path):
    with as_published(CPU):
        networks = peer_package(peer("fast-MPN-COV"), "fast_mpn_cov")("network.mpncovresnet")
        torch.manual_seed(0)
        theirs = with_random_statistics(getattr(networks, f"mpncovresnet{depth}")(num_classes=11))
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    convert(tmp_path / "theirs.pth", "fast-mpn-cov", tmp_path / "out", Options(), title="")
    trained = load_model(tmp_path / "out")
    assert trained.metadata["config"]["model"]["backbone"] == f"resnet{depth}"
    compare(trained.model, theirs)


@pytest.mark.parametrize(
    ("representation", "method"), [("SVD_Pade", "svd-pade"), ("SVD_Trunc", "svd-trunc")]
)
@pytest.mark.usefixtures("no_bytecode")
def test_differentiable_svd_gives_the_same_logits(representation, method, tmp_path):
    """Their resnet50 with a spectral layer, put together as their main.py does."""
    source = peer("DifferentiableSVD") / "src"
    with as_published(CPU):
        layer = getattr(
            load_module(source / "representation" / f"{representation}.py", CPU), representation
        )
        body = load_module(source / "network" / "resnet.py", CPU).resnet50()
        torch.manual_seed(0)
        theirs = nn.Module()
        theirs.features = nn.DataParallel(nn.Sequential(*list(body.children())[:-2]))
        theirs.representation = layer(input_dim=2048, dimension_reduction=256)
        theirs.classifier = nn.Linear(theirs.representation.output_dim, 11)
        with_random_statistics(theirs)
    theirs.forward = lambda x: theirs.classifier(
        theirs.representation(theirs.features.module(x)).flatten(1)
    )
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "theirs.pth.tar")
    options = Options(method=None if method == "svd-pade" else method)
    convert(tmp_path / "theirs.pth.tar", "differentiable-svd", tmp_path / "out", options, title="")
    model = load_model(tmp_path / "out").model
    assert model.method == method
    compare(model, theirs)


def compare(ours, theirs):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, 3, 128, 128, generator=generator)
    with torch.no_grad(), as_published(CPU):
        expected = theirs(images)
        found = ours(images)
    error = (found - expected).abs().max() / expected.abs().max()
    print(f"{ours.method}: logits differ by {error:.1e}")
    assert error < 1e-5


LITES = {
    "lite0": (1, 2, 2, 3, 3, 4, 1),
    "lite2": (1, 3, 3, 4, 4, 5, 1),  # as deep as lite1, and wider
}


def efficientnet_lite(weights, x, blocks):
    """An EfficientNet-Lite by its published description, in functions, from the package's names.

    MBConv blocks without squeeze-and-excitation, ReLU6, batch norm with eps 1e-3, TensorFlow's
    "SAME" padding (which on the right and below may be one wider), stem and head unscaled.
    """

    def convolve(x, name, stride=1, groups=1):
        weight = weights[f"{name}.weight"]
        size, kernel = x.shape[-1], weight.shape[-1]
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        padded = functional.pad(x, [total // 2, total - total // 2] * 2)
        return functional.conv2d(padded, weight, stride=stride, groups=groups)

    def norm(x, name):
        parts = (weights[f"{name}.{part}"] for part in ("running_mean", "running_var"))
        return functional.batch_norm(
            x, *parts, weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-3
        )

    x = functional.relu6(norm(convolve(x, "_conv_stem", 2), "_bn0"))
    stages = zip(blocks, (1, 2, 2, 2, 1, 2, 1), strict=True)  # the stride of the first block
    strides = [stride if i == 0 else 1 for count, stride in stages for i in range(count)]
    for number, stride in enumerate(strides):
        name, before = f"_blocks.{number}", x
        if f"{name}._expand_conv.weight" in weights:
            x = functional.relu6(norm(convolve(x, f"{name}._expand_conv"), f"{name}._bn0"))
        depthwise = convolve(x, f"{name}._depthwise_conv", stride, x.shape[1])
        x = functional.relu6(norm(depthwise, f"{name}._bn1"))
        x = norm(convolve(x, f"{name}._project_conv"), f"{name}._bn2")
        x = x + before if stride == 1 and x.shape == before.shape else x
    x = functional.relu6(norm(convolve(x, "_conv_head"), "_bn1"))
    return functional.linear(x.mean((2, 3)), weights["_fc.weight"], weights["_fc.bias"])


def lite_names(model):
    """timm's names → the package's, by the order in which both list them."""
    outside = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
    names, number, seen = {}, -1, None
    for name in model.state_dict():
        parts = name.split(".")
        if parts[0] != "blocks":
            names[name] = ".".join([outside.get(parts[0], "_fc"), *parts[1:]])
            continue
        if parts[1:3] != seen:
            number, seen = number + 1, parts[1:3]
        first = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv"}
        later = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv"}
        later |= {"bn2": "_bn1", "conv_pwl": "_project_conv", "bn3": "_bn2"}
        table = later if number else first | {"bn2": "_bn2"}
        names[name] = f"_blocks.{number}.{table[parts[3]]}.{parts[4]}"
    return names


@quick.parametrize("size", LITES, keep=["lite0"])
def test_an_efficientnet_lite_gives_the_logits_of_its_description(size, tmp_path):
    torch.manual_seed(0)
    backbone = f"tf_efficientnet_{size}"
    model = with_random_statistics(timm.create_model(backbone))
    names = lite_names(model)
    state = model.state_dict()
    theirs = {names[name]: value for name, value in state.items()}
    torch.save(theirs, tmp_path / "lite.pth")
    output = tmp_path / "lite"
    arguments = ["--from", f"efficientnet-{size}", "--output", str(output)]
    assert main(["convert", str(tmp_path / "lite.pth"), *arguments]) == 0
    loaded = timm.create_model(f"local-dir:{output}", pretrained=True).eval()
    assert loaded.pretrained_cfg["mean"][0] == pytest.approx(127 / 255)
    images = torch.randn(2, 3, 75, 75)  # odd sizes, where the padding is not symmetric
    with torch.no_grad():
        expected = efficientnet_lite(theirs, images, LITES[size])
        torch.testing.assert_close(loaded(images), expected, rtol=1e-4, atol=1e-5)
    start = read_starting_weights(output).weights  # model.init_from
    assert all(torch.equal(start[f"backbone.{name}"], value) for name, value in state.items())
    assert json.loads((output / "config.json").read_text())["architecture"] == backbone


def test_an_efficientnet_lite_refuses_what_it_is_not(tmp_path):
    with pytest.raises(ValueError, match=r"_blocks.16._bn1.weight"):
        efficientnet_lite_to_timm({"_blocks.16._bn1.weight": torch.zeros(1)}, LITES["lite0"])
    torch.save({"_fc.weight": torch.zeros(1)}, tmp_path / "x.pth")
    for options, expected in (
        (Options(method="exact"), "no option of the pooling"),
        (Options(), "conv_stem.weight has shape none"),
    ):
        with pytest.raises(ValueError, match=expected):
            convert(tmp_path / "x.pth", "efficientnet-lite0", tmp_path / "o", options, title="")


def test_check_weights_adds_counts_alone():
    model = nn.BatchNorm2d(2)
    weights = {n: v for n, v in model.state_dict().items() if n != "num_batches_tracked"}
    check_weights(model, weights)
    assert weights["num_batches_tracked"] == 0
    with pytest.raises(ValueError, match=r"running_var has shape none in it, \(2,\)"):
        check_weights(model, {n: v for n, v in weights.items() if n != "running_var"})


def test_sizes_that_do_not_fit_are_told_of_themselves(tmp_path):
    torch.save({"x": torch.zeros(1)}, tmp_path / "x.pth")
    options = Options(image_size=448, resize=224)
    with pytest.raises(ValueError, match=r"^data.resize 224 is smaller than the crop"):
        convert(tmp_path / "x.pth", "fast-mpn-cov", tmp_path / "o", options, title="")
