"""What a fault may not leave behind."""

import re
import tempfile
from pathlib import Path

from heliotrope_server.backup_store import BackupStore
from heliotrope_server.supervisor import socket_prefix

_DATA_FILES = re.compile(
    r"LOCK|SERVED|layout\.json|(\.audit\.key\.lock|audit\.key)|audit/.+\.jsonl|catalogue/\d{20}\.log|weights/.+|"
    r"g-[0-9a-f]{12}/shard-\d{3}/(LOCK|log/\d{20}\.log|profiles/(data|lock)\.mdb|impressions/\d{20}\.log)"
)


def strays(folder: str | Path) -> list[str]:
    """Files and folders that were meant to be renamed or removed: their names begin with a dot or end so.

    Lock files stay.
    """
    root = Path(folder)
    return sorted(
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.suffix in (".part", ".partial", ".tmp", ".new")
        or (path.name.startswith(".") and not path.name.endswith(".lock") and path.name != ".lock")
    )


def strange_files(data: Path) -> list[str]:
    """Files of a data folder that no part of a server asks for by name."""
    names = [str(path.relative_to(data)) for path in data.rglob("*") if path.is_file()]
    return sorted(name for name in names if not _DATA_FILES.fullmatch(name))


def socket_folders(data: Path) -> list[str]:
    """Folders of sockets that the supervisors of a data folder left."""
    return sorted(path.name for path in Path(tempfile.gettempdir()).glob(f"{socket_prefix(data)}*"))


def unnamed_pieces(store: BackupStore) -> list[str]:
    """Pieces of backups that no manifest names."""
    named: set[str] = set()
    for backup_id in store.backup_ids():
        named |= store.manifest(backup_id).piece_names
    return sorted(store.pieces().keys() - named)
