"""The bench of the rebuild job: the real job runs twice and its stages are told apart."""

import json
import sys
from pathlib import Path

import pytest

from heliotrope_bench import watched_job
from heliotrope_bench.command import main
from heliotrope_bench.errors import JobFailedError
from heliotrope_bench.rebuild import EMBEDDING, WHOLE
from heliotrope_bench.watched_job import REST, watch_job
from tests.bench.titles_folder import write_titles


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_titles(
        tmp_path / "data", 30, lambda number, row: f"thing {row // 2} of kind {number}\tand what it is for"
    )


def test_each_stage_is_measured_from_nothing_and_with_known_embeddings(
    data: Path, model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rebuild.json"
    sizes = ["--items", "120", "--users", "30", "--events-per-user", "10", "--threads", "1"]
    assert main(["rebuild", *sizes, "--model", str(model_folder), "--data", str(data), "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["settings"]["distinct_texts"] == 60
    runs: dict[str, dict[str, dict[str, float]]] = {}
    for row in report["results"]:
        runs.setdefault(row["run"], {})[row["stage"]] = row
    assert list(runs) == ["cold", "embeddings known"]
    assert list(runs["cold"]) == list(runs["embeddings known"])
    for stages in runs.values():
        assert next(iter(stages)) == "read the catalogue" and list(stages)[-2:] == [REST, WHOLE]
        assert {"read the events", EMBEDDING, "learn item vectors", "publish"} < set(stages)
        whole = stages.pop(WHOLE)
        assert whole["seconds"] == pytest.approx(sum(stage["seconds"] for stage in stages.values()))
        assert whole["cpu_s"] > 0.0
        assert whole["peak_mib"] == max(stage["peak_mib"] for stage in stages.values()) > 50.0
        embedding = stages[EMBEDDING]
        assert embedding["texts_per_s"] == pytest.approx(60 / embedding["seconds"])
    # Embedding is nearly all of what the second run spares.
    assert runs["embeddings known"][EMBEDDING]["cpu_s"] < runs["cold"][EMBEDDING]["cpu_s"]


def test_a_job_that_fails_is_named_with_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(JobFailedError, match=r"`heliotrope build` ended with exit code 2: .*--model"):
        watch_job(["build", "--out", str(tmp_path)])


def test_memory_belongs_to_its_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "job.py"
    script.write_text(
        "import sys, time\n"
        "def done(name): print(f'{name}   ━━━ 0:00:01', file=sys.stderr, flush=True)\n"
        "def busy():\n"
        "    end = time.process_time() + 0.3\n"
        "    while time.process_time() < end: pass\n"
        "busy(); done('small')\n"
        "big = bytearray(b'x') * (200 << 20); busy(); done('large one')\n"
        "del big; busy(); done('small again')\n"
    )
    monkeypatch.setattr(watched_job, "COMMAND", (sys.executable, str(script)))
    small, large, again, rest = watch_job([])
    assert [stage.name for stage in (small, large, again, rest)] == ["small", "large one", "small again", REST]
    assert large.peak_mib > 200 > max(small.peak_mib, again.peak_mib)
    assert all(stage.cpu_s > 0.25 for stage in (small, large, again))
    assert again.cpu_s < small.cpu_s + large.cpu_s
