"""`create_model` over families of backbones: layout, training step, pooling, switching."""

import socket

import huggingface_hub
import pytest
import timm
import torch
from torch.nn import functional

import covpool
import quick
from covpool.models import SmallConvNet, check_backbone, create_model
from covpool.models.backbones import token_grid

TINY_SWIN = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}

FAMILIES = {
    "small-convnet": (48, {}),
    "alexnet": (96, {}),
    "vgg11": (64, {}),
    "resnet10t": (64, {}),
    "resnest14d": (64, {}),
    "densenet121": (64, {"block_config": (2, 2, 2, 2)}),
    "regnetx_002": (64, {}),
    "mobilenetv3_small_050": (64, {}),
    "tf_efficientnet_lite0": (64, {}),
    "ghostnet_050": (64, {}),
    "efficientvit_b0": (64, {}),
    "inception_next_atto": (64, {}),
    "convnext_atto": (64, {}),
    "edgenext_xx_small": (64, {}),
    "swin_tiny_patch4_window7_224": (64, TINY_SWIN),
    "test_mambaout": (64, {}),
    "vit_tiny_patch16_224": (64, {"depth": 2}),
    "deit_tiny_distilled_patch16_224": (64, {"depth": 2}),
    "cait_xxs24_224": (64, {"depth": 2}),
    "coat_lite_tiny": (64, {}),
    "gmlp_ti16_224": (64, {}),
}
"""Backbone → side of the images, arguments that make it small."""


def small_model(**arguments):
    torch.manual_seed(0)
    return create_model("small-convnet", **{"num_classes": 5, "width": 8, **arguments})


@quick.parametrize(
    "name",
    FAMILIES,
    keep=[
        *("small-convnet", "resnet10t", "inception_next_atto"),
        *("swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"),
    ],
)
def test_family_trains_one_step(name):
    size, arguments = FAMILIES[name]
    torch.manual_seed(0)
    model = create_model(name, num_classes=3, reduced_channels=16, image_size=size, **arguments)
    images = torch.randn(4, 3, size, size)
    features = model.forward_features(images)
    assert features.ndim == 4
    assert features.shape[:2] == (4, model.num_features)
    logits = model(images)
    assert logits.shape == (4, 3)
    functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
    trained = {k: p for k, p in model.named_parameters() if p.requires_grad}
    assert [k for k, p in trained.items() if p.grad is None] == []
    assert [k for k, p in trained.items() if not p.grad.isfinite().all()] == []
    first, *_ = (p for k, p in trained.items() if k.startswith("backbone.") and p.ndim == 4)
    assert first.grad.abs().max() > 0
    before = first.detach().clone()
    torch.optim.SGD(trained.values(), lr=0.1).step()
    assert not torch.equal(first, before)
    assert model(images).isfinite().all()


@pytest.mark.parametrize(
    ("name", "prefix"), [("vit_tiny_patch16_224", 1), ("deit_tiny_distilled_patch16_224", 2)]
)
def test_tokens_are_laid_out_row_by_row_without_their_prefix(name, prefix):
    model = create_model(name, 3, img_size=(64, 96), depth=1).eval()
    images = torch.randn(2, 3, 64, 96)
    tokens = model.backbone.forward_features(images)
    assert tokens.shape[1] == prefix + 4 * 6
    feature_map = model.forward_features(images)
    assert feature_map.shape == (2, 192, 4, 6)
    for row in range(4):
        for column in range(6):
            assert torch.equal(feature_map[:, :, row, column], tokens[:, prefix + 6 * row + column])


def test_a_patch_of_the_image_is_where_its_token_is():
    # Without blocks a token depends on its own patch alone.
    model = create_model("vit_tiny_patch16_224", 3, img_size=(64, 96), depth=0).eval()
    images = torch.randn(1, 3, 64, 96)
    changed = images.clone()
    changed[:, :, 16:32, 48:64] += 1
    difference = (model.forward_features(changed) - model.forward_features(images)).abs().sum(1)[0]
    assert difference.nonzero().tolist() == [[1, 3]]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("swin_tiny_patch4_window7_224", {"img_size": (64, 96), **TINY_SWIN}), ("test_mambaout", {})],
)
def test_channels_last_features_become_channels_first(name, arguments):
    model = create_model(name, 3, **arguments).eval()
    images = torch.randn(2, 3, 64, 96)
    features = model.backbone.forward_features(images)
    feature_map = model.forward_features(images)
    assert feature_map.shape == (2, model.num_features, 2, 3)
    for row in range(2):
        for column in range(3):
            assert torch.equal(feature_map[:, :, row, column], features[:, row, column])


