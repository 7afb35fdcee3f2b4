"""Rules for a list as a whole: what they are, and what values they may have."""

import math
from typing import NamedTuple

from heliotrope_server.errors import InvalidArgumentError

MAX_EXPLORE_SHARE = 0.5
MAX_DIVERSE_COUNT = 100
"""Longest list with diversity: its cost grows with the count times the candidates."""
MAX_PER_CATEGORY = 100


class ListRules(NamedTuple):
    """See heliotrope.v1.ListRules; the defaults leave a list alone."""

    diversity: float = 0.0
    relevance_floor: float = 0.1
    max_per_category: int = 0
    max_provider_share: float = 1.0
    explore_share: float = 0.0

    @property
    def choosing(self) -> bool:
        """Whether the best are not simply taken in the order of their scores."""
        return self.diversity > 0.0 or self.max_per_category > 0 or self.max_provider_share < 1.0

    @property
    def active(self) -> bool:
        return self.choosing or self.explore_share > 0.0


NO_RULES = ListRules()


def check_rules(rules: ListRules, wanted: int) -> None:
    """Raises InvalidArgumentError naming the value and the limit."""
    _check_share("diversity", rules.diversity, 0.0, 1.0)
    _check_share("relevance_floor", rules.relevance_floor, 0.0, 1.0)
    _check_share("max_provider_share", rules.max_provider_share, math.ulp(0.0), 1.0)
    _check_share("explore_share", rules.explore_share, 0.0, MAX_EXPLORE_SHARE)
    if not 0 <= rules.max_per_category <= MAX_PER_CATEGORY:
        raise InvalidArgumentError(
            "INVALID_MAX_PER_CATEGORY",
            f"max_per_category must be 1 to {MAX_PER_CATEGORY}, or 0 for no limit, not {rules.max_per_category}",
            value=rules.max_per_category,
            limit=MAX_PER_CATEGORY,
        )
    if rules.diversity > 0.0 and wanted > MAX_DIVERSE_COUNT:
        raise InvalidArgumentError(
            "INVALID_COUNT",
            f"with diversity, count must be 1 to {MAX_DIVERSE_COUNT}, not {wanted}",
            value=wanted,
            limit=MAX_DIVERSE_COUNT,
        )


def _check_share(name: str, value: float, lowest: float, highest: float) -> None:
    if not lowest <= value <= highest:  # also refuses NaN
        words = f"above 0 and at most {highest:g}" if lowest else f"0 to {highest:g}"
        raise InvalidArgumentError(
            f"INVALID_{name.upper()}", f"{name} must be {words}, not {value:g}", value=value, limit=highest
        )
