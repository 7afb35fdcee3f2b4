"""Which scope each method needs, and which are put on record. A method that is not here is denied."""

from heliotrope_server.access.principal import Scope

OPEN = frozenset({"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch", "/grpc.health.v1.Health/List"})
"""For load balancers, which have no credentials."""

_V1 = "/heliotrope.v1."

SCOPE_OF: dict[str, Scope | None] = {
    f"{_V1}RecommendationService/Recommend": Scope.RECOMMEND,
    f"{_V1}RecommendationService/BatchRecommend": Scope.RECOMMEND,
    f"{_V1}RecommendationService/StreamRecommend": Scope.RECOMMEND,
    # It tells what the user did, event by event.
    f"{_V1}RecommendationService/Explain": Scope.PROFILES,
    f"{_V1}EventService/RecordEvents": Scope.EVENTS,
    f"{_V1}EventService/StreamEvents": Scope.EVENTS,
    f"{_V1}FeedbackService/RecordFeedback": Scope.EVENTS,
    f"{_V1}ProfileService/GetProfile": Scope.PROFILES,
    f"{_V1}ProfileService/UpdateProfile": Scope.PROFILES,
    f"{_V1}ProfileService/DeleteProfile": Scope.PROFILES,
    f"{_V1}ProfileService/ExportProfile": Scope.PROFILES,
    f"{_V1}CatalogService/UpsertItems": Scope.CATALOGUE,
    f"{_V1}CatalogService/DeleteItems": Scope.CATALOGUE,
    f"{_V1}CatalogService/GetItem": Scope.RECOMMEND,
    f"{_V1}CatalogService/ListItems": Scope.RECOMMEND,
    f"{_V1}CatalogService/SearchItems": Scope.RECOMMEND,
    # Clients read the map of the shards from it.
    f"{_V1}AdminService/GetServingStatus": None,
    f"{_V1}AdminService/ListSnapshots": Scope.ADMIN,
    f"{_V1}AdminService/ActivateSnapshot": Scope.ADMIN,
    f"{_V1}AdminService/RollBackSnapshot": Scope.ADMIN,
    f"{_V1}AdminService/RollBackWeights": Scope.ADMIN,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": None,
}
"""By full name; None: any principal may call it."""

AUDITED = frozenset(
    {
        f"{_V1}ProfileService/DeleteProfile",
        f"{_V1}ProfileService/ExportProfile",
        f"{_V1}CatalogService/DeleteItems",
        f"{_V1}AdminService/ActivateSnapshot",
        f"{_V1}AdminService/RollBackSnapshot",
        f"{_V1}AdminService/RollBackWeights",
    }
)
"""What reveals or removes what is held of a person, or changes what the whole server serves. All of them are unary."""
