"""The file that says who may call what, read again when it changes.

[[principals]]
name = "shop"                                # of whoever calls, in logs and in the audit log
scopes = ["recommend", "events"]             # also: profiles, catalogue, admin
token_sha256 = ["9f86d0..."]                 # of tokens; `heliotrope token` makes them
certificate_names = ["shop.internal"]        # or a client certificate with one of these names
tenant = "acme"                              # only users whose id begins with "acme:"
calls_per_s = 500                            # on each shard

[jwt]                                        # or signed tokens of an identity provider
jwks = "jwks.json"                           # its public keys, beside this file
algorithm = "RS256"                          # the only one that is accepted
audience = "heliotrope"
issuer = "https://login.example"             # may be left out
"""

from __future__ import annotations

import json
import logging
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

import jwt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from heliotrope_server.access.principal import TENANT_SCOPES, TENANT_SEPARATOR, Principal, Scope
from heliotrope_server.errors import AccessFileError

logger = logging.getLogger(__name__)

CHECK_EVERY_S = 1.0
"""How often the files are looked at."""

Name = Annotated[str, Field(min_length=1, max_length=128)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# Asymmetric ones only: with a shared secret whoever checks a token could make one.
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


class PrincipalEntry(BaseModel):
    """One `[[principals]]`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    scopes: frozenset[Scope]
    token_sha256: tuple[Hash, ...] = ()
    certificate_names: tuple[Name, ...] = ()
    tenant: str = ""
    calls_per_s: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.token_sha256 and not self.certificate_names:
            raise ValueError(f"{self.name} has no token_sha256 and no certificate_names: nobody could be it")
        check_tenant(self.name, self.tenant, self.scopes)
        return self

    def principal(self) -> Principal:
        return Principal(self.name, self.scopes, self.tenant, self.calls_per_s)


class JwtSettings(BaseModel):
    """`[jwt]`: how signed tokens are checked. Their claims: `sub` is the name, `scope` the scopes with blanks between
    them, `tenant` the tenant, `exp` the end."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    jwks: Path
    algorithm: Algorithm
    audience: Name
    issuer: str | None = None


class _Content(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    principals: tuple[PrincipalEntry, ...] = ()
    jwt: JwtSettings | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [entry.name for entry in self.principals]
        keys = [key for entry in self.principals for key in (*entry.token_sha256, *entry.certificate_names)]
        for what, values in (("name", names), ("token or certificate", keys)):
            twice = {value for value in values if values.count(value) > 1}
            if twice:
                raise ValueError(f"two principals have the same {what}: {', '.join(sorted(twice))}")
        return self


class Access:
    """What one reading of the files said."""

    def __init__(self, content: _Content, keys: Mapping[str, jwt.PyJWK]) -> None:
        self.by_token = {key: entry.principal() for entry in content.principals for key in entry.token_sha256}
        self.by_certificate = {
            name: entry.principal() for entry in content.principals for name in entry.certificate_names
        }
        self.jwt = content.jwt
        self.keys = keys


class AccessFile:
    """See the module. A change that cannot be read is logged, and what was read before goes on holding."""

    def __init__(self, path: Path) -> None:
        """Raises AccessFileError when it cannot be read."""
        self._path = path
        self._access, self._stamps = self._read()
        self._checked_s = time.monotonic()

    def access(self) -> Access:
        """What holds now."""
        now_s = time.monotonic()
        if now_s - self._checked_s >= CHECK_EVERY_S:
            self._checked_s = now_s
            if any(_stamp(path) != stamp for path, stamp in self._stamps.items()):
                try:
                    self._access, self._stamps = self._read()
                    logger.info("read %s again", self._path)
                except AccessFileError as error:
                    # Once for each change, not each second.
                    self._stamps = {path: _stamp(path) for path in self._stamps}
                    logger.error("what %s said before goes on holding: %s", self._path, error)
        return self._access

    def _read(self) -> tuple[Access, dict[Path, tuple[int, int] | None]]:
        stamps = {self._path: _stamp(self._path)}
        try:
            content = _Content.model_validate(tomllib.loads(self._path.read_text(encoding="utf-8")))
        except OSError as error:
            raise AccessFileError(f"{self._path} cannot be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise AccessFileError(f"{self._path} is not TOML: {error}") from error
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(str(part) for part in problem["loc"])
            raise AccessFileError(f"{self._path}: {place}: {problem['msg']}".replace(": :", ":")) from error
        keys: Mapping[str, jwt.PyJWK] = {}
        if content.jwt is not None:
            path = self._path.parent / content.jwt.jwks
            stamps[path] = _stamp(path)
            keys = _keys(path)
        return Access(content, keys), stamps


def check_tenant(name: str, tenant: str, scopes: frozenset[Scope]) -> None:
    """Raises ValueError for a tenant that could not be kept apart from others."""
    if not tenant:
        return
    if TENANT_SEPARATOR in tenant or len(tenant) > 64:
        raise ValueError(f"the tenant of {name} must have at most 64 characters and no {TENANT_SEPARATOR!r}")
    if not scopes <= TENANT_SCOPES:
        beyond = ", ".join(sorted(scopes - TENANT_SCOPES))
        raise ValueError(f"{name} belongs to a tenant and can't have scopes of the whole server: {beyond}")


def _keys(path: Path) -> dict[str, jwt.PyJWK]:
    """The public keys of a JWKS file by their id."""
    try:
        keys = jwt.PyJWKSet.from_dict(json.loads(path.read_text(encoding="utf-8"))).keys
    except OSError as error:
        raise AccessFileError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError, jwt.PyJWTError) as error:
        raise AccessFileError(f"{path} is not a JWKS file: {error}") from error
    named = {key.key_id: key for key in keys if key.key_id and key.public_key_use in (None, "sig")}
    if not named:
        raise AccessFileError(f"{path} holds no key with a `kid` for signatures")
    return named


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino
