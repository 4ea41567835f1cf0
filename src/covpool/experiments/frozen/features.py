"""Feature maps of a frozen backbone: computed once, kept on disk, and read from there.

A file holds the maps of one stage, a row for each view of an image: the training images, then (with
mirror images) their mirror images, then the test images. Its name is a digest of all that decides
its content.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from covpool.data.dataset import Images, content_digest
from covpool.data.listing import in_threads
from covpool.models import CovPoolModel
from covpool.train.config import RunConfig
from covpool.train.interruption import StopRequest
from covpool.train.job import Job
from covpool.train.run_directory import replace_text, synchronise

LAYOUT = 1
"""Counts the meanings that a file's rows have had, lest an old one be read in a new one's sense."""

MAPS, DONE, ABOUT = "maps.npy", "done.json", "about.json"

BATCH = 32
"""Images that go through the backbone at a time; how far a killed computation falls back."""

Stage = int | None
"""A stage of the backbone, counted from 0 as in timm's `feature_info`; None: its last features."""

Progress = Callable[[int, int], None]
"""Called with (done, in all)."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """The images whose features are kept, and which rows are whose.

    Attributes:
        train: the training images, as they are evaluated.
        test: the images that the runs that count are evaluated on.
        mirrored: whether the mirror images of the training images are there too.
    """

    train: Images
    test: Images
    mirrored: bool

    @classmethod
    def of(cls, job: Job) -> "Views":
        """Those of a job, which has to evaluate the test split."""
        splits = job.splits
        plain = replace(splits.preprocessing, views="center")
        train, test = (Images(i.source, i.labels, plain) for i in (splits.train, splits.test))
        return cls(train=train, test=test, mirrored=job.config.data.augment == "flip")

    @property
    def rows(self) -> int:
        """How many views there are."""
        return len(self.train) * (1 + self.mirrored) + len(self.test)

    def __getitem__(self, row: int) -> Tensor:
        """The view of that row, (channels, H, W), standardised."""
        count = len(self.train)
        trained = count * (1 + self.mirrored)
        if row >= trained:
            return self.test[row - trained][0]
        image = self.train[row % count][0]
        return image.flip(-1) if row >= count else image

    def digest(self, progress: Progress | None = None) -> str:
        """Of the images' content, whatever they are called, and of what is made of it."""
        found = hashlib.sha256(json.dumps(self.train.preprocessing.to_dict()).encode())
        entries = [(i.source, n) for i in (self.train, self.test) for n in range(len(i))]
        for done, digest in enumerate(in_threads(_content, entries), 1):
            found.update(digest)
            if progress is not None:
                progress(done, len(entries))
        found.update(f"{LAYOUT} {len(self.train)} {len(self.test)} {self.mirrored}".encode())
        return found.hexdigest()


def _content(entry: tuple[Any, int]) -> bytes:
    source, index = entry
    return content_digest(source.content(index))


def weights_digest(module: torch.nn.Module) -> str:
    """Of the names and values of a module's parameters and buffers."""
    found = hashlib.sha256()
    for name, value in module.state_dict().items():
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


@dataclass(frozen=True, kw_only=True)
class FeatureFile:
    """The maps of one stage on disk.

    Attributes:
        folder: its own.
        stage: which.
        shape: (rows, C, H, W).
    """

    folder: Path
    stage: Stage
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """What the maps take, as float32."""
        return 4 * int(np.prod(self.shape))

    @property
    def whole(self) -> bool:
        """Whether all rows are there."""
        return self.done == self.shape[0]

    @property
    def done(self) -> int:
        """How many rows are there; a file of another shape counts as none."""
        try:
            found = json.loads((self.folder / DONE).read_text(encoding="utf-8"))["rows"]
            maps = np.load(self.folder / MAPS, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        right = maps.shape == self.shape and maps.dtype == np.float32
        return found if right and isinstance(found, int) and 0 <= found <= self.shape[0] else 0

    def open(self) -> np.ndarray:
        """The maps, memory-mapped."""
        return np.load(self.folder / MAPS, mmap_mode="r", allow_pickle=False)

    def writer(self) -> np.ndarray:
        """The maps, to be written; those that are done stay."""
        file = self.folder / MAPS
        if self.done:
            return np.lib.format.open_memmap(file, mode="r+")
        self.folder.mkdir(parents=True, exist_ok=True)
        return np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=self.shape)

    def note(self, rows: int) -> None:
        """Say that so many rows are there, after they are."""
        synchronise(self.folder / MAPS)
        replace_text(self.folder / DONE, json.dumps({"rows": rows}) + "\n")


