"""The nightly run, cut down to its smallest steps."""

import json
from pathlib import Path

import pytest

from heliotrope_bench import suite
from heliotrope_bench.command import COMMANDS, main


def test_steps_run_one_by_one_and_what_fails_is_named_after_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    work = ["--work", str(tmp_path)]
    steps: dict[str, suite.Plan] = {
        "start": lambda options: ["--items", "no number", *work],
        "memory": lambda options: ["--items", "300", "--dimension", "8", "--users", "50", *work],
    }
    monkeypatch.setattr(suite, "STEPS", steps)
    out = tmp_path / "out"
    assert main(["suite", "--steps", "start,memory", *work, "--out", str(out)]) == 1
    assert "start failed" in capfd.readouterr().err
    assert json.loads((out / "memory.json").read_text())["results"][0]["items"] == 300
    assert "memory" in (out / "report.html").read_text() and not (out / "start.json").exists()


def test_every_step_is_a_command_and_an_unknown_one_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert set(suite.STEPS) <= set(COMMANDS)
    assert main(["suite", "--steps", "nothing", "--out", str(tmp_path)]) == 1
    assert "there is no step 'nothing'" in capfd.readouterr().err
