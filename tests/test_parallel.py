"""Shares of a batch: the same results for every shape and thread count, no trace left behind."""

import copy
import os
import pickle
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import covpool
from covpool.linalg.engine import cores as threads
from covpool.linalg.engine import shares as parallel
from covpool.linalg.engine.factorisation import DecompositionError
from covpool.linalg.engine.shares import SampleError, by_shares

WAYS = {"OpenMP": threads._openmp(), "pool": None}
FIND_OPENMP = threads._openmp.__wrapped__


@pytest.fixture(
    autouse=True,
    params=[
        pytest.param(
            way,
            marks=pytest.mark.skipif(team is None and way != "pool", reason="torch without OpenMP"),
        )
        for way, team in WAYS.items()
    ],
)
def way(request, monkeypatch, two_threads_on_time):
    monkeypatch.setattr(threads, "_openmp", lambda: WAYS[request.param])
    # Small shares, so that a small batch has many.
    monkeypatch.setattr(parallel, "SHARE_BYTES", 240)


def statistics(matrices, others):
    """Outputs of several shapes and dtypes, one transposed, which tell each sample apart."""
    total = matrices.sum((-2, -1)) + others.sum(-1)
    return matrices.mT @ matrices, total, (matrices > 0).mT, matrices.mT


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("batch", [(), (1,), (2,), (7,), (3, 5), (2, 1, 4)])
def test_shares_give_what_the_whole_gives(batch, threads):
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(*batch, 4, 5, generator=generator)
    others = torch.randn(*batch, 3, generator=generator)
    flat = statistics(matrices.reshape(-1, 4, 5), others.reshape(-1, 3))
    for found, expected in zip(by_shares(statistics, (matrices, others)), flat, strict=True):
        assert found.shape == (*batch, *expected.shape[1:])
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found.reshape(expected.shape), expected)
        assert found._base is None


@pytest.mark.parametrize("view", ["expanded", "transposed", "strided"])
def test_inputs_that_are_views(view):
    x = torch.randn(8, 6, 6, generator=torch.Generator().manual_seed(0))
    x = {"expanded": x[:1].expand(8, 6, 6), "transposed": x.mT, "strided": x[::2, :, ::2]}[view]
    (found,) = by_shares(lambda part: (part * 2,), (x,))
    assert torch.equal(found, x * 2)


def test_no_gradient_and_no_autocast_reach_the_shares():
    states = set()

    def look(part):
        states.add((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return (part,)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = torch.ones(8, 4, 4, requires_grad=True)
        (found,) = by_shares(look, (x,))
    assert states == {(False, False)}
    assert not found.requires_grad


def test_thread_settings_stay_as_they_were():
    """The caller's count, and the one that new threads start from, which is not the same."""

    def in_new_thread(function):
        with ThreadPoolExecutor(1) as fresh:
            return fresh.submit(function).result()

    in_new_thread(lambda: torch.set_num_threads(3))
    counts = []
    threads._pools.clear()  # a pool that is there has asked for its counts before
    by_shares(
        lambda part: (counts.append(torch.get_num_threads()) or part,), (torch.ones(8, 9, 9),)
    )
    assert set(counts) == {1}
    assert torch.get_num_threads() == 2
    assert in_new_thread(torch.get_num_threads) == 3


def test_callers_with_different_counts_at_once():
    """Each retires the other's pool, and none may lose its work over that."""
    x = torch.randn(12, 4, 4, generator=torch.Generator().manual_seed(0))

    def call(threads):
        torch.set_num_threads(threads)
        return all(
            torch.equal(by_shares(lambda part: (part + 1,), (x,))[0], x + 1) for _ in range(40)
        )

    with ThreadPoolExecutor(4) as callers:
        assert all(callers.map(call, (2, 3, 2, 4)))


def refuse(bad):
    def function(part):
        values = part[:, 0, 0].tolist()
        found = [i for i, value in enumerate(values) if value in bad]
        if found:
            raise DecompositionError("no luck with {samples}", found, len(values))
        return (part,)

    return function


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_errors_name_every_sample_of_the_whole_batch(threads):
    torch.set_num_threads(threads)
    numbered = torch.arange(20.0)[:, None, None].expand(20, 4, 4)
    with pytest.raises(DecompositionError) as caught:
        by_shares(refuse({1, 2, 13, 19}), (numbered,))
    assert caught.value.samples == [1, 2, 13, 19]
    assert str(caught.value) == "no luck with 4 of 20 samples: [1, 2, 13, 19]"
    with pytest.raises(
        DecompositionError, match=r"10 of 20 samples: \[0, 1, 2, 3, 4, 5, 6, 7, …\]"
    ):
        by_shares(refuse(set(range(10))), (numbered,))
    (found,) = by_shares(refuse(set()), (numbered,))
    assert torch.equal(found, numbered)


def test_errors_survive_pickling_and_copying():
    error = DecompositionError("no luck with {samples}", [3], 8).among(64, [35])
    for twin in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert isinstance(twin, DecompositionError | SampleError)
        assert (str(twin), twin.samples) == ("no luck with 1 of 64 samples: [35]", [35])


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, MemoryError])
def test_other_errors_arrive_and_the_pool_goes_on(error):
    def fail(part):
        raise error("from a share")

    with pytest.raises(error, match="from a share"):
        by_shares(fail, (torch.ones(8, 4, 4),))
    (found,) = by_shares(lambda part: (part,), (torch.ones(8, 4, 4),))
    assert found.all()


