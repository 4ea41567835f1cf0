"""Exported files are read back by the libraries that they are for, run, and compared."""

import inspect
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import yaml

import covpool
import quick
from covpool import METHODS
from covpool.cli import main
from covpool.cli.export import FEWEST_SAME
from covpool.data import Preprocessing, load_image
from covpool.linalg.products import SUBSTITUTE, root_in_products
from covpool.models import create_model
from covpool.publish.export import (
    FORMATS,
    deviation,
    export_model,
    in_products,
    logits_of,
)
from covpool.publish.images import Sample, sample_of_files
from covpool.train.config import RunConfig
from covpool.train.prediction import TrainedModel, load_model
from covpool.train.published import read_published
from tiny_images import OPTIONS, make_tiny_images

OTHER_ROOTS = ("svd-topn", "mtp-lyapunov", "mpa-lyapunov", *(n for n in METHODS if "halley" in n))
"""Methods whose result is not the square root itself."""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_tiny_images(tmp_path_factory.mktemp("data") / "textures")


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    options = [*OPTIONS, "--model.method", "svd-pade"]
    assert main(["train", "--data.root", str(images), "--output", str(path), *options]) == 0
    return path


@pytest.fixture(scope="module")
def exported(run):
    assert main(["export", str(run), "--licence", "apache-2.0"]) == 0
    return run / "export"


def numpy_root(features):
    """√cov of (B, C, N) in float64, by NumPy's own eigendecomposition."""
    x = features.double().numpy()
    centred = x - x.mean(2, keepdims=True)
    values, vectors = np.linalg.eigh(centred @ centred.swapaxes(1, 2) / x.shape[2])
    return vectors * np.sqrt(values.clip(0))[:, None] @ vectors.swapaxes(1, 2)


@pytest.mark.parametrize("positions", [(3, 5), (9, 8)], ids=["N<C", "N>C"])
@pytest.mark.parametrize("method", covpool.METHODS)
def test_products_are_the_pooling(method, positions):
    torch.manual_seed(0)
    features = torch.randn(3, 24, *positions) * torch.logspace(0, -1.5, 24)[:, None, None]
    features[1] = 3.0  # no variance: the zero matrix
    features[2] *= 1e-12
    row = METHODS[method if method == "isqrt-cov" else SUBSTITUTE]

    def in_dtype(dtype):
        dtype = row.forward.least_dtype if method == "isqrt-cov" else dtype
        found = row.forward.product_steps(dtype)
        return root_in_products(features.flatten(2).to(dtype), *found).float()

    trained = covpool.cov_pool(features, method)
    found, narrow = in_dtype(torch.float64), in_dtype(torch.float32)
    if method in OTHER_ROOTS:  # compared with the root, which they approximate
        trained = torch.from_numpy(numpy_root(features.flatten(2))).float()
    elif method != "isqrt-cov":
        oracle = torch.from_numpy(numpy_root(features.flatten(2))).float()
        torch.testing.assert_close(trained, oracle, rtol=0, atol=1e-6)
    scale = features.flatten(1).std(1).add(1e-30)[:, None, None]
    # "isqrt-cov" pools in float32 throughout: it was off by up to 2.5e-6 for random features, the
    # others by 3e-7.
    limit = 1e-5 if method == "isqrt-cov" else 3e-6
    torch.testing.assert_close(found / scale, trained / scale, rtol=0, atol=limit)
    assert torch.equal(found[1], torch.zeros(24, 24))
    torch.testing.assert_close(narrow / scale, trained / scale, rtol=0, atol=5e-3)


def test_files_agree_with_the_network(run, exported, images):
    trained = load_model(run)
    files = sorted(images.glob("test/*/*.png"))
    batch = torch.stack([load_image(file, trained.preprocessing) for file in files])
    with torch.no_grad():
        reference = trained.model(batch)
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    program = torch.export.load(exported / "model.pt2").module()
    found = {
        "model.pt2": program(batch),
        "model.onnx": torch.from_numpy(session.run(None, {"images": batch.numpy()})[0]),
    }
    rows = {row["file"]: row for row in json.loads((exported / "export.json").read_text())}
    assert set(rows) == set(found)
    for file, logits in found.items():
        torch.testing.assert_close(logits, reference, rtol=0, atol=1e-6)
        assert rows[file]["images"] == 12
        assert rows[file]["max_logit"] <= 1e-6
        assert rows[file]["top1_agreement"] == 1
        assert rows[file]["method"] == "svd-pade"
    for size in (1, 5):  # the batch is dynamic in both
        torch.testing.assert_close(program(batch[:size]), reference[:size], rtol=0, atol=1e-6)
        (logits,) = session.run(["logits"], {"images": batch[:size].numpy()})
        np.testing.assert_allclose(logits, reference[:size], rtol=0, atol=1e-6)
    assert rows["model.onnx"]["opset"] == 18
    assert "newton-schulz-minimax" in rows["model.onnx"]["pooling"]
    assert "svd-pade" in rows["model.pt2"]["pooling"]


