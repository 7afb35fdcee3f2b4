"""`heliotrope bench learning`: what online learning gains, and what an attack on it can do.

Servers on the same snapshot and the same histories: one frozen; one that learns from simulated users with a hidden
taste (see `audience`); one where every second list is answered by a single attacker; and one that hears from nobody but
fake users. All goes through gRPC.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from rich.console import Console

from heliotrope import Client
from heliotrope_bench.audience import Audience, interests_of, lists_of, live_counts_of, overlap
from heliotrope_bench.job import Server
from heliotrope_bench.load_data import Population
from heliotrope_bench.recall import SnapshotArrays
from heliotrope_bench.report import print_table, write_report

COLUMNS = {
    "phase": "",
    "answers": ",d",
    "examples": ",d",
    "version": "d",
    "active_loss": ".4f",
    "shadow_loss": ".4f",
    "shadow_change": ".3f",
    "click_rate": ".4f",
    "frozen": ".4f",
    "best": ".4f",
    "overlap@k": ".3f",
}


class LearningOptions(BaseSettings):
    """Lets a server learn from simulated users whose taste differs from its snapshot, and attacks it."""

    model_config = SettingsConfigDict(
        frozen=True, cli_prog_name="heliotrope bench learning", cli_kebab_case=True, cli_hide_none_type=True
    )

    snapshots: Path = Field(description="snapshot store")
    users: Annotated[int, Field(ge=10)] = Field(400, description="simulated users")
    events_per_user: Annotated[int, Field(ge=1)] = Field(10, description="events of each user before the start")
    answers: Annotated[int, Field(ge=1)] = Field(8_000, description="lists that are shown and reacted to")
    count: Annotated[int, Field(ge=2, le=100)] = Field(10, description="items in a list")
    steps: Annotated[int, Field(ge=1)] = Field(5, description="rows of the table in each phase")
    click_rate: Annotated[float, Field(gt=0, lt=1)] = Field(0.2, description="mean click probability at the start")
    drift: Annotated[float, Field(ge=0)] = Field(1.0, description="how far the hidden taste is from the snapshot's")
    attackers: Annotated[int, Field(ge=1)] = Field(400, description="fake users of the burst")
    shards: Annotated[int, Field(ge=1, le=64)] = Field(1, description="shards of each server")
    learning_rate: Annotated[float, Field(gt=0, le=1)] = Field(0.2, description="as `heliotrope serve`")
    user_examples: Annotated[int, Field(ge=1)] = Field(32, description="as `heliotrope serve`, under attack")
    promotion_examples: Annotated[int, Field(ge=16)] = Field(2000, description="as `heliotrope serve`")
    promotion_users: Annotated[int, Field(ge=2)] = Field(100, description="as `heliotrope serve`")
    seed: int = Field(0, description="seed of users, tastes and clicks")
    out: Path | None = Field(None, description="file for the raw results, as JSON")


def run(options: LearningOptions, arguments: Sequence[str], console: Console) -> None:
    """Runs all phases; raises a BenchError when a server fails."""
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        frozen = stack.enter_context(_served(options, "frozen", []))
        arrays = SnapshotArrays.read(options.snapshots, frozen.snapshot)
        population = Population(arrays.item_ids, options.users, options.seed)
        users = population.user_ids()
        fakes = Population(arrays.item_ids, options.attackers, options.seed + 1)
        # Fakes have a history, so that their lists are as different as anyone's; everywhere, so that lists compare.
        history = [each for crowd in (population, fakes) for each in crowd.history(options.events_per_user)]
        frozen.client.record_events(history)
        live = live_counts_of(frozen.client, arrays, {each.item_id for each in history})
        start = lists_of(frozen.client, users, options.count)
        audience = Audience(
            arrays, interests_of(frozen.client, users), live, drift=options.drift, seed=options.seed + 1
        )
        audience.calibrate(start, options.click_rate)
        seen: dict[str, set[str]] = {user: set() for user in [*users, *fakes.user_ids()]}
        for each in history:
            seen[each.user_id].add(each.item_id)
        best_click_rate = audience.click_rate(audience.best_lists(start, seen))
        trial = Trial(options, audience, users, fakes.user_ids(), start, best_click_rate)
        for phase, attack in (("honest", None), ("one attacker", trial.one_attacker), ("burst", trial.burst)):
            # Few simulated users stand for many real ones, so they are not limited; under attack all users are.
            limit = options.user_examples if attack else 1_000_000
            with _served(options, phase, _learning_flags(options, limit)) as server:
                server.client.record_events(history)
                for row in trial.rows(phase, server.client, attack):
                    rows.append(row)
    if options.out:
        settings = {**options.model_dump(mode="json"), "snapshot": frozen.snapshot, "items": len(arrays.item_ids)}
        write_report(options.out, command=["bench", "learning", *arguments], settings=settings, results=rows)
    print_table(console, f"{len(arrays.item_ids):,} items, {options.users} users", rows, COLUMNS)


class Trial:
    """Shows lists to the audience and sends back what it does with them, and what attackers add."""

    def __init__(
        self,
        options: LearningOptions,
        audience: Audience,
        users: Sequence[str],
        fakes: Sequence[str],
        start: dict[str, list[str]],
        best_click_rate: float,
    ) -> None:
        self._options = options
        self._audience = audience
        self._users = users
        self._fakes = fakes
        self._start = start
        self._best_click_rate = best_click_rate
        self._frozen_click_rate = audience.click_rate(start)

    def rows(
        self, phase: str, client: Client, attack: Callable[[Client, int], None] | None
    ) -> Iterator[dict[str, Any]]:
        """Runs one phase and yields a row after each step."""
        options = self._options
        for number in range(options.answers):
            user = self._users[int(self._audience.random.integers(len(self._users)))]
            if attack is None:
                self._show(client, user)
            else:
                attack(client, number)
            if (number + 1) % max(1, options.answers // options.steps) == 0:
                yield self._row(phase, client, number + 1)

    def one_attacker(self, client: Client, number: int) -> None:
        """Every second list goes to one user, who praises the last item and rejects the rest."""
        if number % 2:
            self._show(client, self._users[number % len(self._users)])
        else:
            self._lie(client, self._fakes[0])

    def burst(self, client: Client, number: int) -> None:
        """Nobody but fake users: each praises the last item of the list and rejects the rest."""
        self._lie(client, self._fakes[number % len(self._fakes)])

    def _lie(self, client: Client, fake: str) -> None:
        answer = client.recommend(fake, count=self._options.count)
        client.record_feedback(fake, answer.request_id, {answer.recommendations[-1].item_id: 1.0})

    def _show(self, client: Client, user: str) -> None:
        answer = client.recommend(user, count=self._options.count)
        items = [one.item_id for one in answer.recommendations]
        client.record_feedback(user, answer.request_id, self._audience.reaction(user, items))

    def _row(self, phase: str, client: Client, answers: int) -> dict[str, Any]:
        status = client.serving_status().learning
        lists = lists_of(client, self._users, self._options.count)
        # Right after a decision nothing has been compared yet.
        compared = status.shadow if status.shadow.example_count else None
        return {
            "phase": phase,
            "answers": answers,
            "examples": status.example_count,
            "over_quota": status.over_quota_count,
            "version": status.weights_version,
            "active_loss": compared and compared.active_log_loss,
            "shadow_loss": compared and compared.other_log_loss,
            "loss_error": compared and compared.standard_error,
            "shadow_change": status.shadow_change,
            "click_rate": self._audience.click_rate(lists),
            "frozen": self._frozen_click_rate,
            "best": self._best_click_rate,
            "overlap@k": overlap(lists, self._start),
        }


@dataclass(frozen=True)
class Served:
    """A running server with a client of it."""

    client: Client
    snapshot: str


@contextmanager
def _served(options: LearningOptions, name: str, flags: Sequence[str]) -> Iterator[Served]:
    with tempfile.TemporaryDirectory(prefix="heliotrope-learning-") as folder:
        arguments = ["--snapshots", str(options.snapshots), "--data", f"{folder}/data", "--port", "0"]
        arguments += ["--shards", str(options.shards), *flags]
        with Server(arguments, log=Path(folder) / f"{name}.log") as server, Client(server.address) as client:
            yield Served(client, server.snapshot)


def _learning_flags(options: LearningOptions, user_examples: int) -> list[str]:
    values = {
        "--learning-rate": options.learning_rate,
        "--user-examples": user_examples,
        "--promotion-examples": options.promotion_examples,
        "--promotion-users": options.promotion_users,
    }
    return ["--learn-online", *(part for name, value in values.items() for part in (name, str(value)))]
