"""The training recipes in the package: a YAML file each in `recipes/`, found by its name.

A file holds a configuration as config.yaml of a run does, and a block `recipe` about itself. What
it leaves open is as in the configuration's dataclasses.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any

import yaml

from covpool.linalg.tables import choose
from covpool.train.config import RunConfig

if TYPE_CHECKING:
    from covpool.train.job import Job

EMBEDDED = "typefaces"
"""The recipe that holds where neither it nor other images are named."""

FINE_TUNING = "fine-tuning"
"""The recipe that holds where none is named and training starts from weights."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe.

    Attributes:
        name: its file's, without the ending.
        title: what it trains.
        reproduces: which figures of the paper.
        data: the data set it is for.
        starts_from: the weights that it needs; None: it trains from scratch.
        embedded: whether it can train on the images in the package.
        config: the configuration.
        text: the file without its block `recipe`: what --config takes.
    """

    name: str
    title: str
    reproduces: str
    data: str
    starts_from: str | None = None
    embedded: bool = False
    config: RunConfig
    text: str

    def check(self, config: RunConfig) -> None:
        """Refuse a configuration made from this recipe that lacks what only the user has.

        Raises:
            ValueError: no images, or no weights to start from.
        """
        if config.data.root is None and not self.embedded:
            raise ValueError(
                f"recipe {self.name!r} trains on {self.data}: give its place as --data.root PATH"
            )
        model = config.model
        if self.starts_from and model.init_from is None and not model.pretrained:
            raise ValueError(
                f"recipe {self.name!r} starts from {self.starts_from}: give a run or a file of "
                "weights as --model.init_from PATH, or --model.pretrained true for the backbone's "
                "own"
            )


@cache
def read_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ValueError: no such recipe; the message lists all and names the nearest.
    """
    text = choose("recipe", name, _files()).read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    about: Mapping[str, Any] = content.pop("recipe")
    body = re.sub(r"^recipe:\n(?:[ \t]+.*\n)*", "", text, flags=re.MULTILINE)
    return Recipe(name=name, config=RunConfig.from_dict(content), text=body, **about)


def default_recipe(given: Mapping[str, Mapping[str, Any]]) -> Recipe | None:
    """What a run starts from that names no recipe: fine-tuning where it is given weights, that of
    the embedded images where it is not given others, else None, which is `RunConfig()`.

    Args:
        given: the options that were given, by group and name.
    """
    model, data = given.get("model", {}), given.get("data", {})
    if model.get("pretrained") or model.get("init_from"):
        return read_recipe(FINE_TUNING)
    return read_recipe(EMBEDDED) if {"name", "root"}.isdisjoint(data) else None


SAID = (
    *(("optim", name) for name in ("name", "learning_rate", "decay", "warmup_epochs")),
    *(("optim", "weight_decay"), ("train", "epochs")),
    *(("data", name) for name in ("batch_size", "image_size", "augment")),
)
"""What most decides how a run goes, and what people change first."""


def said_defaults(job: "Job", default: Recipe | RunConfig | None) -> str | None:
    """A line of the options that a run on images of the user's has by default.

    Args:
        job: the run, in which what is found out from the images is known.
        default: what its options were laid over; None where that was named.

    Returns:
        None where there is nothing to say: no images of the user's, nothing by default. Options
        that were given otherwise are left out.
    """
    if default is None or job.config.data.root is None:
        return None
    tuned = isinstance(default, Recipe)
    small = not tuned and job.config.model.backbone == default.model.backbone
    here, there = job.config.to_dict(), (default.config if tuned else default).to_dict()
    found = {"image_size": job.splits.image_size, "augment": job.splits.train.augment}
    words = [
        f"{group}.{name} {found.get(name, here[group][name])}"
        for group, name in SAID
        if here[group][name] == there[group][name]
    ]
    whose = "fine-tuning on your own images" if tuned else "your own images"
    advice = ""
    if small:
        words.insert(0, f"model.backbone {job.config.model.backbone}, untrained")
        advice = (
            "; photographs are told better by a network of timm with its weights: --model.backbone "
            "resnet50 --model.pretrained true"
        )
    return f"defaults for {whose}: {', '.join(words)}{advice}" if words else None


def read_recipes() -> list[Recipe]:
    """All recipes, by name."""
    return [read_recipe(name) for name in _files()]


def _files() -> dict[str, Traversable]:
    folder = resources.files("covpool.train") / "recipes"
    return {
        file.name.removesuffix(".yaml"): file
        for file in sorted(folder.iterdir(), key=lambda file: file.name)
        if file.name.endswith(".yaml")
    }
