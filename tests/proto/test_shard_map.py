import zlib

from hypothesis import given
from hypothesis import strategies as st

from heliotrope.shard_map import UNREACHABLE_COOL_DOWN_S, Router, ShardMap, slot_of
from heliotrope.v1.admin_pb2 import GetServingStatusResponse, ShardStatus

STATUS = GetServingStatusResponse(
    slot_count=1_024,
    shards=[
        ShardStatus(shard_index=1, address="b:1", first_slot=300, end_slot=700),
        ShardStatus(shard_index=0, address="a:1", first_slot=0, end_slot=300),
        ShardStatus(shard_index=2, address="c:1", first_slot=700, end_slot=1_024),
    ],
)


@given(st.text(min_size=1))
def test_the_owner_is_the_shard_whose_range_holds_the_slot(user_id: str) -> None:
    shard_map = ShardMap.from_status(STATUS)
    assert shard_map is not None
    slot = zlib.crc32(user_id.encode()) % 1_024
    (owner,) = [shard.address for shard in STATUS.shards if shard.first_slot <= slot < shard.end_slot]
    assert shard_map.address_of(user_id) == owner


def test_a_known_slot() -> None:
    assert slot_of("123456789", 1 << 32) == 0xCBF43926  # the check value of CRC-32 (IEEE)


@given(st.lists(st.text(min_size=1)), st.integers(1, 5))
def test_a_split_is_a_partition_by_owner_that_keeps_the_order(user_ids: list[str], limit: int) -> None:
    router = Router("entry:1", direct=True)
    router.learn(STATUS)
    groups = router.split(user_ids, limit)
    assert sorted(position for group in groups for position in group) == list(range(len(user_ids)))
    for group in groups:
        assert group == sorted(group) and 1 <= len(group) <= limit
        assert len({router.address_of(user_ids[position]) for position in group}) == 1


def test_an_unreachable_shard_is_passed_over_for_a_while() -> None:
    now = [0.0]
    router = Router("entry:1", direct=True, clock=lambda: now[0])
    router.learn(STATUS)
    address = router.address_of("u1")
    router.failed(address)
    assert router.address_of("u1") == "entry:1"
    now[0] = UNREACHABLE_COOL_DOWN_S
    assert router.address_of("u1") == address


def test_the_map_is_asked_for_once_per_interval() -> None:
    now = [0.0]
    router = Router("entry:1", direct=True, clock=lambda: now[0])
    assert router.claim_refresh() and not router.claim_refresh()
    now[0] = 2.0
    assert router.claim_refresh()
    router.learn(STATUS)
    assert not router.claim_refresh()
    router.failed("a:1")
    now[0] = 4.0
    assert router.claim_refresh()
    router.forgo()
    now[0] = 9.0
    assert not router.claim_refresh() and router.address_of("u1") == "entry:1"


def test_one_shard_needs_no_map() -> None:
    alone = GetServingStatusResponse(slot_count=4, shards=[ShardStatus(address="a:1", end_slot=4)])
    assert ShardMap.from_status(alone) is None
    assert not Router("entry:1", direct=False).claim_refresh()
