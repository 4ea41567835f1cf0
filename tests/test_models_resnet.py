"""`last_stride=1` on every kind of ResNet."""

import pytest
import timm
import torch
from torch import nn

import quick
from covpool.models import create_model

RESNETS = (
    "resnet18",
    "resnet10t",
    "resnet26d",
    "resnetaa50",
    "resnetblur18",
    "seresnet18",
    "ecaresnet26t",
    "legacy_seresnet18",
    "skresnet18",
    "resnest14d",
    "res2net50_26w_4s",
)


def dilations(model):
    return [x.dilation for x in model.backbone.layer4.modules() if isinstance(x, nn.Conv2d)]


@quick.parametrize("name", RESNETS, keep=["resnet10t", "ecaresnet26t", "legacy_seresnet18"])
def test_last_stage_keeps_its_input_size(name):
    torch.manual_seed(0)
    plain = create_model(name, 3, image_size=64).eval()
    model = create_model(name, 3, image_size=64, last_stride=1).eval()
    images = torch.randn(1, 3, 64, 64)
    assert plain.forward_features(images).shape[2:] == (2, 2)
    assert model.forward_features(images).shape[2:] == (4, 4)
    assert dilations(model) == dilations(plain)
    model.load_state_dict(plain.state_dict())


def test_fourteen_by_fourteen_at_224():
    model = create_model("resnet18", 3, last_stride=1)
    assert model.forward_features(torch.randn(1, 3, 224, 224)).shape == (1, 512, 14, 14)


@quick.parametrize("name", ["resnet50", "resnet101"], keep=["resnet50"])
@quick.parametrize(("last_stride", "side"), [(None, 2), (1, 4)], keep=[(1, 4)])
@quick.parametrize("method", ["gap", "svd-pade"], keep=["svd-pade"])
def test_networks_of_the_paper_train_one_step(name, last_stride, side, method):
    torch.manual_seed(0)
    model = create_model(name, 3, method=method, image_size=64, last_stride=last_stride)
    features = model.forward_features(torch.randn(2, 3, 64, 64))
    assert features.shape == (2, 2048, side, side)
    logits = model.forward_head(features)
    assert model.head_hidden_size == (2048 if method == "gap" else 256 * 257 // 2)
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 2])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@quick.parametrize(
    "name", ["resnet18", "resnet50", "resnext50_32x4d", "seresnet18"], keep=["resnet18"]
)
def test_last_stride_equals_output_stride_without_its_dilation(name):
    model = create_model(name, 3, image_size=64, last_stride=1).eval()
    reference = timm.create_model(name, num_classes=0, global_pool="", output_stride=16).eval()
    for layer in reference.layer4.modules():
        if isinstance(layer, nn.Conv2d):
            layer.dilation, layer.padding = (1, 1), tuple(k // 2 for k in layer.kernel_size)
    reference.load_state_dict(model.backbone.state_dict())
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(model.forward_features(images), reference.forward_features(images))


def test_output_stride_dilates_and_is_passed_on():
    model = create_model("resnet18", 3, image_size=64, output_stride=16)
    assert model.forward_features(torch.randn(1, 3, 64, 64)).shape[2:] == (4, 4)
    assert model.backbone.layer4[1].conv2.dilation == (2, 2)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("regnetx_002", {"last_stride": 1}, r"'regnetx_002' has no stage layer4.*output_stride"),
        ("vit_tiny_patch16_224", {"last_stride": 1}, r"has no stage layer4"),
        ("resnet18", {"last_stride": 2}, r"last_stride must be 1, or None .* got 2"),
        ("resnet18", {"last_stride": 1, "output_stride": 16}, r"not both"),
        ("vit_tiny_patch16_224", {"output_stride": 16}, r"does not take \(output_stride=16\)"),
    ],
)
def test_refusals(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, 3, **arguments)
