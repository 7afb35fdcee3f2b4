"""Tokens and certificates: which are taken, and as whom."""

import hashlib
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from heliotrope_server.access import authenticator as module
from heliotrope_server.access.access_file import AccessFile
from heliotrope_server.access.authenticator import Authenticator
from heliotrope_server.access.principal import Principal, Scope
from heliotrope_server.errors import UnauthenticatedError
from tests.server.access.keys import Issuer

TOKEN = "a-static-token"


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture(scope="module")
def authenticator(tmp_path_factory: pytest.TempPathFactory, issuer: Issuer) -> Authenticator:
    folder = tmp_path_factory.mktemp("access")
    (folder / "jwks.json").write_text(issuer.jwks())
    (folder / "access.toml").write_text(
        f"""
        [[principals]]
        name = "shop"
        scopes = ["recommend", "events"]
        token_sha256 = ["{hashlib.sha256(TOKEN.encode()).hexdigest()}"]

        [[principals]]
        name = "job"
        scopes = ["admin"]
        certificate_names = ["job.internal"]

        [jwt]
        jwks = "jwks.json"
        algorithm = "RS256"
        audience = "heliotrope"
        issuer = "https://login.example"
        """
    )
    return Authenticator(AccessFile(folder / "access.toml"))


def asked(authenticator: Authenticator, token: str, **certificate: list[bytes]) -> Principal:
    return authenticator.principal([("user-agent", "x"), ("authorization", f"Bearer {token}")], certificate)


def test_a_token_that_is_known_is_its_principal(authenticator: Authenticator) -> None:
    assert asked(authenticator, TOKEN) == Principal("shop", frozenset({Scope.RECOMMEND, Scope.EVENTS}))


def test_a_certificate_is_its_principal_by_either_name_and_a_token_goes_first(authenticator: Authenticator) -> None:
    for field in ("x509_common_name", "x509_subject_alternative_name"):
        assert authenticator.principal([], {field: [b"other", b"job.internal"]}).name == "job"
    assert asked(authenticator, TOKEN, x509_common_name=[b"job.internal"]).name == "shop"
    with pytest.raises(UnauthenticatedError) as refused:
        authenticator.principal([], {"x509_common_name": [b"job.internal.evil"]})
    assert refused.value.reason == "CREDENTIALS_MISSING"


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer ", f"bearer {TOKEN}", f"Basic {TOKEN}", f"Bearer  {TOKEN}", b"x"]
)
def test_what_is_no_token_is_refused(authenticator: Authenticator, value: Any) -> None:
    with pytest.raises(UnauthenticatedError) as refused:
        authenticator.principal([("authorization", value)], {"x509_common_name": [b"job.internal"]})
    assert refused.value.reason == "CREDENTIALS_INVALID"


def test_a_signed_token_says_who_and_what(authenticator: Authenticator, issuer: Issuer) -> None:
    end = int(time.time()) + 100
    token = issuer.token(
        iss="https://login.example", sub="acme-web", scope="events other profiles", tenant="acme", exp=end
    )
    principal = asked(authenticator, token)
    assert (principal.name, principal.tenant) == ("acme-web", "acme")
    assert principal.scopes == {Scope.EVENTS, Scope.PROFILES}
    assert asked(authenticator, token) is principal
    principal.check_alive(end)
    with pytest.raises(UnauthenticatedError, match="expired"):
        principal.check_alive(end + module.CLOCK_SKEW_S)


def refused_tokens(issuer: Issuer) -> dict[str, str]:
    good = {"iss": "https://login.example"}
    public = issuer.key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    unsigned = jwt.encode(
        {"sub": "x", "aud": "heliotrope", "exp": 2e9, **good}, None, algorithm="none", headers={"kid": "k1"}
    )
    # What a library that trusts the header's algorithm would take: the public key as a shared secret.
    confused = jwt.api_jws.PyJWS(algorithms=["HS256"])
    confused._algorithms["HS256"].prepare_key = lambda key: key  # type: ignore[method-assign]
    return {
        "expired": issuer.token(**good, exp=int(time.time()) - 100),
        "of the far future": issuer.token(**good, exp=int(time.time()) + 20 * 366 * 86_400),
        "without an end": issuer.token(**good, exp=None),
        "without a name": issuer.token(**good, sub=None),
        "for another audience": issuer.token(**good, aud="other"),
        "for nobody": issuer.token(**good, aud=None),
        "of another issuer": issuer.token(iss="https://evil.example"),
        "of no issuer": issuer.token(),
        "not yet valid": issuer.token(**good, nbf=int(time.time()) + 1000),
        "of another key": issuer.token(**good, key=Issuer().key),
        "of an unknown key": issuer.token(**good, key_id="k2"),
        "of another algorithm": issuer.token(**good, algorithm="RS512"),
        "unsigned": unsigned,
        "signed with the public key": confused.encode(
            b'{"sub":"x","aud":"heliotrope","exp":2000000000,"iss":"https://login.example"}',
            public,
            "HS256",
            {"kid": "k1"},
        ),
        "of a tenant with the run of the server": issuer.token(**good, tenant="acme", scope="admin"),
        "of a tenant that is none": issuer.token(**good, tenant="a:b"),
        "with scopes that are no text": issuer.token(**good, scope=["recommend"]),
        "cut": issuer.token(**good)[:-3],
        "of three dots": "..",
    }


def test_no_other_signed_token_is_taken(authenticator: Authenticator, issuer: Issuer) -> None:
    for what, token in refused_tokens(issuer).items():
        with pytest.raises(UnauthenticatedError) as refused:
            asked(authenticator, token)
            pytest.fail(f"a token {what} was taken")
        assert refused.value.reason == "CREDENTIALS_INVALID"
        assert token not in refused.value.message


@settings(max_examples=500, deadline=None)
@given(
    st.text(max_size=60)
    | st.from_regex(r"[A-Za-z0-9_-]{0,30}\.[A-Za-z0-9_-]{0,30}\.[A-Za-z0-9_-]{0,30}", fullmatch=True)
)
def test_anything_else_is_refused_as_such(authenticator: Authenticator, token: str) -> None:
    with pytest.raises(UnauthenticatedError):
        asked(authenticator, token)


def test_what_is_remembered_is_bounded(
    authenticator: Authenticator, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KNOWN_TOKENS", 3)
    for number in range(6):
        asked(authenticator, issuer.token(iss="https://login.example", jti=str(number)))
    assert len(authenticator._known) <= 3
