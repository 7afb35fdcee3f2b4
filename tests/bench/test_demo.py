"""`heliotrope demo` as a user runs it, with the model already exported."""

import re
import shutil
from pathlib import Path

import pytest

from heliotrope_bench import demo
from heliotrope_bench.snapshot_job import MODEL_PACKAGE


def test_the_demo_tells_its_story_twice(
    model_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "EPOCHS", 1)
    shutil.copytree(model_folder, tmp_path / "model")
    (tmp_path / "model.stamp").write_text(f"{MODEL_PACKAGE} 0.1.0")
    assert demo.main(["--work", str(tmp_path)]) == 0
    first = capfd.readouterr().out
    pictures = re.split(r"^\d\. ", first, flags=re.MULTILINE)[1:]
    assert [picture.splitlines()[0].strip() for picture in pictures[:3]] == [
        "cold start: nothing is known of the user",
        "after 3 events",
        "after a change of taste (25 events)",
    ]
    assert pictures[3].startswith("after a dislike of ")
    assert "popular" in pictures[0] and "personal" not in pictures[0]
    for picture, least in zip(pictures[1:], (3, 3, 1), strict=True):
        assert "personal" in picture and re.search(r"because you rated .* \(\+\d+\.\d\d\)", picture)
        moved = re.search(r"^(\d) of 8 are new", picture, flags=re.MULTILINE)
        assert moved and int(moved[1]) >= least
    assert "although you" in pictures[3] and "disliked" in pictures[3]
    assert demo.main(["--work", str(tmp_path)]) == 0
    second = capfd.readouterr().out
    assert "is current" in second and "newly embedded" not in second


def test_a_failed_step_ends_it_with_a_clear_word(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "manifest.json").write_text("{}")
    (tmp_path / "model.stamp").write_text(f"{MODEL_PACKAGE} 0.1.0")
    assert demo.main(["--work", str(tmp_path)]) == 1
    assert "heliotrope demo: `heliotrope train` ended with exit code" in capfd.readouterr().err
