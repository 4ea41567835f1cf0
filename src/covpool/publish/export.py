"""`export_model`: a trained network as safetensors, torch.export and ONNX, each run and compared.

torch.export keeps the network's own method. ONNX has no eigendecomposition: a method of matrix
products takes its place there. Either file is read back, run on images and compared with the
network as it was trained.
"""

import copy
import importlib
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from covpool.exporting import compute_in_products
from covpool.linalg.methods import METHODS
from covpool.linalg.products import SUBSTITUTE
from covpool.linalg.tables import choose
from covpool.models import CovPoolModel
from covpool.pooling import CovPool2d
from covpool.publish.card import model_card
from covpool.publish.images import Sample
from covpool.text import quantity
from covpool.train.metadata import without_local_paths
from covpool.train.prediction import TrainedModel
from covpool.train.published import WEIGHTS, appearing, write_published

OPSET = 18
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
REPORT = "export.json"
BATCH = 16
"""Images that are run at a time; the last batch is smaller, and so tries the dynamic batch."""

Run = Callable[[Tensor], Tensor]


def _reason(error: BaseException) -> str:
    """The first line of what an exporter failed with: that of its first cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return COLOURS.sub("", (str(error).strip() or type(error).__name__).splitlines()[0])


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format that can be run.

    Attributes:
        name: as in `--formats`.
        file: the file's name.
        needs: modules beside torch.
        products: whether the pooling is to be in matrix products.
        write: from (network, example batch, file) to the file.
        load: from the file to the function images → logits.
    """

    name: str
    file: str
    products: bool
    write: Callable[[nn.Module, Tensor, Path], object]
    load: Callable[[Path], Run]
    needs: tuple[str, ...] = ()


def _write_torch_export(network: nn.Module, example: Tensor, file: Path) -> None:
    batch = {"images": {0: torch.export.Dim("batch")}}
    with torch.no_grad():
        program = torch.export.export(_Named(network), (example,), dynamic_shapes=batch)
    # Where in which file each operation was called, which nobody else needs to know.
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    torch.export.save(program, file)


def _load_torch_export(file: Path) -> Run:
    return torch.export.load(file).module()


def _write_onnx(network: nn.Module, example: Tensor, file: Path) -> None:
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            _Named(network),
            (example,),
            dynamo=True,
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            input_names=["images"],
            output_names=["logits"],
            opset_version=OPSET,
            verbose=False,
        )
        assert program is not None
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # as above
        program.save(file, external_data=False)


