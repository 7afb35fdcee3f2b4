"""`heliotrope explain`: why a user is recommended what they are, or why an item is not among it.

heliotrope explain USER [ITEM] [--address HOST:PORT]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from google.protobuf.json_format import MessageToJson
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, CliApp, CliPositionalArg, SettingsConfigDict, SettingsError

from heliotrope import Client, HeliotropeError, NotFoundError, Tls
from heliotrope.v1.event_pb2 import Event
from heliotrope.v1.recommendation_pb2 import ExplainResponse
from heliotrope_server import explain_view as view


class ExplainOptions(BaseSettings):
    """Explains the recommendations for a user, or where one item stands and why it is not among them."""

    model_config = SettingsConfigDict(
        frozen=True,
        env_prefix="HELIOTROPE_EXPLAIN_",
        cli_prog_name="heliotrope explain",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
    )

    user: CliPositionalArg[str]
    item: CliPositionalArg[str] = ""
    address: Annotated[str, Field(description="HOST:PORT of a running server")] = "127.0.0.1:50051"
    count: Annotated[int, Field(ge=1, le=100, description="items of the list")] = 10
    counterfactuals: Annotated[
        int | None, Field(ge=0, description="events of each item to think away; 3 unless there are many items")
    ] = None
    tls_root: Annotated[
        Path | None, Field(description="PEM file of the authorities to trust, for a server with TLS")
    ] = None
    token: Annotated[str | None, Field(description="for a server with --access; best given in the environment")] = None
    json_output: Annotated[bool, Field(alias="json", description="write JSON instead of tables")] = False


def main(arguments: list[str]) -> int:
    """Returns 0, 1 when it failed, or 2 for arguments that can't be."""
    try:
        _run(CliApp.run(ExplainOptions, cli_args=arguments))
    except ValidationError as error:
        problem = error.errors()[0]
        option = "--" + "-".join(str(part) for part in problem["loc"]).replace("_", "-")
        print(f"heliotrope explain: {option}: {problem['msg']}", file=sys.stderr)
        return 2
    except SettingsError as error:
        print(f"heliotrope explain: {error}", file=sys.stderr)
        return 2
    except HeliotropeError as error:
        print(f"heliotrope explain: {error}", file=sys.stderr)
        return 1
    return 0


def _run(options: ExplainOptions) -> None:
    tls = None if options.tls_root is None else Tls(root_certificate=options.tls_root)
    with Client(options.address, tls=tls, token=options.token) as client:
        asked = [options.item] if options.item else []
        found = client.explain(
            options.user, asked, count=options.count, counterfactuals=options.counterfactuals, timeout_s=60.0
        )
        if options.json_output:
            print(MessageToJson(found, preserving_proto_field_name=True))
            return
        events = {part.event_id: part for part in client.export_profile(options.user) if isinstance(part, Event)}
        words = view.Words(events, _titles(client, found))
    if options.item:
        view.show_item(options.user, options.count, found, words)
    else:
        view.show_list(options.user, found, words)


def _titles(client: Client, found: ExplainResponse) -> dict[str, str]:
    """The titles of the items and of those of the events that will be named; none for one that was removed."""
    ids = {item.item_id for item in found.items}
    ids.update(part.item_id for item in found.items for part in view.named_events(item))
    ids.update(one.event_item_id for item in found.items for one in item.counterfactuals)
    titles = {}
    for item_id in ids:
        try:
            titles[item_id] = client.get_item(item_id).item.title
        except NotFoundError:
            continue
    return titles
