"""The peak of memory: it rises by what is held, and begins anew."""

import pytest
import torch

from covpool.train import memory

SIZE = 256 * 2**20
CPU = torch.device("cpu")


@pytest.mark.skipif(not (memory.PROCESS / "clear_refs").exists(), reason="the system has no figure")
def test_peak_rises_by_what_was_held_and_begins_anew():
    assert memory.reset_peak(CPU)
    before = memory.peak_bytes(CPU)
    held = torch.ones(SIZE, dtype=torch.uint8)
    assert memory.peak_bytes(CPU) - before >= 0.9 * held.numel()
    del held
    assert memory.peak_bytes(CPU) - before >= 0.9 * SIZE
    assert memory.reset_peak(CPU)
    assert memory.peak_bytes(CPU) - before <= 0.1 * SIZE


def test_no_figure_where_the_system_tells_none(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "PROCESS", tmp_path / "none")
    assert not memory.reset_peak(CPU)
    assert memory.peak_bytes(CPU) is None
