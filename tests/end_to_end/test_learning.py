"""Online learning on a real server with two shards, through the real client."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from heliotrope import Client, Event
from heliotrope.errors import FailedPreconditionError, InvalidRequestError, NotFoundError
from heliotrope.shard_map import slot_of
from heliotrope.v1.recommendation_pb2 import SOURCE_EXPLORE
from heliotrope_indexer.snapshot import SnapshotStore
from heliotrope_server.event import EventKind, UserEvent
from heliotrope_server.layout import impression_folders
from heliotrope_server.learning.impression_log import read_feedback, read_impressions
from heliotrope_server.live_catalogue import LiveCatalogue
from tests.end_to_end.running_server import RunningServer, running_server
from tests.server import worlds
from tests.server.learning.hidden_taste import LEARNING, SNAPSHOT, USER_IDS, HiddenTaste

OPTIONS = [
    "--shards",
    "2",
    "--learn-online",
    "--impression-log-share",
    "1",
    *(part for name, value in LEARNING.items() for part in (f"--{name.replace('_', '-')}", str(value))),
]
LIMIT_S = 60.0


class Audience:
    """The simulated users: what they did, what they would like, and what they are shown."""

    def __init__(self, store: Path) -> None:
        snapshot = SnapshotStore(store).open()
        self.taste = HiddenTaste(snapshot)
        self.now_s = float(round(time.time()))
        pairs = self.taste.events()
        self.events = [
            Event(user, item, "click", time=self.now_s, event_id=f"e{number}")
            for number, (user, item) in enumerate(pairs)
        ]
        catalogue = LiveCatalogue(snapshot)
        self._interests = {}
        for user in USER_IDS:
            own = [
                UserEvent(user, f"e{number}", EventKind.CLICK, item, 1.0, round(self.now_s * 1e6))
                for number, (who, item) in enumerate(pairs)
                if who == user
            ]
            vectors = worlds.naive_interest_vectors(own, catalogue, self.now_s)
            self._interests[user] = vectors.astype(np.float32)

    def rewards(self, user: str, item_ids: list[str]) -> dict[str, float]:
        return self.taste.rewards(self._interests[user], item_ids)

    def give_feedback(self, client: Client) -> None:
        """One round: every user sees their list and says what it was worth."""
        for user in USER_IDS:
            answer = client.recommend(user, count=8)
            rewards = self.rewards(user, [each.item_id for each in answer.recommendations])
            rewards[min(rewards, key=lambda item_id: rewards[item_id])] = 0.0
            assert client.record_feedback(user, answer.request_id, rewards).recorded_count == 8

    def answers(self, client: Client) -> dict[str, list[tuple[str, float]]]:
        """Every user's ranking at one moment; its explanations must be exact."""
        found = {}
        for user in USER_IDS:
            answer = client.recommend(user, count=20, explain=True, request_time=self.now_s)
            for each in answer.recommendations:
                assert each.score == pytest.approx(sum(part.value for part in each.explanation), abs=1e-5)
            found[user] = [(each.item_id, each.score) for each in answer.recommendations]
        return found

    def click_rate(self, answers: dict[str, list[tuple[str, float]]]) -> float:
        """Expected reward of the first 8 items by the hidden taste."""
        rates = [self.rewards(user, [item for item, _ in ranking[:8]]).values() for user, ranking in answers.items()]
        return float(np.mean([list(each) for each in rates]))


