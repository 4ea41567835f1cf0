"""One class and one row for each axis are all that covpool needs to be told of an addition."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_one_class_and_one_row_are_enough():
    program = Path(__file__).with_name("one_more_row.py")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(program)],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "skipped" not in run.stdout
