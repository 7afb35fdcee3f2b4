"""The one place where errors of the server become gRPC statuses with ErrorInfo."""

import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from heliotrope_server.errors import OverloadedError, RequestError

DOMAIN = "heliotrope"

logger = logging.getLogger(__name__)

Handler = Any  # a grpc.RpcMethodHandler, of any request and response


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Maps RequestError to its status, and anything else to INTERNAL with an id that the log explains."""

    def __init__(self) -> None:
        self._wrapped: dict[str, Handler | None] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        method = handler_call_details.method
        # A handler is made once per method, not once per call.
        if method not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None:
                return handler
            self._wrapped[method] = _wrap(handler)
        return self._wrapped[method]


def _wrap(handler: Any) -> Any:
    if handler.response_streaming:
        make = (
            grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        )
        behaviour = _guarded_stream(handler.stream_stream or handler.unary_stream)
    else:
        make = grpc.unary_unary_rpc_method_handler
        behaviour = _guarded_unary(handler.unary_unary)
    return make(behaviour, handler.request_deserializer, handler.response_serializer)


def _guarded_unary(behaviour: Any) -> Any:
    async def guarded(request: Any, context: Any) -> Any:
        try:
            return await behaviour(request, context)
        except Exception as error:
            await _abort(context, error)

    return guarded


def _guarded_stream(behaviour: Any) -> Any:
    async def guarded(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async for response in behaviour(request, context):
                yield response
        except Exception as error:
            await _abort(context, error)

    return guarded


async def _abort(context: Any, error: Exception) -> None:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, RequestError):
        await context.abort_with_status(rpc_status.to_status(status_of(error)))
    else:
        error_id = uuid.uuid4().hex
        logger.exception("unexpected error %s", error_id, exc_info=error)
        await context.abort_with_status(rpc_status.to_status(_internal(error_id)))


def status_of(error: RequestError) -> status_pb2.Status:
    """google.rpc.Status with ErrorInfo, and RetryInfo where trying again makes sense."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    details = [_packed(info)]
    if isinstance(error, OverloadedError):
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after_s * 1000))
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status_pb2.Status(code=code_pb2.Code.Value(error.code), message=error.message, details=details)


def _internal(error_id: str) -> status_pb2.Status:
    info = error_details_pb2.ErrorInfo(reason="INTERNAL", domain=DOMAIN, metadata={"error_id": error_id})
    return status_pb2.Status(
        code=code_pb2.INTERNAL,
        message=f"internal error {error_id}; the server's log has the details",
        details=[_packed(info)],
    )


def _packed(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
