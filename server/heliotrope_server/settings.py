"""Settings of the server, validated when built; nothing else reads the environment."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_SHARDS = 64
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
    """Recommendation requests that may wait in one shard; more are refused."""


class ServerSettings(BaseModel):
    """A whole server: where its data lies, where it listens, and its engine."""

    model_config = ConfigDict(frozen=True)

    snapshots: str
    data: Path
    model: Path | None = None
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 50_051
    shards: Annotated[int, Field(ge=1, le=MAX_SHARDS)] = 1
    drain_s: Annotated[float, Field(ge=0)] = 10.0
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    engine: EngineSettings = EngineSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together: one of them is missing")
        for path in (self.tls_certificate, self.tls_key):
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
