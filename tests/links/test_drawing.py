from __future__ import annotations

from mnx.links import drawing
from mnx.links.routes import Component, Hop
from tests.links.test_routes import CYCLE, table

RNN = (Component('RNN', None, None, (Hop('recv', 1), Hop('send', 1))),)


def test_own_queue_and_inner_messages_are_in_order() -> None:
    tables = [table((None, (0, 1, 0)), ((0, 1, 0), None)), table((0, 0))]
    assert drawing.text(tables).splitlines() == [
        '  rank 0  #0 L  inputs                           -> own queue, rank 1 #0, own queue',
        '  rank 0  #1 L  own queue, rank 1 #0, own queue  -> output',
        '  rank 1  #0 L  rank 0 #0                        -> rank 0 #1',
    ]
    assert drawing.text([RNN, ()]) == '  rank 0  #0 RNN  inputs, rank 1 ?  -> rank 1 ?, output'


def test_nothing() -> None:
    assert drawing.text([(), ()]) == ''


def test_dot() -> None:
    assert drawing.dot([*CYCLE, table((None, (2, 1)), (2, None))]).splitlines() == [
        'digraph model {',
        '  rankdir=LR; node [shape=box];',
        '  subgraph cluster_0 { label="rank 0"; "0.0" [label="L"]; "0.1" [label="L"]; }',
        '  subgraph cluster_1 { label="rank 1"; "1.0" [label="L"]; }',
        '  subgraph cluster_2 { label="rank 2"; "2.0" [label="L"]; "2.1" [label="L"]; }',
        '  "inputs of rank 0" -> "0.0";',
        '  "0.1" -> "output of rank 0";',
        '  "inputs of rank 2" -> "2.0";',
        '  "2.1" -> "output of rank 2";',
        '  "2.0" -> "2.1";',
        '  "0.0" -> "1.0";',
        '  "1.0" -> "0.1";',
        '  "2.0" -> "nobody on rank 1";',
        '}',
    ]
