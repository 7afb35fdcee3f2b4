import subprocess
import sys
from pathlib import Path

import pytest

from heliotrope_export import agreement
from heliotrope_export.command import main


def test_a_first_run_publishes_and_a_second_says_that_it_is_current(
    tiny_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tiny_source), "--out", str(tmp_path / "model"), "--variants", "fp32,fp16", "--max-tokens", "40"]
    assert main(arguments) == 0
    first = capsys.readouterr()
    assert "model published: tiny-bert" in first.out
    assert "40 tokens, mean pooling" in first.out
    assert "fp16" in first.out
    assert first.err == ""
    assert main(arguments) == 0
    assert "is current, nothing to do" in capsys.readouterr().out


def test_a_current_folder_is_found_without_loading_torch(tiny_source: Path, tiny_model: Path) -> None:
    script = (
        "import sys\n"
        "from heliotrope_export.command import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "assert not {'torch', 'transformers', 'optimum'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tiny_source), "--out", str(tiny_model)], check=True)


def test_the_environment_and_the_flags_say_the_same(
    tiny_source: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HELIOTROPE_EXPORT_OUT", str(tiny_model))
    monkeypatch.setenv("HELIOTROPE_EXPORT_VARIANTS", "fp16, int8")
    assert main([str(tiny_source)]) == 0
    assert "is current" in capsys.readouterr().out


def test_help_describes_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for word in ("MODEL", "--out", "--variants", "--max-tokens", "--force", "Nothing is downloaded"):
        assert word in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--out", "x"], "no model 'nowhere': it is neither a local folder nor"),
        (["x"], "--out"),
        (["x", "--out", "x", "--variants", "fp8"], "--variants 'fp8': Input should be 'fp32', 'fp16' or 'int8'"),
        (["x", "--out", "x", "--max-tokens", "many"], "--max-tokens 'many': Input should be a valid integer"),
        (["x", "--out", "x", "--sideways"], "unrecognized arguments: --sideways"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown


def test_a_missed_bound_is_exit_code_1(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(agreement.BOUNDS, "fp32", ("cosine_min", 1.5))
    assert main([str(tiny_source), "--out", str(tmp_path / "model")]) == 1
    assert "fp32 has cosine_min" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
