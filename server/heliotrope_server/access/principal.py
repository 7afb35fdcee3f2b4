"""Whoever calls, and what they may do."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from heliotrope_server.errors import PermissionDeniedError, UnauthenticatedError


class Scope(StrEnum):
    """A part of the API; see access.methods for the methods of each."""

    RECOMMEND = "recommend"
    EVENTS = "events"
    PROFILES = "profiles"
    CATALOGUE = "catalogue"
    ADMIN = "admin"


TENANT_SCOPES = frozenset({Scope.RECOMMEND, Scope.EVENTS, Scope.PROFILES})
"""What a principal of a tenant may have: the rest is of the server as a whole."""
TENANT_SEPARATOR = ":"


@dataclass(frozen=True)
class Principal:
    """`tenant` "acme" means: only users whose id begins with "acme:"; empty: all users.

    `calls_per_s` is counted on each shard, a batch as one call for each of its users; None: no limit. `expires_s` is
    when the credential ends, in Unix time.
    """

    name: str
    scopes: frozenset[Scope]
    tenant: str = ""
    calls_per_s: float | None = None
    expires_s: float = math.inf

    def check_alive(self, now_s: float) -> None:
        """Raises UnauthenticatedError once the credential has expired."""
        if now_s >= self.expires_s:
            raise UnauthenticatedError("CREDENTIALS_EXPIRED", "the credentials have expired; call with new ones")

    def check_scope(self, scope: Scope | None) -> None:
        """Raises PermissionDeniedError unless the principal has it; None: any principal may."""
        if scope is not None and scope not in self.scopes:
            raise PermissionDeniedError(
                "SCOPE_MISSING",
                f"{self.name} does not have the scope {scope.value!r}",
                principal=self.name,
                scope=scope.value,
            )

    def check_users(self, user_ids: Iterable[str]) -> None:
        """Raises PermissionDeniedError for a user of another tenant."""
        if not self.tenant:
            return
        prefix = self.tenant + TENANT_SEPARATOR
        for user_id in user_ids:
            if not user_id.startswith(prefix):
                # Not whose user it is: ids of others are not for this caller to learn.
                raise PermissionDeniedError(
                    "OTHER_TENANT",
                    f"{self.name} may only name users whose id begins with {prefix!r}",
                    principal=self.name,
                    tenant=self.tenant,
                )
