import re

import pytest

from mnx.training.checkpoints.choice import newest_first, refusal
from mnx.training.checkpoints.folder import Found
from mnx.training.checkpoints.manifest import Manifest

NAME = '000002_iteration_7'
WHOLE = Found(Manifest(7, 'a', 3, [], {}))
OTHER = Found(Manifest(8, 'a', 3, [], {}))
UNFINISHED = Found()
BROKEN = Found(problem='it is damaged')


@pytest.mark.parametrize(
    ('finds', 'reason', 'is_damage'),
    [
        ((WHOLE, UNFINISHED, UNFINISHED), 'without a manifest on ranks 1, 2', False),
        ((UNFINISHED, None, None), 'without a manifest on rank 0', False),
        ((WHOLE, None, WHOLE), 'missing on rank 1', True),
        ((WHOLE, UNFINISHED, None), 'missing on rank 2', True),
        ((WHOLE, BROKEN, UNFINISHED), r'it is damaged \(on rank 1\)', True),
        ((WHOLE, WHOLE, OTHER), 'different sets', True),
    ],
)
def test_why_not(finds, reason, is_damage):
    skipped = refusal(NAME, [{} if found is None else {NAME: found} for found in finds])
    assert skipped.is_damage == is_damage
    assert re.search(reason, skipped.reason), skipped.reason


def test_a_whole_one():
    assert refusal(NAME, [{NAME: WHOLE}] * 3) is None


def test_the_newest_is_the_one_written_last():
    finds = [{'000009_iteration_90': WHOLE}, {'000010_iteration_5': WHOLE}]
    assert newest_first(finds) == ['000010_iteration_5', '000009_iteration_90']
    assert newest_first([{'999999_iteration_1': WHOLE, '1000000_iteration_2': WHOLE}])[0][0] == '1'
