"""The classes of single images by a checkpoint or a published model: nothing else is needed."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from covpool.data import Preprocessing, average_over_views, load_image
from covpool.data.folders import image_files
from covpool.data.reading import REMEDY
from covpool.models import CovPoolModel
from covpool.text import encodable
from covpool.train.building import build_model
from covpool.train.checkpoint import METADATA, load_weights
from covpool.train.config import RunConfig
from covpool.train.metadata import refuse_external
from covpool.train.published import PublishedDirectory, model_weights, read_trained
from covpool.train.run_directory import RunDirectory
from covpool.train.schedule import method_schedule


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The likeliest classes of one image with their probabilities, or why there are none."""

    path: Path
    likeliest: list[tuple[str, float]]
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A trained network with what it takes to use it.

    Attributes:
        model: in evaluation mode, with the pooling method of the epoch that its weights are of.
        preprocessing: how an image becomes the network's input.
        classes: class names; logits are in their order.
        metadata: what the checkpoint says of itself: version, configuration, schedule, …
    """

    model: CovPoolModel
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    metadata: dict[str, Any]

    def predict(
        self, images: str | Path | Sequence[str | Path], *, top: int = 5
    ) -> list[Prediction]:
        """The likeliest classes of image files.

        Args:
            images: paths of files and of folders of them, or one; a file that cannot be read gives
                a `Prediction` with its error.
            top: number of classes.

        Raises:
            DataError: a folder that cannot be read, or that holds no images.
        """
        paths = [images] if isinstance(images, str | Path) else images
        return list(self.predictions(image_files(paths), top=top))

    def predictions(self, images: Iterable[Path], *, top: int = 5) -> Iterator[Prediction]:
        """As `predict`, of files alone and one after another."""
        parameter = next(self.model.parameters())
        for image in images:
            try:
                pixels = load_image(image, self.preprocessing)
            except (ValueError, OSError) as error:
                # What its remedy says of training does not help here.
                reason = str(error).removesuffix(f"; {REMEDY}")
                yield Prediction(path=image, likeliest=[], error=reason)
                continue
            try:
                with torch.no_grad():
                    logits = average_over_views(self.model, pixels[None].to(parameter))
                shares = logits[0].softmax(0)
                if not shares.isfinite().all():
                    raise ValueError("NaN or infinite logits")
            except ValueError as error:  # of the pooling, for features that are not finite
                yield Prediction(path=image, likeliest=[], error=f"no result for {image}: {error}")
                continue
            best = shares.topk(min(top, len(self.classes)))
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            yield Prediction(
                path=image, likeliest=[(self.classes[int(i)], share) for i, share in pairs]
            )


def load_model(path: str | Path, *, allow_external: bool = False) -> TrainedModel:
    """A trained network, ready to predict.

    Args:
        path: a published model's directory (of `covpool export`, `convert` or `pull`), a run's
            directory, of which the best checkpoint is taken, or one checkpoint.
        allow_external: build the network even where its configuration has parts of it fetched from
            a hub, with your token, or opened elsewhere on this machine: a backbone of "hf-hub:…"
            or "local-dir:…", or an option such as checkpoint_path. Whoever wrote it chose them.

    Raises:
        ValueError, OSError: nothing of the kind, damaged, of another version, in need of
            `allow_external`, or weights that are not finite or do not fit the model that the
            configuration describes; the first difference is named.

    >>> trained = covpool.load_model("runs/birds")                              # doctest: +SKIP
    >>> trained.predict("image.jpg")[0].likeliest                               # doctest: +SKIP
    """
    path = find_weights(Path(path))
    checkpoint = read_trained(path)
    about = checkpoint[METADATA]
    config = RunConfig.from_dict(about["config"])
    if not allow_external:
        refuse_external(config, path)
    classes: list[str] = about["classes"]
    preprocessing = Preprocessing.from_dict(about["preprocessing"])
    schedule = method_schedule(config)
    with torch.random.fork_rng(devices=[]):  # the first weights are drawn, and then replaced
        model = build_model(
            config,
            schedule,
            classes=len(classes),
            channels=preprocessing.channels,
            image_size=preprocessing.image_size,
            pretrained=False,
        )
    weights = model_weights(checkpoint)
    load_weights(model, {**checkpoint, "state_dict": weights}, path)
    method = schedule.method_at(about["epoch"])
    if method is not None:
        model.method = method
    return TrainedModel(
        model=model.eval(),
        preprocessing=preprocessing,
        classes=tuple(classes),
        metadata=dict(about),
    )


def find_weights(path: Path) -> Path:
    """The path itself, or the best checkpoint of the run whose directory it is.

    Raises:
        ValueError: nothing is there, or neither a published model nor a run.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist; give a published model, a run or a checkpoint")
    if not path.is_dir() or PublishedDirectory.is_at(path):
        return path
    if not (path / "config.yaml").is_file():
        raise ValueError(
            f"{path} is neither a published model (it has no config.json and model.safetensors) "
            "nor a run directory (it has no config.yaml)"
        )
    run = RunDirectory.open(path)
    found = next((file for file in (run.best, run.last) if file.is_file()), None)
    if found is None:
        raise ValueError(f"run {path} has no checkpoint yet")
    return found


Writer = Callable[[Prediction], object]


def csv_writer(file: IO[str], top: int) -> Writer:
    """Writes a header, and then each prediction as a line: path, class, probability, class_2,
    probability_2, … and the error where there is no result."""
    number = ["", *(f"_{place}" for place in range(2, top + 1))]
    columns = [f"{name}{each}" for each in number for name in ("class", "probability")]
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(["path", *columns, "error"])

    def write(prediction: Prediction) -> None:
        pairs = prediction.likeliest
        cells = [cell for name, share in pairs for cell in (encodable(name), f"{share:.6f}")]
        cells += [""] * (len(columns) - len(cells))
        error = encodable(prediction.error or "")
        lines.writerow([encodable(str(prediction.path)), *cells, error])

    return write


def json_lines_writer(file: IO[str], top: int) -> Writer:
    """Writes each prediction as a line: {"path", "class", "probability", "likeliest": [{"class",
    "probability"}, …]}, or {"path", "error"} where there is no result."""

    def write(prediction: Prediction) -> None:
        found: dict[str, Any] = {"path": str(prediction.path)}
        likeliest = [{"class": name, "probability": share} for name, share in prediction.likeliest]
        if likeliest:
            found |= {**likeliest[0], "likeliest": likeliest}
        else:
            found["error"] = prediction.error
        file.write(json.dumps(found) + "\n")

    return write


WRITERS: dict[str, Callable[[IO[str], int], Writer]] = {
    ".csv": csv_writer,
    ".jsonl": json_lines_writer,
}
"""How predictions are written, by the ending of the file's name; the number is of the classes."""
