"""What a build must show before it is published: limits, and the verdict on what was measured.

A gate compares one figure with one limit. Where there is nothing to compare with, it is left open and says why. The
verdict goes into the manifest; when a gate is shut, nothing is published and the verdict is kept in the store instead.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from heliotrope_indexer.gate_figures import Figures
from heliotrope_indexer.replay import Quality

_Share = Annotated[float, Field(ge=0, le=1)]


class GateLimits(BaseModel):
    """When a build is not fit to be served. Losses and drops are shares of what the current snapshot has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_recall_at_10: Annotated[_Share, Field(description="recall@10 of the index on queries it was not tuned on")] = (
        0.95
    )
    min_recall_at_100: Annotated[_Share, Field(description="the same for recall@100")] = 0.92
    max_item_loss: Annotated[_Share, Field(description="share of the current items that may be gone")] = 0.2
    max_event_loss: Annotated[_Share, Field(description="share by which the events may be fewer")] = 0.5
    max_quality_drop: Annotated[
        _Share, Field(description="share of HR@10 and NDCG@10 that may be lost, held out and replayed")
    ] = 0.2
    min_quality_users: Annotated[int, Field(ge=1, description="users below which quality is not judged")] = 50
    max_drift: Annotated[
        float, Field(ge=0, description="mean drift of the shared item vectors, where the weights are the same")
    ] = 0.5


class Gate(BaseModel):
    """One figure and its limit."""

    model_config = ConfigDict(frozen=True)

    value: float | None
    limit: float
    passed: bool
    note: str = ""
    """What the value was compared with, or why there is none."""


class Verdict(BaseModel):
    """All gates of one build."""

    model_config = ConfigDict(frozen=True)

    previous: str | None
    """The version that the build was compared with."""
    overridden: bool
    """Published although a gate was shut."""
    gates: dict[str, Gate]

    @property
    def failures(self) -> list[str]:
        """One sentence a shut gate, with its value and limit."""
        return [
            f"{name} is {gate.value:.4g}, the limit is {gate.limit:.4g}{f' ({gate.note})' if gate.note else ''}"
            for name, gate in self.gates.items()
            if not gate.passed
        ]


def judge(figures: Figures, limits: GateLimits, *, override: bool = False) -> Verdict:
    """Holds what was measured against the limits."""
    gates = {
        "recall_at_10": _least(figures.recall_at_10, limits.min_recall_at_10),
        "recall_at_100": _least(figures.recall_at_100, limits.min_recall_at_100),
    }
    compared = figures.compared
    if compared is not None:
        before, now = compared.items
        gates["item_loss"] = _most(compared.items_gone / before, limits.max_item_loss, f"{before:,} items to {now:,}")
        before, now = compared.events
        note = f"{before:,} event rows to {now:,}"
        gates["event_loss"] = (
            _most(max(1 - now / before, 0.0), limits.max_event_loss, note)
            if before
            else _open(limits.max_event_loss, "no events before")
        )
        for kind, pair in (("held_out", compared.held_out), ("replay", compared.replay)):
            gates |= _quality_gates(kind, pair, limits)
        gates["drift"] = (
            _most(compared.drift.mean, limits.max_drift, f"{compared.drift.items:,} shared items")
            if compared.drift and not compared.drift.aligned
            else _open(limits.max_drift, "not on the same weights")
        )
    verdict = Verdict(previous=None if compared is None else compared.version, overridden=False, gates=gates)
    return verdict.model_copy(update={"overridden": override and bool(verdict.failures)})


def _quality_gates(kind: str, pair: tuple[Quality, Quality] | None, limits: GateLimits) -> dict[str, Gate]:
    if pair is None:
        return {
            f"{kind}_{name}_drop": _open(limits.max_quality_drop, "not measured in both") for name in ("hr", "ndcg")
        }
    before, now = pair
    users = min(before.users, now.users)
    gates = {}
    for name, old, new in (
        ("hr", before.hit_rate_at_10, now.hit_rate_at_10),
        ("ndcg", before.ndcg_at_10, now.ndcg_at_10),
    ):
        if users < limits.min_quality_users:
            gate = _open(limits.max_quality_drop, f"{users} users, fewer than {limits.min_quality_users}")
        elif not old:
            gate = _open(limits.max_quality_drop, "0 before")
        else:
            note = f"{name.upper()}@10 {old:.4f} to {new:.4f}, {users:,} users"
            gate = _most(max(1 - new / old, 0.0), limits.max_quality_drop, note)
        gates[f"{kind}_{name}_drop"] = gate
    return gates


def _least(value: float, limit: float) -> Gate:
    return Gate(value=round(value, 4), limit=limit, passed=value >= limit)


def _most(value: float, limit: float, note: str) -> Gate:
    return Gate(value=round(value, 4), limit=limit, passed=value <= limit, note=note)


def _open(limit: float, why: str) -> Gate:
    return Gate(value=None, limit=limit, passed=True, note=why)
