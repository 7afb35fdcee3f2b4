"""The command that operators use on a store; tests/end_to_end/test_rollback.py asks a server through it."""

import json
from pathlib import Path

import fsspec
import pytest

from heliotrope_indexer.job_folder import alone
from heliotrope_indexer.snapshot import SnapshotStore
from heliotrope_server.folded_maps import kept_passage
from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.snapshots_command import main
from tests.server import worlds


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def versions(folder: Path) -> list[str]:
    """Four versions, oldest first."""
    return [worlds.publish(folder, items=40 + seed, seed=seed) for seed in range(4)]


def ask(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_the_list_says_what_is_current_and_what_a_rollback_goes_to(folder, versions, capsys):
    rows = json.loads(ask(capsys, "list", "--snapshots", folder, "--json"))
    assert {row["version"]: row["items"] for row in rows} == {
        version: 40 + seed for seed, version in enumerate(versions)
    }
    assert [row["version"] for row in rows if row["current"]] == [versions[3]]
    assert [row["version"] for row in rows if row["previous"]] == [versions[2]]
    table = ask(capsys, "list", "--snapshots", folder)
    assert all(version in table for version in versions)


def test_show_gives_the_whole_manifest(folder, versions, capsys):
    shown = json.loads(ask(capsys, "show", "--snapshots", folder, "--json", "previous"))
    manifest = SnapshotStore(folder).manifest(versions[2])
    assert shown["version"] == versions[2]
    assert shown["bytes"] == sum(file.bytes for file in manifest.files.values())
    assert [move["how"] for move in shown["activations"]] == ["publish"]
    assert versions[3] in ask(capsys, "show", "--snapshots", folder)


def test_activate_and_rollback_move_the_pointer(folder, versions, capsys):
    ask(capsys, "activate", "--snapshots", folder, versions[0])
    assert SnapshotStore(folder).current() == versions[0]
    for expected in (versions[3], versions[2], versions[1], versions[0]):
        assert expected in ask(capsys, "rollback", "--snapshots", folder)
        assert SnapshotStore(folder).current() == expected
    assert main(["rollback", "--snapshots", str(folder)]) == 1
    assert "knows of no version that was current before" in capsys.readouterr().err


def test_a_damaged_version_is_not_made_current(folder, versions, capsys):
    (folder / versions[2] / "bias.npy").write_bytes(b"x")
    for arguments in (["rollback"], ["activate", versions[2]]):
        assert main([arguments[0], "--snapshots", str(folder), *arguments[1:]]) == 1
        assert "bias.npy" in capsys.readouterr().err
    assert SnapshotStore(folder).current() == versions[3]


def test_prune_keeps_what_is_in_use(folder, versions, capsys):
    ask(capsys, "activate", "--snapshots", folder, versions[0])
    told = ask(capsys, "prune", "--snapshots", folder, "--keep", 1, "--dry-run")
    assert len(SnapshotStore(folder).versions()) == 4
    size = sum(path.stat().st_size for version in versions[1:3] for path in (folder / version).iterdir())
    newest = SnapshotStore(folder).versions()[0]
    kept = {versions[0], versions[3], newest}
    said = ask(capsys, "prune", "--snapshots", folder, "--keep", 1)
    assert set(SnapshotStore(folder).versions()) == kept
    if newest == versions[3]:
        assert f"2 of 4 versions, {size:,} bytes freed" in said
    assert told.count("would remove") == said.count("heliotrope: removed") == 4 - len(kept)
    assert SnapshotStore(folder).previous() == versions[3]


def test_prune_keeps_the_way_of_folded_sums_out_of_what_it_removes(folder, versions, capsys):
    before = set(SnapshotStore(folder).versions())
    ask(capsys, "prune", "--snapshots", folder, "--keep", 1)
    store = SnapshotStore(folder)
    gone = before - set(store.versions())
    assert gone
    for version in gone:
        passage = kept_passage(store, version, LiveCatalogue(store.open()))
        assert passage is not None and passage.matrix.shape == (16, 16)


def test_prune_leaves_a_version_that_it_cannot_read(folder, versions, capsys):
    store = SnapshotStore(folder)
    store.activate(sorted(versions)[-1])
    victim = next(version for version in sorted(versions) if version not in (store.current(), store.previous()))
    (folder / victim / "vectors.npy").write_bytes(b"x")
    told = ask(capsys, "prune", "--snapshots", folder, "--keep", 1)
    assert f"{4 - len(store.versions())} of 4 versions" in told
    assert f"{victim} stays, since folded sums may need it and it cannot be read" in told
    assert victim in store.versions()


def test_prune_says_where_nothing_can_be_carried_over(folder, capsys):
    for seed in range(4):
        worlds.publish(folder, items=40, seed=seed, first_item=100 * seed)
    assert "cannot be carried over: it shares too few items" in ask(capsys, "prune", "--snapshots", folder, "--keep", 1)


@pytest.mark.parametrize("behind_url", [False, True], ids=["folder", "url"])
def test_prune_keeps_the_figures_of_the_newest_builds_that_failed(tmp_path, behind_url):
    path = f"memory://{tmp_path}/store" if behind_url else str(tmp_path / "store")
    store = SnapshotStore(path, cache=tmp_path / "cache")
    assert store.prune_evidence(3) == 0
    fs, root = fsspec.core.url_to_fs(path)
    for day in range(1, 7):
        for end in ("json", "rejects.jsonl") if day % 2 else ("json",):
            fs.makedirs(f"{root}/failed", exist_ok=True)
            fs.pipe_file(f"{root}/failed/2026010{day}T000000Z.{end}", b"{}")
    assert store.prune_evidence(3) == 3
    left = sorted(name.rpartition("/")[2] for name in fs.ls(f"{root}/failed", detail=False))
    assert left == [
        f"2026010{day}T000000Z.{end}" for day, end in ((4, "json"), (5, "json"), (5, "rejects.jsonl"), (6, "json"))
    ]
    assert store.prune_evidence(3) == 0


def test_prune_removes_old_figures(folder, versions, capsys):
    (folder / "failed").mkdir()
    for day in range(1, 5):
        (folder / "failed" / f"2026010{day}T000000Z.json").write_text("{}")
    assert "0 of 4 versions" in ask(capsys, "prune", "--snapshots", folder, "--keep", 4)
    assert len(list((folder / "failed").iterdir())) == 4
    assert "figures of 2 builds" in ask(capsys, "prune", "--snapshots", folder, "--keep", 2)
    assert sorted(path.name[:8] for path in (folder / "failed").iterdir()) == ["20260103", "20260104"]


def test_prune_waits_for_no_build(folder, versions, capsys):
    with alone(folder / ".building"):
        assert main(["prune", "--snapshots", str(folder), "--keep", "1"]) == 1
    assert "another build is running" in capsys.readouterr().err
    assert len(SnapshotStore(folder).versions()) == 4


def test_diff_of_two_versions(folder, versions, capsys):
    compared = json.loads(ask(capsys, "diff", "--snapshots", folder, "--json", versions[0], "current"))
    assert (compared["items"]["added"], compared["items"]["removed"]) == (3, 0)
    assert compared["rows"]["items"] == [40, 43]
    assert 0.0 <= compared["top_10_overlap"] < 1.0
    table = ask(capsys, "diff", "--snapshots", folder)
    assert versions[2] in table and "top-10 overlap" in table


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["shred"], 2, "there is no 'shred'; give list, show"),
        (["prune", "--keep", "0"], 2, "--keep: Input should be greater than or equal to 1"),
        (["show", "2"], 1, "4 versions"),
        (["show", "1999"], 1, "0 versions"),
        (["activate", "20200101T000000Z-0123456789ab"], 1, "0 versions"),
    ],
)
def test_what_can_not_be(folder, versions, capsys, arguments, code, message):
    more = ["--snapshots", str(folder)] if len(arguments) > 1 else []
    assert main([arguments[0], *more, *arguments[1:]]) == code
    assert message in capsys.readouterr().err
