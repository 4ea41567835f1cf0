"""The faults of tools/mutations.py, which checks that the quick tests notice them."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / "tools"
sys.path.insert(0, str(TOOLS))
from mutations import FAULTS  # noqa: E402


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.file}-{fault.old[:40]}")
def test_the_source_has_the_text_of_every_fault_once(fault):
    assert fault.new != fault.old
    compile(fault.text(), fault.file, "exec")
    for name in fault.tests.split():
        assert (TOOLS.parent / "tests" / f"test_{name}.py").exists()


def test_there_are_faults_of_every_part():
    assert len(FAULTS) >= 40
    assert {str(Path(fault.file).parent) for fault in FAULTS} >= {
        *(".", "linalg", "linalg/autograd", "linalg/engine", "linalg/forwards"),
        *("linalg/functions", "linalg/gradients"),
    }


@pytest.mark.slow
def test_the_tool_says_what_is_caught():
    command = [sys.executable, TOOLS / "mutations.py", "gauge.py", "--jobs", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()[-2:]
    assert first.startswith("caught   linalg/gauge.py: several = tied & (tied -> ")
    assert second == "1 of 1 faults caught"
