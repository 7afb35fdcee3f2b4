"""The entrants, each loaded and set to the same recall, and the rounds in which they are measured in turns."""

import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from heliotrope_bench.errors import PeerError
from heliotrope_bench.peers.catalogue import Catalogue
from heliotrope_bench.peers.closed_loop import Plan, Stream
from heliotrope_bench.peers.heliotrope_engine import HeliotropeEngine
from heliotrope_bench.peers.heliotrope_server import HeliotropeServer, HeliotropeStreams
from heliotrope_bench.peers.host import Host
from heliotrope_bench.peers.peer import Peer, Question, Search, Site
from heliotrope_bench.peers.truth import Recall, our_scores, peer_scores, query_vectors, recall

TUNED_ON = 100
"""Users by whose questions the search of a peer is chosen."""
GRACE_S = 30.0
"""A round that takes so much longer than it should is stuck."""
STEADY, STREAMING = "steady", "streaming"

OURS = (HeliotropeServer, HeliotropeStreams, HeliotropeEngine)


@dataclass
class Entrant:
    """A peer that is loaded, and what was measured of it. `absent` says why it is not."""

    kind: type[Peer]
    host: Host | None = None
    absent: str = ""
    search: Search | None = None
    load_s: float = 0.0
    memory_mib: float = 0.0
    upserted: int = 0
    recorded: int = 0
    seen: dict[str, set[int]] = field(default_factory=dict)
    rounds: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    recalls: dict[str, Recall] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        return self.kind in OURS


@dataclass(frozen=True)
class Terms:
    """What holds for all entrants. Cores None: any."""

    callers: int
    warm_up_s: float
    duration_s: float
    rounds: int
    events_per_s: float
    items_per_s: float
    recall: float
    server_cpus: tuple[int, ...] | None
    load_cpus: tuple[int, ...] | None

    @property
    def length_s(self) -> float:
        return self.warm_up_s + self.duration_s


