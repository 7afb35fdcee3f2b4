"""An open-loop generator that speaks just enough HTTP/2 to ask five times more than a server can answer.

A call of grpcio's client costs its core more than a refusal costs the server's, so on two cores it can't overload one
shard by much. Here a request is one write of bytes that were made before, and of an answer only the status is read.
A connection holds calls back, first in first out, while it has as many streams open as the server allows, and gives up
those whose deadline passes meanwhile: what clients of gRPC do.
"""

import selectors
import socket
import struct
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

from heliotrope_bench.errors import ServerLostError
from heliotrope_bench.generator import HIGHEST_US, PreparedCall, histogram, pin

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7, 0x8
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
NO_TABLE = struct.pack(">HI", 0x1, 0)  # the server may index nothing, so that a status stands there in plain bytes
MAX_STREAMS = struct.pack(">H", 0x3)
WIDE_WINDOW = struct.pack(">HI", 0x4, 1 << 30)
STATUS_KEY = b"grpc-status"
STATUSES = {code.value[0]: code.name for code in grpc.StatusCode}
PATIENCE_S = 1.0
"""How long after the last deadline answers are waited for."""


@dataclass(frozen=True)
class Flood:
    """What one generator does from `start` (time.monotonic) on: call i is due at `start + due_s[i]`.

    Calls are used in turn and sent over the `connections` in turn, each with a deadline of `deadline_s` from when it is
    sent. What was due in the first `warm_up_s` is not measured.
    """

    address: str
    calls: Sequence[PreparedCall]
    start: float
    duration_s: float
    warm_up_s: float
    due_s: NDArray[np.float64]
    deadline_s: float
    connections: int = 8
    cpus: tuple[int, ...] | None = None


@dataclass
class FloodOutcome:
    """`good` calls were answered within the deadline, counted from when they were due; `late` ones after it.

    `refused` counts all others by status; UNANSWERED: nothing came, NOT_SENT: the deadline passed while the connection
    had no stream to spare. `latency` is that of the good and late ones, `refusal` that of the others, as encoded
    histograms of microseconds; `lag` is by how much calls were sent late.
    """

    offered: int
    good: int
    late: int
    refused: dict[str, int]
    measured_s: float
    latency: bytes
    refusal: bytes
    lag: bytes
    cpu_share: float


def flood(load: Flood) -> FloodOutcome:
    """Runs one generator to its end; called in a process of its own. Raises ServerLostError."""
    pin(load.cpus)
    host, _, port = load.address.rpartition(":")
    tally = _Tally(load)
    connections = [_Connection(host.strip("[]"), int(port), load, tally) for _ in range(load.connections)]
    selector = selectors.DefaultSelector()
    for connection in connections:
        selector.register(connection.socket, selectors.EVENT_READ, connection)
    time.sleep(max(0.0, load.start - time.monotonic()))
    used, number, due = time.process_time(), 0, load.start + load.due_s
    end = load.start + load.duration_s + load.deadline_s + PATIENCE_S
    while True:
        now = time.monotonic()
        upto = int(np.searchsorted(due, now, side="right"))
        for place in range(number, upto):
            connections[place % len(connections)].ask(load.calls[place % len(load.calls)], float(due[place]))
        number = upto
        sent_all = number == len(due)
        if now >= end or (sent_all and all(connection.idle for connection in connections)):
            break
        for connection in connections:
            connection.flush(now)
        wait = end - now if sent_all else max(0.0, float(due[number]) - time.monotonic())
        for key, _ in selector.select(min(wait, 0.05)):
            key.data.read()
    cpu_share = (time.process_time() - used) / max(time.monotonic() - load.start, 1e-9)
    for connection in connections:
        connection.socket.close()
        connection.give_up(end)
    return tally.outcome(cpu_share)


@dataclass
class _Tally:
    load: Flood
    offered: int = 0
    good: int = 0
    late: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    latency: HdrHistogram = field(default_factory=histogram)
    refusal: HdrHistogram = field(default_factory=histogram)
    lag: HdrHistogram = field(default_factory=histogram)

    def ended(self, asked: tuple[float, float], status: str | None, now: float) -> None:
        """Call due and sent at `asked` got this status, None: no answer at all."""
        due, sent = asked
        if due < self.load.start + self.load.warm_up_s:
            return
        self.offered += 1
        took_us = min(HIGHEST_US, max(1, int((now - due) * 1e6)))
        self.lag.record_value(min(HIGHEST_US, max(1, int((sent - due) * 1e6))))
        if status != "OK":
            self.refused[status or "UNANSWERED"] += 1
            self.refusal.record_value(took_us)
            return
        self.latency.record_value(took_us)
        if now - due <= self.load.deadline_s:
            self.good += 1
        else:
            self.late += 1

    def outcome(self, cpu_share: float) -> FloodOutcome:
        return FloodOutcome(
            self.offered,
            self.good,
            self.late,
            dict(self.refused),
            self.load.duration_s - self.load.warm_up_s,
            self.latency.encode(),
            self.refusal.encode(),
            self.lag.encode(),
            cpu_share,
        )


