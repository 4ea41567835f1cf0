import signal
from collections import defaultdict

import pytest
from hypothesis import settings

# A shell that starts the tests in the background has SIGINT ignored, and children inherit that;
# tests of Ctrl-C need it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Times vary on shared machines; examples are the same on every run.
settings.register_profile("covpool", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("covpool")


@pytest.fixture(scope="session")
def report_of_made_up_runs(tmp_path_factory):
    """One page, as drawing it takes seconds, for the tests that read it and those that look."""
    from covpool.report.page import render
    from covpool.report.sources import find_runs
    from made_up_runs import make_grid

    folder = tmp_path_factory.mktemp("runs") / "a <i>grid</i> & 'more'"
    return render(find_runs([make_grid(folder)]), baseline="gap")


_largest: dict[str, dict[str, float]] = defaultdict(dict)


@pytest.fixture
def note_error():
    """Keep the largest error met per kind of check and method, for the closing table."""

    def note(check: str, method: str, error: float) -> float:
        _largest[method][check] = max(error, _largest[method].get(check, 0.0))
        return error

    return note


def pytest_terminal_summary(terminalreporter):
    if not _largest:
        return
    checks = list(dict.fromkeys(check for row in _largest.values() for check in row))
    terminalreporter.section("largest relative errors by method")
    for method, row in _largest.items():
        cells = (f"{check} {row[check]:.1e}" for check in checks if check in row)
        terminalreporter.write_line(f"{method:11} " + ", ".join(cells))
