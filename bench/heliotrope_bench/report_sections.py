"""What the report page says of each kind of raw results: its heading, what was measured, and the columns of its table.

A kind that is not here is shown with every plain figure that its rows have.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from heliotrope_bench.raw_results import RawResults

Columns = Mapping[str, tuple[str, str]]
"""Key of a row -> (heading, format such as `,.1f`, empty for text)."""


@dataclass(frozen=True)
class Section:
    """One kind, in words that need no other page."""

    title: str
    about: str
    columns: Columns


@dataclass(frozen=True)
class Cell:
    """What stands in one place of a table."""

    text: str
    is_number: bool


def table(section: Section | None, rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Cell]]]:
    """Headings, and cells by row. Columns that no row fills are left out, absent values are blank."""
    columns = _plain_columns(rows) if section is None else section.columns
    filled = {key: column for key, column in columns.items() if any(row.get(key) is not None for row in rows)}
    headings = [heading for heading, _ in filled.values()]
    return headings, [[_cell(row.get(key), form) for key, (_, form) in filled.items()] for row in rows]


def section_of(file: RawResults) -> Section | None:
    """None for a kind that this page does not know."""
    return SECTIONS.get(file.kind)


def _plain_columns(rows: Sequence[Mapping[str, Any]]) -> Columns:
    keys = dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, list | dict))
    numbers = {key for key in keys if any(isinstance(row.get(key), float) for row in rows)}
    return {key: (key.replace("_", " "), ",.4g" if key in numbers else "") for key in keys}


def _cell(value: Any, form: str) -> Cell:
    if value is None:
        return Cell("", bool(form))
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, bool):
        return Cell("yes" if value else "no", False)
    return Cell(format(value, form) if is_number else str(value), is_number)


SECTIONS: Mapping[str, Section] = {
    "load": Section(
        "A server under load",
        "Clients ask one server over gRPC. In a closed loop every caller asks again as soon as it has its answer, "
        "which finds the highest rate; an empty gRPC handler or stream on the same cores, in turns with it, is the "
        "ceiling, and a bare search of the same vectors that of batches. In an open loop requests are sent at random "
        "moments at a given rate, whether or not earlier ones are answered, and latency counts from the moment a "
        "request was due. Recall@10 is against exact scoring of the whole catalogue.",
        {
            "case": ("case", ""),
            "rate_per_s": ("per second", ",.0f"),
            "of_ceiling": ("of the ceiling", ".0%"),
            "of_bare": ("of bare search", ".0%"),
            "rate_per_cpu_s": ("per CPU second", ",.0f"),
            "p50_ms": ("p50, ms", ",.2f"),
            "p99_ms": ("p99, ms", ",.2f"),
            "p99_9_ms": ("p99.9, ms", ",.2f"),
            "recall@10": ("recall@10", ".4f"),
            "server_cpu": ("cores used", ".0%"),
            "generator_cpu": ("busiest generator", ".0%"),
            "errors": ("errors", ".0f"),
        },
    ),
    "overload": Section(
        "More than a server can answer",
        "Calls with a deadline are sent at random moments, whether or not earlier ones are answered. The highest rate "
        "is the last of a sweep at which 99 of 100 are answered in time; goodput counts only those. Then come "
        "multiples of that rate in turns, over few and many connections, and a flood over one connection beside polite "
        "clients with their own.",
        {
            "case": ("case", ""),
            "offered_per_s": ("offered per second", ",.0f"),
            "goodput_per_s": ("in time per second", ",.0f"),
            "in_time": ("of the offered", ".0%"),
            "of_highest": ("of the highest", ".0%"),
            "of_highest_by_cpu": ("of it, by CPU", ".0%"),
            "late": ("late", ".1%"),
            "refused": ("refused", ".1%"),
            "p50_ms": ("p50, ms", ",.1f"),
            "p99_ms": ("p99, ms", ",.1f"),
            "refusal_p99_ms": ("p99 of refusals, ms", ",.1f"),
            "server_cpu": ("cores used", ".0%"),
            "generator_cpu": ("busiest generator", ".0%"),
        },
    ),
    "lifecycle": Section(
        "What happens to a server, and what its users see of it",
        "Recommendations are asked for at a steady rate, at random moments; latency counts from the moment a request "
        "was due. Meanwhile items stream in with known vectors, the catalogue is built anew on the same machine with "
        "what came in, the server swaps to it and rolls back; a few more items come all the time. Looks: all items of "
        "one earlier call asked for by a filter, an item that was acknowledged just now asked for by somebody who came "
        "for it, and lists of users. Incomplete is an answer that lacks what was acknowledged before it was asked for, "
        "or has what it must not. Recall@10 is against exact scoring of everything that was acknowledged.",
        {
            "phase": ("phase", ""),
            "seconds": ("seconds", ",.1f"),
            "rate_per_s": ("per second", ",.0f"),
            "p50_ms": ("p50, ms", ",.2f"),
            "p99_ms": ("p99, ms", ",.2f"),
            "p99_of_steady": ("p99 over steady", ",.2f"),
            "max_ms": ("slowest, ms", ",.1f"),
            "lag_p99_ms": ("p99 of sending late, ms", ",.2f"),
            "failed": ("failed", ".0f"),
            "items_per_s": ("items per second", ",.0f"),
            "looks": ("looks", ".0f"),
            "incomplete": ("incomplete", ".0f"),
            "recall@10": ("recall@10", ".4f"),
            "call_s": ("call, s", ".2f"),
            "server_cpu": ("cores used", ".0%"),
        },
    ),
    "migration": Section(
        "Users who move to another model",
        "Users lived on a snapshot of one text model with a ring so small that most of their events are folded; then "
        "their stored profiles are read under a snapshot of another text model, dimension and half-lives. The next ten "
        "positives of each are ranked among the whole catalogue but for seen items, beside users who lived on the "
        "second snapshot from their first event. Intervals are 95 %, users drawn in pairs.",
        {
            "users": ("users", ""),
            "state": ("profile", ""),
            "user_count": ("users", ",.0f"),
            "targets": ("targets", ",.0f"),
            "folded_share": ("mass folded", ".0%"),
            "hr@10": ("HR@10", ".4f"),
            "hr@10_ratio": ("of rebuilt", ".3f"),
            "ndcg@10": ("NDCG@10", ".4f"),
            "ndcg@10_ratio": ("of rebuilt", ".3f"),
            "ndcg@10_low": ("from", ".3f"),
            "ndcg@10_high": ("to", ".3f"),
            "overlap@10": ("same in the first ten", ".3f"),
            "map_error": ("error of the map", ".3f"),
        },
    ),
    "shards": Section(
        "Several shards beside one",
        "A client that knows which shard owns which user asks one shard, and several, each with a core of its own, in "
        "turns. Where the generator has no core left it takes from theirs; the rate by CPU second is free of that.",
        {
            "case": ("case", ""),
            "rate_per_s": ("per second", ",.0f"),
            "of_one_shard": ("times one shard", ",.2f"),
            "rate_per_cpu_s": ("per CPU second", ",.0f"),
            "of_one_shard_by_cpu": ("times, by CPU second", ",.2f"),
            "p50_ms": ("p50, ms", ",.2f"),
            "p99_ms": ("p99, ms", ",.2f"),
            "server_cpu": ("cores used", ".0%"),
            "generator_cpu": ("busiest generator", ".0%"),
            "errors": ("errors", ".0f"),
        },
    ),
    "peers": Section(
        "Whole requests beside other engines",
        "The user's current vector in, ten ids and scores out, on the same data, cores and number of callers, each "
        "engine set to the same recall; steady, and while events and items stream in. Ratios are ours over theirs in "
        "rounds that followed one another; by CPU they are per second of the engine's own CPU time.",
        {
            "peer": ("engine", ""),
            "kind": ("asked", ""),
            "scenario": ("scenario", ""),
            "rate_per_s": ("per second", ",.0f"),
            "ours/theirs": ("ours over theirs", ",.2f"),
            "by_cpu": ("by CPU", ",.2f"),
            "p99_ms": ("p99, ms", ",.1f"),
            "p99_ratio": ("p99, ours over theirs", ",.2f"),
            "streams/theirs": ("ours on streams over theirs", ",.2f"),
            "streams_p99_ratio": ("its p99 over theirs", ",.2f"),
            "recall@10": ("recall@10", ".3f"),
            "new_found": ("recall of new items", ".2f"),
            "items_per_s": ("items taken in per second", ".1f"),
            "memory_mib": ("memory, MiB", ",.0f"),
            "errors": ("errors", ".0f"),
            "search": ("search", ""),
        },
    ),
    "ann": Section(
        "Candidates beside other libraries",
        "The retriever with its exact second pass and other libraries on the same vectors, one thread, single queries "
        "and batches; recall@10 against exact scoring. The lines join what no other setting of the same library beats "
        "in both recall and rate.",
        {
            "contender": ("library", ""),
            "setting": ("setting", ""),
            "mode": ("queries", ""),
            "recall": ("recall@10", ".4f"),
            "rate": ("per CPU second", ",.0f"),
            "wall_rate": ("per second", ",.0f"),
            "absent": ("left out", ""),
        },
    ),
    "growth": Section(
        "Growth of the catalogue",
        "What a whole request over gRPC costs the server on catalogues of growing size, and what the search alone "
        "does, for a single query and in a batch; CPU time of one thread, at the recall that the build chose. Where "
        "the cost is a + b log n the points lie on a line.",
        {
            "items": ("items", ",.0f"),
            "mode": ("of", ""),
            "setting": ("setting", ""),
            "recall": ("recall@10", ".4f"),
            "us": ("microseconds", ",.1f"),
            "of_empty": ("of an empty handler's rate", ".0%"),
            "log_a_us": ("fit: a", ",.1f"),
            "log_b_us": ("b per log2 n", ",.2f"),
            "power": ("exponent of a power", ".3f"),
            "ends_over_log": ("growth over log n, end to end", ".2f"),
            "over_log": ("the largest between two sizes", ".2f"),
            "verdict": ("verdict", ""),
        },
    ),
    "live": Section(
        "Items added while serving",
        "What the candidates of one request cost while live items wait for the next rebuild, one thread: scored one by "
        "one, and sealed into lists beside those of the index; recall@10 against exact scoring of all items.",
        {
            "live": ("live items", ",.0f"),
            "delta": ("live items are", ""),
            "mode": ("queries", ""),
            "recall": ("recall@10", ".4f"),
            "least_recall": ("the least on the way", ".4f"),
            "us": ("microseconds", ",.1f"),
            "p99_us": ("p99 of a call", ",.1f"),
            "over_exact": ("over scoring all", ".3f"),
            "over_none": ("over none", ".2f"),
            "p99_over_none": ("p99 over none", ".2f"),
            "upsert_us": ("to add one, us", ",.1f"),
            "seal_us": ("to seal it, us", ",.1f"),
        },
    ),
    "filters": Section(
        "Filters",
        "Requests that may choose among a share of the items only, beside requests without a filter, in turns, one "
        "thread; recall@10 against exact scoring of the admitted items. By chance: the filter has nothing to do with "
        "taste; by taste: it keeps or drops whole neighbourhoods.",
        {
            "filter": ("filter by", ""),
            "share": ("share admitted", ".1%"),
            "rows": ("items admitted", ",.0f"),
            "mode": ("queries", ""),
            "recall": ("recall@10", ".4f"),
            "us": ("microseconds", ",.1f"),
            "over_unfiltered": ("over unfiltered", ".2f"),
            "first_ms": ("first time, ms", ",.1f"),
        },
    ),
    "encode": Section(
        "Text encoder",
        "Texts per second, from strings to vectors, beside bare ONNX Runtime on the very same batches of tokens, in "
        "turns. What is left between the two is the price of tokenising, sorting and padding.",
        {
            "case": ("variant", ""),
            "tokens": ("tokens", ",.0f"),
            "batch": ("batch", ",.0f"),
            "rate_per_s": ("texts per second", ",.0f"),
            "bare_per_s": ("bare ONNX Runtime", ",.0f"),
            "of_bare": ("of it", ".1%"),
            "of_bare_by_cpu": ("of it, by CPU time", ".1%"),
            "of_torch": ("times PyTorch", ",.2f"),
            "tokens_per_text": ("tokens a text", ".1f"),
        },
    ),
    "train": Section(
        "Training job",
        "The training job as a user runs it: files in, weights out. Users are copied until there are enough events.",
        {
            "events": ("events", ",.0f"),
            "threads": ("threads", ",.0f"),
            "job_s": ("whole job, s", ",.0f"),
            "train_s": ("training, s", ",.0f"),
            "epochs": ("epochs", ",.0f"),
            "epoch_s": ("an epoch, s", ",.1f"),
            "peak_mib": ("peak memory, MiB", ",.0f"),
            "hr@10": ("HR@10", ".4f"),
            "ndcg@10": ("NDCG@10", ".4f"),
        },
    ),
    "start": Section(
        "From start to first answer",
        "Seconds from the start of the server's process until a client has its first recommendation. From the second "
        "round on the operating system has the files in memory.",
        {
            "items": ("items", ",.0f"),
            "users": ("users with history", ",.0f"),
            "shards": ("shards", ",.0f"),
            "first_s": ("first round, s", ",.2f"),
            "again_s": ("later rounds, s", ",.2f"),
            "server_mib": ("memory, MiB", ",.0f"),
        },
    ),
    "memory": Section(
        "Memory and disk",
        "What an item costs, from the files that grow with the catalogue, and in the server's own memory once "
        "somebody touched it; and what a user costs, from how that memory and the data folder grow while users are "
        "recorded after every item was touched: when the checkpoints are over, and at the highest meanwhile.",
        {
            "items": ("items", ",.0f"),
            "array_bytes_an_item": ("bytes an item", ",.0f"),
            "over_float32": ("over its float32 vector", ".2f"),
            "text_bytes_an_item": ("bytes of its texts", ",.0f"),
            "live_bytes_an_item": ("bytes of a touched one", ",.0f"),
            "users": ("users", ",.0f"),
            "events_per_user": ("events a user", ",.0f"),
            "bytes_a_user": ("bytes a user in memory", ",.0f"),
            "peak_bytes_a_user": ("at the highest", ",.0f"),
            "stored_bytes_a_user": ("in the store", ",.0f"),
            "log_bytes_an_event": ("log bytes an event", ",.0f"),
        },
    ),
    "learning": Section(
        "Learning online",
        "Simulated users with a taste that differs from the snapshot's react to what they are shown, and the server "
        'learns from it; then one attacker, and then nobody but fake users. "Frozen" is the click rate without '
        'learning, "best" that of a server that knows the taste.',
        {
            "phase": ("phase", ""),
            "answers": ("lists shown", ",.0f"),
            "examples": ("examples", ",.0f"),
            "version": ("version of the weights", ".0f"),
            "active_loss": ("loss, active", ".4f"),
            "shadow_loss": ("loss, shadow", ".4f"),
            "shadow_change": ("change of the shadow", ".3f"),
            "click_rate": ("click rate", ".4f"),
            "frozen": ("frozen", ".4f"),
            "best": ("best", ".4f"),
            "overlap@k": ("overlap with the start", ".3f"),
        },
    ),
    "rebuild": Section(
        "Rebuild job",
        "The rebuild job as a user runs it, on a catalogue of real texts: once from nothing, and once when every "
        "embedding is known. A stage counts from the end of the one before; texts per second are distinct texts.",
        {
            "run": ("run", ""),
            "stage": ("stage", ""),
            "seconds": ("seconds", ",.2f"),
            "cpu_s": ("CPU seconds", ",.2f"),
            "peak_mib": ("peak memory, MiB", ",.0f"),
            "texts_per_s": ("texts per second", ",.0f"),
        },
    ),
    "gpu": Section(
        "GPU beside the CPU",
        "The same queries through the retriever with the snapshot's index on the CPU and with each index on the "
        "device, and the same texts through the encoder, in turns. It is right where recall, or the least cosine with "
        "float32 vectors of the CPU, is above its bound.",
        {
            "case": ("case", ""),
            "batch": ("batch", ",.0f"),
            "cpu_per_s": ("CPU, per second", ",.0f"),
            "device_per_s": ("GPU, per second", ",.0f"),
            "over_cpu": ("times the CPU", ",.2f"),
            "cpu_recall@10": ("recall@10, CPU", ".4f"),
            "device_recall@10": ("recall@10, GPU", ".4f"),
            "least_cosine": ("least cosine", ".5f"),
            "build_s": ("build, s", ",.1f"),
            "right": ("right", ""),
            "note": ("note", ""),
        },
    ),
}
