"""Work on several threads under every state that torch keeps by thread, and signals meanwhile."""

import contextlib
import os
import signal
import sys
import threading
import time
from functools import partial

import pytest
import torch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import covpool
from covpool.linalg import covariance
from covpool.linalg.elementwise import Elementwise
from covpool.linalg.engine import cores as threads
from covpool.linalg.engine import shares
from covpool.pooling import cov_function
from covpool.poolings import POOLINGS, Pool2d

pytestmark = pytest.mark.usefixtures("two_threads_on_time")


@pytest.fixture(params=["OpenMP", "pool"])
def team(request, monkeypatch):
    if request.param == "pool":
        monkeypatch.setattr(threads, "_openmp", lambda: None)
    elif threads._openmp() is None:
        pytest.skip("torch without OpenMP")


class Operations(TorchDispatchMode):
    """Which operations it sees, of how many matrices, and in which threads."""

    def __init__(self):
        super().__init__()
        self.decomposed = 0
        self.threads = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.threads.add(threading.get_ident())
        if operation.overloadpacket is torch.ops.aten._linalg_eigh:
            self.decomposed += args[0].shape[:-2].numel()
        return operation(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def changed(get, set_, value):
    before = get()
    set_(value)
    try:
        yield
    finally:
        set_(before)


STATES = {
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "forward mode": forward_ad.dual_level,
    "default dtype": lambda: changed(
        torch.get_default_dtype, torch.set_default_dtype, torch.float64
    ),
    "default device": lambda: torch.device("meta"),
    "deterministic algorithms": lambda: changed(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
    ),
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
    "hooks on saved tensors": torch.autograd.graph.save_on_cpu,
    "dispatch mode": Operations,
    "function mode": Functions,
}


def samples(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


FEATURES = samples(16, 64, 7, 7, dtype=torch.float32)
MANY_POSITIONS = samples(16, 32, 20, 20)
TALL = samples(64, 24, 16)
MATRICES = TALL.mT @ TALL
CALLS = {
    "cov_pool": lambda: covpool.cov_pool(FEATURES),
    "cov_pool of an iteration": lambda: covpool.cov_pool(FEATURES, "isqrt-cov"),
    "cov_pool where N > C": lambda: covpool.cov_pool(MANY_POSITIONS),
    "matrix_log": lambda: covpool.matrix_log(MATRICES),
    "newton-schulz-minimax": lambda: covpool.matrix_sqrt(MATRICES, "newton-schulz-minimax"),
    "eigh": lambda: torch.cat([x.flatten() for x in covpool.eigh(MATRICES)]),
    "svd": lambda: torch.cat([x.flatten() for x in covpool.svd(TALL, full_matrices=False)]),
}


@pytest.mark.axes
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_the_caller_s_state_changes_no_value(call, state, team):
    expected = CALLS[call]()
    with STATES[state]():
        found = CALLS[call]()
    assert torch.equal(found, expected)


def kept_by_threads():
    """What each thread of the team has set, the caller among them or not."""
    together, found = threading.Barrier(2, timeout=60), {}

    def look():
        together.wait()
        grads = torch.is_grad_enabled(), forward_ad._is_fwd_grad_enabled()
        autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
        found[threading.get_ident()] = (torch.is_inference_mode_enabled(), *grads, *autocast)

    (threads._openmp() or threads._on_pool)(look)
    return found


@pytest.mark.parametrize("state", STATES)
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_a_thread_has_afterwards_what_it_had(state, team):
    """All are in it at once, so that none can put back what another had."""
    kept_by_threads()  # a pool's threads exist
    with STATES[state]():
        before = kept_by_threads()
        together = threading.Barrier(2, timeout=60)
        if "mode" not in state or state in ("inference mode", "forward mode"):
            threads.spread(lambda part: together.wait(), [slice(0, 1), slice(1, 2)])
        else:  # by the caller alone
            threads.spread(lambda part: None, [slice(0, 1), slice(1, 2)])
        assert kept_by_threads() == before


def leisurely(x):
    time.sleep(0.002)  # so that other threads are in it too
    return x.tanh()


def pooled(name, x):
    torch.manual_seed(0)
    return Pool2d(x.shape[1], name).eval()(x)


def own_pooling(x):
    return cov_function(x, Elementwise(leisurely))


GRADIENTS = {
    "function of one's own": (lambda x: covpool.matrix_function(x @ x.mH, leisurely), (24, 9)),
    "odd function of one's own": (lambda x: covpool.svd_function(x, leisurely), (24, 9)),
    "pooling by a function of one's own": (own_pooling, (32, 3, 3)),
    **{name: (partial(pooled, name), (32, 3, 3)) for name in POOLINGS},
}


@pytest.mark.parametrize("function", GRADIENTS)
def test_threads_that_differentiate_at_once(function, team, monkeypatch):
    """Each has a share of the batch, and torch's forward mode belongs to all of them."""
    monkeypatch.setattr(shares, "SHARE_BYTES", 240)
    monkeypatch.setattr(covariance, "SHARED_ELEMENTS", 0)
    call, size = GRADIENTS[function]
    x = samples(12, *size, dtype=torch.float32)

    def gradient():
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(call(leaf).square().sum(), leaf)[0]

    together = gradient()
    torch.set_num_threads(1)
    torch.testing.assert_close(together, gradient())


@pytest.mark.parametrize("state", STATES)
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_what_a_thread_works_under(state, team):
    together = threading.Barrier(2, timeout=60)
    found = set()

    def look(part):
        if "mode" not in state or state in ("inference mode", "forward mode"):
            together.wait()  # else the caller may take both parts
        grads = torch.is_grad_enabled(), forward_ad._is_fwd_grad_enabled()
        found.add((torch.is_inference_mode_enabled(), *grads, torch.is_autocast_enabled("cpu")))

    with STATES[state]():
        threads.spread(look, [slice(0, 1), slice(1, 2)])
    assert found == {(state == "inference mode", False, False, False)}


def test_a_dispatch_mode_sees_every_decomposition(team):
    with Operations() as seen:
        covpool.matrix_log(MATRICES)
    assert seen.decomposed == len(MATRICES)
    assert seen.threads == {threading.get_ident()}


@pytest.mark.parametrize("call", [covpool.matrix_sqrt, covpool.eigh, covpool.svd])
def test_tangents_of_dual_tensors_are_those_of_one_thread(call, team):
    direction = samples(64, 16, 16) @ MATRICES
    direction = direction + direction.mT

    def tangents():
        with forward_ad.dual_level():
            results = call(forward_ad.make_dual(MATRICES, direction))
            results = results if isinstance(results, tuple) else (results,)
            return [forward_ad.unpack_dual(result).tangent for result in results]

    found = tangents()
    torch.set_num_threads(1)
    for one, other in zip(found, tangents(), strict=True):
        torch.testing.assert_close(one, other)


class Stop(Exception):
    pass


def stop(number, frame):
    raise Stop(signal.Signals(number).name)


@pytest.mark.skipif(threads._openmp() is None, reason="torch without OpenMP")
@pytest.mark.parametrize("event", ["call", "return"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_a_signal_s_handler_raises_is_not_lost(number, event):
    """It arrives as the function that OpenMP calls begins or ends, where no `try` catches it."""
    sent = []

    def send(frame, found, _):
        if found == event and frame.f_code.co_name == "body" and not sent:
            sent.append(True)
            os.kill(os.getpid(), number)

    before = signal.signal(number, stop)
    sys.setprofile(send)
    try:
        with pytest.raises(Stop, match=number.name):
            threads.spread(lambda part: None, [slice(0, 1), slice(1, 2)])
    finally:
        sys.setprofile(None)
        assert signal.signal(number, before) is stop
    assert sent


def test_signals_are_left_to_who_handles_them_elsewhere(team):
    """In another thread than the main one no handler can be set."""
    found = []
    caller = threading.Thread(
        target=lambda: found.append(threads.spread(lambda part: None, [slice(0, 1), slice(1, 2)]))
    )
    caller.start()
    caller.join()
    assert found == [None]