class Contest:
    """Starts entrants, one after the other; those that are not measured stand still. Use as a context manager."""

    def __init__(self, catalogue: Catalogue, terms: Terms, folder: Path, console: Console) -> None:
        self.entrants: list[Entrant] = []
        self._catalogue = catalogue
        self._terms = terms
        self._folder = folder
        self._console = console
        self._exits = ExitStack()
        self._users = catalogue.readers.user_ids
        self._questions: list[Question] = []
        # In a file, so that the processes need not hold what they only read once.
        self._vectors = folder / "rows.npy"
        np.save(self._vectors, catalogue.rows[: catalogue.base])

    def __enter__(self) -> "Contest":
        # Told to end, it must end the others too: those that stand still would do so for ever.
        self._on_term = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        return self

    def __exit__(self, *failure: object) -> None:
        self._exits.close()
        signal.signal(signal.SIGTERM, self._on_term)

    def enter_ours(self) -> None:
        """Heliotrope's server first: what a user asks the peers is the interest vector that it has of the user."""
        catalogue = self._catalogue
        for kind in OURS:
            entrant = Entrant(kind, seen={user: set(rows) for user, rows in catalogue.seen.items()})
            host = self._load(entrant, partial(kind, catalogue.ours))
            if not self._questions:
                interests = host.call("peer", "interests", self._users, self._touched(entrant))
                vectors = query_vectors(catalogue.arrays, interests.vectors)
                self._questions = [
                    Question(user, vector, tuple(sorted(catalogue.seen[user])))
                    for user, vector in zip(self._users, vectors, strict=True)
                ]
            entrant.load_s = catalogue.build_s or 0.0
            entrant.search = Search(kind.widths[0], filtered=True)
            self._finish(entrant, host)

    def enter(self, kind: type[Peer]) -> None:
        """A peer; one that is not installed, or fails, is noted with the reason."""
        entrant = Entrant(kind, seen=self._catalogue.seen)
        missing = [package for package in kind.packages if find_spec(package) is None]
        if missing:
            entrant.absent = f"{', '.join(missing)} not installed: pip install 'heliotrope[peers]'"
            self.entrants.append(entrant)
            return
        try:
            host = self._load(entrant, kind)
            entrant.search = self._tuned(entrant, host)
            self._finish(entrant, host)
        except PeerError as error:
            self._drop(entrant, error)

    def run(self, scenario: str) -> None:
        """All rounds of a scenario, in turns, and the recall after them."""
        for number in range(self._terms.rounds):
            for entrant in self._present():
                self._say(f"{scenario}, round {number + 1} of {self._terms.rounds}: {entrant.kind.name}")
                self._try(entrant, partial(self._round, scenario))
        for entrant in self._present():
            self._try(entrant, partial(self._after, scenario))

    def _round(self, scenario: str, entrant: Entrant, host: Host) -> None:
        plan = self._plan(entrant, scenario)
        figures, tally = host.call("measure", plan, timeout_s=self._terms.length_s + GRACE_S)
        entrant.upserted += tally.upserted
        for place in tally.recorded if entrant.ours else ():
            event = plan.stream.events[place]
            entrant.seen[event.user_id].add(event.row)
        if scenario == STREAMING:
            figures["items_per_s"] = tally.upserted / self._terms.length_s
            figures["events_per_s"] = len(tally.recorded) / self._terms.length_s
        entrant.rounds.setdefault(scenario, []).append(figures)

    def _after(self, scenario: str, entrant: Entrant, host: Host) -> None:
        entrant.recalls[scenario] = self._recall(entrant, host, self._questions)
        entrant.memory_mib = entrant.memory_mib or host.call("memory_mib")

    def _plan(self, entrant: Entrant, scenario: str) -> Plan:
        terms = self._terms
        if scenario == STEADY:
            return Plan(terms.callers, terms.warm_up_s, terms.duration_s)
        number = int(terms.events_per_s * terms.length_s)
        clicks = self._catalogue.readers.clicks(number, f"{entrant.kind.name}-{entrant.recorded}")
        entrant.recorded += number
        until = entrant.upserted + int(terms.items_per_s * terms.length_s)
        stream = Stream(
            clicks,
            terms.events_per_s,
            self._catalogue.new_items[entrant.upserted : until],
            terms.items_per_s,
        )
        return Plan(terms.callers, terms.warm_up_s, terms.duration_s, stream)

    def _load(self, entrant: Entrant, make: Callable[[], Peer]) -> Host:
        self._say(f"loading {entrant.kind.name}")
        self.entrants.append(entrant)
        folder = self._folder / str(len(self.entrants))
        folder.mkdir()
        terms = self._terms
        cpus = terms.load_cpus if entrant.kind.kind == "server" else terms.server_cpus
        host = entrant.host = Host(make, Site(folder, terms.server_cpus, terms.callers), cpus)
        self._exits.callback(host.close)
        entrant.load_s = host.call("load", self._vectors)
        return host

    def _finish(self, entrant: Entrant, host: Host) -> None:
        host.call("prepare", self._questions, entrant.search)
        host.pause()

    def _tuned(self, entrant: Entrant, host: Host) -> Search:
        """The quickest search that has the recall that is asked for; else the one with the highest.

        Fetching more and leaving out afterwards comes first: a peer's own filter often is the slower way.
        """
        questions = self._questions[:TUNED_ON]
        found: list[tuple[bool, float, float, Search]] = []
        quickest = np.inf
        for filtered in (False, True) if entrant.kind.filters else (False,):
            for width in entrant.kind.widths:
                search = Search(width, filtered)
                host.call("prepare", questions, search)
                share, seconds = self._asked(entrant, host, questions)
                enough = share.overall >= self._terms.recall
                found.append((enough, -seconds if enough else share.overall, share.overall, search))
                quickest = min(quickest, seconds) if enough else quickest
                if enough or seconds > quickest:
                    break
        enough, _, share_found, search = max(found, key=lambda one: one[:2])
        self._say(f"{entrant.kind.name}: {search}, recall@10 {share_found:.3f}")
        return search

    def _recall(self, entrant: Entrant, host: Host, questions: Sequence[Question]) -> Recall:
        return self._asked(entrant, host, questions)[0]

    def _asked(self, entrant: Entrant, host: Host, questions: Sequence[Question]) -> tuple[Recall, float]:
        """The recall of the questions that are prepared, and the median seconds of one."""
        catalogue = self._catalogue
        rows = catalogue.rows[: catalogue.base + entrant.upserted]
        scores: Iterable[Any]
        if entrant.ours:
            interests = host.call("peer", "interests", self._users, self._touched(entrant))
            scores = our_scores(catalogue.arrays, rows, interests)
        else:
            scores = peer_scores(rows, questions)
        answers, seconds = host.call("ask")
        seen = [entrant.seen[question.user_id] for question in questions]
        return recall(scores, answers, seen, catalogue.base), seconds

    def _touched(self, entrant: Entrant) -> list[int]:
        return sorted(set().union(*entrant.seen.values()))

    def _present(self) -> list[Entrant]:
        return [entrant for entrant in self.entrants if not entrant.absent]

    def _try(self, entrant: Entrant, work: Callable[[Entrant, Host], None]) -> None:
        """Does something while this entrant alone runs. What fails in a peer ends its part, in ours the command."""
        host = entrant.host
        assert host is not None, "only who is present is measured"
        try:
            host.resume()
            work(entrant, host)
            host.pause()
        except PeerError as error:
            if entrant.ours:
                raise
            self._drop(entrant, error)

    def _drop(self, entrant: Entrant, error: PeerError) -> None:
        entrant.absent = str(error)
        self._say(f"{entrant.kind.name} is left out: {error}")
        if entrant.host is not None:
            entrant.host.close()

    def _say(self, what: str) -> None:
        self._console.print(f"{what} ...", style="dim")
