"""Every method by every principal on a real server; their users, rates, certificates, and the record."""

import hashlib
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from heliotrope import Client, Event, RecommendRequest, RetryPolicy, Tls
from heliotrope.errors import AuthenticationError, OverloadedError, PermissionDeniedError, UnavailableError
from heliotrope.v1 import (
    admin_pb2,
    catalog_pb2,
    event_pb2,
    event_pb2_grpc,
    feedback_pb2,
    profile_pb2,
    recommendation_pb2,
    recommendation_pb2_grpc,
)
from tests.end_to_end.running_server import RunningServer, refused_start, running_server
from tests.server import worlds
from tests.server.access.keys import Authority, Issuer

SCOPES = ["recommend", "events", "profiles", "catalogue", "admin"]
PRINCIPALS = [*SCOPES, "all", "none", "acme", "signed", "stranger", "nobody"]
ACME = {"recommend", "events", "profiles"}

# Which principals may call what; everybody else may not. A method of the contract that is missing here fails the test.
RECOMMEND, EVENTS = {"recommend", "all", "acme", "signed"}, {"events", "all", "acme"}
PROFILES, CATALOGUE, ADMIN = {"profiles", "all", "acme"}, {"catalogue", "all"}, {"admin", "all"}
ANY = {*SCOPES, "all", "none", "acme", "signed"}
EVERYBODY = set(PRINCIPALS)
ALLOWED = {
    "RecommendationService/Recommend": RECOMMEND,
    "RecommendationService/BatchRecommend": RECOMMEND,
    "RecommendationService/StreamRecommend": RECOMMEND,
    "RecommendationService/Explain": PROFILES,
    "EventService/RecordEvents": EVENTS,
    "EventService/StreamEvents": EVENTS,
    "FeedbackService/RecordFeedback": EVENTS,
    "ProfileService/GetProfile": PROFILES,
    "ProfileService/UpdateProfile": PROFILES,
    "ProfileService/DeleteProfile": PROFILES,
    "ProfileService/ExportProfile": PROFILES,
    "CatalogService/UpsertItems": CATALOGUE,
    "CatalogService/DeleteItems": CATALOGUE,
    "CatalogService/GetItem": RECOMMEND,
    "CatalogService/ListItems": RECOMMEND,
    "CatalogService/SearchItems": RECOMMEND,
    "AdminService/GetServingStatus": ANY,
    "AdminService/ListSnapshots": ADMIN,
    "AdminService/ActivateSnapshot": ADMIN,
    "AdminService/RollBackSnapshot": ADMIN,
    "AdminService/RollBackWeights": ADMIN,
    "grpc.health.v1.Health/Check": EVERYBODY,
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": ANY,
}
FILES = (recommendation_pb2, event_pb2, feedback_pb2, profile_pb2, catalog_pb2, admin_pb2)
REFUSALS = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}


def access_file(issuer: Issuer, folder: Path, *more: str) -> Path:
    def entry(name: str, scopes: list[str], *lines: str) -> str:
        digest = hashlib.sha256(f"token of {name}".encode()).hexdigest()
        content = [f'name = "{name}"', f"scopes = {scopes}", f'token_sha256 = ["{digest}"]', *lines]
        return "\n".join(["[[principals]]", *content])

    entries = [entry(scope, [scope]) for scope in SCOPES]
    entries += [entry("all", SCOPES), entry("none", []), entry("acme", sorted(ACME), 'tenant = "acme"')]
    entries += [entry("slow", ["recommend"], "calls_per_s = 4"), *more]
    signed = '[jwt]\njwks = "jwks.json"\nalgorithm = "RS256"\naudience = "heliotrope"'
    folder.mkdir(exist_ok=True)
    (folder / "jwks.json").write_text(issuer.jwks())
    (folder / "access.toml").write_text("\n\n".join([*entries, signed]))
    return folder / "access.toml"


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guarded")
    for seed in range(2):
        worlds.publish(folder / "store", seed=seed)
    return folder


