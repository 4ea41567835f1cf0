"""Batches as pure functions of seed and position."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covpool.train.sampling import EvaluationBatchSampler, TrainBatchSampler, combine_seeds


def batches(step, *, size=23, batch_size=4, seed=0, **process):
    return list(TrainBatchSampler(size, batch_size, seed=seed, step=lambda: step, **process))


def test_an_epoch_takes_each_image_at_most_once_and_fills_its_batches():
    taken = [index for batch in batches(0) for _, index in batch]
    assert len(taken) == len(set(taken)) == 20
    assert {epoch for batch in batches(0) for epoch, _ in batch} == {0}


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [batches(0), batches(5), batches(0, seed=1), batches(5, seed=1)]
    indices = [[index for batch in order for _, index in batch] for order in orders]
    assert len({tuple(order) for order in indices}) == 4


@given(step=st.integers(0, 40))
def test_a_later_step_gives_the_rest_of_its_epoch(step):
    epoch, done = divmod(step, 5)
    assert batches(step) == batches(5 * epoch)[done:]


@given(size=st.integers(8, 60), world=st.integers(1, 4))
def test_processes_share_the_batches_of_one(size, world):
    alone = batches(0, size=size, batch_size=8 * world if size >= 8 * world else world)
    batch_size = len(alone[0])
    shares = [
        batches(0, size=size, batch_size=batch_size, rank=rank, world=world)
        for rank in range(world)
    ]
    for together, *parts in zip(alone, *shares, strict=True):
        assert sorted(together) == sorted(pair for part in parts for pair in part)
        assert len({len(part) for part in parts}) == 1


def test_fewer_images_than_a_batch_make_one_batch():
    assert [len(batch) for batch in batches(0, size=3, batch_size=8)] == [3]


@pytest.mark.parametrize(("size", "batch_size"), [(100, 9), (5, 8)])
def test_a_batch_must_divide_among_the_processes(size, batch_size):
    with pytest.raises(ValueError, match="2 processes"):
        batches(0, size=size, batch_size=batch_size, world=2)


@given(size=st.integers(1, 200), batch_size=st.integers(1, 40), world=st.integers(1, 5))
def test_evaluation_counts_each_image_once_in_equally_many_batches(size, batch_size, world):
    if size < world:
        with pytest.raises(ValueError, match="too few"):
            EvaluationBatchSampler(size, batch_size, world=world)
        return
    shares = [
        list(EvaluationBatchSampler(size, batch_size, rank=rank, world=world))
        for rank in range(world)
    ]
    assert sorted(i for share in shares for batch in share for i in batch) == list(range(size))
    assert len({len(share) for share in shares}) == 1
    lengths = [len(batch) for share in shares for batch in share]
    assert 1 <= min(lengths) <= max(lengths) <= max(2, batch_size // world)


def test_seeds_are_combined_by_position():
    seeds = {combine_seeds(a, b) for a in range(20) for b in range(20)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)