@pytest.mark.parametrize(
    ("size", "patch"), [((224, 224), 16), ((47, 224), 16), ((224, 31), 16), ((70, 98), 14)]
)
def test_token_grid(size, patch):
    grid = (size[0] // patch, size[1] // patch)
    assert token_grid(grid[0] * grid[1], size) == grid


def test_token_grid_refuses_tokens_that_are_no_rectangle():
    with pytest.raises(ValueError, match="50 tokens fill no grid"):
        token_grid(50, (224, 224))


def test_alexnet_has_13_by_13_positions():
    model = create_model("alexnet", 3)
    assert model.forward_features(torch.randn(1, 3, 224, 224)).shape == (1, 256, 13, 13)
    assert model.pool.out_features == 256 * 257 // 2
    assert isinstance(model.pool.reduction[0], torch.nn.Conv2d)


@pytest.mark.parametrize("in_chans", [1, 3])
def test_small_convnet_has_32_channels_on_12_by_12_positions(in_chans):
    network = SmallConvNet(in_chans)
    assert network.forward_features(torch.randn(2, in_chans, 48, 48)).shape == (2, 32, 12, 12)
    assert SmallConvNet(width=10).forward_features(torch.randn(1, 3, 64, 32)).shape[1:] == (
        10,
        16,
        8,
    )


@pytest.mark.parametrize(
    ("name", "asked", "pooled"),
    [
        ("small-convnet", "auto", 32),
        ("small-convnet", 256, 256),
        ("small-convnet", 8, 8),
        ("resnet18", "auto", 256),
        ("resnet18", None, 512),
        ("resnet18", 64, 64),
    ],
)
def test_reduced_channels(name, asked, pooled):
    model = create_model(name, 3, reduced_channels=asked, image_size=64)
    assert model.head_hidden_size == pooled * (pooled + 1) // 2
    assert isinstance(model.pool.reduction, torch.nn.Identity) == (pooled == model.num_features)


def test_gap_is_the_mean_and_a_linear_classifier():
    model = small_model(method="gap", reduced_channels=4).eval()
    images = torch.randn(3, 3, 24, 24)
    vector = model.backbone.forward_features(images).flatten(2).mean(2)
    torch.testing.assert_close(model.forward_head(model.forward_features(images), True), vector)
    torch.testing.assert_close(model(images), model.classifier(vector))
    assert sum(p.numel() for p in model.pool.parameters()) == 0


@pytest.mark.parametrize("method", covpool.METHODS)
def test_methods_exchange_state_and_switching_is_building(method):
    model = small_model(method="exact", reduced_channels=6).eval()
    other = create_model(
        "small-convnet", 5, width=8, method=method, reduced_channels=6, drop_rate=0.5
    ).eval()
    images = torch.randn(2, 3, 24, 24)
    assert not torch.equal(other(images), model(images))
    other.load_state_dict(model.state_dict())
    parameters = {k: id(p) for k, p in model.named_parameters()}
    model.method = method
    assert model.method == method
    assert torch.equal(other(images), model(images))
    assert parameters == {k: id(p) for k, p in model.named_parameters()}


def test_switch_takes_effect():
    model = small_model().eval()
    images = torch.randn(2, 3, 24, 24)
    exact = model(images)
    model.method = "isqrt-cov"
    assert not torch.equal(model(images), exact)
    model.method = covpool.METHODS["exact"]
    assert torch.equal(model(images), exact)


@pytest.mark.parametrize(("before", "after"), [("gap", "exact"), ("svd", "gap")])
def test_no_switch_between_average_and_covariance(before, after):
    model = small_model(method=before)
    with pytest.raises(ValueError, match="parameters differ"):
        model.method = after
    assert model.method == before


def test_switch_to_an_unknown_method():
    model = small_model()
    with pytest.raises(ValueError, match="did you mean 'svd-pade'"):
        model.method = "svd-pad"
    assert model.method == "exact"


def test_method_constants_reach_the_row():
    model = small_model(method="svd-taylor", method_constants={"degree": 7})
    assert model.pool.method.constants["degree"] == 7
    assert covpool.METHODS["svd-taylor"].constants["degree"] == 100


def test_dropout_is_active_in_training_alone():
    model = small_model(drop_rate=0.5)
    vector = model.forward_head(torch.randn(2, 8, 6, 6), pre_logits=True)
    assert 0.3 < (vector == 0).float().mean() < 0.7
    model.eval()
    assert (model.forward_head(torch.randn(2, 8, 6, 6), pre_logits=True) != 0).all()


def test_unused_layers_are_dropped_and_the_features_are_the_same():
    torch.manual_seed(0)
    model = create_model("mobilenetv3_small_050", 3).eval()
    torch.manual_seed(0)
    whole = timm.create_model("mobilenetv3_small_050", num_classes=0, global_pool="").eval()
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(model.forward_features(images), whole.forward_features(images))
    assert set(whole.state_dict()) - set(model.backbone.state_dict()) == {
        "conv_head.weight",
        "conv_head.bias",
    }


def test_building_takes_no_random_numbers_beyond_initialisation():
    torch.manual_seed(0)
    SmallConvNet(width=8)
    torch.nn.Linear(36, 5)
    expected = torch.rand(1)
    small_model()
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("name", ["alexnet", "resnet10t", "convnext_atto"])
def test_grey_images(name):
    model = create_model(name, 3, in_chans=1, image_size=96)
    assert model(torch.randn(2, 1, 96, 96)).shape == (2, 3)
    with pytest.raises(
        ValueError, match=r"images \(batch, 1, height, width\), got \(2, 3, 96, 96\)"
    ):
        model(torch.randn(2, 3, 96, 96))


def test_images_of_which_one_position_is_left_are_refused():
    """They would all have the same logits; the command line refuses them likewise."""
    for method in ("exact", "isqrt-cov"):
        model = create_model("resnet10t", 3, method=method).eval()
        with pytest.raises(ValueError, match=r"one position has no covariance; take larger images"):
            model(torch.randn(2, 3, 32, 32))
        assert not torch.equal(*model(torch.randn(2, 3, 64, 64)))
    assert create_model("resnet10t", 3, method="gap")(torch.randn(2, 3, 32, 32)).shape == (2, 3)


def test_backbone_of_a_fixed_size_refuses_another():
    model = create_model("vit_tiny_patch16_224", 3, image_size=64, depth=1)
    with pytest.raises(ValueError, match=r"built for images of \(64, 64\), got \(96, 96\)"):
        model(torch.randn(1, 3, 96, 96))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet5O"}, r"unknown backbone 'resnet5O'; did you mean 'resnet50'"),
        ({"backbone": "alexnett"}, r"unknown backbone 'alexnett'; did you mean 'alexnet'"),
        ({"backbone": "smal-convnet"}, r"did you mean 'small-convnet'"),
        ({"backbone": "resnet18.a9_in1k"}, r"unknown tag 'a9_in1k'; choose from a1_in1k"),
        ({"backbone": "covpool_resnet50"}, r"whole model; name its backbone, 'resnet50'"),
        ({"backbone": "crossvit_tiny_240"}, r"no spatial feature map to pool: .* two token"),
        ({"backbone": "efficientvim_m1"}, r"no spatial feature map to pool: .* list"),
        ({"backbone": "pit_ti_224"}, r"no spatial feature map to pool: .* class token alone"),
        ({"num_classes": 0}, r"num_classes must be at least 1, got 0"),
        ({"in_chans": 0}, r"in_chans must be at least 1, got 0"),
        ({"image_size": 0}, r"image_size must be at least 1, got 0"),
        (
            {"reduced_channels": 0},
            r"reduced_channels must be at least 1, auto or null \(None\), not 0",
        ),
        ({"reduced_channels": "all"}, r"reduced_channels must be at least 1, auto or .* not 'all'"),
        ({"drop_rate": 1.0}, r"drop_rate must be in \[0, 1\), not 1.0"),
        ({"method": "svd-pad"}, r"unknown pooling method 'svd-pad'.* did you mean 'svd-pade'"),
        ({"method": "gap", "method_constants": {"degree": 5}}, r"'gap' has no constants"),
        ({"method_constants": {"degree": 5}}, r"'exact' has no constant 'degree'"),
        ({"pretrained": True}, r"'small-convnet' has no pretrained weights"),
        ({"depth": 3}, r"'small-convnet' does not take \(depth=3\)"),
        ({"width": 0}, r"width must be at least 1, got 0"),
        ({"backbone": "resnet18", "width": 3}, r"'resnet18' does not take \(width=3\)"),
        ({"backbone": "resnet18", "global_pool": "avg"}, r"method chooses the pooling"),
        ({"backbone": "resnet18", "features_only": True}, r"takes the last feature map"),
        ({"backbone": "resnet18", "image_size": 32}, r"one position of a 32×32 image"),
    ],
)
def test_create_model_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_model(**{"backbone": "small-convnet", "num_classes": 3, **arguments})


@pytest.mark.parametrize(
    "name", ["resnet50", "resnet50.a1_in1k", "alexnet", "small-convnet", "local-dir:somewhere"]
)
def test_check_backbone_accepts(name):
    check_backbone(name)


def test_pretrained_weights_without_a_network_fail_at_once(tmp_path, monkeypatch):
    def unknown(*arguments, **options):
        raise socket.gaierror("Name or service not known")

    def sleep(seconds):
        raise AssertionError("the hub is asked again")

    monkeypatch.setattr("socket.getaddrinfo", unknown)
    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"cannot be reached.*--model\.init_from") as told:
        create_model("resnet18", 3, pretrained=True)
    assert "\n" not in str(told.value)
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
