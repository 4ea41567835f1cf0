import gc
import operator
import os
import signal
from collections import defaultdict

import pytest
import torch
from hypothesis import settings

from covpool.machine import available_cores

# A shell that starts the tests in the background has SIGINT ignored, and children inherit that;
# tests of Ctrl-C need it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Collection makes a million objects that stay: to search them for garbage again and again, and once
# more in every test, takes a quarter of its time.
gc.disable()

# Times vary on shared machines; examples are the same on every run.
settings.register_profile("covpool", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("covpool")


def pytest_xdist_auto_num_workers(config):
    """A process for each core; where files are named, none but this one, at the user's threads."""
    named = config.args_source is config.ArgsSource.ARGS
    return 0 if named else available_cores()


def pytest_configure(config):
    if hasattr(config, "workerinput"):  # one of several processes
        workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        torch.set_num_threads(max(1, available_cores() // workers))


@pytest.fixture
def two_threads_on_time(monkeypatch):
    """Two threads on two cores, whose teams are never late, on whatever machine."""
    from covpool.linalg.engine import back_off, cores

    monkeypatch.setattr(cores, "available_cores", lambda: 2)
    monkeypatch.setattr(back_off.BACK_OFF, "until", 0.0)
    monkeypatch.setattr(back_off.Stopwatch, "late", lambda self: False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.hookimpl(tryfirst=True)  # before the slow ones are left out
def pytest_collection_modifyitems(items):
    """Of tests that are marked `axes` those are slow where more than one parameter is off its base.

    A base is the first value, or those whose numbers are given by the parameter's name.
    """
    for item in items:
        if axes := item.get_closest_marker("axes"):
            numbers = {}
            for mark in item.iter_markers("parametrize"):
                names, values = mark.args
                several = not isinstance(names, str)
                found = [item.callspec.params[name] for name in (names if several else [names])]
                numbers[names[0] if several else names] = next(
                    number
                    for number, value in enumerate(values)
                    if all(map(operator.is_, found, value if several else [value]))
                )
            assert numbers.keys() >= axes.kwargs.keys(), f"{item}: {axes}"
            off = [name for name in numbers if numbers[name] not in axes.kwargs.get(name, (0,))]
            if len(off) > 1:
                item.add_marker("slow")


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


def pytest_unconfigure():
    gc.unfreeze()


PICTURES = ("draw_curves", "draw_confusion")
"""What the engine draws at a training's end."""


@pytest.fixture(scope="session", autouse=True)
def _empty_pictures(request):
    """In the quick tests of everything the files of these pictures are left empty: to draw them
    takes longer than to train the smallest networks. Where tests are named, and where the slow ones
    run too, they are drawn; `drawn` asks for them.
    """
    config = request.config
    if not (hasattr(config, "workerinput") and config.option.markexpr == "not slow"):
        yield
        return
    from covpool.train import engine
    from covpool.train.run_directory import replace_text

    with pytest.MonkeyPatch.context() as patch:
        for name in PICTURES:
            patch.setattr(engine, name, lambda *content: replace_text(content[-1], ""))
        yield


@pytest.fixture(scope="module")
def drawn():
    """The pictures of trainings are drawn, as users get them."""
    from covpool.train import engine, figures

    with pytest.MonkeyPatch.context() as patch:
        for name in PICTURES:
            patch.setattr(engine, name, getattr(figures, name))
        yield


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
        _largest[method][check] = max(float(error), _largest[method].get(check, 0.0))
        return error

    return note


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["largest"] = dict(_largest)


def pytest_testnodedown(node):
    for method, row in getattr(node, "workeroutput", {}).get("largest", {}).items():
        for check, error in row.items():
            _largest[method][check] = max(error, _largest[method].get(check, 0.0))


def pytest_terminal_summary(terminalreporter):
    if not _largest:
        return
    checks = list(dict.fromkeys(check for row in _largest.values() for check in row))
    terminalreporter.section("largest relative errors by method")
    for method, row in _largest.items():
        cells = (f"{check} {row[check]:.1e}" for check in checks if check in row)
        terminalreporter.write_line(f"{method:11} " + ", ".join(cells))
