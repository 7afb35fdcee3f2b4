import pytest

from heliotrope_server.errors import InvalidArgumentError, VersionNotAvailableError
from heliotrope_server.version_token import VersionClock, merge_tokens, parse_token

CLOCK = VersionClock("g-now", 1, {"g-before": {0: 50, 1: 70}})


def test_a_state_that_was_reached_is_available():
    CLOCK.require(CLOCK.token(9), applied_lsn=9)
    CLOCK.require("g-now.0:1000,1:9", applied_lsn=9)  # what another shard has seen is for that shard to answer
    CLOCK.require("g-before.0:50", applied_lsn=0)


@pytest.mark.parametrize(
    ("token", "named"),
    [("g-now.1:10", "ends at 9"), ("g-else.1:1", "g-else"), ("g-before.1:71", "ended at 70")],
)
def test_a_state_that_never_was_is_an_error_and_not_a_wait(token, named):
    with pytest.raises(VersionNotAvailableError, match=named):
        CLOCK.require(token, applied_lsn=9)


@pytest.mark.parametrize("token", ["", "x", "g.", "g.1", "g.a:b", ".1:2", "g.1:2:3", "g." + "1:2," * 2000])
def test_something_else_is_no_token(token):
    with pytest.raises(InvalidArgumentError):
        parse_token(token)


def test_merging_keeps_the_newest_of_each_shard():
    assert merge_tokens(["g.0:5", "", "g.1:7", "g.0:6"]) == "g.0:6,1:7"
    assert merge_tokens(["", ""]) == ""
