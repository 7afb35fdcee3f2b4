"""`heliotrope snapshots`: lists, shows, compares, activates, rolls back and prunes what was published.

    heliotrope snapshots list     --snapshots STORE [--server ADDRESS]
    heliotrope snapshots show     --snapshots STORE [VERSION]
    heliotrope snapshots diff     --snapshots STORE [OLD] [NEW]
    heliotrope snapshots activate --snapshots STORE [--server ADDRESS] VERSION
    heliotrope snapshots rollback --snapshots STORE [--server ADDRESS]
    heliotrope snapshots prune    --snapshots STORE [--server ADDRESS] --keep 5

A VERSION is a whole one, the beginning of one, `current` or `previous`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, CliApp, CliPositionalArg, SettingsConfigDict, SettingsError

from heliotrope import Client, HeliotropeError, Tls
from heliotrope_indexer.errors import IndexerError, SnapshotNotFoundError
from heliotrope_indexer.job_folder import alone, scratch_of
from heliotrope_indexer.snapshot import SnapshotStore
from heliotrope_indexer.snapshot_diff import diff
from heliotrope_server import snapshots_view as view
from heliotrope_server.errors import ServerError, ShardUnreachableError
from heliotrope_server.folded_maps import keep_map
from heliotrope_server.live_catalogue import LiveCatalogue


class _Options(BaseSettings):
    model_config = SettingsConfigDict(
        frozen=True,
        env_prefix="HELIOTROPE_SNAPSHOTS_",
        cli_prog_name="heliotrope snapshots",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
    )

    snapshots: Annotated[str, Field(description="snapshot store: a folder or an fsspec URL")]


class _ReportOptions(_Options):
    json_output: Annotated[bool, Field(alias="json", description="write JSON instead of tables")] = False


class _ServerOptions(_Options):
    server: Annotated[str | None, Field(description="address of a running server on this store")] = None
    tls_root: Annotated[
        Path | None, Field(description="PEM file of the authorities to trust, for a server with TLS")
    ] = None

    token: Annotated[str | None, Field(description="for a server with --access; best given in the environment")] = None

    @contextmanager
    def client(self) -> Iterator[Client]:
        assert self.server is not None
        tls = None if self.tls_root is None else Tls(root_certificate=self.tls_root)
        with Client(self.server, tls=tls, token=self.token) as client:
            yield client


class ListOptions(_ReportOptions, _ServerOptions):
    """Lists the versions of a store, newest first: which is current, what a rollback goes to, what is served."""


class ShowOptions(_ReportOptions):
    """Shows what a version holds, how good it was measured to be, and where it came from."""

    version: CliPositionalArg[str] = "current"


class DiffOptions(_ReportOptions):
    """Shows what changed from one version to another: items, vectors, answers, quality, lineage."""

    old: CliPositionalArg[str] = "previous"
    new: CliPositionalArg[str] = "current"


class ActivateOptions(_ServerOptions):
    """Serves a version: on every shard of --server, without a pause; without one, from the next start of a server."""

    version: CliPositionalArg[str]


class RollbackOptions(_ServerOptions):
    """Goes back to what was current before; a second time further back."""


class PruneOptions(_ServerOptions):
    """Removes old versions. The current one, what a rollback goes to, and what --server serves always stay.

    What folded sums need of a version that goes is kept in STORE/maps.
    """

    keep: Annotated[int, Field(ge=1, description="newest versions to keep, and figures of builds that failed")]
    dry_run: Annotated[bool, Field(description="say what would be removed, and remove nothing")] = False


def main(arguments: list[str]) -> int:
    """Returns 0, 1 when it failed, or 2 for arguments that can't be."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print((__doc__ or "").strip(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in _ACTIONS:
        print(f"heliotrope snapshots: there is no {name!r}; give {', '.join(_ACTIONS)}", file=sys.stderr)
        return 2
    kind, run = _ACTIONS[name]
    try:
        run(CliApp.run(kind, cli_args=rest))
    except ValidationError as error:
        problem = error.errors()[0]
        option = "--" + "-".join(str(part) for part in problem["loc"]).replace("_", "-")
        print(f"heliotrope snapshots {name}: {option}: {problem['msg']}", file=sys.stderr)
        return 2
    except SettingsError as error:
        print(f"heliotrope snapshots {name}: {error}", file=sys.stderr)
        return 2
    except (IndexerError, ServerError, HeliotropeError) as error:
        print(f"heliotrope snapshots {name}: {error}", file=sys.stderr)
        return 1
    return 0


def _list(options: ListOptions) -> None:
    store = SnapshotStore(options.snapshots)
    current = store.current()
    served = _served(options) if options.server else set()
    rows = [
        {
            "version": version,
            "current": version == current,
            "previous": version == _previous(store),
            "served": version in served,
            **view.headline(store.manifest(version)),
        }
        for version in store.versions()
    ]
    _put(options, rows, view.list_table)


def _show(options: ShowOptions) -> None:
    store = SnapshotStore(options.snapshots)
    version = _resolved(store, options.version)
    manifest = store.manifest(version)
    facts = {"path": f"{store.path.rstrip('/')}/{version}", **manifest.model_dump(mode="json")}
    moves = [record.model_dump() for record in store.history() if record.version == version]
    _put(options, {**facts, "bytes": manifest.total_bytes, "activations": moves}, view.show_table)


