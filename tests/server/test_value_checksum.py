"""Checksums of stored values: any damage of any value of a profile store shows when it is read."""

import random

import numpy as np
import pytest

from heliotrope_server.profile_codec import decode_profile, encode_profile
from heliotrope_server.residuals import Heard
from heliotrope_server.store_values import (
    decode_counts,
    decode_heard,
    decode_meta,
    decode_segments,
    encode_counts,
    encode_heard,
    encode_meta,
    encode_segments,
)
from heliotrope_server.value_checksum import has_checksum, payload_of, with_checksum
from tests.server import worlds

NOW_S = 1.7e9
SAID = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float16)
HEARD = Heard(("u1", "u2"), SAID, 3)
META = {"lsn": 17, "shared_lsn": 18, "landmark_s": 1.5, "folded_versions": ["a", "b"], "residual_space": ""}


@pytest.fixture
async def profile(tmp_path):
    served = worlds.catalogue(tmp_path, items=30, dimension=4)
    async with worlds.engine(tmp_path, served, wall_clock=lambda: NOW_S, ring_size=8, event_window_s=60.0) as engine:
        await engine.record(worlds.random_events(np.random.default_rng(1), 30, users=1, items=30, now_s=NOW_S))
        await engine.set_segments("u0", ["de"])
        return engine.profile("u0"), served


def flips(value):
    """The value with each of its bits flipped, one at a time."""
    for bit in range(8 * len(value)):
        damaged = bytearray(value)
        damaged[bit // 8] ^= 1 << bit % 8
        yield bytes(damaged)


def assert_found(decode, value):
    decode(value)
    for damaged in flips(value):
        with pytest.raises(Exception):  # noqa: B017  # whatever decoding makes of it, as long as it does not pass
            decode(damaged)


async def test_a_flip_of_any_bit_of_a_profile_is_found(profile):
    one, served = profile
    assert one.folded_count and one.segments
    assert_found(lambda value: decode_profile("u0", value, served), encode_profile(one))


@pytest.mark.parametrize(
    ("decode", "value"),
    [
        (lambda value: decode_heard("i1", value), encode_heard("i1", HEARD)),
        (lambda value: decode_segments("u1", value), encode_segments("u1", ("de", "trial"))),
        (decode_counts, encode_counts({"i1": 0.5, "i2": 1.25})),
    ],
    ids=["heard", "segments", "popularity"],
)
def test_a_flip_of_any_bit_of_another_value_is_found(decode, value):
    assert_found(decode, value)


def test_a_flip_of_any_bit_of_what_a_store_says_of_itself_is_found_or_changes_nothing():
    """The version stands outside of the checksum, where an earlier server finds it."""
    value = encode_meta(META, finished=True)
    assert decode_meta(value) == META
    for damaged in flips(value):
        try:
            found = decode_meta(damaged)
        except Exception:
            continue
        assert found == META


async def test_a_profile_in_another_ones_place_is_found(profile):
    one, served = profile
    with pytest.raises(ValueError, match="its checksum does not match"):
        decode_profile("u1", encode_profile(one), served)


@pytest.mark.parametrize("size", [0, 1, 900, 70_000])
def test_bursts_of_damage_are_found(size):
    rng = random.Random(size)
    payload = rng.randbytes(size)
    value = with_checksum(b"key", payload)
    assert (payload_of(b"key", value), has_checksum(value), len(value)) == (payload, True, size + 5)
    for _ in range(200):
        start = rng.randrange(1, len(value))
        burst = rng.randbytes(min(rng.randrange(1, 600), len(value) - start))
        damaged = value[:start] + burst + value[start + len(burst) :]
        if damaged == value:
            continue
        with pytest.raises(ValueError, match="its checksum does not match"):
            payload_of(b"key", damaged)


def test_what_has_no_checksum_is_taken_as_it_is():
    assert payload_of(b"key", b"\x93\x02\x00") == b"\x93\x02\x00"
    assert not has_checksum(b"\x93\x02\x00")
    assert not has_checksum(b"")