@pytest.fixture(scope="module")
def server(folder, issuer):
    path = access_file(issuer, folder / "access")
    with running_server(folder / "store", folder / "data", "--shards", "2", "--access", str(path)) as running:
        yield running


@pytest.fixture
def token_of(issuer):
    """The token of each principal; the signed one's scope is recommend."""
    tokens = {name: f"token of {name}" for name in [*PRINCIPALS, "slow"]} | {"signed": issuer.token()}
    return {**tokens, "nobody": None}


def client_of(server: RunningServer, token: str | None) -> Client:
    # Whole calls, not one for each shard.
    return Client(server.address, token=token, retry=RetryPolicy(max_attempts=1), direct=False)


def methods_of_the_contract() -> dict[str, tuple[bool, bool]]:
    """By name: whether requests, and whether answers, are a stream."""
    found = {"grpc.health.v1.Health/Check": (False, False)}
    found["grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"] = (True, True)
    for file in FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                found[f"{service.name}/{method.name}"] = (method.client_streaming, method.server_streaming)
    return found


def called(channel: grpc.Channel, name: str, streams: tuple[bool, bool], token: str | None) -> grpc.StatusCode:
    """What comes of calling a method with an empty message."""
    path = f"/{name}" if name.startswith("grpc.") else f"/heliotrope.v1.{name}"
    kinds = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, True): channel.stream_stream,
    }
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    call = kinds[streams](path)(iter([b""]) if streams[0] else b"", timeout=20, metadata=metadata)
    try:
        if streams[1]:
            for _ in call:
                pass
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_exactly_the_allowed_cells_are_allowed(server, token_of):
    contract = methods_of_the_contract()
    assert contract.keys() == ALLOWED.keys(), "say in ALLOWED who may call it"
    allowed: dict[str, set[str]] = {name: set() for name in contract}
    with grpc.insecure_channel(server.address) as channel:
        for name, principal in itertools.product(contract, PRINCIPALS):
            try:
                code = called(channel, name, contract[name], token_of[principal])
            except grpc.RpcError as error:
                code = error.code()
            if code not in REFUSALS:
                # An empty message is refused by what it lacks, and never fails inside.
                assert code not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN), (name, principal)
                allowed[name].add(principal)
            elif principal in ("stranger", "nobody"):
                assert code is grpc.StatusCode.UNAUTHENTICATED
    # The empty user id of an empty message is none of the tenant's: what it may do is tested below.
    names_a_user = {name for name in ALLOWED if ALLOWED[name] in (RECOMMEND, EVENTS, PROFILES)}
    for name in names_a_user - {name for name in allowed if "acme" in allowed[name]}:
        allowed[name].add("acme")
    assert allowed == ALLOWED


def test_unknown_methods_are_nobodys(server, token_of):
    with grpc.insecure_channel(server.address) as channel:
        for token in ("token of all", None):
            with pytest.raises(grpc.RpcError) as refused:
                called_code = channel.unary_unary("/heliotrope.v1.AdminService/Nothing")
                called_code(b"", metadata=() if token is None else (("authorization", f"Bearer {token}"),))
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_tenant_sees_its_own_users_only(server, token_of):
    with client_of(server, token_of["acme"]) as acme, client_of(server, token_of["all"]) as everybody:
        assert acme.record_event("acme:ann", "i1", "purchase")
        everybody.record_event("rival:bob", "i2", "purchase")
        assert acme.recommend("acme:ann").recommendations
        assert len(acme.recommend_batch(["acme:ann", "acme:new"])) == 2
        for call in (
            lambda: acme.recommend("rival:bob"),
            lambda: acme.recommend("acme"),
            lambda: acme.recommend("acmebob"),
            lambda: acme.recommend_batch(["acme:ann", "rival:bob"]),
            lambda: acme.explain("rival:bob"),
            lambda: list(acme.recommend_stream([RecommendRequest(user_id="rival:bob", count=3)])),
            lambda: acme.record_events([Event("acme:ann", "i3", "view"), Event("rival:bob", "i3", "view")]),
            lambda: acme.get_profile("rival:bob"),
            lambda: acme.update_profile("rival:bob", segments=["x"]),
            lambda: acme.delete_profile("rival:bob"),
            lambda: list(acme.export_profile("rival:bob")),
            lambda: acme.record_feedback("rival:bob", "request", {"i1": 1.0}),
        ):
            with pytest.raises(PermissionDeniedError) as refused:
                call()
            assert refused.value.reason == "OTHER_TENANT" and refused.value.metadata["tenant"] == "acme"
        # Nothing of a refused batch was recorded.
        assert acme.get_profile("acme:ann").remembered_event_count == 1
        assert everybody.get_profile("rival:bob").remembered_event_count == 1


