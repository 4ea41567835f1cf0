"""A study as it is written down: a YAML file with a block `study` and a run's configuration."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from covpool.linalg.methods import choose
from covpool.reproduce.arms import Arm, read_arm
from covpool.train.config import RunConfig

PAPER_TABLES = ("", "table4", "table5")


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is compared, and how often.

    Attributes:
        name: the file's, without its ending.
        title: what it is about, in a line.
        stands_for: the table of the paper whose place it takes, "table4" or "table5"; empty: none.
        reduced: what was made smaller for want of a faster machine; empty: nothing.
        history: what was changed after results were seen; empty: nothing.
        arms: the ways to train, by label; the first are trained first.
        leading: those of them that get `leading_seeds` seeds, the others `seeds`.
        references: the arms that all others are compared with.
        rates: learning rates that each arm is tried with on the validation images.
        tuning_seeds: seeds of these trials, from 1000 on so that no trial is a run that counts.
        config: options of every run.
    """

    name: str
    title: str
    stands_for: str = ""
    reduced: str = ""
    history: str = ""
    arms: tuple[Arm, ...]
    leading: tuple[Arm, ...] = ()
    references: tuple[Arm, ...]
    seeds: int = 3
    leading_seeds: int = 5
    rates: tuple[float, ...]
    tuning_seeds: int = 1
    config: RunConfig

    def __post_init__(self) -> None:
        for field in ("seeds", "leading_seeds", "tuning_seeds"):
            value = getattr(self, field)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"study.{field} must be at least 1, not {value!r}")
        for field in ("arms", "references", "rates"):
            value = getattr(self, field)
            if not value or len(set(value)) < len(value):
                raise ValueError(
                    f"study.{field} must name something, and nothing twice, not {list(value)!r}"
                )
        if not all(0 < rate < math.inf for rate in self.rates):
            raise ValueError(f"study.rates must be above 0 and finite, not {list(self.rates)}")
        for field in ("leading", "references"):
            strange = [arm.label for arm in getattr(self, field) if arm not in self.arms]
            if strange:
                raise ValueError(f"study.{field} has {strange[0]!r}, which study.arms has not")
        if self.stands_for not in PAPER_TABLES:
            raise ValueError(
                f"study.stands_for must be one of {', '.join(filter(None, PAPER_TABLES))}, not "
                f"{self.stands_for!r}"
            )

    def seeds_of(self, arm: Arm) -> range:
        """The seeds that an arm is trained with."""
        first = self.config.train.seed
        return range(first, first + (self.leading_seeds if arm in self.leading else self.seeds))

    def restricted(self, labels: Sequence[str]) -> "Study":
        """The study with these arms alone; references that are not among them are left out.

        Raises:
            ValueError: one that the study does not have.
        """
        own = {arm.label: arm for arm in self.arms}
        arms = tuple(dict.fromkeys(choose("arm of the study", label, own) for label in labels))
        kept = {
            field: tuple(arm for arm in getattr(self, field) if arm in arms)
            for field in ("leading", "references")
        }
        return replace(
            self, arms=arms, leading=kept["leading"], references=kept["references"] or arms[:1]
        )


def read_study(path: Path) -> Study:
    """The study of a file.

    Raises:
        ValueError, OSError: a file that cannot be read, or says something that it may not.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not isinstance(content.get("study"), dict):
        raise ValueError(f"{path} is no study: it has no block `study`")
    about: dict[str, Any] = content.pop("study")
    known = {field.name for field in dataclasses.fields(Study)} - {"name", "config"}
    for key in about:
        if key not in known:
            raise ValueError(
                f"{path}: study.{key} is unknown; known are {', '.join(sorted(known))}"
            )
    try:
        return Study(name=path.stem, config=RunConfig.from_dict(content), **_typed(about))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _typed(about: Mapping[str, Any]) -> dict[str, Any]:
    typed = dict(about)
    for field in ("title", "arms", "references", "rates"):
        if field not in typed:
            raise ValueError(f"study.{field} is missing")
    for field in ("arms", "leading", "references", "rates"):
        if not isinstance(typed.get(field, []), list):
            raise ValueError(f"study.{field} must be a list, as in [a, b], not {typed[field]!r}")
    for field in ("arms", "leading", "references"):
        if field in typed:
            typed[field] = tuple(read_arm(label) for label in typed[field])
    typed["rates"] = tuple(float(rate) for rate in typed["rates"])
    return typed
