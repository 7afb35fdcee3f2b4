import io
import json
from pathlib import Path

import numpy as np
from rich.console import Console

from heliotrope_bench.report import print_table, write_report


def test_the_contract_of_the_raw_results(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    rows = [{"case": "a", "rate_per_s": np.float64(10.5), "errors": 0}]
    write_report(path, command=["bench", "load", "--rate", "5"], settings={"rate": 5, "work": Path("x")}, results=rows)
    report = json.loads(path.read_text())
    assert list(report) == ["command", "git", "machine", "versions", "settings", "results"]
    assert report["command"] == ["heliotrope", "bench", "load", "--rate", "5"]
    assert report["results"] == [{"case": "a", "rate_per_s": 10.5, "errors": 0}]
    assert report["settings"] == {"rate": 5, "work": "x"}
    assert set(report["git"]) == {"revision", "changed"}
    assert report["machine"]["cores"] >= 1 and report["versions"]["grpcio"]
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


def test_a_table_leaves_absent_values_blank() -> None:
    console = Console(file=io.StringIO(), width=80)
    print_table(console, "figures", [{"case": "a", "rate": 1234.5}, {"case": "b"}], {"case": "", "rate": ",.1f"})
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "figures" in text and "1,234.5" in text and "None" not in text
