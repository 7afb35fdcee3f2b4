"""A disk that takes its time: what was not acknowledged is nowhere to be seen, and nobody but its sender waits."""

import asyncio
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from heliotrope import Client, Event
from heliotrope_server.answerer import Question
from heliotrope_server.record_log import RecordLog
from tests.end_to_end.running_server import running_server
from tests.faults.test_storage_disk import health, wait_until
from tests.server import worlds

NOW_S = 1.7e9
USERS = [f"u{number}" for number in range(5)]
PATIENCE_S = 60.0


class SlowDisk:
    """A sync that lasts until it is let go."""

    def __init__(self):
        self.reached = threading.Event()
        self._free = threading.Event()
        self._free.set()

    def hold(self):
        self.reached.clear()
        self._free.clear()

    def let_go(self):
        self._free.set()

    def __call__(self, descriptor):
        self.reached.set()
        assert self._free.wait(PATIENCE_S), "nobody let the disk go: something waits for it that should not"
        os.fdatasync(descriptor)


async def shown(engine):
    answers = await engine.recommend_many([Question(user, 20, time_s=NOW_S) for user in USERS])
    return [(answer.item_ids, answer.scores) for answer in answers]


@pytest.mark.parametrize("seed", range(3))
async def test_answers_go_on_while_a_sync_lasts_and_events_count_from_their_acknowledgement_on(tmp_path, seed):
    disk, rng = SlowDisk(), np.random.default_rng(seed)
    served = worlds.catalogue(tmp_path, seed=seed)
    events = worlds.random_events(rng, 400, now_s=NOW_S)
    world = {"wall_clock": lambda: NOW_S, "log_factory": lambda folder: RecordLog(folder, sync=disk)}
    async with worlds.engine(tmp_path, served, **world) as engine:
        await engine.record(events[:200])
        before, lsn = await shown(engine), engine.applied_lsn
        counts = [engine.profile(user).event_count for user in USERS]
        disk.hold()
        waiting = [asyncio.create_task(engine.record(events[start : start + 20])) for start in range(200, 400, 20)]
        await asyncio.sleep(0)
        assert await asyncio.to_thread(disk.reached.wait, PATIENCE_S)
        for _ in range(20):
            assert await shown(engine) == before
            assert (await engine.recommend(Question("stranger", 5))).result.item_ids
        assert engine.healthy
        await engine.checkpoint()
        assert [engine.profile(user).event_count for user in USERS] == counts
        assert (engine.applied_lsn, engine.store.checkpoint_lsn) == (lsn, lsn)
        assert not any(task.done() for task in waiting)
        disk.let_go()
        lsns = [last for _, last in await asyncio.gather(*waiting)]
        assert lsns == [lsn + 20 * number for number in range(1, 11)]
        assert await shown(engine) != before
        assert sum(engine.profile(user).event_count for user in USERS) == 400
        answer = await engine.recommend(Question("u1", 5, version_token=engine.clock.token(lsns[-1])))
        assert answer.result.item_ids


SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>
/* Every sync lasts for as long as the file is there. */
static void wait(void) { const char *gate = getenv("SLOW_DISK"); while (gate && !access(gate, F_OK)) usleep(1000); }
int fdatasync(int file) { wait(); return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(file); }
int fsync(int file) { wait(); return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(file); }
"""


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler")
def test_a_server_answers_while_its_disk_hangs_and_acknowledges_nothing(tmp_path, monkeypatch):
    library, gate = tmp_path / "slow.so", tmp_path / "gate"
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library), "-ldl"]
    subprocess.run(command, input=SHIM.encode(), check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("SLOW_DISK", str(gate))
    worlds.publish(tmp_path / "store")
    options = ["--shards", "2", "--checkpoint-interval-s", "0.05"]
    with (
        running_server(tmp_path / "store", tmp_path / "data", *options) as server,
        Client(server.address) as client,
        ThreadPoolExecutor(4) as senders,
    ):
        first = [Event(user, f"i{place}", event_id=f"{user}-{place}") for user in USERS for place in range(3)]
        assert client.record_events(first).rejected == []
        # By numbers: an export is put on record, and waits for the disk.
        seen = {user: client.get_profile(user).remembered_event_count for user in USERS}
        assert set(seen.values()) == {3}
        gate.touch()
        try:
            more = [[Event(user, f"i{place}", event_id=f"{user}-{place}") for user in USERS] for place in range(3, 7)]
            sent = [senders.submit(client.record_events, part) for part in more]
            for _ in range(20):
                for user in USERS:
                    assert len(client.recommend(user, count=5).recommendations) == 5
            # The same as before: nothing of what waits is shown.
            assert {user: client.get_profile(user).remembered_event_count for user in USERS} == seen
            assert not any(one.done() for one in sent)
            assert health(server.address) == 1
        finally:
            gate.unlink()
        for one in sent:
            assert one.result(timeout=PATIENCE_S).rejected == []
        wait_until(lambda: all(len(event_ids(client, user)) == 7 for user in USERS))


def event_ids(client, user):
    return {event.event_id for event in list(client.export_profile(user))[1:]}
