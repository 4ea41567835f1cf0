"""The tables and figures of the paper, and what each is made from: one table, which the command
line, the tests and the documentation iterate."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from covpool.experiments import computed, trained
from covpool.experiments.arms import (
    ACCURATE,
    METHODS_OF_PAPER,
    NEWTON_SCHULZ,
    Arm,
    hybrid,
    standalone,
)
from covpool.experiments.results import SMALL, Results
from covpool.experiments.sheet import Sheet, notes

EVERY_METHOD = (*standalone("gap", *METHODS_OF_PAPER), *hybrid(*METHODS_OF_PAPER))

_OF_TABLE_1 = standalone(ACCURATE, NEWTON_SCHULZ)
_OF_RESNET_101 = (
    *standalone("gap", NEWTON_SCHULZ, "svd-pade", ACCURATE),
    *hybrid("svd-pade", ACCURATE),
)
_OF_FIGURE_2 = (*standalone(NEWTON_SCHULZ), *hybrid(*METHODS_OF_PAPER))
_EACH_STANDALONE = standalone(*METHODS_OF_PAPER)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A table or figure.

    Attributes:
        name: as the command line has it.
        title: what it is of.
        trainings: the arms of each recipe that makes it at the paper's scale; none: it is
            computed.
        small: the arms that make it on other images, by the recipe `SMALL`.
        draw: the parts of its sheet that are its own, from the runs of each of its recipes, None
            for those that there are no runs of.
    """

    name: str
    title: str
    trainings: Mapping[str, Sequence[Arm]] = field(default_factory=dict)
    small: Sequence[Arm] = ()
    draw: Callable[..., dict[str, Any]]

    @property
    def trained(self) -> bool:
        """Whether it needs training."""
        return bool(self.trainings)

    def make(self, results: Results) -> Sheet:
        """Its sheet, from finished runs."""
        found = [results.get(SMALL) or results.get(recipe) for recipe in self.trainings]
        parts = self.draw(*found)
        about = parts.pop("about", {})
        own = {runs.name: runs for runs in found if runs is not None}
        arms = {**self.trainings, SMALL: self.small}
        return Sheet(
            name=self.name,
            title=f"{self.name[:-1].capitalize()} {self.name[-1]}: {self.title}",
            scale=" ".join(runs.about for runs in own.values()) or COMPUTED,
            paper_scale=all(runs.paper_scale for runs in own.values()),
            problems=[p for name, runs in own.items() for p in runs.problems(arms[name])],
            notes=notes(self.name, **about),
            **parts,
        )


COMPUTED = "Computed exactly as the paper has it; nothing is trained."

_ROWS = (
    Target(
        name="table1",
        title="error of accurate SVD and of Newton-Schulz, ResNet-50 on ImageNet",
        trainings={"imagenet-resnet50-fast-mpn-cov": _OF_TABLE_1},
        small=_OF_TABLE_1,
        draw=trained.table1,
    ),
    Target(
        name="table2",
        title="condition number by epoch, AlexNet on ImageNet with accurate SVD",
        trainings={"imagenet-alexnet": standalone(ACCURATE)},
        small=standalone(ACCURATE),
        draw=trained.table2,
    ),
    Target(
        name="table3",
        title="error of the Taylor polynomial and of the Padé approximant",
        draw=computed.table3,
    ),
    Target(
        name="table4",
        title="errors of all methods, standalone and hybrid, ResNets on ImageNet",
        trainings={"imagenet-resnet50": EVERY_METHOD, "imagenet-resnet101": _OF_RESNET_101},
        small=EVERY_METHOD,
        draw=trained.table4,
    ),
    Target(
        name="table5",
        title="accuracies of fine-tuning on Birds, Dogs and Cars, Final and Best",
        trainings=dict.fromkeys(trained.FINE_GRAINED, _EACH_STANDALONE),
        small=_EACH_STANDALONE,
        draw=trained.table5,
    ),
    Target(name="table6", title="upper bound of the gradient's K", draw=computed.table6),
    Target(
        name="figure1",
        title="effective β-smoothness of accurate SVD and of Newton-Schulz along training",
        trainings={"imagenet-alexnet": _OF_TABLE_1},
        small=_OF_TABLE_1,
        draw=trained.figure1,
    ),
    Target(
        name="figure2",
        title="errors in the last stage of hybrid training, AlexNet on ImageNet",
        trainings={"imagenet-alexnet": _OF_FIGURE_2},
        small=_OF_FIGURE_2,
        draw=trained.figure2,
    ),
)

TARGETS: Mapping[str, Target] = {target.name: target for target in _ROWS}

PROBED = frozenset(_OF_TABLE_1)
"""The arms along whose training smoothness and conditioning are measured, under `PROBED_RECIPES`,
whichever targets are asked for: a run serves all of them."""

PROBED_RECIPES = frozenset({SMALL, *TARGETS["table2"].trainings, *TARGETS["figure1"].trainings})
