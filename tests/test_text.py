"""Names and numbers in what people read."""

import re
from pathlib import Path

import pytest

import covpool
from covpool.text import quantity


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ((0, "run"), "0 runs"),
        ((1, "run"), "1 run"),
        ((2, "run"), "2 runs"),
        ((1, "class", "classes"), "1 class"),
        ((2, "class", "classes"), "2 classes"),
    ],
)
def test_a_quantity_has_its_noun_in_the_right_number(given, text):
    assert quantity(*given) == text


def test_runs_epochs_and_seeds_are_written_as_quantities():
    written = re.compile(r"\{[^{}\"]+\} (runs|epochs|seeds|trials|threads)\b")
    found = [
        f"{path.name}: {match[0]}"
        for path in Path(covpool.__file__).parent.rglob("*.py")
        for match in written.finditer(path.read_text(encoding="utf-8"))
    ]
    assert found == []
