"""TLS whose certificates may change while the server runs."""

import logging
import ssl
import threading
from pathlib import Path

import grpc

from heliotrope_server.errors import CertificateError

logger = logging.getLogger(__name__)


class Certificates:
    """A chain and its key as PEM files, and the authorities whose clients are let in (None: no client is asked for a
    certificate). Files that changed are read at the next connection, or the next `look`; connections that are open stay
    as they are.
    """

    def __init__(self, chain: Path, key: Path, authorities: Path | None) -> None:
        """Raises CertificateError for files that are no pair, or no certificates."""
        self._chain, self._key, self._authorities = chain, key, authorities
        self._looking = threading.Lock()
        self._problem = ""
        self._stamps = self._now()
        self._current = self._configuration()

    def credentials(self) -> grpc.ServerCredentials:
        """For one server; all servers of a process present the same certificate at any time."""
        given = self._current

        def changed() -> grpc.ServerCertificateConfiguration | None:
            """For gRPC, at each connection: what is new since it last asked."""
            nonlocal given
            self.look()
            if self._current is given:
                return None
            given = self._current
            return given

        return grpc.dynamic_ssl_server_credentials(
            given,
            changed,  # type: ignore[arg-type]  # None is as good as documented: nothing has changed
            require_client_authentication=self._authorities is not None,
        )

    def look(self) -> None:
        """Takes the files if they have changed, and can be used; else says so once, and all stays as it was."""
        with self._looking:
            try:
                stamps = self._now()
                if stamps == self._stamps:
                    return
                self._stamps = stamps
                self._current = self._configuration()
                self._problem = ""
                logger.info("new connections get the certificate that is now in %s", self._chain)
            except CertificateError as error:
                if str(error) != self._problem:
                    self._problem = str(error)
                    logger.error("new connections get the certificate from before: %s", error)

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        try:
            # A new chain with the old key, half-way through a change, would end every handshake.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._chain, self._key)
            if self._authorities is not None:
                context.load_verify_locations(self._authorities)
            pair = (self._key.read_bytes(), self._chain.read_bytes())
            roots = None if self._authorities is None else self._authorities.read_bytes()
        except (OSError, ssl.SSLError) as error:
            raise CertificateError(
                f"{self._chain} and {self._key} can't be used for TLS: {error.strerror or error}"
            ) from error
        return grpc.ssl_server_certificate_configuration([pair], roots)

    def _now(self) -> tuple[tuple[int, int], ...]:
        try:
            found = [path.stat() for path in (self._chain, self._key, self._authorities) if path is not None]
        except OSError as error:
            raise CertificateError(f"{error.filename} can't be read: {error.strerror}") from error
        return tuple((status.st_mtime_ns, status.st_ino) for status in found)
