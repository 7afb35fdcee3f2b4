"""Far more calls at once than a shard takes: each is answered or refused by name, and nothing else suffers."""

import asyncio
import os
from collections import Counter
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from heliotrope import AsyncClient, Event, RetryPolicy
from heliotrope.errors import OverloadedError, ServerError, from_rpc_error
from heliotrope.v1 import event_pb2, event_pb2_grpc, recommendation_pb2, recommendation_pb2_grpc
from heliotrope_server.lanes import MOST_PENDING
from tests.end_to_end.running_server import running_server
from tests.faults.process_world import LONG
from tests.server import worlds

CALLS = 20_000 if LONG else 3_000
ONCE = RetryPolicy(max_attempts=1)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("overload")
    worlds.publish(folder / "store")
    with running_server(folder / "store", folder / "data", "--shards", "2") as running:
        yield running


async def test_a_burst_is_answered_or_refused_and_health_is_told_meanwhile(server):
    async with grpc.aio.insecure_channel(server.address) as channel, AsyncClient(server.address) as client:
        stub = recommendation_pb2_grpc.RecommendationServiceStub(channel)

        async def ask(number):
            try:
                # Half of the users belong to the shard that this connection does not end in.
                await stub.Recommend(recommendation_pb2.RecommendRequest(user_id=f"u{number}", count=10), timeout=120.0)
            except grpc.aio.AioRpcError as error:
                return type(from_rpc_error(error))
            return None

        burst = [asyncio.create_task(ask(number)) for number in range(CALLS)]
        health = health_pb2_grpc.HealthStub(channel)
        for _ in range(20):
            status = await health.Check(health_pb2.HealthCheckRequest(), timeout=120.0)
            assert status.status == health_pb2.HealthCheckResponse.SERVING
            assert (await client.serving_status(timeout_s=120.0)).shards[0].reachable
        outcomes = Counter(await asyncio.gather(*burst))
        assert set(outcomes) == {None, OverloadedError}, outcomes
        # What was refused can be asked again at once when the burst is over.
        assert (await client.recommend("u1")).recommendations


async def test_callers_who_wait_for_their_answers_are_never_refused(server):
    async with grpc.aio.insecure_channel(server.address) as channel:
        recommendations = recommendation_pb2_grpc.RecommendationServiceStub(channel)
        events = event_pb2_grpc.EventServiceStub(channel)

        async def ask(number):
            for turn in range(20):
                asked = recommendation_pb2.RecommendRequest(user_id=f"u{number}", count=10)
                assert (await recommendations.Recommend(asked, timeout=120.0)).recommendations
                event = event_pb2.Event(event_id=f"c{number}-{turn}", user_id=f"u{number}", item_id="i1")
                event.type = event_pb2.EVENT_TYPE_VIEW
                await events.RecordEvents(event_pb2.RecordEventsRequest(events=[event]), timeout=120.0)

        await asyncio.gather(*(ask(number) for number in range(MOST_PENDING)))


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="threads can be told so on Linux only")
def test_a_call_that_comes_in_does_not_interrupt_the_thread_that_runs_python(server):
    for pid in server.shard_pids():
        threads = {thread.name: thread for thread in Path(f"/proc/{pid}/task").iterdir()}
        grpc_threads = [name for name, thread in threads.items() if "event_engine" in (thread / "comm").read_text()]
        assert grpc_threads
        for name in [str(pid), *grpc_threads]:
            assert os.sched_getscheduler(int(name)) == os.SCHED_BATCH


async def test_a_flood_of_events_loses_none_that_was_acknowledged(server):
    batches = [
        [Event(f"f{batch % 50}", "i1", event_id=f"{batch}-{part}") for part in range(20)] for batch in range(400)
    ]
    async with AsyncClient(server.address, direct=False, retry=ONCE, timeout_s=120.0) as client:

        async def send(batch):
            try:
                receipt = await client.record_events(batch)
            except ServerError as error:
                assert isinstance(error, OverloadedError), error
                return []
            refused = {result.event_id for result in receipt.rejected}
            assert {result.error.reason for result in receipt.rejected} <= {"OVERLOADED"}
            return [event for event in batch if event.event_id not in refused]

        acknowledged = [event for part in await asyncio.gather(*map(send, batches)) for event in part]
        assert acknowledged
        for number in range(50):
            _, *stored = [part async for part in client.export_profile(f"f{number}")]
            ids = [event.event_id for event in stored]
            assert len(ids) == len(set(ids))
            assert {event.event_id for event in acknowledged if event.user_id == f"f{number}"} <= set(ids)


async def test_the_client_waits_out_a_burst_of_its_own(server):
    async with AsyncClient(server.address, retry=RetryPolicy(max_attempts=50), timeout_s=120.0) as client:
        answers = await asyncio.gather(*(client.recommend(f"u{number}") for number in range(500)))
    assert all(answer.recommendations for answer in answers)
