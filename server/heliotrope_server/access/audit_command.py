"""`heliotrope audit`: shows and checks what was done to a server.

heliotrope audit --data DATA                  # all entries, oldest first
heliotrope audit --data DATA --user ID        # those about one user
"""

import sys
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict
from rich.console import Console
from rich.table import Table

from heliotrope_server.access.audit_log import FOLDER, audit_key, pseudonym, verified
from heliotrope_server.command import one_line_errors
from heliotrope_server.errors import AuditLogError


class AuditOptions(BaseSettings):
    """Shows who did what to a server and to what it holds of people, and checks that no entry was changed."""

    model_config = SettingsConfigDict(
        frozen=True, env_prefix="HELIOTROPE_AUDIT_", cli_prog_name="heliotrope audit", cli_kebab_case=True,
        cli_hide_none_type=True,
    )  # fmt: skip

    data: Path = Field(description="data folder of the server, which may be running")
    user: str | None = Field(None, description="show only what was done about this user")


def main(arguments: list[str]) -> int:
    with one_line_errors() as outcome:
        show(CliApp.run(AuditOptions, cli_args=arguments))
    return outcome.code


def show(options: AuditOptions) -> None:
    """Prints the entries of all shards by time. Raises AuditLogError where one was changed."""
    paths = sorted((options.data / FOLDER).glob("*.jsonl"))
    if not paths:
        raise AuditLogError(f"{options.data / FOLDER} has no audit log")
    entries = [entry for path in paths for entry in verified(path)]
    if options.user is not None:
        wanted = pseudonym(audit_key(options.data), options.user)
        entries = [entry for entry in entries if entry.get("user") == wanted]
    table = Table("time", "who", "from", "what", "about", "outcome")
    for entry in sorted(entries, key=lambda each: str(each["time"])):
        about = f"user {entry['user'][:12]}" if "user" in entry else entry.get("request", "")
        what = str(entry["what"]).rpartition("/")[2]
        table.add_row(entry["time"], entry["principal"], entry["peer"], what, about, entry["outcome"])
    Console(width=None if sys.stdout.isatty() else 200).print(table)
