"""kill -9 at random moments under load: no acknowledged event is lost, none counts twice."""

import os
import random
import signal
import threading
import time

import pytest

from heliotrope import Client, Event, RetryPolicy
from heliotrope.errors import ServerError
from heliotrope.v1 import event_pb2
from heliotrope_server.peers import slot_of
from heliotrope_server.settings import SLOT_COUNT
from tests.end_to_end.running_server import RunningServer
from tests.server import worlds

KILLS = 50
USERS = [f"user-{number}" for number in range(20)]
_MENDED_BY_SENDING_AGAIN = {"SHARD_UNREACHABLE", "SHUTTING_DOWN", "DEADLINE_PASSED"}


class Writer(threading.Thread):
    """Records events without pause and notes which were acknowledged. What is refused is sent again, same id."""

    def __init__(self, address: str, number: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.acknowledged: dict[str, tuple[str, str]] = {}
        self.sent: dict[str, tuple[str, str]] = {}
        self.failure: BaseException | None = None
        self._address = address
        self._number = number
        self._stop_event = stop
        self._lock = threading.Lock()

    def snapshot(self) -> dict[str, tuple[str, str]]:
        """The events acknowledged so far, while the thread goes on."""
        with self._lock:
            return dict(self.acknowledged)

    def run(self) -> None:
        try:
            self._write()
        except BaseException as error:
            self.failure = error

    def _write(self) -> None:
        rng = random.Random(self._number)
        waiting: list[Event] = []
        # Through the front door only, so that forwarding to a dying shard is under test too.
        retry = RetryPolicy(max_attempts=1)
        with Client(self._address, direct=self._number % 2 == 0, timeout_s=5.0, retry=retry) as client:
            count = 0
            while not self._stop_event.is_set() or waiting:
                while len(waiting) < 8 and not self._stop_event.is_set():
                    event = Event(rng.choice(USERS), f"i{rng.randrange(200)}", event_id=f"w{self._number}-{count}")
                    count += 1
                    waiting.append(event)
                    self.sent[event.event_id] = (event.user_id, event.item_id)
                try:
                    receipt = client.record_events(waiting)
                except ServerError:
                    continue
                refused = []
                with self._lock:
                    for event, result in zip(waiting, receipt.results, strict=True):
                        if result.outcome == event_pb2.EVENT_OUTCOME_REJECTED:
                            # The last: it came back so late that it may have taken the event, or not.
                            assert result.error.reason in _MENDED_BY_SENDING_AGAIN, result
                            refused.append(event)
                        else:
                            self.acknowledged[event.event_id] = (event.user_id, event.item_id)
                waiting = refused


def wait_for_progress(writers, server):
    """Returns once every user's shard acknowledges again: both are up, and under load."""
    before = [writer.snapshot() for writer in writers]
    deadline = time.monotonic() + 60
    while True:
        fresh = [
            user
            for writer, known in zip(writers, before, strict=True)
            for event_id, (user, _) in writer.snapshot().items()
            if event_id not in known
        ]
        if len({slot_of(user) < SLOT_COUNT // 2 for user in fresh}) == 2 and len(server.shard_pids()) == 2:
            return
        assert time.monotonic() < deadline, "no progress for a minute"
        assert all(writer.failure is None for writer in writers), [writer.failure for writer in writers]
        time.sleep(0.01)


@pytest.mark.parametrize("seed", [1])
def test_fifty_kills_lose_nothing_and_double_nothing(tmp_path, seed):
    rng = random.Random(seed)
    worlds.publish(tmp_path / "store")
    options = ["--shards", "2", "--checkpoint-interval-s", "0.3", "--ring-size", "100000"]
    server = RunningServer(tmp_path / "store", tmp_path / "data", *options)
    stop = threading.Event()
    writers = [Writer(server.address, number, stop) for number in range(3)]
    for writer in writers:
        writer.start()
    killed = 0
    while killed < KILLS:
        # Both shards die in each round, at moments of their own, once the last round's damage is mended.
        wait_for_progress(writers, server)
        for pid in rng.sample(server.shard_pids(), 2):
            time.sleep(rng.uniform(0.0, 0.2))
            os.kill(pid, signal.SIGKILL)
            killed += 1
    stop.set()
    for writer in writers:
        writer.join(timeout=60)
        assert not writer.is_alive()
        assert writer.failure is None, writer.failure
    acknowledged = {key: value for writer in writers for key, value in writer.acknowledged.items()}
    sent = {key: value for writer in writers for key, value in writer.sent.items()}
    assert len(acknowledged) > 500

    def stored():
        found: dict[str, tuple[str, str]] = {}
        with Client(server.address) as client:
            for user in USERS:
                profile, *events = client.export_profile(user)
                assert profile.remembered_event_count == len(events)
                for event in events:
                    assert event.event_id not in found
                    found[event.event_id] = (event.user_id, event.item_id)
            counted = sum(client.get_item(f"i{number}").live_event_count for number in range(200))
        return found, counted

    found, _ = stored()
    assert acknowledged.items() <= found.items()
    assert found.items() <= sent.items()
    server.kill_everything()
    server = RunningServer(tmp_path / "store", tmp_path / "data", *options)
    again, _ = stored()
    assert again == found
    pairs = set(found.values())
    time_limit = time.monotonic() + 30
    while True:
        # Live popularity counts each user once for an item, whatever they repeat, up to the decay of these seconds.
        _, counted = stored()
        if abs(counted - len(pairs)) < 0.01 * len(pairs):
            break
        assert time.monotonic() < time_limit, (counted, len(pairs))
    assert server.stop() == 0
