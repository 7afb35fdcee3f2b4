"""`heliotrope bench quality-report`: the page of tables and plots from the raw results of `bench quality`.

Every word of the page is written here, so that no figure on it can be older than the results.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from rich.console import Console

from heliotrope_bench.competitors.competitor import described
from heliotrope_bench.dataset import NAMES
from heliotrope_bench.errors import ResultError
from heliotrope_bench.interval import LEVEL, SAMPLES, Bootstrap, verdict
from heliotrope_bench.protocol import COMMON, PROTOCOLS, Protocol
from heliotrope_bench.quality_plot import Groups, plot_protocol
from heliotrope_bench.ranking import MEASURES, values
from heliotrope_bench.result import OURS, Result, comparable, read_conditions, read_results
from heliotrope_bench.summary import HR, NDCG, rows_of

CONTRASTS = {
    "time-split": (("live", "frozen"),),
    "cold-items": (("5 events", "no event, later targets"),),
    "cold-users": (("0 events, segments known", "0 events"), ("1 event", "0 events"), ("5 events", "1 event")),
}
"""Pairs of variants of a protocol with the same targets: what the first knows more than the second."""


class ReportOptions(BaseSettings):
    """Writes the page of the quality results."""

    model_config = SettingsConfigDict(
        frozen=True, cli_prog_name="heliotrope bench quality-report", cli_kebab_case=True, cli_hide_none_type=True
    )

    results: Path = Field(Path(".bench/quality"), description="folder that `heliotrope bench quality` wrote")
    out: Path = Field(Path("docs/quality.md"), description="the page; its plots go into a folder of the same name")
    title: str = Field("Recommendation quality", description="head of the page")


def run(options: ReportOptions, arguments: Sequence[str], console: Console) -> None:
    """Writes the page and its plots; raises ResultError where there is nothing to show."""
    results = read_results(options.results) if options.results.is_dir() else []
    if not results:
        raise ResultError(f"there are no results in {options.results}: run `heliotrope bench quality` first")
    groups = comparable(results)
    conditions = read_conditions(options.results)
    plots = options.out.with_suffix("")
    plots.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for protocol in PROTOCOLS:
        own = {key: group for key, group in groups.items() if key[1] == protocol.name}
        if own:
            path = plots / f"{protocol.name}.svg"
            plot_protocol(protocol, own, path)
            pictures[protocol.name] = os.path.relpath(path, options.out.parent)
    options.out.write_text(page(groups, conditions, pictures, options.title), encoding="utf-8")
    console.print(f"{options.out}: {len(results)} results of {len({key[0] for key in groups})} data sets")


def page(groups: Groups, conditions: Mapping[str, Mapping[str, Any]], pictures: Mapping[str, str], title: str) -> str:
    """The whole page; `conditions` by data set, `pictures` by protocol."""
    parts = [_head(groups, conditions, title)]
    for protocol in PROTOCOLS:
        datasets = [name for name in NAMES if any(key[:2] == (name, protocol.name) for key in groups)]
        if not datasets:
            continue
        parts.append(f"## {protocol.title}\n\n{protocol.description}\n")
        if protocol.name in pictures:
            parts.append(f"![{protocol.title}]({pictures[protocol.name]})\n")
        parts += [_contrasts(protocol, name, groups) for name in datasets]
        parts += [_tables(protocol, name, groups, conditions[name]["settings"]["data"]["users"]) for name in datasets]
    parts.append(_settings(groups))
    return "\n".join(part for part in parts if part)


def _head(groups: Groups, conditions: Mapping[str, Mapping[str, Any]], title: str) -> str:
    lines = [
        f"# {title}",
        "",
        "This page is written by `heliotrope bench quality` and `heliotrope bench quality-report`: do not edit.",
        "",
        f"{COMMON} Every model chooses its settings by NDCG@10 on the validation part alone, which is the same "
        "protocol once more inside the train events; then the test part is asked once. *Ours minus theirs* is the "
        f"difference between Heliotrope and the model with its {LEVEL[1] - LEVEL[0]:.0f} % interval: a paired "
        f"bootstrap over {SAMPLES:,} draws of the same users for both. A verdict is *better* or *worse* where the "
        "interval is beyond 0; of two words the first is for HR@10, the second for NDCG@10. The worth of each place "
        "comes from `ir-measures`; there is one relevant item a target, so HR@k is recall@k. Where a run of Heliotrope "
        "departed from this, [decision 0009](decisions/0009-trained-weights.md) says so.",
        "",
        "## Data",
        "",
        "| data set | items | events | users | positive | order | measured at |",
        "| --- | ---: | ---: | ---: | --- | --- | --- |",
    ]
    for name in (name for name in NAMES if name in conditions):
        found = conditions[name]
        facts, git, machine = found["settings"]["data"], found["git"], found["machine"]
        lines.append(
            f"| {name} | {facts['items']:,} | {facts['events']:,} | {facts['users']:,} | {_positive_rule(facts)} "
            f"| {'by time' if facts['timed'] else 'none given: drawn at random, one event a minute'} "
            f"| `{(git['revision'] or 'unknown')[:10]}`{' with changes' if git['changed'] else ''}, "
            f"{machine['cores']} cores of {machine['processor']} |"
        )
    if any(not model.startswith(OURS) for group in groups.values() for model in group):
        lines += ["", "## In short", "", *_short(groups)]
    lines.append("")
    return "\n".join(lines)


def _positive_rule(facts: Mapping[str, Any]) -> str:
    rules = []
    if facts["uses"]:
        rules.append(f"every use ({facts['uses']:.0%} of the events)")
    if facts["positive_from"] is not None:
        rules.append(f"ratings from {facts['positive_from']:g}")
    skipped = f"; {facts['skipped']:,} events of unknown items skipped" if facts["skipped"] else ""
    return f"{' and '.join(rules)}: {facts['positive']:.0%}{skipped}"


def _short(groups: Groups) -> list[str]:
    """Our figures under the first protocol beside the best and the number of models that we beat."""
    lines = [
        f"| data set | {HR} | {NDCG} | best other model by {NDCG} | ours minus theirs | better / even / worse "
        "| calibration error |",
        "| --- | ---: | ---: | --- | --- | --- | ---: |",
    ]
    for (name, protocol, _), group in _ordered(groups):
        if protocol != PROTOCOLS[0].name or OURS not in group:
            continue
        ours, *others = [row for row in rows_of(group) if row["model"] == OURS or not row["model"].startswith(OURS)]
        best = others[0] if others else None
        said = f"{best['model']} {best[NDCG]:.4f}" if best else ""
        words = [_joint_verdict(row["verdict"]) for row in others]
        lines.append(
            f"| {name} | {ours[HR]:.4f} | {ours[NDCG]:.4f} "
            f"| {said} "
            f"| {best[f'{NDCG} difference'] if best else ''} "
            f"| {' / '.join(str(words.count(word)) for word in ('better', 'even', 'worse'))} "
            f"| {_number(ours.get('ece'), '.3f')} |"
        )
    return [*lines, "", "Better: on one of the two metrics, and worse on none; worse: worse on one of them."]


def _joint_verdict(said: str) -> str:
    words = said.split(" / ")
    return next((word for word in ("worse", "better") if word in words), "even")


def _contrasts(protocol: Protocol, name: str, groups: Groups) -> str:
    """Our own variants against each other, by target."""
    lines = []
    for more, less in CONTRASTS.get(protocol.name, ()):
        first = groups.get((name, protocol.name, more), {}).get(OURS)
        second = groups.get((name, protocol.name, less), {}).get(OURS)
        if first is None or second is None:
            continue
        said = []
        apart = Bootstrap(first.user_array).difference(values(first.ranks), values(second.ranks))
        for column, measure in enumerate(MEASURES):
            if measure in (HR, NDCG, "recall@100"):
                mean, low, high = (float(part[column]) for part in apart)
                said.append(f"{measure} {mean:+.4f} ({low:+.4f}, {high:+.4f}), {verdict(low, high)}")
        lines.append(f"- {name}, Heliotrope, *{more}* minus *{less}*: {'; '.join(said)}.")
    chance = groups.get((name, protocol.name, protocol.tuned_on), {}).get("chance")
    ours = groups.get((name, protocol.name, protocol.tuned_on), {}).get(OURS)
    if protocol.name == "cold-items" and chance is not None and ours is not None:
        column = list(MEASURES).index("recall@100")
        found, by_chance = (float(values(one.ranks)[:, column].mean()) for one in (ours, chance))
        lines.append(f"- {name}, Heliotrope, no event: recall@100 is {found / max(by_chance, 1e-9):.1f} times chance.")
    return "\n".join([*lines, ""]) if lines else ""


def _tables(protocol: Protocol, name: str, groups: Groups, users: int) -> str:
    """One table of metrics and one of lists for each variant; `users` are those of the data set."""
    lines = []
    for (dataset, other, variant), group in _ordered(groups):
        if (dataset, other) != (name, protocol.name):
            continue
        rows = rows_of(group)
        asked = len(set(next(iter(group.values())).users))
        lines += [
            f"### {name}{f', {variant}' if variant else ''}",
            "",
            f"{rows[0]['targets']:,} targets of {asked:,} users; {users - asked:,} users have no target.",
            "",
            f"| model | {HR} | {NDCG} | mrr | recall@50 | recall@100 | {HR}, ours minus theirs "
            f"| {NDCG}, ours minus theirs | verdict |",
            "| --- | --- | --- | ---: | ---: | ---: | --- | --- | --- |",
        ]
        lines += [
            f"| {row['model']} | {_interval(row, HR)} | {_interval(row, NDCG)} | {row['mrr']:.4f} "
            f"| {row['recall@50']:.4f} | {row['recall@100']:.4f} | {row.get(f'{HR} difference', '')} "
            f"| {row.get(f'{NDCG} difference', '')} | {row.get('verdict', '')} |"
            for row in rows
        ]
        lines += [
            "",
            "| model | coverage | novelty, bits | diversity | average popularity | calibration error "
            "| in bins of equal weight |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        lines += [
            f"| {row['model']} | {_number(row['coverage'], '.3f')} | {_number(row['novelty'], '.2f')} "
            f"| {_number(row['diversity'], '.3f')} | {_number(row['average_popularity'], '.1f')} "
            f"| {_number(row.get('ece'), '.3f')} | {_number(row.get('ece_equal_mass'), '.3f')} |"
            for row in rows
        ]
        lines.append("")
    return "\n".join(lines)


def _settings(groups: Groups) -> str:
    lines = [
        "## Settings that were chosen",
        "",
        "*Trials* are the settings compared on the validation part; *runs* counts how often the model was measured on "
        "this test part. The settings of Heliotrope are chosen by its own jobs and lie in its snapshots.",
        "",
        "| data set | protocol | model | settings | trials | runs | seconds |",
        "| --- | --- | --- | --- | ---: | ---: | ---: |",
    ]
    seen = set()
    for (name, protocol, _), group in _ordered(groups):
        for model, result in sorted(group.items()):
            if (name, protocol, model) in seen:
                continue
            seen.add((name, protocol, model))
            lines.append(
                f"| {name} | {protocol} | {model} | {_chosen(result)} | {result.trials or ''} | {result.test_runs} "
                f"| {result.seconds:.1f} |"
            )
    return "\n".join([*lines, ""])


def _chosen(result: Result) -> str:
    return "" if result.model.startswith(OURS) else described(result.settings)


def _ordered(groups: Groups) -> list[tuple[tuple[str, str, str], dict[str, Result]]]:
    protocols = [protocol.name for protocol in PROTOCOLS]
    places = {name: place for place, name in enumerate(NAMES)}
    return sorted(
        groups.items(),
        # Within a protocol the variants keep the order in which they are asked.
        key=lambda entry: (places.get(entry[0][0], len(places)), protocols.index(entry[0][1])),
    )


def _interval(row: Mapping[str, Any], name: str) -> str:
    return f"{row[name]:.4f} ({row[f'{name}_low']:.4f}, {row[f'{name}_high']:.4f})"


def _number(value: float | None, form: str) -> str:
    return "" if value is None or not np.isfinite(value) else format(value, form)
