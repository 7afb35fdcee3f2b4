"""Where every call is checked, once, before its servicer sees it."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import grpc

from heliotrope_server.access.access_file import AccessFile
from heliotrope_server.access.audit_log import AuditLog
from heliotrope_server.access.authenticator import Authenticator
from heliotrope_server.access.methods import AUDITED, OPEN, SCOPE_OF
from heliotrope_server.access.principal import Principal
from heliotrope_server.access.rate_limit import RateLimit
from heliotrope_server.access.user_fields import UsersOf, user_ids_of
from heliotrope_server.errors import PermissionDeniedError, RequestError, StorageFailedError

logger = logging.getLogger(__name__)

ANYBODY = "anybody"
"""The principal in the audit log of a server that asks nobody who they are."""

_caller: ContextVar[str] = ContextVar("caller", default="")


def caller(context: Any) -> str:
    """Whose calls take turns with those of others: the principal, or the connection where nobody is asked."""
    return _caller.get() or str(context.peer())


class AccessInterceptor(grpc.aio.ServerInterceptor):
    """Checks credentials, scope, tenant and rate of every call, if there is an access file; keeps the audit log.

    It stands inside of the ErrorInterceptor, which turns what it raises into a status and asks for a handler once for
    each method: a call of a server that is open to all, and that is not audited, costs nothing more.
    """

    def __init__(self, file: AccessFile | None, audit: AuditLog) -> None:
        self._authenticator = None if file is None else Authenticator(file)
        self._audit = audit
        self._limits: dict[str, RateLimit] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        method = handler_call_details.method
        handler = await continuation(handler_call_details)
        if handler is None or method in OPEN or (self._authenticator is None and method not in AUDITED):
            return handler
        if handler.request_streaming:
            make, behaviour = grpc.stream_stream_rpc_method_handler, self._stream_stream(method, handler.stream_stream)
        elif handler.response_streaming:
            make, behaviour = grpc.unary_stream_rpc_method_handler, self._unary_stream(method, handler.unary_stream)
        else:
            make, behaviour = grpc.unary_unary_rpc_method_handler, self._unary_unary(method, handler.unary_unary)
        return make(behaviour, handler.request_deserializer, handler.response_serializer)

    def _unary_unary(self, method: str, behaviour: Any) -> Any:
        users = _users()

        async def checked(request: Any, context: Any) -> Any:
            name = self._let_in(method, users, request, context)
            async with self._on_record(method, name, users, request, context):
                return await behaviour(request, context)

        async def checked_only(request: Any, context: Any) -> Any:
            self._let_in(method, users, request, context)
            return await behaviour(request, context)

        return checked if method in AUDITED else checked_only

    def _unary_stream(self, method: str, behaviour: Any) -> Any:
        users = _users()

        async def checked(request: Any, context: Any) -> AsyncIterator[Any]:
            name = self._let_in(method, users, request, context)
            async with self._on_record(method, name, users, request, context):
                async for response in behaviour(request, context):
                    yield response

        return checked

    def _stream_stream(self, method: str, behaviour: Any) -> Any:
        users = _users()

        async def checked(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
            principal = self._admitted(method, context)
            _caller.set(principal.name)

            async def admitted() -> AsyncIterator[Any]:
                async for request in requests:
                    principal.check_alive(time.time())
                    self._check(principal, users, request)
                    yield request

            async for response in behaviour(admitted(), context):
                yield response

        return checked

    def _let_in(self, method: str, users: UsersOf, request: Any, context: Any) -> str:
        """Checks a call; returns the name of its principal."""
        if self._authenticator is None:
            return ANYBODY
        principal = self._admitted(method, context)
        self._check(principal, users, request)
        _caller.set(principal.name)
        return principal.name

    def _admitted(self, method: str, context: Any) -> Principal:
        assert self._authenticator is not None
        principal = self._authenticator.principal(context.invocation_metadata() or (), context.auth_context())
        principal.check_alive(time.time())
        if method not in SCOPE_OF:
            raise PermissionDeniedError("METHOD_NOT_CLASSIFIED", f"nobody may call {method}", method=method)
        principal.check_scope(SCOPE_OF[method])
        return principal

    def _check(self, principal: Principal, users: UsersOf, request: Any) -> None:
        if not principal.tenant and principal.calls_per_s is None:
            return
        user_ids = list(users(request))
        principal.check_users(user_ids)
        if principal.calls_per_s is None:
            return
        limit = self._limits.get(principal.name)
        if limit is None or limit.calls_per_s != principal.calls_per_s:
            limit = self._limits[principal.name] = RateLimit(principal.name, principal.calls_per_s)
        limit.take(max(1, len(user_ids)))

    @asynccontextmanager
    async def _on_record(
        self, method: str, name: str, users: UsersOf, request: Any, context: Any
    ) -> AsyncIterator[None]:
        """Between two lines of the audit log, if the method is audited: that it was asked for, and what came of it."""
        if method not in AUDITED:
            yield
            return
        # An audited method names one user, or nobody.
        user_ids = list(users(request))
        about = {"user": self._audit.pseudonym(user_ids[0])} if user_ids else {"request": _shown(request)}
        write = partial(self._audit.write, method, name, context.peer(), **about)
        try:
            await asyncio.to_thread(write, outcome="asked")
        except OSError as error:
            raise StorageFailedError(
                "AUDIT_LOG_FAILED", f"what can't be put on record is not done: {error.strerror}"
            ) from error
        outcome = "INTERNAL"
        try:
            yield
            outcome = "OK"
        except RequestError as error:
            outcome = error.code
            raise
        except (asyncio.CancelledError, GeneratorExit):
            outcome = "CANCELLED"
            raise
        finally:
            try:
                await asyncio.to_thread(write, outcome=outcome)
            except OSError as error:
                logger.error("the audit log misses that a call of %s ended with %s: %s", method, outcome, error)


def _users() -> UsersOf:
    """Finds the users of requests of one method, whose type is known with the first of them."""
    found: list[UsersOf] = []

    def users(request: Any) -> Iterator[str]:
        if not found:
            found.append(user_ids_of(request.DESCRIPTOR))
        return found[0](request)

    return users


def _shown(request: Any) -> str:
    return str(request).replace("\n", " ").strip()[:512]