class _Connection:
    """One HTTP/2 connection."""

    def __init__(self, host: str, port: int, load: Flood, tally: _Tally) -> None:
        try:
            self.socket = socket.create_connection((host, port), timeout=10.0)
        except OSError as error:
            raise ServerLostError(f"{load.address} cannot be connected to: {error}") from error
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Streams that are open, with when their calls were due and sent; and calls that wait for a stream.
        self._open: dict[int, tuple[float, float]] = {}
        self._held: deque[tuple[PreparedCall, float]] = deque()
        self._most_open = 1 << 31
        self._tally = tally
        self._address = load.address.encode()
        self._deadline_s = load.deadline_s
        self._heads: dict[str, bytes] = {}
        self._stream = 1
        self._received = bytearray()
        self._unacknowledged = 0
        self._to_send = bytearray(PREFACE + _frame(SETTINGS, 0, 0, NO_TABLE + WIDE_WINDOW))
        self._to_send += _frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 30))
        self.socket.setblocking(False)
        self.flush(time.monotonic())

    @property
    def idle(self) -> bool:
        return not self._open and not self._held

    def ask(self, call: PreparedCall, due: float) -> None:
        """Takes a call, to be sent by the next `flush` that finds a stream for it."""
        self._held.append((call, due))

    def flush(self, now: float) -> None:
        """Sends what the server and the socket take; the rest stays for the next time."""
        while self._held and len(self._open) < self._most_open:
            call, due = self._held.popleft()
            left_s = due + self._deadline_s - now
            if left_s <= 0.0:
                self._tally.ended((due, now), "NOT_SENT", now)
                continue
            self._send(call, left_s)
            self._open[self._stream] = (due, now)
            self._stream += 2
        if self._to_send:
            try:
                del self._to_send[: self.socket.send(self._to_send)]
            except BlockingIOError:
                return
            except OSError as error:
                raise ServerLostError(f"the server closed a connection: {error}") from error

    def give_up(self, now: float) -> None:
        """Counts what is still unanswered."""
        for asked in [*self._open.values(), *((due, now) for _, due in self._held)]:
            self._tally.ended(asked, None, now)

    def read(self) -> None:
        """Takes in what has come."""
        try:
            part = self.socket.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError as error:
            raise ServerLostError(f"the server closed a connection: {error}") from error
        if not part:
            raise ServerLostError(f"the server closed a connection with {len(self._open)} calls unanswered")
        now, received = time.monotonic(), self._received
        received += part
        at = 0
        while len(received) - at >= 9:
            length = int.from_bytes(received[at : at + 3], "big")
            if len(received) - at < 9 + length:
                break
            kind, flags = received[at + 3], received[at + 4]
            stream = int.from_bytes(received[at + 5 : at + 9], "big")
            self._take(kind, flags, stream, received[at + 9 : at + 9 + length], now)
            at += 9 + length
        del received[:at]

    def _take(self, kind: int, flags: int, stream: int, body: bytearray, now: float) -> None:
        if kind == HEADERS and flags & END_STREAM:
            self._end(stream, _status_in(body), now)
        elif kind == RESET:
            self._end(stream, f"RESET_{int.from_bytes(body, 'big')}", now)
        elif kind == DATA:
            self._unacknowledged += len(body)
            if self._unacknowledged > 1 << 20:
                self._to_send += _frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._unacknowledged))
                self._unacknowledged = 0
        elif kind == SETTINGS and not flags & ACK:
            for at in range(0, len(body), 6):
                if body[at : at + 2] == MAX_STREAMS:
                    self._most_open = int.from_bytes(body[at + 2 : at + 6], "big")
            self._to_send += _frame(SETTINGS, ACK, 0, b"")
        elif kind == PING and not flags & ACK:
            self._to_send += _frame(PING, ACK, 0, bytes(body))
        elif kind == GOAWAY:
            raise ServerLostError(f"the server sent GOAWAY: {bytes(body[8:]).decode(errors='replace') or 'no reason'}")

    def _end(self, stream: int, status: str, now: float) -> None:
        asked = self._open.pop(stream, None)
        if asked is not None:
            self._tally.ended(asked, status, now)

    def _send(self, call: PreparedCall, left_s: float) -> None:
        head = self._heads.get(call.method)
        if head is None:
            head = self._heads[call.method] = self._head(call.method)
        timeout = _TIMEOUT + _text(b"%du" % max(1, int(left_s * 1e6)))
        message = b"\x00" + struct.pack(">I", len(call.request)) + call.request
        self._to_send += _frame(HEADERS, END_HEADERS, self._stream, head + timeout)
        self._to_send += _frame(DATA, END_STREAM, self._stream, message)

    def _head(self, method: str) -> bytes:
        """What the header blocks of a method share: HPACK (RFC 7541), literal but for what the static table holds."""
        post, http = b"\x83", b"\x86"
        named = [(b":path", method.encode()), (b":authority", self._address), (b"te", b"trailers")]
        named += [(b"content-type", b"application/grpc")]
        return post + http + b"".join(b"\x00" + _text(name) + _text(value) for name, value in named)


def _status_in(block: bytearray) -> str:
    at = block.find(STATUS_KEY)
    if at < 0:
        raise ServerLostError("an answer ended without a status that can be read")
    at += len(STATUS_KEY)
    return STATUSES[int(block[at + 1 : at + 1 + block[at]])]


def _text(value: bytes) -> bytes:
    if len(value) > 126:
        raise ValueError(f"a header of {len(value)} bytes; at most 126 are sent")
    return bytes((len(value),)) + value


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body


_TIMEOUT = b"\x00" + _text(b"grpc-timeout")
