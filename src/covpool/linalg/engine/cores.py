"""Work on every core, each with single-threaded torch and LAPACK.

OpenMP's own threads are used where torch computes with OpenMP. They wait for the next product by
spinning, for milliseconds, and would keep their core from threads of ours meanwhile. Elsewhere, and
in a forked process, which has lost them, a pool of threads takes their place.

Much of torch's state belongs to a thread, so a helper thread does not have what the caller has set.
The states, and what is done about each:

- inference mode: the caller's is set in every thread, as tensors of the two kinds do not mix;
- recording of gradients, in reverse and in forward mode, and autocast: off in every thread;
- dispatch and function modes (counters, loggers, fake tensors): with one set, the caller computes
  every part, so that the mode sees all operations; the mode of a default device alone does not
  matter, as every tensor here is made on the device of another;
- hooks on saved tensors: without effect, as nothing is saved;
- the number of threads of torch, OpenMP and MKL: one, put back afterwards;
- flushing of denormal numbers: a thread takes it from the one that starts it, so that it has to be
  set before the first parallel operation, as for torch's own threads.

Default dtype, deterministic algorithms and anomaly detection belong to the process. Tasks touch
tensors on the CPU alone, so that streams and current devices do not matter.
"""

import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from covpool.linalg.engine.back_off import BACK_OFF, Stopwatch, is_small
from covpool.linalg.engine.quota import available_cores

_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

_lock = threading.Lock()
_pools: dict[int, ThreadPoolExecutor] = {}
_forked = False


def _begin_anew() -> None:
    global _lock, _forked
    _lock = threading.Lock()
    _pools.clear()
    _forked = True


if hasattr(os, "register_at_fork"):  # threads do not survive a fork, a lock that one held does
    os.register_at_fork(after_in_child=_begin_anew)


def usable_threads() -> int:
    """torch's threads, or as many as the machine has cores for this process, if that is less."""
    return min(torch.get_num_threads(), available_cores())


def spread(task: Callable[[slice], None], parts: Iterable[slice], *, small: bool = False) -> None:
    """Call `task(part)` for each part, on `usable_threads()` threads at once.

    In it torch, OpenMP and MKL use one thread, nothing is recorded for autograd, autocast is off,
    and inference mode is the caller's; the threads' settings are put back afterwards. The first
    exception is raised when all threads have ended, and so are signals' handlers called. Where the
    threads are OpenMP's, the caller's is one of them. A single part, and everything under a mode of
    the caller's thread that has to see the operations, is computed by the caller, with all its
    threads. Small work is done by one thread for a while where the last team for it was late.
    """
    parts = list(parts)
    lock = threading.Lock()
    remaining = iter(parts)

    def take() -> slice | None:
        with lock:
            return next(remaining, None)

    inference = torch.is_inference_mode_enabled()

    def take_part() -> None:
        # Inference mode first: setting it sets the recording of gradients too, in both modes.
        # Autocast is an object for each thread, as it keeps the state to put back: as a decorator
        # it would be one, and threads would put back each other's.
        with (
            torch.inference_mode(inference),
            torch.no_grad(),
            _no_forward_mode(),
            torch.autocast("cpu", enabled=False),
        ):
            while (part := take()) is not None:
                task(part)

    if len(parts) == 1 or torch.get_num_threads() == 1 or _watched():
        take_part()
        return
    team = _openmp() if usable_threads() == torch.get_num_threads() and not _forked else None
    team = team or _on_pool
    if not small:
        team(take_part)
    elif perf_counter() < BACK_OFF.until:
        team(take_part, alone=True)
    else:
        stopwatch = Stopwatch()
        team(partial(stopwatch.timed, take_part))
        BACK_OFF.heed(stopwatch.late())


def alone_if_small(function: Callable[..., Any], tensor: Tensor, *inputs: Any) -> Any:
    """`function(*inputs)`, by one thread where it is small work, on `tensor`, on a busy machine.

    Operations of torch have teams of threads too. Where these are not OpenMP's, nothing is done.
    """
    if _forked or not is_small(tensor) or (team := _openmp()) is None:
        return function(*inputs)
    results: list[Any] = []
    team(lambda: results.append(function(*inputs)), alone=True)
    return results[0]


def _no_forward_mode() -> Any:
    return forward_ad._set_fwd_grad_enabled(False)  # pyright: ignore[reportPrivateUsage]


def _watched() -> bool:
    """Whether a mode of the caller's thread looks at operations."""
    if torch._C._len_torch_dispatch_stack():  # pyright: ignore[reportAttributeAccessIssue]
        return True
    modes = _get_current_function_mode_stack()
    return any(not isinstance(mode, DeviceContext) for mode in modes)


