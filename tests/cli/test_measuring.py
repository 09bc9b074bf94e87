"""Sizes and bandwidths, as nccl-tests counts them."""

from __future__ import annotations

import pytest

from mnx.cli.measuring import Speed, parse_size, seconds_of, sizes
from mnx.errors import ArgumentError


@pytest.mark.parametrize(
    ('text', 'nbytes'), [('1', 1), ('32k', 32768), ('4MB', 4194304), (' 2G', 2**31), ('8b', 8)]
)
def test_sizes_as_words(text: str, nbytes: int):
    assert parse_size(text) == nbytes


@pytest.mark.parametrize('text', ['', '0', '-1', '1.5M', '1x', 'M'])
def test_what_is_no_size(text: str):
    with pytest.raises(ArgumentError, match='64K'):
        parse_size(text)


def test_sizes_are_whole_numbers_of_items():
    assert sizes(1, 64, 4, 8) == [8, 16, 64]
    assert sizes(1024, 1024, 2, 4) == [1024]


def test_sizes_by_steps():
    assert sizes(8, 30, 8, 4, step=10) == [8, 16, 28]
    assert sizes(8, 8, 1, 8, step=1) == [8]


def test_sizes_that_never_end_or_never_begin():
    with pytest.raises(ArgumentError, match='at least 2'):
        sizes(1, 8, 1, 4)
    with pytest.raises(ArgumentError, match='larger than the last'):
        sizes(16, 8, 2, 4)


def test_bandwidths():
    speed = Speed(nbytes=4_000_000_000, ranks=4, seconds=2.0)
    assert speed.algorithm_bandwidth == 2.0
    assert speed.bus_bandwidth == 3.0  # 2 * 3 / 4 of it
    assert Speed(8, 1, 1.0).bus_bandwidth == 0


def test_calls_before_are_not_timed():
    calls: list[str] = []
    seconds = seconds_of(lambda: calls.append('x'), lambda: calls.append('|'), 3, 2)
    assert ''.join(calls) == 'xx|xxx'
    assert seconds > 0
