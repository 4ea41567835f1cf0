"""What a run on images of the user's has by default, said in a line."""

from typing import TYPE_CHECKING

from covpool.cli.parsing import ALIASES
from covpool.train.config import RunConfig
from covpool.train.recipe import FINE_TUNING

if TYPE_CHECKING:
    from covpool.train.job import Job
    from covpool.train.recipe import Recipe

SAID = (
    "optim.name",
    "optim.learning_rate",
    "optim.decay",
    "optim.warmup_epochs",
    "optim.weight_decay",
    "train.epochs",
    "data.batch_size",
    "data.image_size",
    "data.augment",
)
"""What most decides how a run goes, and what people change first."""


def said_defaults(job: "Job", recipe: "Recipe | None") -> str | None:
    """The options that are as they are by default, as they would be written.

    Args:
        job: the run, in which what is found out from the images is known.
        recipe: what its options were laid over.

    Returns:
        None where the user chose the defaults by naming a recipe, or named no images; options
        that were given otherwise are left out.
    """
    config = job.config
    if config.data.root is None or (recipe is not None and recipe.name != FINE_TUNING):
        return None
    base, whose = (RunConfig(), "") if recipe is None else (recipe.config, "fine-tuning on ")
    found = {"data.image_size": job.splits.image_size, "data.augment": job.splits.train.augment}
    short = {option: alias for alias, option in ALIASES.items()}
    words = []
    for option in SAID:
        group, name = option.split(".")
        value = getattr(getattr(config, group), name)
        if value == getattr(getattr(base, group), name):
            words.append(f"--{short.get(option, option)} {found.get(option, value)}")
    if not words:
        return None
    return f"defaults for {whose}your own images: {' '.join(words)}"
