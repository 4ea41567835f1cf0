"""`feature_stage`: the networks end at a stage, whose output is that of the whole network there."""

import pytest
import timm
import torch

import quick
from covpool.models import create_model

CUT = (
    ("resnet18", 2),
    ("resnet18", 3),
    ("tf_efficientnet_lite0", 3),
    ("mobilenetv3_small_050", 2),
    ("convnext_atto", 1),
    ("regnetx_002", 2),
    ("vit_tiny_patch16_224", 5),
    ("swin_tiny_patch4_window7_224", 1),
)


@quick.parametrize(("name", "stage"), CUT, keep=[("resnet18", 2), ("vit_tiny_patch16_224", 5)])
@quick.parametrize("method", ["gap", "exact"], keep=["exact"])
def test_pools_what_timm_gives_as_the_intermediate_features(name, stage, method):
    torch.manual_seed(0)
    whole = timm.create_model(name, num_classes=0).eval()
    model = create_model(name, 3, method=method, reduced_channels=8, feature_stage=stage).eval()
    missing, _ = model.backbone.load_state_dict(whole.state_dict(), strict=False)
    assert missing == []
    size = whole.pretrained_cfg["input_size"][-1]
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        (expected,) = whole.forward_intermediates(
            images, indices=[stage], stop_early=True, intermediates_only=True
        )
        torch.testing.assert_close(model.forward_features(images), expected)
    assert model.num_features == expected.shape[1] == whole.feature_info[stage]["num_chs"]
    model.train()(images).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "stage", "message"),
    [
        ("resnet18", 5, r"'resnet18' has no stage 5; .* 4 \(512 channels, stride 32\)"),
        ("resnet18", -1, r"no stage -1"),
        ("small-convnet", 1, r"'small-convnet' cannot be cut after a stage"),
    ],
)
def test_a_stage_that_is_not_there(name, stage, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, 3, feature_stage=stage)


@pytest.mark.parametrize("gap_reduction", [False, True])
@pytest.mark.parametrize("reduced", [None, 16, "auto"])
@quick.parametrize(
    ("name", "classes"),
    [("resnet18", 100), ("small-convnet", 7)],
    keep=[("small-convnet", 7)],
)
def test_matched_head_has_as_many_parameters(name, classes, reduced, gap_reduction):
    def head(**options):
        model = create_model(name, classes, reduced_channels=reduced, image_size=64, **options)
        return model, sum(p.numel() for k, p in model.named_parameters() if "backbone." not in k)

    model, matched = head(method="gap", hidden_features="matched", gap_reduction=gap_reduction)
    _, covariance = head(method="exact")
    width = model.head_hidden_size
    assert width == model.classifier.in_features
    # One more or one fewer hidden feature would be further away.
    assert abs(matched - covariance) <= (model.pool.out_features + 3 + classes) / 2
    assert {id(p) for p in model.classifier_parameters()} == {
        id(p) for p in [*model.hidden.parameters(), *model.classifier.parameters()]
    }


def test_average_of_what_covariance_pooling_pools():
    torch.manual_seed(0)
    covariance = create_model("resnet18", 5, method="exact", reduced_channels=16, image_size=64)
    average = create_model(
        "resnet18", 5, method="gap", reduced_channels=16, gap_reduction=True, image_size=64
    )
    average.load_state_dict(
        {k: v for k, v in covariance.state_dict().items() if "classifier" not in k}, strict=False
    )
    features = average.forward_features(torch.rand(3, 3, 64, 64))
    pooled = average.forward_head(features, pre_logits=True)
    assert pooled.shape == (3, 16)
    torch.testing.assert_close(pooled, covariance.pool.reduction(features).mean((2, 3)))
    names = [name for name, _ in average.named_parameters() if name.startswith("pool.")]
    assert names == [name for name, _ in covariance.pool.named_parameters(prefix="pool")]


def test_hidden_layer_of_a_covariance_head():
    model = create_model("small-convnet", 5, method="exact", hidden_features=12, in_chans=1)
    images = torch.rand(3, 1, 48, 48)
    assert model.forward_head(model.forward_features(images), pre_logits=True).shape == (3, 12)
    assert model(images).shape == (3, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_features": 0}, r"hidden_features must be at least 1, .* not 0"),
        ({"hidden_features": "matched"}, r"matched with method gap \(here exact\), not 'matched'"),
        ({"hidden_features": "wide", "method": "gap"}, r"hidden_features must be .* not 'wide'"),
        (
            {"gap_reduction": True, "method": "svd"},
            r"gap_reduction must be false, or true with method gap \(here svd",
        ),
    ],
)
def test_hidden_features_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        create_model("small-convnet", 3, **options)
