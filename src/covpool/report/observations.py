"""The paper's observations as `covpool reproduce` has judged them, read from what it wrote."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

FILE = "observations.json"


@dataclass(frozen=True, kw_only=True)
class Found:
    """One observation: its verdict here, and the quantities that decided it, in words."""

    number: int
    statement: str
    verdict: str
    claims: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Observations:
    """What the runs of one recipe say to the paper's observations."""

    recipe: str
    scale: str
    found: Sequence[Found]
    notes: Sequence[str]

    @property
    def headline(self) -> str:
        """How many of them are seen."""
        verdicts = [each.verdict for each in self.found]
        counts = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))
        return f"Of the paper's {len(verdicts)} observations: {counts}."


def find_observations(paths: Iterable[Path]) -> list[Observations]:
    """Those of the folders named that `covpool reproduce` wrote.

    Raises:
        ValueError: a file that is not what it writes.
    """
    return [each for path in paths if (path / FILE).is_file() for each in _read(path / FILE)]


def _read(file: Path) -> list[Observations]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return [
            Observations(
                recipe=recipe,
                scale=str(content["scale"]),
                notes=[str(note) for note in content["notes"]],
                found=[
                    Found(
                        number=int(each["number"]),
                        statement=str(each["statement"]),
                        verdict=str(each["verdict"]),
                        claims=[str(c["described"]) for c in each["claims"] if c["decides"]],
                    )
                    for each in found
                ],
            )
            for recipe, found in content["settings"].items()
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} is not what covpool reproduce writes ({error!r}); the same covpool reproduce "
            "again writes it anew, without training what has finished"
        ) from error