def test_a_stream_is_checked_message_by_message(server, token_of):
    with grpc.insecure_channel(server.address) as channel:
        stub = recommendation_pb2_grpc.RecommendationServiceStub(channel)
        metadata = (("authorization", f"Bearer {token_of['acme']}"),)

        def questions(*users):
            return iter(
                recommendation_pb2.StreamRecommendRequest(request=RecommendRequest(user_id=user, count=1))
                for user in users
            )

        answered = []
        with pytest.raises(grpc.RpcError) as refused:
            for reply in stub.StreamRecommend(questions("acme:a", "acme:b", "rival:c"), metadata=metadata, timeout=20):
                answered.append(reply)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert all(reply.HasField("response") for reply in answered)
        events = event_pb2_grpc.EventServiceStub(channel)
        batch = event_pb2.StreamEventsRequest()
        batch.events.add(user_id="rival:c", item_id="i1", event_id="e", type=event_pb2.EVENT_TYPE_VIEW)
        with pytest.raises(grpc.RpcError) as refused:
            list(events.StreamEvents(iter([batch]), metadata=metadata, timeout=20))
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_a_principal_that_calls_too_often_is_told_when_to_come_back(server, token_of):
    with client_of(server, token_of["slow"]) as slow:
        refused = None
        for _ in range(100):
            try:
                slow.recommend("u1")
            except OverloadedError as error:
                refused = error
                break
        assert refused is not None and "slow may make 4 calls a second" in refused.message
        assert 0.0 < refused.retry_after_s <= 0.25
        # A batch costs as much as its users; the connection stays with the shard that has counted so far.
        with pytest.raises(OverloadedError):
            slow.recommend_batch([f"u{number}" for number in range(64)])


def test_a_client_with_a_wrong_token_is_told_so_and_one_that_renews_is_served(server, issuer):
    with client_of(server, "wrong") as client, pytest.raises(AuthenticationError, match="unknown"):
        client.recommend("u1")
    tokens = iter([issuer.token(exp=1), issuer.token(), issuer.token()])
    with Client(server.address, token=lambda: next(tokens), direct=False, retry=RetryPolicy(max_attempts=1)) as client:
        with pytest.raises(AuthenticationError, match="expired"):
            client.recommend("u1")
        assert client.recommend("u1").recommendations


def test_what_is_done_to_people_and_to_the_server_is_on_record(server, folder, token_of):
    with client_of(server, token_of["all"]) as client:
        client.record_event("to-be-forgotten", "i1", "view")
        client.delete_profile("to-be-forgotten")
        client.activate_snapshot()
    with client_of(server, token_of["recommend"]) as client, pytest.raises(PermissionDeniedError):
        client.delete_profile("to-be-forgotten")
    command = [sys.executable, "-m", "heliotrope", "audit", "--data", folder / "data"]
    said = subprocess.run([*command, "--user", "to-be-forgotten"], capture_output=True, text=True, check=True).stdout
    assert [line.split("│")[-2].strip() for line in said.splitlines() if "DeleteProfile" in line] == ["asked", "OK"]
    everything = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "ActivateSnapshot" in everything
    for path in (folder / "data" / "audit").iterdir():
        assert "to-be-forgotten" not in path.read_text()
        assert all(json.loads(line)["principal"] for line in path.read_text().splitlines())


