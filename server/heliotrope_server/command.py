"""`heliotrope serve`: starts a server."""

import asyncio
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict, SettingsError

from heliotrope_export.errors import ExportError
from heliotrope_indexer.errors import IndexerError
from heliotrope_server.errors import ServerError
from heliotrope_server.settings import Device, EngineSettings, IndexKind, LearningSettings, ServerSettings
from heliotrope_server.supervisor import Supervisor

_DEFAULTS = EngineSettings()
_LEARNING = LearningSettings()


class ServeOptions(BaseSettings):
    """Serves recommendations from the current snapshot of a store over gRPC.

    Every option can also be given in the environment, as HELIOTROPE_SERVE_ and its name in capitals.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        env_prefix="HELIOTROPE_SERVE_",
        cli_prog_name="heliotrope serve",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
    )

    snapshots: str = Field(description="snapshot store: a folder or an fsspec URL")
    data: Path = Field(description="folder for the event logs and profiles; created when missing")
    model: Path | None = Field(
        None, description="model folder; needed for declared interests, UpsertItems, SearchItems"
    )
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(50_051, description="port for all shards, which also take the ports behind it; 0: free ones")
    device: Device = Field(
        "auto", description="where candidates are searched; auto: on a GPU if FAISS has one that works"
    )
    device_index: IndexKind = Field("flat", description="the index on a GPU; flat is exact, cagra needs faiss-gpu-cuvs")
    shards: int = Field(1, description="number of shard processes, best one per core")
    event_window_s: float = Field(
        _DEFAULTS.event_window_s,
        description="seconds after which an event is only accepted as history import",
    )
    ring_size: int = Field(_DEFAULTS.ring_size, description="events that a profile remembers one by one")
    cache_profiles: int = Field(_DEFAULTS.cache_profiles, description="profiles kept in memory, per shard")
    checkpoint_interval_s: float = Field(
        _DEFAULTS.checkpoint_interval_s, description="seconds between checkpoints of the profiles"
    )
    max_waiting_requests: int = Field(
        _DEFAULTS.max_waiting_requests,
        description="requests that may wait in a shard before more are refused, half of them of one client",
    )
    learn_online: bool = Field(
        False, description="learn the scoring weights from feedback, behind guard rails (docs/decisions/0006)"
    )
    impression_log_share: float = Field(
        _LEARNING.impression_log_share, description="share of the answers to write to the impression log, 0 to 1"
    )
    impression_log_bytes: int = Field(
        _LEARNING.impression_log_bytes, description="size of the impression log of a shard; the oldest go first"
    )
    remembered_answers: int = Field(
        _LEARNING.remembered_answers, description="answers that a shard remembers for feedback, about 3 KB each"
    )
    feedback_window_s: float = Field(
        _LEARNING.feedback_window_s, description="seconds for which an answer is remembered for feedback"
    )
    learning_rate: float = Field(
        _LEARNING.learning_rate, description="largest share of the weights that one step of learning moves"
    )
    max_matrix_change: float = Field(
        _LEARNING.max_matrix_change, description="bound on how far learning can move A_h, as a share of its norm"
    )
    user_examples: int = Field(_LEARNING.user_examples, description="examples of one user that count in an hour")
    promotion_examples: int = Field(
        _LEARNING.promotion_examples, description="examples on which learned weights must prove better to be served"
    )
    promotion_users: int = Field(_LEARNING.promotion_users, description="users that these examples must come from")
    diversity: float = Field(
        _DEFAULTS.diversity, description="0 to 1: how much the items of a list should differ from each other"
    )
    relevance_floor: float = Field(
        _DEFAULTS.relevance_floor,
        description="diversity moves up no item with less than this share of the best one's probability",
    )
    max_per_category: int = Field(
        _DEFAULTS.max_per_category, description="items of one category in a list; 0: no limit"
    )
    max_provider_share: float = Field(
        _DEFAULTS.max_provider_share, description="largest share of a list for one provider; 1: no limit"
    )
    explore_share: float = Field(
        _DEFAULTS.explore_share, description="share of lists whose last place is drawn at random; 0: none"
    )
    freshness_weight: float = Field(
        _DEFAULTS.freshness_weight, description="boost of the score of a new item, which then decays; 0: none"
    )
    freshness_half_life_s: float = Field(
        _DEFAULTS.freshness_half_life_s, description="seconds after which the boost has halved"
    )
    freshness_quota: float = Field(
        _DEFAULTS.freshness_quota, description="largest share of a list for items that only the boost brings in"
    )
    drain_s: float = Field(10.0, description="seconds that running calls get on SIGTERM")
    tls_certificate: Path | None = Field(None, description="PEM certificate chain; with --tls-key turns TLS on")
    tls_key: Path | None = Field(None, description="PEM private key")
    tls_client_authorities: Path | None = Field(
        None, description="PEM certificates of the authorities whose clients are let in; turns mutual TLS on"
    )
    access: Path | None = Field(
        None, description="TOML file that says who may call what (docs/security.md); without it anybody may"
    )
    plaintext_to_the_network: bool = Field(False, description="listen without TLS on an address that others can reach")

    def server_settings(self) -> ServerSettings:
        engine = {name: getattr(self, name) for name in EngineSettings.model_fields}
        learning = {name: getattr(self, name) for name in LearningSettings.model_fields if hasattr(self, name)}
        own = {name: getattr(self, name) for name in ServerSettings.model_fields if hasattr(self, name)}
        return ServerSettings(**own, engine=EngineSettings(**engine), learning=LearningSettings(**learning))


def main(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with one_line_errors() as outcome:
        options = CliApp.run(ServeOptions, cli_args=arguments)
        asyncio.run(_run(options.server_settings()))
    return outcome.code


async def _run(settings: ServerSettings) -> None:
    await Supervisor(settings).run()


class Outcome:
    """The exit code: 0, 2 for settings that can't be, 1 for what went wrong later."""

    code = 0


@contextmanager
def one_line_errors() -> Iterator[Outcome]:
    """Turns the errors that a person can mend into one line on standard error and an exit code."""
    outcome = Outcome()
    try:
        yield outcome
    except ValidationError as error:
        for problem in error.errors():
            name = "--" + "-".join(str(part) for part in problem["loc"]).replace("_", "-") if problem["loc"] else ""
            print(f"heliotrope: {name} {problem['msg']}".replace(":  ", ": "), file=sys.stderr)
        outcome.code = 2
    except SettingsError as error:
        print(f"heliotrope: {error}", file=sys.stderr)
        outcome.code = 2
    except (ServerError, IndexerError, ExportError) as error:
        print(f"heliotrope: {error}", file=sys.stderr)
        outcome.code = 1
