"""Settings of the server, validated when built; nothing else reads the environment."""

import ipaddress
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from heliotrope_server.list_rules import MAX_EXPLORE_SHARE, MAX_PER_CATEGORY, NO_RULES, ListRules

MAX_SHARDS = 64
Device = Literal["auto", "cpu", "cuda"]
IndexKind = Literal["flat", "ivf", "cagra"]
SLOT_COUNT = 16_384


class EngineSettings(BaseModel):
    """What one shard's engine keeps and admits."""

    model_config = ConfigDict(frozen=True)

    event_window_s: Annotated[float, Field(gt=0)] = 7 * 86_400.0
    """An older event is refused unless it is a history import."""
    ring_size: Annotated[int, Field(ge=8, le=100_000)] = 512
    """Events that a profile remembers one by one; older ones are folded."""
    cache_profiles: Annotated[int, Field(ge=1)] = 100_000
    """Profiles kept in memory."""
    checkpoint_interval_s: Annotated[float, Field(gt=0)] = 5.0
    """Seconds between checkpoints of the profiles; bounds the log to replay after a crash."""
    max_waiting_requests: Annotated[int, Field(ge=1)] = 2048
    """Recommendation requests that may wait in one shard, half of them of one client; more are refused."""
    diversity: Annotated[float, Field(ge=0, le=1)] = NO_RULES.diversity
    """Of lists whose request says nothing else; as in heliotrope.v1.ListRules, like the next four."""
    relevance_floor: Annotated[float, Field(ge=0, le=1)] = NO_RULES.relevance_floor
    max_per_category: Annotated[int, Field(ge=0, le=MAX_PER_CATEGORY)] = NO_RULES.max_per_category
    max_provider_share: Annotated[float, Field(gt=0, le=1)] = NO_RULES.max_provider_share
    explore_share: Annotated[float, Field(ge=0, le=MAX_EXPLORE_SHARE)] = NO_RULES.explore_share
    freshness_weight: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Boost of an item at the moment it is added, in units of the score; 0: new items get none."""
    freshness_half_life_s: Annotated[float, Field(ge=1)] = 86_400.0
    """Seconds after which the boost has halved; it ends after five half-lives."""
    freshness_quota: Annotated[float, Field(ge=0, le=0.5)] = 0.2
    """Largest share of a list, rounded down, for items that are there only for their boost."""

    @property
    def list_rules(self) -> ListRules:
        """The rules for lists whose request brings none."""
        return ListRules(
            self.diversity, self.relevance_floor, self.max_per_category, self.max_provider_share, self.explore_share
        )


class LearningSettings(BaseModel):
    """Online learning and the impression log; both are off by default."""

    model_config = ConfigDict(frozen=True)

    learn_online: bool = False
    """Learn A_h and theta from feedback."""
    impression_log_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the answers that are written to the impression log of the shard."""
    impression_log_bytes: Annotated[int, Field(ge=1 << 20)] = 256 << 20
    """Size of a shard's impression log; the oldest segments go first."""
    remembered_answers: Annotated[int, Field(ge=1)] = 50_000
    """Answers that a shard remembers for feedback: about 3 KB each."""
    feedback_window_s: Annotated[float, Field(gt=0)] = 3600.0
    """Seconds for which an answer is remembered."""
    learning_batch: Annotated[int, Field(ge=8, le=4096)] = 64
    """Examples in one step."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Largest share of ||A_h|| that one step moves."""
    learning_pull: Annotated[float, Field(ge=0, lt=1)] = 0.001
    """Share of the way back to the snapshot's weights at each step."""
    max_matrix_change: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Bound on ||A_h - A_h(snapshot)|| / ||A_h(snapshot)||, Frobenius norms."""
    max_theta_change: Annotated[float, Field(ge=0)] = 0.25
    """Bound on the change of each theta."""
    user_examples: Annotated[int, Field(ge=1)] = 32
    """Examples per user that count in one user window."""
    user_window_s: Annotated[float, Field(gt=0)] = 3600.0
    """Length of the user window in seconds."""
    user_batch_share: Annotated[float, Field(gt=0, le=1)] = 0.125
    """Largest weight of one user in a step."""
    promotion_examples: Annotated[int, Field(ge=16)] = 2000
    """Examples after which shadow weights are compared with the active ones."""
    promotion_users: Annotated[int, Field(ge=2)] = 100
    """Users that these examples must come from."""
    promotion_margin: Annotated[float, Field(ge=0)] = 0.0005
    """By how much, in nats per example, the log loss must be lower beyond its error."""
    promotion_errors: Annotated[float, Field(ge=0)] = 2.5
    """How many standard errors, clustered by user."""


class ServerSettings(BaseModel):
    """A whole server: where its data lies, where it listens, and its engine."""

    model_config = ConfigDict(frozen=True)

    snapshots: str
    data: Path
    model: Path | None = None
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 50_051
    shards: Annotated[int, Field(ge=1, le=MAX_SHARDS)] = 1
    device: Device = "auto"
    """Where candidates are searched; auto: on a GPU if one works, cuda: no start without."""
    device_index: IndexKind = "flat"
    """What is built there."""
    drain_s: Annotated[float, Field(ge=0)] = 10.0
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_authorities: Path | None = None
    """Certificates of the authorities whose clients are let in; None: clients need no certificate."""
    access: Path | None = None
    """Says who may call what (see access.access_file); None: whoever reaches the port may call everything."""
    plaintext_to_the_network: bool = False
    """Listen on an address that others can reach without TLS."""
    engine: EngineSettings = EngineSettings()
    learning: LearningSettings = LearningSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together: one of them is missing")
        if self.tls_client_authorities is not None and self.tls_certificate is None:
            raise ValueError("tls_client_authorities needs tls_certificate and tls_key")
        if not (self.tls_certificate or self.plaintext_to_the_network or _is_loopback(self.host)):
            raise ValueError(
                f"others can reach {self.host}, and nothing would be encrypted: give tls_certificate and tls_key, "
                "or say plaintext_to_the_network"
            )
        for path in (self.tls_certificate, self.tls_key, self.tls_client_authorities, self.access):
            if path is not None and not path.is_file():
                raise ValueError(f"{path} does not exist")
        if self.port and self.port + self.shards > 65_535:
            raise ValueError(f"port {self.port} leaves no room for {self.shards} shard ports behind it")
        return self


def slots_of(shard_index: int, shard_count: int) -> range:
    """The hash slots that a shard owns: consecutive, and as even as can be."""
    return range(
        SLOT_COUNT * shard_index // shard_count,
        SLOT_COUNT * (shard_index + 1) // shard_count,
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