def test_the_caller_s_count_of_mkl_stays_too():
    team = threads._openmp()
    if team is None or team._set_num_threads_of_mkl is None:
        pytest.skip("no threads of OpenMP, or torch without MKL")
    before = team._set_num_threads_of_mkl(2)
    by_shares(lambda part: (part,), (torch.ones(64, 9, 9),))
    assert team._set_num_threads_of_mkl(before) == 2


def test_every_thread_takes_part():
    """Each part waits for another to be under way."""
    together = threading.Barrier(2)
    found = set()

    def wait(part):
        together.wait(60)
        found.add(threading.get_ident())

    threads.spread(wait, iter([slice(0, 1), slice(1, 2)]))
    assert len(found) == 2


@pytest.mark.parametrize(("threads", "batch"), [(2, 1), (1, 8), (1, 1)])
def test_the_caller_computes_what_is_not_for_several(threads, batch):
    """A batch of one with all threads; with one thread, everything."""
    torch.set_num_threads(threads)
    found = set()

    def look(part):
        found.add((threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled()))
        return (part,)

    with torch.enable_grad():
        by_shares(look, (torch.ones(batch, 9, 9),))
    assert found == {(threading.get_ident(), threads, False)}


def test_an_openmp_that_torch_does_not_compute_with_is_left_alone(monkeypatch):
    """Its count of threads is not torch's."""
    if WAYS["OpenMP"] is None:
        pytest.skip("no threads of OpenMP")
    monkeypatch.setattr(threads._OpenMPTeam, "_single_threaded", lambda team, task: task())
    assert FIND_OPENMP() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_has_threads_of_its_own():
    """OpenMP's are gone there; also if another thread held the pool's lock at that moment."""
    x = torch.ones(8, 4, 4)
    by_shares(lambda part: (part,), (x,))
    held, release = threading.Event(), threading.Event()

    def hold():
        with threads._lock:
            held.set()
            release.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
        child = os.fork()
    if child == 0:
        import signal

        signal.alarm(60)  # a deadlock ends as an error
        (found,) = by_shares(lambda part: (part + 1,), (x,))
        os._exit(0 if bool((found == 2).all()) else 1)
    release.set()
    holder.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    (found,) = by_shares(lambda part: (part,), (x,))
    assert found.all()


@pytest.mark.parametrize("name", ["exact", "svd-pade", "isqrt-cov"])
@pytest.mark.parametrize("positions", [9, 40])
def test_pooling_by_shares(name, positions, monkeypatch):
    from covpool.linalg import covariance as features

    x = torch.randn(2, 5, 12, positions, generator=torch.Generator().manual_seed(0))

    def value_and_gradient():
        leaf = x.clone().requires_grad_()
        value = covpool.cov_pool(leaf, name)
        return value.detach(), torch.autograd.grad(value.square().sum(), leaf)[0]

    whole = value_and_gradient()
    monkeypatch.setattr(features, "SHARED_ELEMENTS", 1)
    for one, other in zip(value_and_gradient(), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
