"""The page of raw results, from files that small runs of the real commands wrote."""

import base64
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from heliotrope_bench.command import main

RESULTS = Path(__file__).parent / "data" / "raw_results"


class Page(HTMLParser):
    """What a browser would find: ids, links, pictures, and the cells of each table by row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.pictures: list[str] = []
        self.loaded: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):  # type: ignore[no-untyped-def]
        found = dict(attributes)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if "id" in found:
            self.ids.append(found["id"])
        if tag == "a":
            self.links.append(found["href"])
        elif tag == "img":
            assert found["alt"]
            self.pictures.append(found["src"])
        elif tag in ("script", "link", "iframe"):
            self.loaded.append(tag)
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):  # type: ignore[no-untyped-def]
        assert self.open.pop() == tag

    def handle_data(self, data):  # type: ignore[no-untyped-def]
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data.strip()


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return shutil.copytree(RESULTS, tmp_path / "results")


def drawn(results: Path, out: Path) -> Page:
    assert main(["report", "--results", str(results), "--out", str(out)]) == 0
    return Page(out.read_text(encoding="utf-8"))


def test_the_page_stands_alone_and_shows_every_file(results: Path, tmp_path: Path) -> None:
    page = drawn(results, tmp_path / "bench.html")
    assert page.open == [] and page.loaded == []
    names = {f"file-{path.stem}" for path in results.glob("*.json")}
    assert names <= set(page.ids) and len(names) >= 5
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    for picture in page.pictures:
        kind, _, data = picture.partition(",")
        assert kind == "data:image/svg+xml;base64"
        assert b"</svg>" in base64.b64decode(data)
    pictures = sorted(path.stem for path in (tmp_path / "bench").iterdir())
    assert {"load", "learning"} <= set(pictures) and len(pictures) == len(page.pictures)
    assert (tmp_path / "bench" / "load.png").read_bytes().startswith(b"\x89PNG")
    for table in page.tables:
        assert len({len(row) for row in table}) == 1
        assert any(any(row) for row in table)


def test_the_tables_hold_the_figures(results: Path, tmp_path: Path) -> None:
    page = drawn(results, tmp_path / "bench.html")
    (row,) = json.loads((results / "memory.json").read_text())["results"]
    headings, cells = next(table for table in page.tables if "bytes an item" in table[0])
    shown = dict(zip(headings, cells, strict=True))
    assert shown["items"] == f"{row['items']:,}"
    assert shown["over its float32 vector"] == f"{row['over_float32']:.2f}"


def test_a_kind_that_the_page_does_not_know_gets_a_plain_table(results: Path, tmp_path: Path) -> None:
    raw = json.loads((results / "start.json").read_text())
    raw["command"][2] = "dance"
    raw["results"] = [{"steps": 7, "tempo_per_s": 1234.5, "rounds": [1, 2], "who": "<b>we</b>"}]
    (results / "dance.json").write_text(json.dumps(raw))
    page = drawn(results, tmp_path / "bench.html")
    headings, cells = next(table for table in page.tables if "steps" in table[0])
    assert headings == ["steps", "tempo per s", "who"]
    assert cells == ["7", "1,234", "<b>we</b>"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "broken.json holds no raw results"),
        ('{"command": ["heliotrope", "bench", "load"]}', "git: Field required"),
        ("LACKING", "broken.json is not what `heliotrope bench load` writes: KeyError"),
    ],
)
def test_a_broken_file_is_named(
    text: str, said: str, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text == "LACKING":
        raw = json.loads((results / "load.json").read_text())
        raw["results"] = [{"case": "mix, open loop", "offered_per_s": rate} for rate in (5.0, 6.0)]
        raw["settings"]["items"] = 100_000
        text = json.dumps(raw)
    (results / "broken.json").write_text(text)
    assert main(["report", "--results", str(results), "--out", str(tmp_path / "bench.html")]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_folder_without_results_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--results", str(tmp_path), "--out", str(tmp_path / "bench.html")]) == 1
    assert f"no raw results (*.json) in {tmp_path}" in capsys.readouterr().err


def test_a_page_without_an_ending_has_no_name_left_for_its_plots(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "--results", str(results), "--out", str(tmp_path / "bench")]) == 2
    assert "has no ending such as .html" in capsys.readouterr().err