def until(condition, step=lambda: time.sleep(0.05)):
    """Repeats `step` until the condition holds, within a bound."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        step()


def versions(client: Client) -> set[int]:
    return {shard.weights_version for shard in client.serving_status().shards}


def test_a_server_learns_what_its_users_like_keeps_it_and_takes_it_back(tmp_path):
    worlds.publish(tmp_path / "store", **SNAPSHOT)
    audience = Audience(tmp_path / "store")
    server = RunningServer(tmp_path / "store", tmp_path / "data", *OPTIONS)
    with Client(server.address) as client:
        assert client.record_events(audience.events).rejected == []
        frozen = audience.answers(client)
        assert versions(client) == {0}
        until(lambda: versions(client) not in ({0}, {0, 1}), lambda: audience.give_feedback(client))
        until(lambda: len(versions(client)) == 1)
        status = client.serving_status().learning
        assert status.leader_reachable and status.leader_shard_index == 0
        (newest, *_) = status.versions
        assert newest.active and newest.weights_version == status.weights_version
        assert newest.comparison.other_log_loss < newest.comparison.active_log_loss
        assert newest.comparison.user_count >= LEARNING["promotion_users"]
        assert not newest.comparison.HasField("active_off_policy_log_loss")  # nothing was drawn at random
        assert 0.0 < status.shadow_change <= 0.3
        learned, version = audience.answers(client), status.weights_version
        assert audience.click_rate(learned) > audience.click_rate(frozen)
    server.kill_everything()

    with running_server(tmp_path / "store", tmp_path / "data", *OPTIONS) as server, Client(server.address) as client:
        assert versions(client) == {version}
        # theta may weigh live popularity now, which the shards tell each other within a quarter of a second.
        until(lambda: nearly_equal(audience.answers(client), learned))
        follower = Client(client.serving_status().shards[1].address, direct=False)
        until(lambda: follower.roll_back_weights() == 0, lambda: None)
        follower.close()
        assert versions(client) == {0}
        assert audience.answers(client) == frozen
        assert any(each.withdrawn for each in client.serving_status().learning.versions)
        with pytest.raises(FailedPreconditionError, match="nothing to go back from"):
            client.roll_back_weights()

    folders = impression_folders(tmp_path / "data")
    shown = [impression for folder in folders for impression in read_impressions(folder)]
    assert {impression.user_id for impression in shown} == set(USER_IDS)
    assert {impression.weights_version for impression in shown} >= {0, version}
    assert sum(1 for folder in folders for _ in read_feedback(folder)) > 0


def test_a_leader_that_is_down_only_delays_learning(tmp_path):
    worlds.publish(tmp_path / "store", **SNAPSHOT)
    with running_server(tmp_path / "store", tmp_path / "data", *OPTIONS) as server, Client(server.address) as client:
        follower = Client(client.serving_status().shards[1].address, direct=False)
        shard = client.serving_status().shards[1]
        leader_pid = leader_of(server)
        os.kill(leader_pid, signal.SIGSTOP)
        try:
            users = [user for user in USER_IDS if owned_by(user, shard)]
            for user in users:
                answer = follower.recommend(user, count=8)
                follower.record_feedback(user, answer.request_id, {answer.recommendations[7].item_id: 1.0})
            own = follower.serving_status()
            assert own.shards[1].feedback_count == 8 * len(users)
            assert not own.shards[0].reachable and not own.learning.leader_reachable
        finally:
            os.kill(leader_pid, signal.SIGCONT)
        until(lambda: client.serving_status().shards[1].waiting_example_count == 0)
        taken = 8 * len(users) // 64 * 64
        until(lambda: client.serving_status().learning.example_count >= taken)
        follower.close()


def test_exploration_makes_the_off_policy_loss_available_and_is_in_the_log(tmp_path):
    worlds.publish(tmp_path / "store", **SNAPSHOT)
    audience = Audience(tmp_path / "store")
    options = [*OPTIONS, "--explore-share", "0.2"]
    with running_server(tmp_path / "store", tmp_path / "data", *options) as server, Client(server.address) as client:
        client.record_events(audience.events)

        def compared():
            status = client.serving_status().learning
            return [status.shadow, *(version.comparison for version in status.versions)]

        until(
            lambda: any(each.HasField("active_off_policy_log_loss") for each in compared()),
            lambda: audience.give_feedback(client),
        )
    shown = [one for folder in impression_folders(tmp_path / "data") for one in read_impressions(folder)]
    explored = [one for one in shown if SOURCE_EXPLORE in one.sources]
    assert explored
    for one in explored:
        assert one.sources.index(SOURCE_EXPLORE) == len(one.sources) - 1
        assert one.propensities[-1] == pytest.approx(0.2 / 50)
    assert {one.propensities[-1] for one in shown if SOURCE_EXPLORE not in one.sources} == {0.8}


def test_feedback_is_refused_with_the_reason(tmp_path):
    worlds.publish(tmp_path / "store", **SNAPSHOT)
    options = [*OPTIONS, "--remembered-answers", "1"]
    with running_server(tmp_path / "store", tmp_path / "data", *options) as server, Client(server.address) as client:
        first, second = client.recommend("u", count=3), client.recommend("u", count=3)
        item = second.recommendations[0].item_id
        for request_id in (first.request_id, "unheard-of"):
            with pytest.raises(NotFoundError, match="its newest 1 answers, none for longer than 3600 s") as caught:
                client.record_feedback("u", request_id, {item: 1.0})
            assert caught.value.reason == "UNKNOWN_REQUEST"
        for rewards, reason in (({item: 1.5}, "INVALID_REWARD"), ({"i0": 1.0, "nothing": 1.0}, "ITEM_NOT_SHOWN")):
            with pytest.raises(InvalidRequestError) as caught:
                client.record_feedback("u", second.request_id, rewards)
            assert caught.value.reason == reason
        with pytest.raises(InvalidRequestError, match="1 to 100 items, not 0"):
            client.record_feedback("u", second.request_id, {})
        reply = client.record_feedback("u", second.request_id, {second.recommendations[2].item_id: 1.0})
        assert (reply.recorded_count, reply.implied_count, reply.duplicate_count) == (1, 2, 0)
        reply = client.record_feedback("u", second.request_id, {second.recommendations[2].item_id: 1.0})
        assert (reply.recorded_count, reply.implied_count, reply.duplicate_count) == (0, 0, 1)


def test_a_server_that_does_not_learn_says_so(tmp_path):
    worlds.publish(tmp_path / "store", **SNAPSHOT)
    with running_server(tmp_path / "store", tmp_path / "data") as server, Client(server.address) as client:
        answer = client.recommend("u", count=3)
        with pytest.raises(FailedPreconditionError, match="--learn-online"):
            client.record_feedback("u", answer.request_id, {answer.recommendations[0].item_id: 1.0})
        with pytest.raises(FailedPreconditionError, match="--learn-online"):
            client.roll_back_weights()
        status = client.serving_status()
        assert not status.HasField("learning")
        assert status.shards[0].remembered_answer_count == 0


def nearly_equal(found: dict[str, list[tuple[str, float]]], wanted: dict[str, list[tuple[str, float]]]) -> bool:
    """The same items with the same scores, to float rounding."""
    return all(
        [item for item, _ in found[user]] == [item for item, _ in ranking]
        and np.allclose([score for _, score in found[user]], [score for _, score in ranking], atol=1e-6)
        for user, ranking in wanted.items()
    )


def leader_of(server: RunningServer) -> int:
    """The process of shard 0: the one that holds the lock of its folder."""
    for pid in server.shard_pids():
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if os.readlink(link).endswith("shard-000/LOCK"):
                    return pid
            except FileNotFoundError:
                continue
    raise AssertionError("no process holds shard 0")


def owned_by(user: str, shard) -> bool:
    return shard.first_slot <= slot_of(user, 16_384) < shard.end_slot
