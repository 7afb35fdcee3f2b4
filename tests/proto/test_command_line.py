import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from heliotrope import command_line


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of jobs beside the real ones; returns its folder."""
    folder = tmp_path / "heliotrope_toy"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "greet.py").write_text('"""Greets.\n\nAt length."""\ndef main(arguments):\n    return len(arguments)\n')
    (folder / "lost.py").write_text('"""Needs more."""\nimport absent_module.part\n')
    (folder / "broken.py").write_text('"""Has a bug."""\nimport heliotrope_toy.nothing\n')
    (folder / "slow.py").write_text("def main(arguments):\n    raise KeyboardInterrupt\n")
    for name in [name for name in sys.modules if name.startswith("heliotrope_toy")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(
        command_line,
        "entry_points",
        lambda group: [
            EntryPoint(name, f"heliotrope_toy.{name}:main", group) for name in ("greet", "lost", "broken", "slow")
        ],
    )
    return folder


def test_a_job_gets_its_arguments_and_gives_the_exit_code(jobs: Path) -> None:
    assert command_line.main(["greet"]) == 0
    assert command_line.main(["greet", "--loud", "you"]) == 2


def test_help_lists_every_job_without_importing_any(jobs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  greet   Greets." in lines and "  lost    Needs more." in lines
    assert "heliotrope_toy" not in sys.modules


def test_no_or_a_wrong_command_is_a_usage_error(jobs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main([]) == 2
    assert command_line.main(["dance"]) == 2
    assert "no command 'dance'; the commands are: broken, greet, lost, slow" in capsys.readouterr().err


def test_a_missing_package_names_the_extra(
    jobs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(command_line.EXTRAS, "heliotrope_toy", "toy")
    assert command_line.main(["lost"]) == 2
    message = capsys.readouterr().err
    assert "'absent_module" in message and "pip install 'heliotrope[toy]'" in message


def test_a_bug_in_our_own_imports_is_not_called_a_missing_extra(jobs: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="heliotrope_toy"):
        command_line.main(["broken"])


def test_ctrl_c_ends_a_job_quietly(jobs: Path) -> None:
    assert command_line.main(["slow"]) == 130


def test_the_client_imports_no_job_and_little_else() -> None:
    code = "import sys, heliotrope; print([m for m in sys.modules if m in ('numpy', 'pydantic', 'rich')])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_module_is_the_command() -> None:
    result = subprocess.run([sys.executable, "-m", "heliotrope", "--help"], capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.startswith("usage: heliotrope COMMAND")
