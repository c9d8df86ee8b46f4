"""Where the time of a search went."""

from pytest_kerneltune.account import Account


def test_seconds_are_summed_over_cores_and_the_busy_ones_counted_once() -> None:
    account = Account(compiling=[(0, 4), (1, 3), (6, 7)], timing=[(2, 5), (9, 10)])
    assert account.between(0, 10) == {"compiling_s": 7, "timing_s": 4, "busy_s": 7}


def test_what_lies_outside_does_not_count() -> None:
    account = Account(compiling=[(0, 4)], timing=[(3, 9)])
    assert account.between(2, 5) == {"compiling_s": 2, "timing_s": 2, "busy_s": 3}
    assert account.between(20, 30) == {"compiling_s": 0, "timing_s": 0, "busy_s": 0}
