"""A directory that one process at a time writes."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from covpool.train.run_directory import LOCK, remove_leftovers


@contextmanager
def claimed(directory: Path, *, patience: float = 0) -> Iterator[None]:
    """Hold a directory, and remove what killed processes have left half-written in it.

    The lock is the operating system's: it ends with the process, however that ends, so that a
    killed run never stands in the way of its own resumption. Its file names the process and the
    host, for the message to others, and is there only as long as the directory is held.

    Args:
        directory: of a run, or of a command that makes many; made where it is missing.
        patience: seconds to wait for another process to end.

    Raises:
        ValueError: another process holds it, which the message names, or it is a file.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ValueError(f"{directory} is a file; choose another --output") from None
    file = directory / LOCK
    lock = FileLock(file)
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        by_hand = f", remove {file} if it is no more" if isinstance(lock, SoftFileLock) else ""
        raise ValueError(
            f"{directory} is in use by {holder(file)}; wait until that has ended{by_hand}, or "
            "choose another --output"
        ) from None
    # On a file system without such locks the library's own file, of the same form, is the lock.
    by_file = isinstance(lock, SoftFileLock)
    try:
        if not by_file:
            file.write_text(f"{os.getpid()}\n{platform.node()}\n", encoding="utf-8")
        remove_leftovers(directory)
        yield
    finally:
        if not by_file:
            with suppress(OSError):  # whoever waits notices that it has locked a removed file
                file.unlink(missing_ok=True)
        lock.release()


def holder(file: Path) -> str:
    """Who holds a lock, as the lock's file says it."""
    try:
        process, host = file.read_text(encoding="utf-8").split()[:2]
    except (OSError, ValueError):
        return "another process"
    return f"process {process} on {host}"
