"""The model behind timm's interface: registry, optimizers, data configuration, saved models."""

import pytest
import timm
import torch
from timm.models import group_parameters, save_for_hf
from timm.optim import create_optimizer_v2
from torch import nn

from covpool.models import REGISTERED, CovPoolModel, create_model


def test_every_row_of_the_table_is_registered_and_is_a_backbone():
    names = {"covpool_" + name.replace("-", "_") for name in REGISTERED}
    assert set(timm.list_models("covpool_*")) == names
    known = {"alexnet", "small-convnet", *timm.list_models()}
    assert set(REGISTERED) <= known


def test_timm_builds_a_registered_model():
    model = timm.create_model(
        "covpool_resnet18", num_classes=7, method="isqrt-cov", reduced_channels=8, last_stride=1
    )
    assert isinstance(model, CovPoolModel)
    assert model.method == "isqrt-cov"
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 7)
    assert model.forward_features(torch.randn(1, 3, 64, 64)).shape == (1, 512, 4, 4)
    assert timm.create_model("covpool_small_convnet").num_classes == 1000
    assert timm.create_model("covpool_small_convnet", in_chans=1).in_chans == 1


def test_timm_checkpoint_path(tmp_path):
    model = timm.create_model("covpool_small_convnet", num_classes=3)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other = timm.create_model(
        "covpool_small_convnet", num_classes=3, checkpoint_path=tmp_path / "weights.pt"
    )
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features_only": True}, "maps of several depths"),
        ({"global_pool": "avg"}, "method chooses the pooling"),
        ({"pooling": "bcnn"}, "^pooling='bcnn': the argument is called method here; write method="),
        ({"method": "svd-pad"}, "did you mean 'svd-pade'"),
    ],
)
def test_registered_models_refuse(arguments, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("covpool_small_convnet", **arguments)


def test_interface():
    model = create_model("resnet10t", 7, reduced_channels=8, image_size=64)
    assert (model.num_classes, model.num_features, model.head_hidden_size) == (7, 512, 36)
    assert model.get_classifier() is model.classifier
    assert model.default_cfg is model.pretrained_cfg
    features = model.forward_features(torch.randn(2, 3, 64, 64))
    vector = model.forward_head(features, pre_logits=True)
    assert vector.shape == (2, 36)
    assert torch.equal(model.eval().forward_head(features), model.classifier(model.pool(features)))
    pool, weight = model.pool, model.pool.reduction[0].weight.clone()
    model.reset_classifier(4)
    assert (model.num_classes, model.classifier.out_features) == (4, 4)
    assert model.pool is pool
    assert torch.equal(model.pool.reduction[0].weight, weight)
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 36)
    with pytest.raises(ValueError, match="resetting the classifier keeps it"):
        model.reset_classifier(3, global_pool="avg")
    with pytest.raises(ValueError, match="at least 0, got -1"):
        model.reset_classifier(-1)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("resnet10t", {}), ("vit_tiny_patch16_224", {"image_size": 64, "depth": 2})],
)
def test_intermediate_features_are_the_backbones(name, arguments):
    model = create_model(name, 3, **arguments).eval()
    images = torch.randn(2, 3, 64, 64)
    features, found = model.forward_intermediates(images, indices=2)
    assert torch.equal(features, model.forward_features(images))
    expected = model.backbone.forward_intermediates(images, indices=2, intermediates_only=True)
    only = model.forward_intermediates(images, indices=2, intermediates_only=True)
    for several in (found, only):
        assert len(several) == 2
        assert all(torch.equal(a, b) for a, b in zip(several, expected, strict=True))
    with pytest.raises(ValueError, match=r"takes images \(batch, 3, height, width\), got \(2, 64"):
        model.forward_intermediates(images[:, 0])


def test_intermediate_features_of_backbones_without_them():
    model = create_model("small-convnet", 3)
    with pytest.raises(ValueError, match="SmallConvNet gives no intermediate features; name"):
        model.forward_intermediates(torch.randn(1, 3, 48, 48))


def test_num_classes_zero_is_no_classifier_in_timm():
    model = timm.create_model("covpool_small_convnet", num_classes=0)
    assert model(torch.randn(1, 3, 48, 48)).shape == (1, model.head_hidden_size)


def test_pretrained_configuration_describes_the_whole_model():
    model = create_model("resnet10t", 7, in_chans=1)
    backbone = timm.create_model("resnet10t")
    assert model.pretrained_cfg["architecture"] == "covpool_resnet10t"
    assert model.pretrained_cfg["num_classes"] == 7
    assert isinstance(model.get_submodule(model.pretrained_cfg["first_conv"]), nn.Conv2d)
    assert model.get_submodule(model.pretrained_cfg["classifier"]) is model.classifier
    assert not {"url", "file", "hf_hub_id"} & model.pretrained_cfg.keys()
    ours = timm.data.resolve_model_data_config(model)
    theirs = timm.data.resolve_model_data_config(backbone)
    assert ours == {**theirs, "input_size": (1, *theirs["input_size"][1:])}


