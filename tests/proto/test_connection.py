"""TLS with certificates made here."""

import shutil
import subprocess
from pathlib import Path

import grpc
import pytest

from heliotrope import Client, ConnectionSettingsError, RetryPolicy, Tls, UnavailableError
from tests.proto.test_client import USERS
from tests.proto.toy_server import owner, toy_server

ONCE = RetryPolicy(max_attempts=1)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and a server (for localhost) and a client that it signed."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make certificates")
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
    openssl("req", "-x509", *curve, "-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.pem")
    for name, subject in (("server", "localhost"), ("client", "a backend")):
        (folder / f"{name}.ext").write_text("subjectAltName=DNS:localhost\n")
        openssl("req", *curve[:-2], "-subj", f"/CN={subject}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signer = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1"]
        extension = ["-extfile", f"{name}.ext"]
        openssl("x509", "-req", "-in", f"{name}.csr", *signer, *extension, "-out", f"{name}.pem")
    return folder


def server_credentials(folder: Path) -> grpc.ServerCredentials:
    pair = ((folder / "server.key").read_bytes(), (folder / "server.pem").read_bytes())
    return grpc.ssl_server_credentials([pair], (folder / "ca.pem").read_bytes(), True)


def test_both_sides_prove_who_they_are(certificates: Path) -> None:
    tls = Tls(certificates / "ca.pem", certificates / "client.pem", certificates / "client.key")
    with toy_server(credentials=server_credentials(certificates)) as shards:
        # The shards are at 127.0.0.1 and the certificate names localhost: it is the entry's name that counts.
        entry = shards[0].address.replace("127.0.0.1", "localhost")
        with Client(entry, tls=tls) as client:
            for user in USERS:
                assert client.recommend(user).request_id == user
        assert sum(method == "Recommend" for method, _ in shards[1].calls) == sum(map(owner, USERS))


@pytest.mark.parametrize(
    "tls",
    [Tls(), Tls("ca.pem"), Tls("ca.pem", "client.pem", "client.key", server_name="elsewhere")],
    ids=["unknown authority", "no client certificate", "another name"],
)
def test_a_stranger_is_not_trusted(certificates: Path, monkeypatch: pytest.MonkeyPatch, tls: Tls) -> None:
    monkeypatch.chdir(certificates)
    with toy_server(1, server_credentials(certificates)) as shards:
        entry = shards[0].address.replace("127.0.0.1", "localhost")
        with Client(entry, tls=tls, retry=ONCE) as client, pytest.raises(UnavailableError):
            client.recommend("u1", timeout_s=5)


def test_unusable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConnectionSettingsError, match=r"missing\.pem"):
        Client("localhost:1", tls=Tls(tmp_path / "missing.pem"))
    (tmp_path / "text.pem").write_text("hello")
    with pytest.raises(ConnectionSettingsError, match=r"text\.pem is not a PEM file"):
        Client("localhost:1", tls=Tls(tmp_path / "text.pem"))
    with pytest.raises(ConnectionSettingsError, match="its key"):
        Client("localhost:1", tls=Tls(certificate=tmp_path / "text.pem"))
