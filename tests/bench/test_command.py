import pytest

from heliotrope_bench.command import main


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "usage: heliotrope bench"),
        (["dance"], "there is no 'dance'"),
        (["load"], "--target HOST:PORT or --snapshots STORE"),
        (["load", "--target", "x:1", "--rate", "-1"], "--rate "),
        (["quality", "netflix"], "no data set 'netflix'"),
        (["quality"], "--all"),
        (["quality", "lastfm-2k", "--protocols", "monday"], "no protocol 'monday'"),
    ],
)
def test_what_can_not_be_is_refused_in_a_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_help_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "quality" in capsys.readouterr().out


def test_a_server_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["load", "--target", "127.0.0.1:1"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("heliotrope bench load: ") and error.count("\n") == 1