@pytest.fixture
def certificates(tmp_path):
    (tmp_path / "ours").mkdir()
    (tmp_path / "theirs").mkdir()
    return SimpleNamespace(ours=Authority(tmp_path / "ours"), theirs=Authority(tmp_path / "theirs"))


def test_certificates_prove_both_sides_and_are_read_again(tmp_path, issuer, certificates):
    worlds.publish(tmp_path / "store")
    path = access_file(
        issuer, tmp_path / "access", '[[principals]]\nname = "job"\nscopes = ["admin"]\ncertificate_names = ["job"]'
    )
    chain, key = certificates.ours.issue("server")
    job, other = certificates.ours.issue("job"), certificates.ours.issue("other")
    options = ["--tls-certificate", str(chain), "--tls-key", str(key), "--access", str(path)]
    options += ["--tls-client-authorities", str(certificates.ours.path)]
    once = RetryPolicy(max_attempts=1)

    def connect(server, pair, root=certificates.ours.path, token=None):
        tls = Tls(root, *pair, server_name="localhost")
        return Client(server.address, tls=tls, token=token, retry=once, direct=False, timeout_s=5.0)

    with running_server(tmp_path / "store", tmp_path / "data", *options) as server:
        with connect(server, job) as client:
            assert len(client.list_snapshots()) == 1
            with pytest.raises(PermissionDeniedError, match="job does not have the scope 'recommend'"):
                client.recommend("u")
        with connect(server, other) as client, pytest.raises(AuthenticationError, match="wants credentials"):
            client.list_snapshots()
        with connect(server, other, token="token of recommend") as client:
            assert client.recommend("u").recommendations
        for pair in ((None, None), certificates.theirs.issue("job")):
            with connect(server, pair) as client, pytest.raises(UnavailableError):
                client.list_snapshots()
        # Another authority signs the server from now on; whoever trusts only the old one is out, without a restart.
        renewed = certificates.theirs.issue("server")
        shutil.copy(renewed[1], key)
        shutil.copy(renewed[0], chain)
        with connect(server, job, root=certificates.theirs.path) as client:
            assert len(client.list_snapshots()) == 1
        with connect(server, job) as client, pytest.raises(UnavailableError):
            client.list_snapshots()
        # A key that does not belong to the certificate ends nothing.
        shutil.copy(certificates.ours.issue("another")[1], key)
        with connect(server, job, root=certificates.theirs.path) as client:
            assert len(client.list_snapshots()) == 1
    assert any("get the certificate from before" in line for line in server.messages)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--host", "0.0.0.0"], "others can reach 0.0.0.0, and nothing would be encrypted"),
        (["--tls-client-authorities", "ca.pem"], "needs tls_certificate"),
        (["--access", "/nowhere/access.toml"], "/nowhere/access.toml does not exist"),
    ],
)
def test_what_would_be_unsafe_ends_the_start_with_one_line(tmp_path, options, named):
    code, message = refused_start(tmp_path / "store", tmp_path / "data", *options)
    assert code == 2 and named in message and message.count("\n") == 1


def test_in_plain_words_it_listens_to_the_network_and_tells_health_to_anybody(tmp_path, issuer):
    worlds.publish(tmp_path / "store")
    options = ["--host", "0.0.0.0", "--plaintext-to-the-network", "--access", str(access_file(issuer, tmp_path / "a"))]
    with running_server(tmp_path / "store", tmp_path / "data", *options) as server:
        port = server.address.rpartition(":")[2]
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
