"""The gRPC services. Each translates: message to plain call, plain result to message; what is decided is decided below.

A call about a user whom another shard owns is passed on to it. On the socket between shards nothing is passed on
again: `routing` is off there.
"""

from heliotrope_server.servicers.admin import AdminServicer
from heliotrope_server.servicers.catalog import CatalogServicer
from heliotrope_server.servicers.event import EventServicer
from heliotrope_server.servicers.feedback import FeedbackServicer
from heliotrope_server.servicers.peer import PeerServicer
from heliotrope_server.servicers.profile import ProfileServicer
from heliotrope_server.servicers.recommendation import RecommendationServicer

__all__ = [
    "AdminServicer",
    "CatalogServicer",
    "EventServicer",
    "FeedbackServicer",
    "PeerServicer",
    "ProfileServicer",
    "RecommendationServicer",
]
