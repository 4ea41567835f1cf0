"""What marks leave out of the quick tests."""

import pytest


@pytest.mark.axes(second=(2,))
@pytest.mark.parametrize(("first", "other"), [(0, None), (1, None)])
@pytest.mark.parametrize("second", ["a", "b", "c"])
def test_off_both_bases_is_slow(first, other, second, request):
    slow = request.node.get_closest_marker("slow") is not None
    assert slow == (first != 0 and second != "c")
