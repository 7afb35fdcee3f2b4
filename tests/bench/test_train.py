"""The training bench on a toy: the real job runs and its account is read."""

import csv
from pathlib import Path

from heliotrope_bench.command import main
from heliotrope_bench.train import TrainOptions, measure, write_copies
from tests.bench.toy_ratings import toy_dataset


def test_the_job_is_run_and_measured(model_folder: Path, tmp_path: Path) -> None:
    data = toy_dataset(users=30, items=40, events=400)
    options = TrainOptions(events=700, epochs=2, threads=1, work=tmp_path / "work")
    row = measure(data, options, model_folder, tmp_path)
    assert row["events"] >= 700
    # Two epochs with the last positives held out, then one or two with everything.
    assert row["epochs"] in (3, 4)
    assert 0.0 < row["train_s"] < row["job_s"]
    assert row["epoch_s"] > 0.0
    assert row["peak_mib"] > 100.0
    assert 0.0 <= row["ndcg@10"] <= row["hr@10"] <= 1.0


def test_copies_keep_most_of_each_user_and_the_order_of_times(tmp_path: Path) -> None:
    data = toy_dataset(events=500)
    path = tmp_path / "events.csv"
    count = write_copies(data, 1_200, path)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == count
    assert 1_200 <= count < 1_700
    by_copy = [[row for row in rows if row["user_id"].endswith(f"-{copy}")] for copy in range(3)]
    assert len(by_copy[0]) == 500
    for part in by_copy[1:]:
        assert 400 < len(part) < 490
        times = [int(row["timestamp"]) for row in part]
        assert times == sorted(times)


def test_an_unknown_data_set_is_named(capsys) -> None:  # type: ignore[no-untyped-def]
    assert main(["train", "--dataset", "moon"]) == 1
    assert "there is no data set 'moon'" in capsys.readouterr().err
