"""torch.fx, torchvision's feature extractor and timm's, through networks with every pooling."""

import pytest
import timm
import torch
from timm.models import FeatureListNet, GraphExtractNet
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

import covpool
import quick
from covpool import METHODS, POOLINGS
from covpool.models import create_model

OPTIONS = {
    "attention-rotary": {"num_heads": 2},
    "attention-latent": {"num_heads": 2},
    "tensor-sketch": {"outputs": 13},
    "random-maclaurin": {"outputs": 13},
    "fbn": {"outputs": 5, "factors": 3},
    "sot": {"heads": 2, "head_channels": 4},
    "so-vit": {"first": 5, "second": 4},
    "moment-probing": {"heads": 3, "head_channels": 9},
}


def row(name):
    return METHODS.get(name) or POOLINGS[name].replace(**OPTIONS.get(name, {}))


def network(name):
    torch.manual_seed(0)
    return create_model("small-convnet", 3, method=row(name), width=8).eval()


def images(size=32, batch=2):
    return torch.randn(batch, 3, size, size, generator=torch.manual_seed(0))


@pytest.mark.parametrize("name", POOLINGS)
def test_torchvisions_extractor_gives_map_and_vector_of_every_pooling(name):
    model, x = network(name), images()
    found = create_feature_extractor(model, {"backbone.features": "map", "pool": "vector"})
    with torch.no_grad():
        got = found(x)
        features = model.forward_features(x)
        assert torch.equal(got["map"], features)
        assert torch.equal(got["vector"], model.forward_head(features, pre_logits=True))
        assert got["vector"].shape == (2, model.head_hidden_size)
        assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


@pytest.mark.parametrize("name", POOLINGS)
def test_a_pooling_is_one_node(name):
    traced = torch.fx.symbolic_trace(network(name))
    modules = [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]
    assert [target for target in modules if target.startswith("pool")] == ["pool"]
    functions = {
        node.target for node in traced.graph.nodes if node.op in ("call_function", "get_attr")
    }
    assert not any("cov_pool" in str(target) for target in functions)
    if name in METHODS:  # the layer is there, and so can be changed and exported
        traced.pool.method = "isqrt-cov"
        x = images()
        with torch.no_grad():
            other = covpool.exportable(traced, x).network
            torch.testing.assert_close(other(x), network("isqrt-cov")(x), rtol=1e-5, atol=1e-5)


@quick.parametrize("name", ["sot", "so-vit", "moment-probing", "exact"], keep=["sot"])
def test_class_tokens_go_beside_the_map(name):
    torch.manual_seed(0)
    options = {"image_size": 32, "depth": 1, "reduced_channels": 6}
    model = create_model("vit_tiny_patch16_224", 3, method=row(name), **options).eval()
    x = images()
    with torch.no_grad():
        got = create_feature_extractor(model, ["pool"])(x)["pool"]
        assert torch.equal(got, model.forward_head(model.forward_features(x), pre_logits=True))


@quick.parametrize("name", [*POOLINGS], keep=["exact", "dropcov"])
def test_pools_on_every_map_of_timms_features_only(name):
    """One pool on each stage, and timm's own extractor by torch.fx over all of it."""

    class Stages(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.backbone = timm.create_model("resnet10t", features_only=True, out_indices=(3, 4))
            assert isinstance(self.backbone, FeatureListNet)
            self.pools = nn.ModuleList(
                covpool.Pool2d(channels, row(name), 8)
                for channels in self.backbone.feature_info.channels()
            )

        def forward(self, x):
            first, second = self.backbone(x)
            return torch.cat([self.pools[0](first), self.pools[1](second)], 1)

    model, x = Stages().eval(), images(64)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(torch.fx.symbolic_trace(model)(x), expected)
        found = GraphExtractNet(model, ["pools.0", "pools.1"], squeeze_out=False)(x)
    assert torch.equal(torch.cat(found, 1), expected)


def test_what_is_exportable_is_traced_too():
    torch.manual_seed(0)
    whole = nn.Sequential(
        nn.Conv2d(3, 6, 3), covpool.CovPool2d(6, None, "svd-pade", vectorize=False)
    ).append(covpool.MatrixFunction("sqrt"))
    found = covpool.exportable(whole, images(8)).network
    graph = torch.fx.symbolic_trace(found)
    with torch.no_grad():
        assert torch.equal(graph(images(8, batch=5)), found(images(8, batch=5)))