_HANDLED = [
    getattr(signal, name)
    # Ctrl-C last: its handler is put back last, as it is the one that raises.
    for name in ("SIGTERM", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGBREAK", "SIGINT")
    if hasattr(signal, name)
]


@contextmanager
def _signals_deferred() -> Iterator[None]:
    """Signals that arrive in the block have their handlers called at its end.

    Python calls them in the main thread between any two instructions. In a function that C code has
    called, what they raise (KeyboardInterrupt) is printed and lost.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in _HANDLED}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    arrived: list[int] = []
    try:
        for number in handlers:
            signal.signal(number, lambda number, _: arrived.append(number))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for number in arrived:
        handlers[number](number, None)


class _OpenMPTeam:
    """OpenMP's threads, by the function that compilers call where a parallel region begins."""

    def __init__(
        self,
        parallel: Callable[..., None],
        set_num_threads: Callable[[int], None],
        set_num_threads_of_mkl: Callable[[int], int] | None,
    ) -> None:
        self._parallel = parallel
        self._set_num_threads = set_num_threads
        self._set_num_threads_of_mkl = set_num_threads_of_mkl

    def __call__(self, task: Callable[[], None], *, alone: bool = False) -> None:
        if alone:
            threads = torch.get_num_threads()
            try:
                self._single_threaded(task)
            finally:
                self._set_num_threads(threads)
            return
        failures: list[BaseException] = []

        def body(_: Any) -> None:
            try:
                self._single_threaded(task)
            except BaseException as error:  # none may pass through OpenMP's own code
                failures.append(error)

        with _signals_deferred():
            # A team of all of them: OpenMP would end those that a smaller one leaves over.
            self._parallel(_Body(body), None, torch.get_num_threads(), 0)
        if failures:
            raise failures[0]

    def _single_threaded(self, task: Callable[[], None]) -> None:
        # A thread's first question is when torch sets its counts, which would undo ours.
        torch.get_num_threads()
        # Of a parallel region alone: OpenMP's count is the implicit task's (OpenMP 5.0, 2.5.3).
        self._set_num_threads(1)
        if self._set_num_threads_of_mkl is None:
            task()
            return
        before = self._set_num_threads_of_mkl(1)
        try:
            task()
        finally:
            self._set_num_threads_of_mkl(before)


@cache
def _openmp() -> _OpenMPTeam | None:
    """The team that torch's own operations run on, if they run on one."""
    if not torch.backends.openmp.is_available():
        return None
    # Where the linker looks for torch: among what was loaded before all else, then in what torch
    # itself depends on.
    scopes = [None, torch._C.__file__]
    try:
        libraries = [ctypes.CDLL(scope) for scope in scopes]
    except (OSError, TypeError):  # TypeError: no global scope on Windows
        return None

    def find(name: str) -> Any:
        return next((getattr(each, name) for each in libraries if hasattr(each, name)), None)

    parallel, set_num_threads = find("GOMP_parallel"), find("omp_set_num_threads")
    if parallel is None or set_num_threads is None:
        return None
    parallel.argtypes = [_Body, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    set_num_threads.argtypes, set_num_threads.restype = [ctypes.c_int], None
    of_mkl = find("MKL_Set_Num_Threads_Local")
    if of_mkl is not None:
        of_mkl.argtypes, of_mkl.restype = [ctypes.c_int], ctypes.c_int
    team = _OpenMPTeam(parallel, set_num_threads, of_mkl)
    counts: list[int] = []
    team(lambda: counts.append(torch.get_num_threads()))
    # Another count than one: torch computes with another OpenMP than the one that was found.
    return team if set(counts) == {1} else None


def _on_pool(task: Callable[[], None], *, alone: bool = False) -> None:
    threads = usable_threads()
    # Under the lock, lest another caller with another count shut the pool down in between.
    with _lock:
        if threads not in _pools:
            for outgrown in _pools.values():
                outgrown.shutdown(wait=False)
            _pools.clear()
            _pools[threads] = _single_threaded_workers(threads)
        pending = [_pools[threads].submit(task) for _ in range(1 if alone else threads)]
    try:
        failures = [error for each in pending if (error := each.exception()) is not None]
    except BaseException:  # Ctrl-C, while waiting
        for each in pending:
            each.cancel()
        raise
    if failures:
        raise failures[0]


def _in_new_thread(function: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as fresh:
        return fresh.submit(function).result()


def _single_threaded_workers(threads: int) -> ThreadPoolExecutor:
    """Threads in which torch, OpenMP and MKL use one thread each, the caller's settings untouched.

    `torch.set_num_threads` sets OpenMP's and MKL's count of the calling thread, and the count that
    threads to come start from. The latter is put back, in a thread that ends with that: it may
    differ from the caller's own. A worker has to ask for its count first: that is when it takes the
    count to start from, which would overwrite a count set before. Were the workers left with
    several threads each, OpenMP would find more threads than cores, stop spinning at its barriers,
    and slow everything else in the process several times over.
    """
    started = threading.Barrier(threads)
    to_start_from = _in_new_thread(torch.get_num_threads)

    def settle() -> None:
        torch.get_num_threads()
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="covpool-lapack")
    for settled in [pool.submit(settle) for _ in range(threads)]:
        settled.result()
    _in_new_thread(partial(torch.set_num_threads, to_start_from))
    return pool
