"""Freed memory stays with the process that asks for it, and nothing else changes."""

import os
import subprocess
import sys

import pytest

from covpool.train import allocator

PROGRAM = """
import torch
from covpool.train.allocator import keep_freed_memory, release_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

kept = keep_freed_memory() if {keep} else None
before = resident()
tensors = [torch.ones(64 * 2**20, dtype=torch.uint8) for _ in range(4)]
del tensors
after = resident()
release_freed_memory()
print(kept, round(after - before), round(resident() - before))
"""

needs_glibc = pytest.mark.skipif(allocator._glibc() is None, reason="the C library is not glibc")


def run(keep, **environment):
    plain = {k: v for k, v in os.environ.items() if not k.startswith(allocator.OTHERS_SETTINGS)}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(keep=keep)],
        env=plain | environment,
        check=True,
        capture_output=True,
        text=True,
    )
    kept, after, released = result.stdout.split()
    return kept, int(after), int(released)


@needs_glibc
def test_freed_tensors_are_kept_until_they_are_released():
    kept, after, released = run(keep=True)
    assert kept == "True"
    assert after > 200
    assert released < 50


@needs_glibc
def test_without_being_asked_they_go_back():
    _, after, _ = run(keep=False)
    assert after < 50


@needs_glibc
def test_an_allocator_that_the_user_has_set_is_left_as_it_is():
    kept, after, _ = run(keep=True, MALLOC_ARENA_MAX="2")
    assert kept == "False"
    assert after < 50


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr(allocator, "_glibc", lambda: None)
    assert not allocator.keep_freed_memory()
    allocator.release_freed_memory()
