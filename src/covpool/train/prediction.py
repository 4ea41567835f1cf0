"""The classes of single images by a checkpoint, which is all that is needed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from covpool.data import Preprocessing, average_over_views, load_image
from covpool.models import CovPoolModel
from covpool.train.checkpoint import METADATA, load_weights, read_checkpoint
from covpool.train.config import RunConfig
from covpool.train.job import build_model
from covpool.train.schedule import method_schedule


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The likeliest classes of one image with their probabilities, or why there are none."""

    path: Path
    likeliest: list[tuple[str, float]]
    error: str | None = None


def predict(path: Path, images: Sequence[Path], *, top: int = 5) -> Iterator[Prediction]:
    """The likeliest classes of image files by a checkpoint, which is all that is needed.

    Args:
        path: the checkpoint.
        images: image files; one that cannot be read gives a `Prediction` with its error.
        top: number of classes.

    Raises:
        ValueError, OSError: a checkpoint that cannot be read, or is of another version.
    """
    checkpoint = read_checkpoint(path)
    about = checkpoint[METADATA]
    config = RunConfig.from_dict(about["config"])
    classes: list[str] = about["classes"]
    preprocessing = Preprocessing.from_dict(about["preprocessing"])
    schedule = method_schedule(config)
    model = build_model(
        config,
        schedule,
        classes=len(classes),
        channels=preprocessing.channels,
        image_size=preprocessing.image_size,
        pretrained=False,
    )
    prefix = "model."
    weights = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items()}
    load_weights(model, {**checkpoint, "state_dict": weights}, path)
    method = schedule.method_at(about["epoch"])
    if method is not None:
        model.method = method
    return _predictions(model.eval(), preprocessing, classes, images, top)


def _predictions(
    model: CovPoolModel,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    images: Sequence[Path],
    top: int,
) -> Iterator[Prediction]:
    dtype = next(model.parameters()).dtype
    for image in images:
        try:
            pixels = load_image(image, preprocessing)
        except (ValueError, OSError) as error:
            yield Prediction(path=image, likeliest=[], error=str(error))
            continue
        with torch.no_grad():
            shares = average_over_views(model, pixels[None].to(dtype))[0].softmax(0)
        best = shares.topk(min(top, len(classes)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        yield Prediction(path=image, likeliest=[(classes[int(i)], share) for i, share in pairs])
