"""An Ethernet switch with a constant delay, for `cluster.sh`.

    cluster_switch.py NAME DELAY_US PORTS

Runs in the network namespace of the switch. Port i is the interface ``p<i>``; node i has the
hardware address 02:00:00:4d:50:<i>. Frames are up to 64 KiB long there: with PACKET_VNET_HDR the
kernel hands them over, and takes them back, before it cuts them for the wire, so that 1 Gbit/s are
only some 2000 of them a second. What a port's queue cannot hold is dropped, as by a real switch.

References: packet(7); Linux, Documentation/networking/packet_mmap.rst.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import gc
import select
import signal
import socket
import sys
import time
from typing import Any

SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
SO_SNDBUFFORCE, SO_RCVBUFFORCE, QUEUE_BYTES = 32, 33, 1 << 26
ETH_P_ALL = 3
PR_SET_TIMERSLACK = 29
HEADER, LONGEST = 10, 70_000  # of the kernel's own header, of a frame
BURST = 64


def open_port(number: int) -> socket.socket:
    """Return a socket that sees and sends raw frames on one port."""
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    port.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    port.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    port.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, QUEUE_BYTES)
    port.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, QUEUE_BYTES)
    port.bind((f'p{number}', ETH_P_ALL))
    port.setblocking(False)
    return port


class Switch:
    """Takes frames in and sends each one on when it is due; the delay is constant, so in order."""

    def __init__(self, delay: float, n_ports: int) -> None:
        self.delay = delay
        self.ports = [open_port(i) for i in range(n_ports)]
        self.port_of = {bytes([2, 0, 0, 0x4D, 0x50, i]): i for i in range(n_ports)}
        self.waiting: collections.deque[tuple[float, int, bytes]] = collections.deque()

    def run(self) -> None:
        """Switch frames for ever."""
        while True:
            pause = max(0.0, self.waiting[0][0] - time.monotonic()) if self.waiting else None
            ready: list[Any] = select.select(self.ports, [], [], pause)[0]
            for port in ready:
                self._take(port)
            while self.waiting and self.waiting[0][0] <= time.monotonic():
                self._send(*self.waiting.popleft()[1:])

    def _take(self, port: socket.socket) -> None:
        due, number = time.monotonic() + self.delay, self.ports.index(port)
        with contextlib.suppress(OSError):  # no more frames
            for _ in range(BURST):
                self.waiting.append((due, number, port.recv(HEADER + LONGEST)))

    def _send(self, source: int, frame: bytes) -> None:
        known = self.port_of.get(frame[HEADER : HEADER + 6])
        others = [i for i in range(len(self.ports)) if i != source]
        for i in others if known is None else [known]:
            with contextlib.suppress(OSError):  # the queue is full: dropped
                self.ports[i].send(frame)


def main() -> None:
    _, _, delay_us, n_ports = sys.argv
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0)  # wake up to 1 us late, not 50
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    switch = Switch(int(delay_us) * 1e-6, int(n_ports))
    gc.disable()
    print('ready', flush=True)
    switch.run()


if __name__ == '__main__':
    main()
