"""Items that were made to hurt, and a snapshot that is taken away under the server."""

import math
import random
import shutil

import pytest

from heliotrope import Client, Item
from heliotrope.errors import FailedPreconditionError, InvalidRequestError
from heliotrope_indexer.snapshot import SnapshotStore
from tests.faults.process_world import LONG, tiny_world

RANDOM_TEXTS = 2_000 if LONG else 60
POISON = {
    "null": "\x00",
    "control": "".join(map(chr, range(1, 32))),
    "spaces": "a   ",
    "blank": "\u3000\u200b\u2060",
    "one long word": "x" * 2_000,
    "combining": "a" + "\u0301" * 1_999,
    "right to left": "\u202e\u202dabc\u2066\u2069" * 50,
    "emoji": "\U0001f469\u200d\U0001f469\u200d\U0001f467" * 100,
    "not a character": "\ufffe\uffff\U0010ffff",
    "byte order": "\ufeff" * 10,
    "nothing known": "漢字" * 500,
    "markup": "[CLS][SEP][PAD][MASK]" * 90,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny_world(tmp_path_factory)


def test_poison_is_taken_or_refused_by_name_and_no_score_suffers(tmp_path, world):
    rng = random.Random(5)
    texts = dict(POISON)
    for number in range(RANDOM_TEXTS):
        alphabet = rng.choice([range(1, 128), range(0x250, 0x2000), range(0x1F000, 0x1FAFF), range(0xE000, 0xF8FF)])
        texts[f"random {number}"] = "".join(chr(rng.choice(alphabet)) for _ in range(rng.randrange(1, 300)))
    server = world.server(tmp_path / "data")
    with Client(server.address, timeout_s=60.0) as client:
        kept = []
        for name, text in texts.items():
            item = Item(item_id=name, title=text, description=text[:100], categories=[text[:20]] if text[:20] else [])
            try:
                client.upsert_items([item])
            except InvalidRequestError as refusal:
                assert refusal.reason.startswith("INVALID_"), refusal
                continue
            kept.append(name)
            assert client.get_item(name).item == item
        assert len(kept) > len(texts) // 2
        # All at once, and the largest that the limits allow.
        huge = [Item(item_id=f"huge {number}", title="y" * 2_000, description="z" * 20_000) for number in range(64)]
        assert client.upsert_items(huge).created_count == 64
        with pytest.raises(InvalidRequestError, match="20000"):
            client.upsert_items([Item(item_id="too large", title="y", description="z" * 20_001)])
        for text in [*POISON.values(), "title 3"]:
            try:
                matches = client.search_items(text, count=50)
            except InvalidRequestError:
                continue
            assert matches and all(math.isfinite(match.similarity) for match in matches)
        client.record_event("victim", kept[0])
        answers = client.recommend("victim", count=200, seen="include").recommendations
        listed = {item.item_id for item in client.list_items()}
        assert {"i1", *kept} <= listed
        # All there are, or as many as can be asked for.
        assert len({answer.item_id for answer in answers} & listed) == min(200, len(listed))
        assert all(math.isfinite(answer.score) and 0.0 < answer.probability < 1.0 for answer in answers)
    assert server.stop() == 0, "".join(server.messages)
    # The log that holds all of it is read again by the next start.
    server = world.server(tmp_path / "data")
    with Client(server.address, timeout_s=60.0) as client:
        assert all(client.get_item(name).item.title == texts[name] for name in kept)
        answers = client.recommend("victim", count=200, seen="include").recommendations
        assert {item.item_id for item in client.list_items()} == listed
        assert len({answer.item_id for answer in answers} & listed) == min(200, len(listed))
    assert server.stop() == 0, "".join(server.messages)


def test_a_snapshot_that_is_removed_under_the_server_is_still_served(tmp_path, world):
    store = shutil.copytree(world.store, tmp_path / "store")
    server = world.server(tmp_path / "data", "--shards", "2", store=store)
    version = SnapshotStore(str(store)).current()
    with Client(server.address, timeout_s=60.0) as client:
        expected = [one.item_id for one in client.recommend("u1", count=20).recommendations]
        (store / version).rename(tmp_path / "taken away")
        assert [one.item_id for one in client.recommend("u1", count=20).recommendations] == expected
        token = client.record_event("u1", "i3")
        assert client.recommend("u1", version_token=token).recommendations
        assert client.upsert_items([Item(item_id="new", title="made without its store")]).created_count == 1
        assert client.search_items("made without its store", count=1)[0].item.item_id == "new"
        with pytest.raises(FailedPreconditionError) as refused:
            client.activate_snapshot(version)
        assert refused.value.reason == "SNAPSHOT_UNUSABLE" and version in refused.value.message
        assert client.recommend("u1", version_token=token).recommendations
        (tmp_path / "taken away").rename(store / version)
        assert client.activate_snapshot(version).snapshot_version == version
        assert client.get_item("new").item.title == "made without its store"
    assert server.stop() == 0, "".join(server.messages)
