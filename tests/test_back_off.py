"""Small work is done by one thread for a while where a team of threads was late."""

import math
import threading

import pytest
import torch

import covpool
from covpool.linalg.autograd import lift
from covpool.linalg.engine import back_off, cores, quota
from covpool.linalg.engine.back_off import BACK_OFF, LONGEST, SHORTEST, BackOff, Stopwatch
from covpool.linalg.engine.shares import by_shares

JUDGED = Stopwatch.late


class Clocks:
    """What the clock and each thread's time on its core are to be."""

    def __init__(self, monkeypatch):
        self.clock, self.core = 100.0, 0.0
        monkeypatch.setattr(back_off, "perf_counter", lambda: self.clock)
        monkeypatch.setattr(back_off, "thread_time", lambda: self.core)

    def spend(self, clock, core):
        self.clock += clock
        self.core += core


@pytest.fixture
def clocks(monkeypatch):
    return Clocks(monkeypatch)


pytestmark = pytest.mark.usefixtures("two_threads_on_time")


@pytest.mark.parametrize(
    ("threads", "waited", "late"),
    {
        "each has a core": ([(2.0, 2.0), (2.0, 2.0)], -2.0, False),
        "a helper came late, by half of what it saved": ([(2.0, 2.0), (2.0, 2.0)], -1.0, False),
        "a helper came later than one thread would have needed": (
            [(2.0, 2.0), (2.0, 2.0)],
            0.5,
            True,
        ),
        "a helper was held up in its part": ([(2.0, 2.0), (10.0, 2.0)], -2.0, True),
        "both have half a core": ([(4.0, 2.0), (4.0, 2.0)], -4.0, False),
        "a helper found nothing left": ([(4.0, 4.0), (0.0, 0.0)], 0.0, False),
        "below the clocks' steps": ([(0.0, 0.0), (0.0, 0.0)], 3.0, False),
    }.values(),
)
def test_late_is_later_than_one_thread(clocks, threads, waited, late):
    """Threads that worked at once are told here by time that is taken off after they worked."""
    stopwatch = Stopwatch()
    for spent in threads:
        stopwatch.timed(lambda spent=spent: clocks.spend(*spent))
    clocks.spend(waited, 0)
    assert JUDGED(stopwatch) is late


def test_pauses_double_while_teams_are_late(clocks):
    pause = BackOff()
    assert clocks.clock >= pause.until
    lengths = []
    for _ in range(10):
        pause.heed(late=True)
        lengths.append(pause.until - clocks.clock)
        clocks.clock = pause.until
    assert lengths[:3] == pytest.approx([SHORTEST, 2 * SHORTEST, 4 * SHORTEST])
    assert lengths[-1] == pytest.approx(LONGEST)
    pause.heed(late=False)
    assert clocks.clock >= pause.until
    pause.heed(late=True)
    assert pause.until - clocks.clock == pytest.approx(SHORTEST)


@pytest.mark.parametrize("pool", [False, True])
def test_after_a_late_team_one_thread_works_alone(monkeypatch, pool):
    if pool:
        monkeypatch.setattr(cores, "_openmp", lambda: None)
    elif cores._openmp() is None:
        pytest.skip("torch without OpenMP")
    together = threading.Barrier(2)

    def threads_of(small):
        found = []

        def look(part):
            # The threads of a team wait for each other, so that none takes all.
            if BACK_OFF.until == 0 or not small:
                together.wait(60)
            found.append((threading.get_ident(), torch.get_num_threads()))

        cores.spread(look, [slice(0, 1), slice(1, 2)], small=small)
        return found

    assert len(set(threads_of(small=True))) == 2
    monkeypatch.setattr(BACK_OFF, "until", math.inf)
    ((_, threads),) = set(threads_of(small=True))
    assert threads == 1
    assert torch.get_num_threads() == 2
    assert len(set(threads_of(small=False))) == 2


@pytest.mark.parametrize("late", [False, True])
def test_small_teams_alone_are_timed(monkeypatch, late):
    monkeypatch.setattr(Stopwatch, "late", lambda self: late)
    cores.spread(lambda part: None, [slice(0, 1), slice(1, 2)])
    assert BACK_OFF.until == 0
    cores.spread(lambda part: None, [slice(0, 1), slice(1, 2)], small=True)
    assert (BACK_OFF.until > 0) is late


def test_products_are_done_by_one_thread_too(monkeypatch):
    if cores._openmp() is None:
        pytest.skip("torch without OpenMP")
    seen = []

    def asked(eigenvectors):
        seen.append(torch.get_num_threads())
        return False

    monkeypatch.setattr(lift, "_in_reused_memory", asked)  # where the products begin
    matrix = torch.eye(8, dtype=torch.float64).expand(4, 8, 8)
    expected = covpool.matrix_sqrt(matrix)
    monkeypatch.setattr(BACK_OFF, "until", math.inf)
    found = covpool.matrix_sqrt(matrix)
    assert seen == [2, 1]
    assert torch.get_num_threads() == 2
    assert torch.equal(found, expected)


@pytest.mark.parametrize("call", [covpool.cov_pool, lambda x: covpool.matrix_log(x @ x.mT)])
def test_alone_gives_the_same_digits(monkeypatch, call):
    torch.manual_seed(0)
    features = torch.randn(16, 24, 40, dtype=torch.float64, requires_grad=True)

    def value_and_gradient():
        result = call(features)
        return result, *torch.autograd.grad(result.square().sum(), features)

    expected = value_and_gradient()
    monkeypatch.setattr(BACK_OFF, "until", math.inf)
    for one, other in zip(value_and_gradient(), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13 * other.abs().max().item())


def test_errors_arrive_when_alone(monkeypatch):
    def fail(part):
        raise KeyError("from a share")

    monkeypatch.setattr(BACK_OFF, "until", math.inf)
    with pytest.raises(KeyError, match="from a share"):
        by_shares(fail, (torch.ones(8, 4, 4),))
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    {
        "none": ("0::/\n", {}, 2**31),
        "version 2": ("0::/a/b\n", {"a/b/cpu.max": "150000 100000\n"}, 2),
        "of a group above": (
            "0::/a/b\n",
            {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"},
            3,
        ),
        "mounted as the root": ("0::/docker/x\n", {"cpu.max": "200000 100000\n"}, 2),
        "version 1": (
            "4:memory:/m\n1:cpu,cpuacct:/a\n0::/\n",
            {
                "cpu,cpuacct/a/cpu.cfs_quota_us": "400000\n",
                "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        "version 1, no limit": (
            "1:cpu:/\n",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            2**31,
        ),
        "less than a core": ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        "unreadable": ("0::/\n", {"cpu.max": "what?\n"}, 2**31),
    }.values(),
)
def test_the_system_s_limit_of_time_counts(tmp_path, monkeypatch, groups, files, expected):
    (tmp_path / "cgroup").write_text(groups)
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(quota, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(quota, "MEMBERSHIP", tmp_path / "cgroup")
    assert quota._quota.__wrapped__() == expected


def test_no_more_threads_than_cores():
    torch.set_num_threads(4)
    assert cores.usable_threads() == 2
    found = set()

    def look(part):
        found.add(threading.get_ident())
        return (part,)

    by_shares(look, (torch.ones(64, 9, 9),))
    assert 1 <= len(found) <= 2
    assert torch.get_num_threads() == 4
