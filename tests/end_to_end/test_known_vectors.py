"""Items whose text vectors the caller knows, on a real server without a text encoder."""

import numpy as np
import pytest

from heliotrope import Client, Event, Item, TextEmbedding, make_item
from heliotrope.errors import FailedPreconditionError, InvalidRequestError
from heliotrope_indexer.snapshot import SnapshotStore, write_snapshot
from tests.end_to_end.running_server import running_server
from tests.server import worlds


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    worlds.publish(folder / "store")
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with running_server(folder / "store", folder / "data", "--shards", "2") as running:
        yield running


@pytest.fixture
def client(server):
    with Client(server.address) as connected:
        yield connected


@pytest.fixture(scope="module")
def vectors(folder):
    """(n, D) of the right width, drawn."""
    return np.random.default_rng(3).normal(size=(300, SnapshotStore(folder / "store").open().projection.shape[1]))


def embedding(client, values):
    return TextEmbedding(model_version=client.serving_status().shards[0].model_version, values=values)


def test_items_with_known_vectors_are_recommended_without_an_encoder(client, vectors):
    items = [make_item(f"new-{row}", f"t {row}", text_embedding=embedding(client, vectors[row])) for row in range(200)]
    assert client.upsert_items(items).created_count == 200
    assert [shard.delta_item_count for shard in client.serving_status().shards] == [200, 200]
    twin = make_item("twin", "another title", text_embedding=embedding(client, 3 * vectors[7]))
    client.upsert_items([twin])
    client.record_events([Event("reader", "i10", "purchase")])
    answer = client.recommend("reader", count=401, seen="include")
    scores = {each.item_id: each.score for each in answer.recommendations if each.item_id[0] in "nt"}
    # Only the direction counts.
    assert len(scores) == len(items) + 1 and scores["twin"] == pytest.approx(scores["new-7"], abs=1e-5)
    assert len({round(score, 4) for score in scores.values()}) > 150
    # What is not kept for its own sake does not come back.
    assert not client.get_item("new-7").item.HasField("text_embedding")


def test_a_known_text_can_be_changed_and_what_is_unchanged_stays_where_it_is(client, vectors):
    def deltas():
        return [shard.delta_item_count for shard in client.serving_status().shards]

    first = make_item("one", "a title", text_embedding=embedding(client, vectors[0]))
    client.upsert_items([first])
    before = deltas()
    # The very same item without its vector: there is nothing to embed.
    again = client.upsert_items([Item(item_id="one", title="a title"), Item(item_id="i3", title="title 3")])
    assert (again.created_count, again.replaced_count) == (0, 2)
    assert deltas() == before
    client.upsert_items([make_item("one", "a title", price=3.0, text_embedding=embedding(client, vectors[1]))])
    assert client.get_item("one").item.price == 3.0
    with pytest.raises(FailedPreconditionError, match="start the server with --model"):
        client.upsert_items([Item(item_id="one", title="another title")])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda one: one.values.pop(), "INVALID_TEXT_EMBEDDING"),
        (lambda one: one.values.append(1.0), "INVALID_TEXT_EMBEDDING"),
        (lambda one: one.ClearField("values"), "INVALID_TEXT_EMBEDDING"),
        (lambda one: one.values.__setitem__(1, float("nan")), "INVALID_TEXT_EMBEDDING"),
        (lambda one: one.values.__setitem__(slice(None), [0.0] * len(one.values)), "INVALID_TEXT_EMBEDDING"),
        (lambda one: setattr(one, "model_version", "another"), "MODEL_MISMATCH"),
        (lambda one: one.ClearField("model_version"), "MODEL_MISMATCH"),
    ],
)
def test_a_vector_that_is_none_of_the_model_is_refused_and_nothing_is_taken(client, vectors, change, reason):
    bad = embedding(client, vectors[0])
    change(bad)
    good = make_item("never", "t", text_embedding=embedding(client, vectors[0]))
    with pytest.raises(InvalidRequestError) as refused:
        client.upsert_items([good, make_item("bad", "t", text_embedding=bad)])
    assert refused.value.reason == reason
    assert "never" not in [item.item_id for item in client.list_items(page_size=1000)]


def test_a_snapshot_of_another_model_is_refused_while_nobody_can_embed_live_items(
    client, folder, server, tmp_path, vectors
):
    client.upsert_items([make_item("live", "t", text_embedding=embedding(client, vectors[0]))])
    store = SnapshotStore(folder / "store")
    current = store.current()
    write_snapshot(
        tmp_path / "draft",
        items=[worlds.item(row) for row in range(20)],
        vectors=np.eye(20, 16, dtype=np.float32),
        parameters=store.open().parameters,
        model_version="another",
    )
    other = store.publish(tmp_path / "draft")
    with pytest.raises(FailedPreconditionError, match="live items have vectors of"):
        client.activate_snapshot(other)
    assert client.get_item("live").item.title == "t"
    assert {shard.snapshot_version for shard in client.serving_status().shards} == {current}
    store.activate(current)
