"""`heliotrope exposure` on the impression log of two real shards."""

import json

from heliotrope import Client
from heliotrope_server import exposure_report
from tests.end_to_end.running_server import RunningServer
from tests.server import worlds


def test_the_report_counts_what_was_shown(tmp_path, capsys):
    worlds.publish(tmp_path / "store", labelled=True)
    arguments = ["--data", str(tmp_path / "data"), "--snapshots", str(tmp_path / "store")]
    assert exposure_report.main(arguments) != 0
    assert "is no data folder" in capsys.readouterr().err
    server = RunningServer(tmp_path / "store", tmp_path / "data", "--shards", "2", "--impression-log-share", "1")
    with Client(server.address) as client:
        answers = [client.recommend(f"user-{number}", count=5) for number in range(12)]
    assert sum(len(answer.recommendations) for answer in answers) == 60
    assert server.stop() == 0
    out = tmp_path / "report.json"
    assert exposure_report.main([*arguments, "--out", str(out), "--rows", "2"]) == 0
    printed = capsys.readouterr().out
    assert "exposure by provider, 12 answers" in printed
    assert "more; `--out` writes all" in printed
    rows = json.loads(out.read_text())
    assert sum(row["impressions"] for row in rows if row["kind"] == "provider") == 60
    assert exposure_report.main([*arguments, "--out", "report.txt"]) != 0
    assert "must end in .json" in capsys.readouterr().err


def test_without_a_log_the_option_is_named(tmp_path, capsys):
    worlds.publish(tmp_path / "store")
    server = RunningServer(tmp_path / "store", tmp_path / "data")
    assert server.stop() == 0
    arguments = ["--data", str(tmp_path / "data"), "--snapshots", str(tmp_path / "store")]
    assert exposure_report.main(arguments) != 0
    assert "--impression-log-share" in capsys.readouterr().err