def test_data_configuration_of_images_of_another_size():
    model = create_model("vit_tiny_patch16_224", 7, image_size=64, depth=1)
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 64, 64)


def test_pretrained_weights_reach_the_backbone(tmp_path):
    torch.manual_seed(1)
    source = timm.create_model("resnet10t")
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    overlay = {"file": str(tmp_path / "weights.pt")}
    model = create_model("resnet10t", 3, pretrained=True, pretrained_cfg_overlay=overlay)
    registered = timm.create_model("covpool_resnet18", num_classes=3)
    assert registered.pretrained_cfg["num_classes"] == 3
    weights = source.state_dict()
    loaded = model.backbone.state_dict()
    assert set(weights) - set(loaded) == {"fc.weight", "fc.bias"}
    assert all(torch.equal(loaded[name], weights[name]) for name in loaded)
    fresh = create_model("resnet10t", 3, pretrained_cfg_overlay=overlay)
    assert not torch.equal(fresh.backbone.layer1[0].conv1.weight, weights["layer1.0.conv1.weight"])


def test_registered_models_load_pretrained_backbones(tmp_path):
    source = timm.create_model("resnet18")
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    model = timm.create_model(
        "covpool_resnet18",
        pretrained=True,
        num_classes=3,
        pretrained_cfg_overlay={"file": str(tmp_path / "weights.pt")},
    )
    assert torch.equal(model.backbone.layer4[1].conv2.weight, source.layer4[1].conv2.weight)


def test_saved_models_come_back_whole(tmp_path):
    model = timm.create_model(
        "covpool_small_convnet", num_classes=3, in_chans=1, method="svd-pade", width=8
    ).eval()
    images = torch.randn(2, 1, 48, 48)
    save_for_hf(model, tmp_path)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert loaded.method == "svd-pade"
    assert torch.equal(loaded(images), model(images))
    resized = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=5).eval()
    assert resized(images).shape == (2, 5)
    assert torch.equal(resized.forward_features(images), model.forward_features(images))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet10t", {}),
        ("vit_tiny_patch16_224", {"image_size": 64, "depth": 3}),
        ("cait_xxs24_224", {"image_size": 64, "depth": 2}),
        ("densenet121", {"block_config": (2, 2, 2, 2)}),
        ("mobilenetv3_small_050", {}),
    ],
)
@pytest.mark.parametrize("coarse", [False, True])
def test_layer_groups_are_the_backbones_and_one_for_the_head(name, arguments, coarse):
    model = create_model(name, 3, reduced_channels=8, **arguments)
    groups = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
    theirs = group_parameters(
        model.backbone, model.backbone.group_matcher(coarse=coarse), reverse=True
    )
    assert {k: groups["backbone." + k] for k in theirs} == theirs
    head = {groups[k] for k in groups if not k.startswith("backbone.")}
    assert len(head) == 1
    assert head.pop() >= max(theirs.values())


def test_timm_optimizers():
    model = create_model("vit_tiny_patch16_224", 3, image_size=64, depth=2)
    assert {"backbone.pos_embed", "backbone.cls_token"} <= model.no_weight_decay()
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1, weight_decay=0.01)
    decayed = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert len(decayed) == len(list(model.parameters()))
    assert decayed[id(model.backbone.pos_embed)] == 0
    assert decayed[id(model.classifier.weight)] == 0.01
    layered = create_optimizer_v2(model, opt="sgd", lr=0.1, layer_decay=0.5)
    assert len({group["lr_scale"] for group in layered.param_groups}) == 4


def test_parameter_groups():
    model = create_model("small-convnet", 3, reduced_channels=8)
    body, classifier = model.parameter_groups(0.1, classifier_factor=5)
    assert (body["lr"], classifier["lr"]) == (0.1, 0.5)
    assert [id(p) for p in classifier["params"]] == [id(p) for p in model.classifier.parameters()]
    together = {id(p) for p in body["params"]} | {id(p) for p in classifier["params"]}
    assert together == {id(p) for p in model.parameters()}
    assert id(model.pool.reduction[0].weight) in {id(p) for p in body["params"]}
    for parameter in model.backbone.parameters():
        parameter.requires_grad_(False)
    assert len(model.parameter_groups(0.1)[0]["params"]) == 3
    with pytest.raises(ValueError, match="factor must be positive, got 0"):
        model.parameter_groups(0.1, classifier_factor=0)


def test_gradient_checkpointing_changes_nothing_but_memory():
    torch.manual_seed(0)
    model = create_model("vit_tiny_patch16_224", 3, image_size=64, depth=2, reduced_channels=8)
    images = torch.randn(2, 3, 64, 64)

    def gradient():
        model.zero_grad()
        model.eval()(images).square().sum().backward()
        return model.backbone.patch_embed.proj.weight.grad.clone()

    plain = gradient()
    model.set_grad_checkpointing()
    assert model.backbone.grad_checkpointing
    torch.testing.assert_close(gradient(), plain)
    small = create_model("small-convnet", 3)
    small.set_grad_checkpointing(False)
    with pytest.raises(ValueError, match="cannot checkpoint"):
        small.set_grad_checkpointing()
