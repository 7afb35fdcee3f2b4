"""The replay evaluation end to end: a real build, a real server, every event and question over gRPC."""

from pathlib import Path

import numpy as np
from rich.console import Console

from heliotrope_bench.competitor import chance, ranks
from heliotrope_bench.holdout import hold_out
from heliotrope_bench.quality import build_snapshot, replay
from heliotrope_bench.ranking import metrics
from tests.bench.toy_ratings import toy_dataset


def test_the_served_system_is_replayed(model_folder: Path, tmp_path: Path) -> None:
    holdout = hold_out(toy_dataset(users=30, items=60, events=400))
    parameters = build_snapshot(holdout, tmp_path, model_folder, tmp_path / "work")
    assert parameters["half_lives_s"]
    served = replay(holdout, tmp_path, model_folder, Console(quiet=True))
    assert len(served) == len(holdout.targets)
    # The whole catalogue is asked for, so every target is in the list, seen items are not, and taste is found.
    unseen = [60 - len(np.unique(holdout.dataset.item[history])) for history in holdout.histories()]
    for rank, count in zip(served, unseen, strict=True):
        assert rank.above is not None and 0 <= rank.above <= count - rank.tied
    assert metrics(served)["hr@10"] > metrics(ranks(chance(holdout), holdout))["hr@10"]