def test_onnx_uses_standard_operators_alone(exported):
    import onnx

    model = onnx.load(exported / "model.onnx")
    onnx.checker.check_model(model)
    assert {node.domain for node in model.graph.node} == {""}
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]


def test_torch_export_needs_torch_alone(exported):
    program = (
        "import sys, torch; run = torch.export.load(sys.argv[1]).module(); "
        "print(tuple(run(torch.zeros(3, 1, 16, 16)).shape), 'covpool' in sys.modules)"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, str(exported / "model.pt2")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "(3, 3) False"


def test_card(run, exported):
    text = (exported / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    data = yaml.safe_load(front)
    assert data["library_name"] == "covpool"
    assert data["license"] == "apache-2.0"
    assert data["pipeline_tag"] == "image-classification"
    summary = json.loads((run / "summary.json").read_text())
    for name in ("final", "best"):
        assert f"{100 * summary[name]['test_top1']:.2f}" in body
    for words in ("covpool.load_model", "svd-pade", "textures", "flatters", "model.onnx"):
        assert words in body


def test_safetensors_are_the_checkpoint(run, exported):
    weights, metadata = read_published(exported)
    checkpoint = torch.load(run / "best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, checkpoint[f"model.{key}"]) for key, value in weights.items())
    assert metadata["scores"]["best"]["test_top1"] >= metadata["scores"]["final"]["test_top1"]


def untrained(method, width):
    torch.manual_seed(0)
    model = covpool.create_model("small-convnet", 5, method=method, in_chans=1, width=width).eval()
    preprocessing = Preprocessing(channels=1, image_size=16, resize=16, mean=(0.5,), std=(0.2,))
    metadata = {
        "version": "0",
        "classes": [*"abcde"],
        "vector_layout": "triu-row-major-v1",
        "schedule": method,
        "preprocessing": preprocessing.to_dict(),
        "images": {},
        "epoch": 0,
        "config": RunConfig().to_dict(),
    }
    return TrainedModel(
        model=model, preprocessing=preprocessing, classes=(*"abcde",), metadata=metadata
    )


@quick.parametrize(
    ("method", "width", "dtype"),
    [("isqrt-cov", 32, "float64"), ("gap", 8, "float64"), ("exact", 32, "float32")],
    keep=[("exact", 32, "float32")],
)
def test_onnx_of_other_poolings(method, width, dtype, tmp_path):
    """16 positions: with 32 channels the root is that of the Gram matrix."""
    sample = Sample(images=torch.randn(9, 1, 16, 16), source="noise")
    (row,) = export_model(
        untrained(method, width),
        tmp_path / "new",
        [FORMATS["onnx"]],
        sample,
        title="noise",
        root_dtype=getattr(torch, dtype),
    )
    assert row["max_logit"] <= (1e-6 if dtype == "float64" else 1e-4) * row["logit_scale"] + 1e-7
    assert row["dtype"] == {"isqrt-cov": "float32", "gap": "as in PyTorch", "exact": dtype}[method]


def test_words_of_a_pooling_that_is_no_root(tmp_path):
    """It has a form in products, and neither "root by" nor "pooling by" says what it is."""
    sample = Sample(images=torch.randn(3, 1, 16, 16), source="noise")
    trained = untrained("maxexp", 8)
    (row,) = export_model(trained, tmp_path / "new", [FORMATS["onnx"]], sample, title="noise")
    assert (row["pooling"], row["dtype"]) == ("maxexp, in matrix products", "float64")
    assert row["max_logit"] <= 1e-5 * row["logit_scale"]
    card = (tmp_path / "new" / "README.md").read_text()
    assert "| format | pooling | its dtype |" in card
    assert "| maxexp, in matrix products | float64 |" in card


def test_a_pooling_without_a_form_is_refused_for_onnx(tmp_path):
    sample = Sample(images=torch.randn(2, 1, 16, 16), source="noise")
    message = (
        "with pooling 'log-e' cannot be written as onnx: layer 'pool.pooling.normalisation' "
        r"\(Logarithm\) has no form in matrix products, for the logarithm; chebyshev-log, .* has "
        "one; leave"
    )
    with pytest.raises(ValueError, match=message):
        export_model(untrained("log-e", 8), tmp_path / "new", [FORMATS["onnx"]], sample, title="x")
    assert list(tmp_path.iterdir()) == []


MODELS = {
    # As wide as the pooled vector: a classifier fits it without the layer too.
    "hidden": {"method": "svd-pade", "reduced_channels": 8, "hidden_features": 36, "width": 12},
    "iteration": {"method": "isqrt-cov", "method_constants": {"iterations": 3}, "in_chans": 1},
    "gap": {"method": "gap", "gap_reduction": True, "hidden_features": "matched", "drop_rate": 0.5},
    "resnet": {"backbone": "resnet10t", "pretrained": True, "last_stride": 1, "feature_stage": 4},
    "vit": {"backbone": "vit_tiny_patch16_224", "num_classes": 5, "image_size": 64, "depth": 1},
}
"""Arguments of `create_model`, each in one at least."""


def test_every_option_of_create_model_is_exported():
    signature = inspect.signature(create_model).parameters
    given = {name for arguments in MODELS.values() for name in arguments}
    assert set(signature) - given == {"backbone_kwargs"}
    assert given - set(signature) == {"width", "depth"}  # those of `backbone_kwargs`


@quick.parametrize("name", MODELS, keep=["hidden", "iteration"])
def test_onnx_of_every_option_of_create_model(name, tmp_path):
    torch.manual_seed(0)
    arguments = {"backbone": "small-convnet", "num_classes": 3, **MODELS[name]}
    if arguments.get("pretrained"):
        torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "weights.pt")
        arguments["pretrained_cfg_overlay"] = {"file": str(tmp_path / "weights.pt")}
    model = create_model(**arguments)
    images = torch.randn(3, model.in_chans, 64, 64)
    with torch.no_grad():
        model(images)  # batch statistics other than those that norms begin with
        expected = model.eval()(images)
    FORMATS["onnx"].write(in_products(model), images[:2], tmp_path / "model.onnx")
    found = logits_of(FORMATS["onnx"].load(tmp_path / "model.onnx"), images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_model_stays_as_it_is_and_shares_its_parameters():
    model = untrained("svd-pade", 8).model
    network = in_products(model, torch.float32)
    assert (network.method, network.pool.compute_dtype) == (SUBSTITUTE, torch.float32)
    assert (model.method, model.pool.compute_dtype) == ("svd-pade", None)
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert network.state_dict(keep_vars=True)[name] is tensor


def test_deviation_counts_what_differs():
    reference = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    found = reference.clone()
    found[1] = torch.tensor([1.5, 1.0])
    measured = deviation(found, reference)
    assert measured["images"] == 4
    assert measured["logit_scale"] == 3
    assert measured["max_logit"] == 1.5
    assert measured["top1_agreement"] == 0.75 < FEWEST_SAME
    both = [1 / (1 + np.exp(-0.5)), 1 / (1 + np.exp(1))]
    assert measured["max_probability"] == pytest.approx(both[0] - both[1], abs=1e-6)


def test_nothing_is_left_of_a_format_that_fails(tmp_path):
    def fail(network, example, file):
        file.write_text("half")
        raise RuntimeError("unsupported operator\nand a page of remarks")

    broken = replace(FORMATS["onnx"], write=fail)
    sample = Sample(images=torch.randn(2, 1, 16, 16), source="noise")
    with pytest.raises(ValueError, match=r"cannot be written as onnx: unsupported operator; leave"):
        export_model(untrained("gap", 8), tmp_path / "new", [broken], sample, title="x")
    assert list(tmp_path.iterdir()) == []


def test_user_mistakes(run, exported, images, tmp_path, capsys):
    def error_of(*arguments):
        assert main(["export", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    capsys.readouterr()
    assert "--output" in error_of(run)  # export/ is there
    assert "did you mean 'onnx'" in error_of(run, "--formats", "onx", "--output", tmp_path / "x")
    assert "is a published model" in error_of(exported)
    assert "is not a run directory" in error_of(images)
    nothing = ("--images", tmp_path / "none", "--output", tmp_path / "x")
    assert "none does not exist" in error_of(run, *nothing)
    assert "--number" in error_of(run, "--number", "0")
    assert not (tmp_path / "x").exists()


def test_images_of_folders_are_spread_evenly(images):
    preprocessing = Preprocessing(channels=1, image_size=16, resize=16, mean=(0.5,), std=(0.2,))
    three = sample_of_files([images / "test"], preprocessing, 3).images
    files = [images / "test" / name / "0.png" for name in ("checks", "grain", "stripes")]
    assert torch.equal(three, torch.stack([load_image(f, preprocessing) for f in files]))
