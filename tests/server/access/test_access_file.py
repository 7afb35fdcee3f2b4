"""What an access file may say, what it may not, and that a change counts."""

import json
from pathlib import Path

import pytest

from heliotrope_server.access import access_file
from heliotrope_server.access.access_file import AccessFile
from heliotrope_server.errors import AccessFileError
from tests.server.access.keys import Issuer

HASH = "0" * 64
SHOP = f'[[principals]]\nname = "shop"\nscopes = ["recommend"]\ntoken_sha256 = ["{HASH}"]\n'


def written(folder: Path, content: str) -> Path:
    path = folder / "access.toml"
    path.write_text(content)
    return path


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[[principals", "is not TOML"),
        ("unknown = 1", "unknown"),
        (SHOP.replace('"recommend"', '"everything"'), "scopes"),
        (SHOP.replace(HASH, "abc"), "token_sha256"),
        (SHOP.replace(f'"{HASH}"', ""), "nobody could be it"),
        (SHOP + 'tenant = "a:b"', "no ':'"),
        (SHOP.replace("recommend", "admin") + 'tenant = "acme"', "scopes of the whole server: admin"),
        (SHOP + "calls_per_s = 0", "calls_per_s"),
        (SHOP + SHOP, "two principals have the same name: shop"),
        (SHOP + SHOP.replace("shop", "other"), "the same token or certificate"),
        ('[jwt]\njwks = "j"\nalgorithm = "HS256"\naudience = "a"', "algorithm"),
        ('[jwt]\njwks = "j"\nalgorithm = "none"\naudience = "a"', "algorithm"),
        ('[jwt]\njwks = "absent.json"\nalgorithm = "RS256"\naudience = "a"', "absent.json cannot be read"),
    ],
)
def test_what_cannot_be_is_refused_by_name(tmp_path: Path, content: str, said: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(AccessFileError, match=said) as refused:
        AccessFile(path)
    assert str(tmp_path) in str(refused.value)


@pytest.mark.parametrize("content", ["[]", "{}", '{"keys": []}', '{"keys": [{"kty": "RSA"}]}', "x", '{"keys": 3}'])
def test_a_file_of_keys_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "jwks.json").write_text(content)
    path = written(tmp_path, '[jwt]\njwks = "jwks.json"\nalgorithm = "RS256"\naudience = "a"')
    with pytest.raises(AccessFileError, match=r"JWKS file|holds no key"):
        AccessFile(path)


def test_a_change_counts_and_a_bad_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(access_file, "CHECK_EVERY_S", 0.0)
    path = written(tmp_path, SHOP)
    file = AccessFile(path)
    first = file.access()
    assert file.access() is first and first.by_token[HASH].name == "shop"
    written(tmp_path, SHOP.replace("shop", "kiosk"))
    assert file.access().by_token[HASH].name == "kiosk"
    written(tmp_path, "[[principals")
    for _ in range(3):
        assert file.access().by_token[HASH].name == "kiosk"
    assert [record.levelname for record in caplog.records].count("ERROR") == 1
    path.unlink()
    assert file.access().by_token[HASH].name == "kiosk"
    written(tmp_path, SHOP)
    assert file.access().by_token[HASH].name == "shop"


def test_keys_are_read_again_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_file, "CHECK_EVERY_S", 0.0)
    (tmp_path / "jwks.json").write_text(Issuer("old").jwks())
    file = AccessFile(written(tmp_path, '[jwt]\njwks = "jwks.json"\nalgorithm = "RS256"\naudience = "a"'))
    assert list(file.access().keys) == ["old"]
    (tmp_path / "jwks.json").write_text(json.dumps(json.loads(Issuer("new").jwks())))
    assert list(file.access().keys) == ["new"]
