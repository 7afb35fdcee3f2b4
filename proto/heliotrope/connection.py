"""Channels to a server: addresses, TLS, and the stubs of the six services on one channel."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from heliotrope.errors import ConnectionSettingsError
from heliotrope.v1.admin_pb2_grpc import AdminServiceStub
from heliotrope.v1.catalog_pb2_grpc import CatalogServiceStub
from heliotrope.v1.event_pb2_grpc import EventServiceStub
from heliotrope.v1.feedback_pb2_grpc import FeedbackServiceStub
from heliotrope.v1.profile_pb2_grpc import ProfileServiceStub
from heliotrope.v1.recommendation_pb2_grpc import RecommendationServiceStub

CHANNEL_OPTIONS: tuple[tuple[str, int | str], ...] = (
    # A batch of 256 answers of 1,000 items is larger than the 4 MiB that grpc takes by default.
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    # A server that restarts is found again within seconds, not after the default of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # In spite of its name the time that one connection attempt may take: a busy server is slow to greet.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)

Token = str | Callable[[], str]
Metadata = tuple[tuple[str, str], ...]

CONNECT_TIMEOUT_S = 1.0
"""How long the first connection to a shard's own address may take before the entry is used instead."""


@dataclass(frozen=True, slots=True)
class Tls:
    """How to trust the server, and how to prove who calls.

    root_certificate: PEM file of the authorities to trust; None trusts those of the system.
    certificate, key: PEM files of the client, both or neither, for a server that asks for them.
    server_name: the name to expect in the server's certificate, where it is not the host of the address.
    """

    root_certificate: Path | str | None = None
    certificate: Path | str | None = None
    key: Path | str | None = None
    server_name: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Credentials for a channel. Raises ConnectionSettingsError for a file that can't be used."""
        if (self.certificate is None) != (self.key is None):
            raise ConnectionSettingsError("a client certificate needs its key, and a key its certificate")
        return grpc.ssl_channel_credentials(
            root_certificates=_read_pem(self.root_certificate),
            private_key=_read_pem(self.key),
            certificate_chain=_read_pem(self.certificate),
        )


def token_metadata(token: Token | None) -> Callable[[], Metadata]:
    """What makes the metadata of a call."""
    if token is None:
        return lambda: ()
    if callable(token):
        return lambda: (("authorization", f"Bearer {token()}"),)
    fixed = (("authorization", f"Bearer {token}"),)
    return lambda: fixed


class Stubs:
    """The stubs of the six services on one channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.recommendation = RecommendationServiceStub(channel)
        self.event = EventServiceStub(channel)
        self.feedback = FeedbackServiceStub(channel)
        self.profile = ProfileServiceStub(channel)
        self.catalog = CatalogServiceStub(channel)
        self.admin = AdminServiceStub(channel)


class AsyncStubs:
    """The same for an asyncio channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.recommendation = RecommendationServiceStub(channel)
        self.event = EventServiceStub(channel)
        self.feedback = FeedbackServiceStub(channel)
        self.profile = ProfileServiceStub(channel)
        self.catalog = CatalogServiceStub(channel)
        self.admin = AdminServiceStub(channel)


def check_address(address: str) -> str:
    """Returns the address if it has the form HOST:PORT; raises ConnectionSettingsError if not."""
    host, separator, port = address.rpartition(":")
    if not (separator and host and port.isdigit() and 0 < int(port) < 65_536) or "/" in host:
        raise ConnectionSettingsError(f"the address must be HOST:PORT with a port of 1 to 65535, not {address!r}")
    return address


def channel_options(entry: str, tls: Tls | None) -> list[tuple[str, int | str]]:
    """Options for a channel to any shard of the server that `entry` belongs to.

    The shards of one server share its certificate, so it is the entry's name that each of them must prove.
    """
    options = list(CHANNEL_OPTIONS)
    if tls is not None:
        name = tls.server_name or entry.rpartition(":")[0].strip("[]")
        options.append(("grpc.ssl_target_name_override", name))
    return options


def _read_pem(path: Path | str | None) -> bytes | None:
    if path is None:
        return None
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ConnectionSettingsError(f"cannot read the PEM file {path}: {error.strerror}") from error
    if b"-----BEGIN " not in content:
        raise ConnectionSettingsError(f"{path} is not a PEM file: it has no line '-----BEGIN ...'")
    return content
