"""From the credentials of a call to its principal."""

import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import jwt

from heliotrope_server.access.access_file import Access, AccessFile, JwtSettings, check_tenant
from heliotrope_server.access.principal import Principal, Scope
from heliotrope_server.errors import UnauthenticatedError

HEADER = "authorization"
SCHEME = "Bearer "
MAX_TOKEN = 8192
KNOWN_TOKENS = 4096
"""Signed tokens whose check is remembered: a signature costs some 50 us, a lookup 2."""
CLOCK_SKEW_S = 30.0


class Authenticator:
    """Belongs to one event loop."""

    def __init__(self, file: AccessFile) -> None:
        self._file = file
        self._access: Access | None = None
        self._known: OrderedDict[bytes, Principal] = OrderedDict()

    def principal(self, metadata: Iterable[tuple[str, Any]], certificate: Mapping[str, Iterable[bytes]]) -> Principal:
        """Who calls with this metadata over a connection with this `auth_context`. Raises UnauthenticatedError."""
        access = self._file.access()
        if access is not self._access:
            self._access = access
            self._known.clear()
        for key, value in metadata:
            if key == HEADER:
                return self._of_token(access, value)
        if access.by_certificate:
            for field in ("x509_subject_alternative_name", "x509_common_name"):
                for name in certificate.get(field, ()):
                    found = access.by_certificate.get(name.decode(errors="replace"))
                    if found is not None:
                        return found
        raise UnauthenticatedError("CREDENTIALS_MISSING", "this server wants credentials: authorization: Bearer TOKEN")

    def _of_token(self, access: Access, value: Any) -> Principal:
        if not isinstance(value, str) or not value.startswith(SCHEME) or len(value) > MAX_TOKEN:
            raise _invalid(f"the metadata 'authorization' must be '{SCHEME}TOKEN' with at most {MAX_TOKEN} characters")
        token = value.removeprefix(SCHEME)
        # The hash is looked up, never the token compared: how long that takes tells nothing of it.
        digest = hashlib.sha256(token.encode())
        found = access.by_token.get(digest.hexdigest()) or self._known.get(digest.digest())
        if found is None and access.jwt is not None and token.count(".") == 2:
            found = _of_jwt(access.jwt, access.keys, token)
            self._known[digest.digest()] = found
            if len(self._known) > KNOWN_TOKENS:
                self._known.popitem(last=False)
        if found is None:
            raise _invalid("the token is unknown")
        return found


def _of_jwt(settings: JwtSettings, keys: Mapping[str, jwt.PyJWK], token: str) -> Principal:
    try:
        key = keys.get(str(jwt.get_unverified_header(token).get("kid")))
        if key is None:
            raise _invalid("the token is signed with a key that this server does not know")
        claims = jwt.decode(
            token,
            key,
            algorithms=[settings.algorithm],
            audience=settings.audience,
            issuer=settings.issuer,
            leeway=CLOCK_SKEW_S,
            options={"require": ["exp", "sub", "aud"]},
        )
    except (jwt.PyJWTError, ValueError, TypeError) as error:
        raise _invalid(f"the token is not valid: {error}") from error
    name, expires = claims["sub"], claims["exp"]
    granted, tenant = claims.get("scope", ""), claims.get("tenant", "")
    if not (isinstance(name, str) and 0 < len(name) <= 128 and isinstance(granted, str) and isinstance(tenant, str)):
        raise _invalid("of the token's claims sub, scope and tenant must be text, and sub of 1 to 128 characters")
    # What is not ours to grant is of another service's scopes.
    scopes = frozenset(scope for scope in Scope if scope.value in granted.split())
    try:
        check_tenant(name, tenant, scopes)
    except ValueError as error:
        raise _invalid(str(error)) from error
    return Principal(name, scopes, tenant, expires_s=_finite(expires) + CLOCK_SKEW_S)


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number) or number < 0 or number > time.time() + 10 * 366 * 86_400:
        raise _invalid("the token's claim exp must be a time within the next ten years")
    return number


def _invalid(message: str) -> UnauthenticatedError:
    return UnauthenticatedError("CREDENTIALS_INVALID", message)
