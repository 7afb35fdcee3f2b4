"""Reads moments as files write them."""

from __future__ import annotations

from datetime import UTC, datetime


def unix_seconds(text: str) -> float:
    """Unix seconds, or ISO 8601, which is UTC where it names no zone. Raises ValueError for anything else."""
    try:
        return float(text)
    except ValueError:
        moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