def _load_onnx(file: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        return torch.from_numpy(logits)

    return run


class _Named(nn.Module):
    """The network, with the name of its input that the files have."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on its own internals."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


FORMATS: Mapping[str, Format | None] = MappingProxyType(
    {
        "safetensors": None,
        "torch-export": Format(
            name="torch-export",
            file="model.pt2",
            products=False,
            write=_write_torch_export,
            load=_load_torch_export,
        ),
        "onnx": Format(
            name="onnx",
            file="model.onnx",
            products=True,
            write=_write_onnx,
            load=_load_onnx,
            needs=("onnx", "onnxscript", "onnxruntime"),
        ),
    }
)
"""The formats; safetensors, the published directory itself, is always written."""


def get_formats(names: Sequence[str]) -> list[Format]:
    """The rows of those names, without safetensors.

    Raises:
        ValueError: an unknown name, or a format whose packages are not installed.
    """
    rows = [choose("format", name, FORMATS) for name in dict.fromkeys(names)]
    for row in filter(None, rows):
        for package in row.needs:
            try:
                importlib.import_module(package)
            except ModuleNotFoundError as error:
                raise ValueError(
                    f"format {row.name!r} needs {error.name}, which is not installed; from the "
                    "checkout: pip install '.[export]'"
                ) from error
    return [row for row in rows if row is not None]


def export_model(
    trained: TrainedModel,
    output: Path,
    formats: Sequence[Format],
    sample: Sample | None,
    *,
    title: str,
    licence: str | None = None,
    root_dtype: torch.dtype = torch.float64,
    progress: Callable[[str], object] = lambda text: None,
) -> list[dict[str, Any]]:
    """Write the published directory with the files of the formats in it.

    Args:
        trained: the network.
        output: the directory.
        formats: rows of `FORMATS`.
        sample: the images on which the files are compared; may be None without formats.
        title: of the card.
        licence: of the card.
        root_dtype: of the root in matrix products.
        progress: told what is being done.

    Returns:
        A row for each format: file, pooling, and how far its outputs are from the network's.

    Raises:
        ValueError: the network cannot be written in a format; nothing is left behind then.
    """
    with appearing(output) as folder:
        return _export(
            trained, folder, formats, sample, root_dtype, progress, title=title, licence=licence
        )


def _export(
    trained: TrainedModel,
    output: Path,
    formats: Sequence[Format],
    sample: Sample | None,
    root_dtype: torch.dtype,
    progress: Callable[[str], object],
    **of_card: Any,
) -> list[dict[str, Any]]:
    rows = []
    if formats:
        assert sample is not None
        # torch.export warns of weights in another memory format.
        model = copy.deepcopy(trained.model).to(memory_format=torch.contiguous_format).float()
        progress(f"running the network on {quantity(len(sample.images), 'image')}")
        reference = logits_of(_eager(model), sample.images)
        for row in formats:
            progress(f"writing {row.file}")
            # The file keeps its example, which must not be somebody's image.
            example = torch.zeros(2, *sample.images.shape[1:])
            try:
                network = in_products(model, root_dtype) if row.products else model
                row.write(network, example, output / row.file)
            except Exception as error:  # exporters raise what they like
                backbone = trained.metadata["config"]["model"]["backbone"]
                pooled = "" if model.method in METHODS else f" with pooling {model.method!r}"
                reason = _reason(error)
                raise ValueError(
                    f"backbone {backbone!r}{pooled} cannot be written as {row.name}: {reason}; "
                    "leave the format out of --formats"
                ) from error
            progress(f"running {row.file} on {quantity(len(sample.images), 'image')}")
            found = logits_of(row.load(output / row.file), sample.images)
            rows.append(
                {
                    "format": row.name,
                    "file": row.file,
                    **({"opset": OPSET} if row.name == "onnx" else {}),
                    "method": model.method,
                    **_pooling(row, model, network),
                    "source": sample.source,
                    **deviation(found, reference),
                }
            )
        (output / REPORT).write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", "utf-8")
    progress(f"writing {WEIGHTS} and the model card")
    metadata = without_local_paths(trained.metadata)
    card = model_card(metadata, exports=rows, **of_card)
    write_published(output, trained.model.state_dict(), metadata, card)
    return rows


def _eager(model: nn.Module) -> Run:
    @torch.no_grad()
    def run(images: Tensor) -> Tensor:
        return model(images)

    return run


def in_products(model: CovPoolModel, root_dtype: torch.dtype = torch.float64) -> CovPoolModel:
    """The model as `covpool.exportable` makes it: a copy, whose parameters are the model's own.

    Args:
        model: the model.
        root_dtype: of the products. float32 is for runtimes without float64.

    Raises:
        ValueError: its pooling has no form in matrix products.
    """
    shared: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    network = copy.deepcopy(model, shared)
    compute_in_products(network, root_dtype)
    return network


def _pooling(row: Format, trained: CovPoolModel, network: CovPoolModel) -> dict[str, str]:
    """What the file has for the pooling, and in which dtype."""
    kept = {"pooling": f"{trained.method}, as trained", "dtype": "as in PyTorch"}
    pool = network.pool
    if not row.products:
        return kept
    if isinstance(pool, CovPool2d):
        dtype = pool.method.dtype(torch.float32, pool.compute_dtype)
        found = pool.method.forward.product_steps(dtype)
        assert found is not None
        same = "" if network.method == SUBSTITUTE else ", as trained"
        words = f"{network.method}, {len(found[0])} steps{same}"
    else:
        dtype = getattr(getattr(pool.pooling, "normalisation", None), "products", None)
        words = f"{network.method}, in matrix products"
        if dtype is None:
            return kept
    return {"pooling": words, "dtype": str(dtype).removeprefix("torch.")}


def logits_of(run: Run, images: Tensor) -> Tensor:
    """The logits of images, in batches of `BATCH`."""
    with torch.no_grad():
        return torch.cat([run(part) for part in images.split(BATCH)])


def deviation(found: Tensor, reference: Tensor) -> dict[str, float | int]:
    """How far logits (B, K) are from the reference's."""
    same = found.argmax(1) == reference.argmax(1)
    probabilities = found.softmax(1) - reference.softmax(1)
    return {
        "images": len(reference),
        "logit_scale": reference.abs().max().item(),
        "max_logit": (found - reference).abs().max().item(),
        "max_probability": probabilities.abs().max().item(),
        "top1_agreement": same.double().mean().item(),
    }