class Extractor:
    """A job's backbone as a function from images to the maps of some stages, in one pass.

    Args:
        job: with a model of the backbone's last features where there are several stages, else of
            the only one (`model.feature_stage`).
        stages: which.

    Raises:
        ValueError: a stage that the backbone does not have, or a backbone that gives no
            intermediate features.
    """

    def __init__(self, job: Job, stages: Sequence[Stage]) -> None:
        gpu = job.config.train.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        self.device = torch.device("cuda" if gpu else "cpu")
        self.model: CovPoolModel = job.model.to(self.device).eval()
        if not gpu:  # there, a pass of an EfficientNet takes 0.8 of the time so
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.stages = tuple(stages)
        self.inner = sorted(stage for stage in self.stages if stage is not None)
        if len(self.stages) == 1:
            self.inner = []
        shape = (job.splits.channels, job.splits.image_size, job.splits.image_size)
        self.shapes = [tuple(maps.shape[1:]) for maps in self(torch.zeros(1, *shape))]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[Tensor]:
        """The maps (B, C, H, W) of each stage, on the CPU."""
        return [maps.cpu().contiguous() for maps in self._maps(images.to(self.device))]

    def _maps(self, images: Tensor) -> list[Tensor]:
        if not self.inner:
            return [self.model.forward_features(images)]
        last, found = self.model.forward_intermediates(
            images, indices=self.inner, norm=False, output_fmt="NCHW"
        )
        by_stage: dict[Stage, Tensor] = {**dict(zip(self.inner, found, strict=True)), None: last}
        return [by_stage[stage] for stage in self.stages]

    @cached_property
    def digest(self) -> str:
        """Of the backbone's weights and layout."""
        return weights_digest(self.model.backbone)


def feature_files(
    extractor: Extractor, views: Views, config: RunConfig, cache: Path, digest: str
) -> list[FeatureFile]:
    """Where the maps of each stage are or will be.

    Args:
        extractor: of the backbone.
        views: the images.
        config: of the runs.
        cache: the folder of all features.
        digest: of the views.
    """
    model = config.model
    files = []
    for stage, shape in zip(extractor.stages, extractor.shapes, strict=True):
        about = {
            "images": digest,
            "backbone": model.backbone,
            "options": model.backbone_options,
            "last_stride": model.last_stride,
            "weights": extractor.digest,
            "stage": stage,
            "shape": shape,
        }
        text = json.dumps(about, sort_keys=True, default=str)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        folder = cache / f"{stage_name(stage)}-{key}"
        files.append(FeatureFile(folder=folder, stage=stage, shape=(views.rows, *shape)))
    return files


def stage_name(stage: Stage) -> str:
    """For files and people."""
    return "last" if stage is None else f"stage{stage}"


def compute(
    extractor: Extractor, views: Views, files: Sequence[FeatureFile], progress: Progress
) -> None:
    """Compute the maps that are missing.

    Raises:
        Interrupted: it was asked to stop; what is done is kept.
        DataError: an image cannot be read.
    """
    begin = min(file.done for file in files)
    if begin == views.rows:
        return
    writers = [file.writer() for file in files]
    with StopRequest(announce=True) as request:
        for first, images in _batches(views, begin):
            for writer, maps in zip(writers, extractor(images), strict=True):
                writer[first : first + len(images)] = maps.numpy()
            done = first + len(images)
            noted = request.signal_number or done == views.rows or done // BATCH % 16 == 0
            if noted:
                for writer, file in zip(writers, files, strict=True):
                    writer.flush()  # type: ignore[attr-defined]
                    file.note(done)
            progress(done, views.rows)
            if noted:
                request.check()
        request.check()


def _batches(views: Views, begin: int) -> Iterator[tuple[int, Tensor]]:
    """Batches of views from that row on, each read while the one before it is computed."""
    starts = range(begin, views.rows, BATCH)

    def read(first: int) -> Tensor:
        return torch.stack([views[row] for row in range(first, min(first + BATCH, views.rows))])

    with ThreadPoolExecutor(max_workers=1) as pool:
        following = pool.submit(read, starts[0])
        for place, first in enumerate(starts):
            images = following.result()
            if place + 1 < len(starts):
                following = pool.submit(read, starts[place + 1])
            yield first, images
