"""Clients that misbehave: they leave in mid-stream, come in thousands and go, or never read what they asked for."""

import asyncio
import contextlib
import random
import signal
import socket
import subprocess
import sys

import grpc
import pytest

from heliotrope import AsyncClient, Client, Event
from heliotrope.v1 import event_pb2, event_pb2_grpc, recommendation_pb2, recommendation_pb2_grpc
from tests.faults.process_world import LONG, item_ids, memory_bytes, open_files, tiny_world

LEAVERS = 1_000 if LONG else 60
CONNECTIONS = 10_000 if LONG else 1_500
UNREAD_QUESTIONS = 200_000 if LONG else 20_000
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = tiny_world(tmp_path_factory).server(tmp_path_factory.mktemp("clients") / "data")
    yield running
    assert running.stop() == 0, "".join(running.messages)


def settled(measure, bound, tries=200):
    """Asks until `measure` is at most `bound`: what a server frees, it frees soon but not at once."""
    for _ in range(tries):
        value = measure()
        if value <= bound:
            return value
        with contextlib.suppress(TimeoutError):
            asyncio.run(asyncio.wait_for(asyncio.Event().wait(), 0.05))
    return value


async def test_clients_that_leave_in_mid_stream_take_nothing_with_them(server):
    rng = random.Random(7)
    acknowledged = set()

    async def leaver(number):
        channel = grpc.aio.insecure_channel(server.address)
        if number % 2:
            stub = recommendation_pb2_grpc.RecommendationServiceStub(channel)
            stream = stub.StreamRecommend()
            for _ in range(rng.randrange(1, 40)):
                question = recommendation_pb2.RecommendRequest(user_id=f"u{number}", count=10)
                await stream.write(recommendation_pb2.StreamRecommendRequest(request=question))
            if number % 4 == 1:
                assert (await stream.read()).HasField("response")
        else:
            stream = event_pb2_grpc.EventServiceStub(channel).StreamEvents()
            for part in range(rng.randrange(1, 10)):
                batch = [Event(f"leaver-{number}", "i1", event_id=f"{number}-{part}").to_proto()]
                await stream.write(event_pb2.StreamEventsRequest(events=batch))
                if rng.random() < 0.5:
                    reply = await stream.read()
                    if reply.HasField("response"):
                        acknowledged.add((number, reply.response.results[0].event_id))
        if rng.random() < 0.5:
            stream.cancel()
        await channel.close()

    # So many at once that none is refused.
    for first in range(0, LEAVERS, 60):
        await asyncio.gather(*(leaver(number) for number in range(first, min(first + 60, LEAVERS))))
    assert acknowledged
    async with AsyncClient(server.address) as client:
        for number in {number for number, _ in acknowledged}:
            stored = [part async for part in client.export_profile(f"leaver-{number}")]
            ids = [event.event_id for event in stored[1:]]
            assert len(ids) == len(set(ids))
            assert {event_id for owner, event_id in acknowledged if owner == number} <= set(ids)
        assert (await client.recommend("u1")).recommendations


def test_thousands_of_connections_come_and_go_and_leave_nothing_open(server):
    rng = random.Random(11)
    host, port = server.address.rsplit(":", 1)
    before = open_files(server)
    held: list[socket.socket] = []
    for number in range(CONNECTIONS):
        connection = socket.create_connection((host, int(port)), timeout=20.0)
        kind = number % 4
        with contextlib.suppress(OSError):
            if kind == 1:
                connection.sendall(PREFACE)
            elif kind == 2:
                connection.sendall(rng.randbytes(rng.randrange(1, 200)))
            elif kind == 3:
                connection.sendall(PREFACE[: rng.randrange(1, len(PREFACE))])
        held.append(connection)
        if len(held) == 200:
            for each in held:
                each.close()
            held.clear()
    for each in held:
        each.close()
    with Client(server.address, timeout_s=30.0) as client:
        assert client.recommend("u1").recommendations
    assert settled(lambda: open_files(server), before + 20) <= before + 20


VANISHING = """
import sys
import grpc
channels = [grpc.insecure_channel(sys.argv[1], options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(20)]
for channel in channels:
    grpc.channel_ready_future(channel).result(timeout=60)
print("connected", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not LONG, reason="a client is given 80 s to show that it is there: HELIOTROPE_LONG_FAULTS=1")
def test_connections_of_a_client_that_is_gone_without_goodbye_are_closed(server):
    before = open_files(server)
    command = [sys.executable, "-c", VANISHING, server.address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout.readline() == "connected\n"
        connected = open_files(server)
        assert connected >= before + 20
        # Its machine takes what is sent, and nobody is there to answer: as behind a network that was cut.
        client.send_signal(signal.SIGSTOP)
        try:
            assert settled(lambda: open_files(server), before + 5, tries=3_000) <= before + 5
        finally:
            client.kill()


async def test_a_reader_that_never_reads_is_waited_for_and_not_stored_for(server):
    count = len(item_ids())
    question = recommendation_pb2.RecommendRequest(
        user_id="slow", count=count, explain=True, seen_policy=recommendation_pb2.SEEN_POLICY_INCLUDE
    )
    message = recommendation_pb2.StreamRecommendRequest(request=question)
    async with AsyncClient(server.address) as client:
        await client.record_events([Event("slow", one) for one in item_ids()])
        before = memory_bytes(server)
        asked_before = (await client.serving_status()).shards[0].recommend_count
        async with grpc.aio.insecure_channel(server.address) as channel:
            stream = recommendation_pb2_grpc.RecommendationServiceStub(channel).StreamRecommend()

            async def ask():
                for _ in range(UNREAD_QUESTIONS):
                    await stream.write(message)

            asking = asyncio.create_task(ask())
            # Others are answered meanwhile, until no more of the unread answers are made.
            others = still = answered = 0
            while still < 50:
                assert (await client.recommend("u1", count=1, timeout_s=60.0)).recommendations
                others += 1
                made = (await client.serving_status()).shards[0].recommend_count - asked_before - others
                still = still + 1 if made == answered > 0 else 0
                answered = made
            grown = memory_bytes(server) - before
            asking.cancel()
            stream.cancel()
        assert answered < UNREAD_QUESTIONS, "all questions were answered, though nobody read"
        assert grown < 200 << 20, f"{grown / 2**20:.0f} MiB more for {answered} unread answers"
        assert (await client.recommend("u1")).recommendations
