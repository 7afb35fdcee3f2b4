"""The command line: settings in, one line and an exit code out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from heliotrope_indexer import command, input_settings
from heliotrope_indexer.build import BuildRequest
from heliotrope_indexer.snapshot import SnapshotStore
from tests.indexer.conftest import WordEncoder


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> WordEncoder:
    """Stands in for a model of a hundred megabytes; the real reader is tested beside its writer."""
    encoder = WordEncoder()
    monkeypatch.setattr(input_settings.TextEncoder, "open", lambda *_arguments, **_options: encoder)
    return encoder


def arguments(shop: Callable[..., BuildRequest], out: Path) -> list[str]:
    request = shop()
    return [
        *("--model", "m", "--out", str(out), "--quiet", "--threads", "1", "--dimension", "12"),
        *("--catalogue", str(request.sources.catalogue.path), "--events", str(request.sources.events[0].path)),
    ]


def test_build_and_rebuild(
    shop: Callable[..., BuildRequest], words: WordEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*arguments(shop, tmp_path / "out"), "--columns", "item_id=id,title=title,categories=genres"]
    assert command.main(asked) == 0
    version = SnapshotStore(tmp_path / "out").current()
    assert f"heliotrope: published {version}" in capsys.readouterr().out
    assert command.main(asked) == 0
    assert capsys.readouterr().out == f"heliotrope: nothing changed, {version} is current\n"


def test_several_event_files(
    shop: Callable[..., BuildRequest], words: WordEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = tmp_path / "more.csv"
    more.write_text("user_id,item_id,timestamp,label\nu1,i1,1700000000,1\n")
    assert command.main([*arguments(shop, tmp_path / "out"), "--events", str(more)]) == 0
    store = SnapshotStore(tmp_path / "out")
    assert store.manifest(store.current()).data.event_rows == 601
    assert "601 rows, until 2023-11-14" in capsys.readouterr().out


def test_rejects_are_shown(
    shop: Callable[..., BuildRequest], words: WordEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with shop().sources.catalogue.path.open("a") as file:
        file.write(",nameless,\n")
    assert command.main(arguments(shop, tmp_path / "out")) == 0
    assert "no_id" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--columns", "title"], "'title' is not a column mapping"),
        (["--columns", "title=absent"], "no column 'absent' for title"),
        (["--catalogue", "absent.csv"], "there is no file absent.csv"),
        (["--dimension", "1"], "--dimension: Input should be greater than or equal to 2"),
        (["--threads", "many"], "--threads: Input should be a valid integer"),
    ],
)
def test_wrong_settings_are_one_line_and_code_2(
    shop: Callable[..., BuildRequest],
    words: WordEncoder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    extra: list[str],
    message: str,
) -> None:
    assert command.main([*arguments(shop, tmp_path / "out"), *extra]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_missing_model_is_named(
    shop: Callable[..., BuildRequest], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments(shop, tmp_path / "out")) == 1
    assert "heliotrope build: " in capsys.readouterr().err


def test_a_catalogue_without_a_usable_row_fails_the_job(
    words: WordEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.csv").write_text("id,title\n,x\n")
    asked = ["--model", "m", "--out", str(tmp_path / "out"), "--catalogue", str(tmp_path / "c.csv"), "--quiet"]
    assert command.main(asked) == 1
    assert "holds no usable item" in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--help"]) == 0
    assert "--event-columns" in capsys.readouterr().out
