"""Client of Heliotrope, a vector-search recommendation server.

>>> from heliotrope import Client
>>> client = Client("localhost:50051")
>>> token = client.record_event("u1", "m50", "rating", value=5)
>>> client.recommend("u1", count=10, explain=True, version_token=token)
"""

from heliotrope.async_client import AsyncClient
from heliotrope.call import EventReceipt
from heliotrope.client import Client
from heliotrope.connection import Tls
from heliotrope.errors import (
    AuthenticationError,
    ConnectionSettingsError,
    DeadlineExceededError,
    FailedPreconditionError,
    HeliotropeError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    ServerError,
    UnavailableError,
    UnsupportedError,
    VersionNotAvailableError,
)
from heliotrope.event import Event
from heliotrope.filters import (
    attribute_in,
    attribute_not_in,
    category_in,
    category_not_in,
    item_filter,
    number_range,
    provider_in,
    provider_not_in,
)
from heliotrope.items import attributes_of, make_item
from heliotrope.retry import RetryPolicy
from heliotrope.v1.catalog_pb2 import Item, TextEmbedding
from heliotrope.v1.recommendation_pb2 import ContributionKind, RecommendRequest, Source

__all__ = [
    "AsyncClient",
    "AuthenticationError",
    "Client",
    "ConnectionSettingsError",
    "ContributionKind",
    "DeadlineExceededError",
    "Event",
    "EventReceipt",
    "FailedPreconditionError",
    "HeliotropeError",
    "InternalError",
    "InvalidRequestError",
    "Item",
    "NotFoundError",
    "OverloadedError",
    "PermissionDeniedError",
    "RecommendRequest",
    "RetryPolicy",
    "ServerError",
    "Source",
    "TextEmbedding",
    "Tls",
    "UnavailableError",
    "UnsupportedError",
    "VersionNotAvailableError",
    "attribute_in",
    "attribute_not_in",
    "attributes_of",
    "category_in",
    "category_not_in",
    "item_filter",
    "make_item",
    "number_range",
    "provider_in",
    "provider_not_in",
]
