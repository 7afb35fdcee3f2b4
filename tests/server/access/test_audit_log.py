"""A line that was changed, left out or put in shows; one that was never finished is nobody's loss."""

import json
import threading
from pathlib import Path

import pytest

from heliotrope_server.access.audit_command import main
from heliotrope_server.access.audit_log import AuditLog, verified
from heliotrope_server.errors import AuditLogError


def lines(data: Path) -> Path:
    return data / "audit" / "shard-000.jsonl"


def written(data: Path) -> AuditLog:
    log = AuditLog(data, 0)
    for number in range(5):
        log.write("/s/M", f"p{number}", "ipv4:1", user=log.pseudonym(f"u{number % 2}"), outcome="OK")
    return log


def test_entries_follow_each_other_across_restarts(tmp_path: Path) -> None:
    written(tmp_path).close()
    written(tmp_path).close()
    entries = list(verified(lines(tmp_path)))
    assert [entry["number"] for entry in entries] == list(range(1, 11))
    assert entries[0]["user"] == entries[5]["user"] != entries[1]["user"]
    assert "u0" not in lines(tmp_path).read_text()
    assert (tmp_path / "audit.key").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("change", ["outcome", "order", "gap", "first", "copy"])
def test_what_was_changed_shows(tmp_path: Path, change: str) -> None:
    written(tmp_path).close()
    entries = lines(tmp_path).read_text().splitlines()
    if change == "outcome":
        entries[2] = entries[2].replace('"OK"', '"NOT_FOUND"')
    elif change == "order":
        entries[1], entries[2] = entries[2], entries[1]
    elif change == "gap":
        del entries[2]
    elif change == "first":
        del entries[0]
    else:
        entries.insert(3, entries[2])
    lines(tmp_path).write_text("\n".join(entries) + "\n")
    with pytest.raises(AuditLogError, match=r"line \d was changed"):
        list(verified(lines(tmp_path)))
    with pytest.raises(AuditLogError):
        AuditLog(tmp_path, 0)
    assert main(["--data", str(tmp_path)]) == 1


def test_a_line_that_was_cut_off_is_taken_away_and_the_rest_goes_on(tmp_path: Path) -> None:
    written(tmp_path).close()
    with lines(tmp_path).open("a") as file:
        file.write('{"number": 6, "ti')
    written(tmp_path).close()
    assert [entry["number"] for entry in verified(lines(tmp_path))] == list(range(1, 11))


def test_lines_of_many_threads_do_not_mix(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, 0)
    threads = [threading.Thread(target=log.write, args=("/s/M", "p", "x"), kwargs={"n": str(n)}) for n in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert {json.loads(line)["n"] for line in lines(tmp_path).read_text().splitlines()} == {str(n) for n in range(40)}
    assert len(list(verified(lines(tmp_path)))) == 40


def test_the_command_shows_what_was_done_about_a_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path).close()
    assert main(["--data", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert all(f"p{number}" in shown for number in range(5))
    assert main(["--data", str(tmp_path), "--user", "u1"]) == 0
    said = capsys.readouterr().out
    assert "p1" in said and "p3" in said and "p0" not in said and "p2" not in said
    assert main(["--data", str(tmp_path / "absent")]) == 1
