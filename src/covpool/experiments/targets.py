"""The tables and figures of the paper, and what each is made from: one table, which the command
line, the tests and the documentation iterate."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

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
from covpool.experiments.sheet import Sheet

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
        title: what it is in the paper.
        trainings: the arms of each recipe that makes it at the paper's scale; none: it is
            computed.
        small: the arms that make it on other images, by the recipe `SMALL`.
        make: the sheet, from finished runs.
    """

    title: str
    trainings: Mapping[str, Sequence[Arm]]
    small: Sequence[Arm] = ()
    make: Callable[[Results], Sheet]

    @property
    def trained(self) -> bool:
        """Whether it needs training."""
        return bool(self.trainings)


TARGETS: Mapping[str, Target] = {
    "table1": Target(
        title="error of accurate SVD and of Newton-Schulz, ResNet-50 on ImageNet",
        trainings={"imagenet-resnet50-fast-mpn-cov": _OF_TABLE_1},
        small=_OF_TABLE_1,
        make=trained.table1,
    ),
    "table2": Target(
        title="condition number by epoch, AlexNet on ImageNet with accurate SVD",
        trainings={"imagenet-alexnet": standalone(ACCURATE)},
        small=standalone(ACCURATE),
        make=trained.table2,
    ),
    "table3": Target(
        title="error of the Taylor polynomial and of the Padé approximant",
        trainings={},
        make=lambda results: computed.table3(),
    ),
    "table4": Target(
        title="errors of all methods, standalone and hybrid, ResNets on ImageNet",
        trainings={"imagenet-resnet50": EVERY_METHOD, "imagenet-resnet101": _OF_RESNET_101},
        small=EVERY_METHOD,
        make=trained.table4,
    ),
    "table5": Target(
        title="accuracies of fine-tuning on Birds, Dogs and Cars, Final and Best",
        trainings=dict.fromkeys(("birds", "dogs", "cars"), _EACH_STANDALONE),
        small=_EACH_STANDALONE,
        make=trained.table5,
    ),
    "table6": Target(
        title="upper bound of the gradient's K",
        trainings={},
        make=lambda results: computed.table6(),
    ),
    "figure1": Target(
        title="effective β-smoothness of accurate SVD and of Newton-Schulz along training",
        trainings={"imagenet-alexnet": _OF_TABLE_1},
        small=_OF_TABLE_1,
        make=trained.figure1,
    ),
    "figure2": Target(
        title="errors in the last stage of hybrid training, AlexNet on ImageNet",
        trainings={"imagenet-alexnet": _OF_FIGURE_2},
        small=_OF_FIGURE_2,
        make=trained.figure2,
    ),
}

PROBED = frozenset(_OF_TABLE_1)
"""The arms along whose training smoothness and conditioning are measured, under `PROBED_RECIPES`,
whichever targets are asked for: a run serves all of them."""

PROBED_RECIPES = frozenset({SMALL, *TARGETS["table2"].trainings, *TARGETS["figure1"].trainings})
