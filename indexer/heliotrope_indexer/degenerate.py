"""Says what about the input is degenerate: it trains and serves, but something in it means nothing."""

from __future__ import annotations

import numpy as np

from heliotrope_indexer.job_input import JobInput

_SAME_TEXTS = 0.5
"""Share of items with another item's text from which it is said."""


def degenerate(job: JobInput) -> list[str]:
    """One sentence for each thing that is degenerate; empty for ordinary input."""
    events, n = job.events, len(job.items)
    found = []
    if n == 1:
        found.append("the catalogue has one item: there is nothing to choose from")
    texts = len({item.text for item in job.items})
    if n > 1 and texts == 1:
        found.append(f"all {n:,} items have the same text: text tells no item apart")
    elif n - texts >= _SAME_TEXTS * n:
        found.append(f"{n - texts:,} of {n:,} items repeat the text of another item: text does not tell them apart")
    if not len(events):
        return found
    count = f"all {len(events):,} events"
    if len(np.unique(events.user)) == 1:
        found.append(f"{count} are of one user: there are no others to learn from")
    if n > 1 and len(np.unique(events.row)) == 1:
        found.append(f"{count} are on one item: no other item is learned")
    if not job.positive.any():
        found.append(f"none of {len(events):,} events is positive: nothing tells what to recommend or is held out")
    if len(events) > 1 and events.time[0] == events.time[-1]:
        found.append(f"{count} have the same time: neither order nor decay means anything")
    return found
