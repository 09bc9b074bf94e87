from __future__ import annotations

from mnx.health.stalls import ELSEWHERE, ENDED, NO_ANSWER, WAITS, State, report, verdict


def waiting(rank: int, call: str = 'allreduce', line: int = 8, seconds: float = 600.0) -> State:
    return State(rank, WAITS, call, f'train.py:{line}', seconds, is_overdue=seconds >= 600)


def test_a_state_travels() -> None:
    for asks in (True, False):
        assert State.decode(waiting(3).encode(asks=asks)) == (waiting(3), asks)


def test_report() -> None:
    known = [
        waiting(4),
        waiting(0, seconds=601.0),
        State(1, ELSEWHERE, 'load', 'train.py:3'),
        waiting(2),
    ]
    hosts = dict(enumerate(['node1', 'node1', 'node1', 'node2', 'node2']))
    assert report(known, hosts, 600.0, 5) == (
        '\n[mnx] no progress for 600 s, the whole job of 5 ranks ends:\n'
        '  rank     host          state      seconds  call       line\n'
        '  0, 2, 4  node1, node2  waits      601      allreduce  train.py:8\n'
        '> 1        node1         elsewhere           load       train.py:3\n'
        '> 3        node2         no answer\n'
        'No answer from rank 3: stopped, swapped out, host gone, or busy in code that holds the '
        'GIL.\n'
        'Others wait for rank 1 to come: look at that line.\n'
        'If they were healthy but slow: MNX_TIMEOUT=600 (seconds) was the limit, 0 is none.\n'
    )


def test_many_hosts_are_not_all_named() -> None:
    hosts = {rank: f'node{rank}' for rank in range(5)}
    text = report([waiting(rank) for rank in range(5)], hosts, 1.0, 5)
    assert '  0-4   node0, node1, node2, ...  waits' in text


def test_a_part_of_the_job() -> None:
    text = report([waiting(1), waiting(3)], dict.fromkeys([1, 3, 6], 'node1'), 1.0, 8)
    assert 'no progress for 1 s among ranks 1, 3, 6, the whole job of 8 ranks ends:' in text
    assert '> 6     node1  no answer' in text
    assert 'rank 0' not in text


def test_each_sort_of_odd_ranks() -> None:
    everyone = [
        State(0, NO_ANSWER),
        State(1, ENDED),
        State(2, ELSEWHERE),
        waiting(3),
        State(4, ENDED),
    ]
    odd, reasons = verdict(everyone)
    assert odd == {0, 1, 2, 4}
    assert [reason.split(':')[0] for reason in reasons] == [
        'No answer from rank 0',
        'Others wait, but the program has ended on ranks 1, 4',
        'Others wait for rank 2 to come',
    ]


def test_those_that_wait_elsewhere_are_odd() -> None:
    odd, reasons = verdict([waiting(0), waiting(1, 'barrier'), waiting(2), waiting(3, line=9)])
    assert odd == {1, 3}
    assert 'ranks 1, 3: others wait at another place' in reasons[0]


def test_two_equal_parties_are_both_innocent() -> None:
    odd, reasons = verdict([waiting(0), waiting(1, 'barrier')])
    assert not odd
    assert 'wait for one another at different places' in reasons[0]


def test_all_wait_at_one_place() -> None:
    odd, reasons = verdict([waiting(0, 'recv'), waiting(1, 'recv')])
    assert not odd
    assert 'each recv needs a send' in reasons[0]
