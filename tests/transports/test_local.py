"""Messages of a rank to itself."""

from __future__ import annotations

import numpy as np
import pytest

from mnx.errors import ArgumentError
from mnx.transports.base import ANY_TAG
from mnx.transports.local import LocalChannels, LocalTransport, OwnMail


def test_messages_of_one_tag_come_in_their_order() -> None:
    mail = OwnMail(0)
    for text, tag in ((b'a', 1), (b'b', 2), (b'c', 1), (b'd', 3)):
        mail.put(text, tag)
    assert mail.take(2) == (2, b'b')
    assert mail.take(1) == (1, b'a')
    assert mail.take(ANY_TAG) == (1, b'c')
    assert mail.find(1) is None
    assert mail.take(3) == (3, b'd')


def test_a_message_that_never_comes_is_an_error() -> None:
    mail = OwnMail(3)
    mail.put(b'a', 1)
    with pytest.raises(ArgumentError, match='rank 3 waits for a message from itself with tag 2'):
        mail.take(2)
    assert mail.take(1) == (1, b'a')  # still there


def test_what_was_sent_is_what_it_was_then() -> None:
    transport = LocalTransport()
    x = np.arange(4.0)
    transport.send(x, 0, 5)
    x[:] = 0
    received = np.empty(4)
    transport.recv(received, 0, 5)
    np.testing.assert_array_equal(received, np.arange(4.0))


def test_splits_have_mail_of_their_own() -> None:
    channels = LocalChannels()
    part = channels.split(0, 0)
    assert part is not None
    assert channels.split(None, 0) is None
    channels.mail.send_frame(b'word', 0, 1)
    with pytest.raises(ArgumentError, match='has sent none'):
        part.mail.recv_frame(bytearray(4), 0, 1)