def _diff(options: DiffOptions) -> None:
    store = SnapshotStore(options.snapshots)
    old, new = (_resolved(store, name) for name in (options.old, options.new))
    _put(options, asdict(diff(store.open(old, verify=False), store.open(new, verify=False))), view.diff_table)


def _activate(options: ActivateOptions) -> None:
    store = SnapshotStore(options.snapshots)
    version = _resolved(store, options.version)
    if options.server:
        with options.client() as client:
            swapped = client.activate_snapshot(version)
        print(f"heliotrope: {options.server} serves {version}, before {swapped.previous_snapshot_version}")
        return
    # A pointer to a damaged version would keep the next server from starting.
    store.open(version)
    store.activate(version)
    print(f"heliotrope: {version} is current; a running server takes it with --server or at its next start")


def _rollback(options: RollbackOptions) -> None:
    if options.server:
        with options.client() as client:
            version = client.roll_back_snapshot()
        print(f"heliotrope: {options.server} serves {version}")
        return
    store = SnapshotStore(options.snapshots)
    store.open(store.previous())
    version = store.roll_back()
    print(f"heliotrope: {version} is current; a running server takes it with --server or at its next start")


def _prune(options: PruneOptions) -> None:
    store = SnapshotStore(options.snapshots)
    served = _served(options) if options.server else set()
    # A build that is about to publish counts on the versions that it compared itself with.
    with alone(scratch_of(options.snapshots)):
        newest = store.versions()
        in_use = {store.current(), *served}
        kept = {*newest[: options.keep], *in_use, *(_previous(store, version) for version in in_use)}
        freed = count = 0
        gone = [version for version in newest if version not in kept]
        targets = _Targets(store, [store.current(), *(version for version in newest if version in kept)])
        for version in gone:
            if not options.dry_run and not _kept_for_folded_sums(store, version, targets):
                continue
            size = store.manifest(version).total_bytes if options.dry_run else store.remove(version)
            freed, count = freed + size, count + 1
            print(f"heliotrope: {'would remove' if options.dry_run else 'removed'} {version}, {size:,} bytes")
        failed = 0 if options.dry_run else store.prune_evidence(options.keep)
    if failed:
        print(f"heliotrope: removed the figures of {failed} builds that were not published")
    verb = "would be freed" if options.dry_run else "freed"
    print(f"heliotrope: {count} of {len(newest)} versions, {freed:,} bytes {verb}")


class _Targets:
    """Versions that stay, each opened when it is needed."""

    def __init__(self, store: SnapshotStore, versions: list[str]) -> None:
        self._store = store
        self._versions = list(dict.fromkeys(versions))
        self._open: dict[str, LiveCatalogue] = {}

    def __iter__(self) -> Iterator[LiveCatalogue]:
        for version in self._versions:
            if version not in self._open:
                self._open[version] = LiveCatalogue(self._store.open(version, verify=False))
            yield self._open[version]


def _kept_for_folded_sums(store: SnapshotStore, version: str, targets: Iterable[LiveCatalogue]) -> bool:
    """Keeps what folded sums of the version will need; False: it cannot be read, and must stay."""
    try:
        if keep_map(store, version, targets) is None:
            print(
                f"heliotrope: folded sums of {version} cannot be carried over: it shares too few items with what stays"
            )
    except IndexerError as error:
        print(f"heliotrope: {version} stays, since folded sums may need it and it cannot be read: {error}")
        return False
    return True


def _served(options: _ServerOptions) -> set[str]:
    """The versions that a server serves. Raises ShardUnreachableError for a shard that doesn't answer."""
    with options.client() as client:
        shards = client.serving_status().shards
    silent = [shard.shard_index for shard in shards if not shard.reachable]
    if silent:
        raise ShardUnreachableError(
            "SHARD_UNREACHABLE",
            f"shard {silent[0]} of {options.server} does not answer: what it serves is unknown; try again when it does",
        )
    return {shard.snapshot_version for shard in shards}


def _previous(store: SnapshotStore, version: str | None = None) -> str | None:
    try:
        return store.previous(version)
    except SnapshotNotFoundError:
        return None


def _resolved(store: SnapshotStore, name: str) -> str:
    """The version that a name stands for. Raises SnapshotNotFoundError for none, or several."""
    if name == "current":
        return store.current()
    if name == "previous":
        return store.previous()
    versions = store.versions()
    found = [version for version in versions if version.startswith(name)]
    if len(found) != 1:
        raise SnapshotNotFoundError(
            f"{len(found)} versions of {store.path} begin with {name!r}; the newest are {', '.join(versions[:5])}"
        )
    return found[0]


def _put(options: _ReportOptions, content: Any, table: Callable[[Any], None]) -> None:
    if options.json_output:
        print(json.dumps(content, indent=2))
    else:
        table(content)


_ACTIONS: dict[str, tuple[type[_Options], Callable[[Any], None]]] = {
    "list": (ListOptions, _list),
    "show": (ShowOptions, _show),
    "diff": (DiffOptions, _diff),
    "activate": (ActivateOptions, _activate),
    "rollback": (RollbackOptions, _rollback),
    "prune": (PruneOptions, _prune),
}
