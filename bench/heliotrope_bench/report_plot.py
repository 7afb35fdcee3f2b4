"""Plots of raw results for the report page: PNG beside it, and the same as SVG for inside it."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib import ticker

from heliotrope_bench.raw_results import RawResults

OURS, OTHER, LIMIT = "#d1495b", "#5b6c7d", "#2a9d8f"
COLOURS = f"cycler(color={[OURS, '#30638e', '#edae49', LIMIT, '#7768ae', '#a2c4d9', OTHER, '#003d5b', '#8b5e34']})"
_PNG_DPI = 140
_LEAST_RECALL = 0.85


def draw(file: RawResults, path: Path) -> bytes | None:
    """Writes a PNG to `path` and returns the same as SVG; None where the table says it all."""
    plot = PLOTS.get(file.kind)
    if plot is None:
        return None
    with plt.rc_context({"svg.hashsalt": file.name, "svg.fonttype": "none", "axes.prop_cycle": COLOURS}):
        figure = plot(file)
        if figure is None:
            return None
        for panel in figure.axes:
            panel.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        figure.savefig(path, dpi=_PNG_DPI)
        svg = io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
        plt.close(figure)
    return svg.getvalue()


def _load(file: RawResults) -> Any:
    """Latency by offered rate, and shares of the ceiling."""
    offered = [row for row in file.results if row["case"].startswith("mix, open loop")]
    shares = [row for row in file.results if "of_ceiling" in row]
    if len(offered) < 2 and not shares:
        return None
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 3.4), width_ratios=(3, 2))
    rates = [row["offered_per_s"] for row in offered]
    for key, name, colour in (("p50_ms", "p50", OTHER), ("p99_ms", "p99", OURS), ("p99_9_ms", "p99.9", "#edae49")):
        panels[0].plot(rates, [row[key] for row in offered], marker="o", label=name, color=colour)
    for bound in file.settings["p99_ms"]:
        panels[0].axhline(bound, color=LIMIT, linestyle="--", linewidth=1)
        panels[0].annotate(f"{bound:g} ms", (0, bound), color=LIMIT, va="bottom", fontsize=8)
    panels[0].set(xlabel="calls per second that were due", ylabel="milliseconds")
    panels[0].set_yscale("log")
    _written_out(panels[0].yaxis)
    panels[0].set_xlim(left=0)
    panels[0].legend(frameon=False)
    panels[0].set_title("Latency by rate")
    _bars(panels[1], [(_wrapped(row["case"]), row["of_ceiling"]) for row in reversed(shares)], "{:.0%}")
    panels[1].set_xlim(0, max(1.0, *(1.15 * row["of_ceiling"] for row in shares)))
    panels[1].xaxis.set_major_formatter(ticker.PercentFormatter(1.0))
    panels[1].set_title("Of an empty handler or stream")
    return figure


def _lifecycle(file: RawResults) -> Any:
    """p50, p99 and the slowest call in each quarter of a second, with the phases behind them."""
    figure, panel = plt.subplots(figsize=(9.6, 3.8))
    buckets = [bucket for row in file.results for bucket in row["buckets"]]
    at = [bucket["at_s"] for bucket in buckets]
    for key, name, colour in (("max_ms", "slowest", "#a2c4d9"), ("p99_ms", "p99", OURS), ("p50_ms", "p50", OTHER)):
        panel.plot(at, [bucket[key] for bucket in buckets], color=colour, linewidth=1, label=name)
    failed = [bucket for bucket in buckets if bucket["failed"]]
    panel.plot(
        [each["at_s"] for each in failed], [each["max_ms"] for each in failed], "x", color="black", label="failed"
    )
    limit = 2 * file.results[0]["p99_ms"]
    panel.axhline(limit, color=LIMIT, linestyle="--", linewidth=1, label="twice the steady p99")
    for number, row in enumerate(file.results):
        start, end = row["start_s"], row["start_s"] + row["seconds"]
        panel.axvspan(start, end, color=OTHER, alpha=0.12 if number % 2 else 0.0, linewidth=0)
        place = ((start + end) / 2, 1.02)
        panel.annotate(row["phase"], place, xycoords=("data", "axes fraction"), rotation=30, fontsize=8)
    panel.set(xlabel="seconds", ylabel="milliseconds", yscale="log")
    _written_out(panel.yaxis)
    panel.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _learning(file: RawResults) -> Any:
    """Click rate over the lists that were shown, by phase."""
    figure, panel = plt.subplots(figsize=(7.2, 3.4))
    for phase in dict.fromkeys(row["phase"] for row in file.results):
        rows = [row for row in file.results if row["phase"] == phase]
        panel.plot([row["answers"] for row in rows], [row["click_rate"] for row in rows], marker="o", label=phase)
    panel.axhline(file.results[0]["frozen"], color=OTHER, linestyle="--", linewidth=1, label="frozen")
    panel.axhline(file.results[0]["best"], color=LIMIT, linestyle="--", linewidth=1, label="best there is")
    panel.set(xlabel="lists shown", ylabel="click rate")
    panel.set_ylim(bottom=0)
    panel.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _peers(file: RawResults) -> Any:
    """Rates of all engines by scenario, with the p99 beside each bar."""
    scenarios = list(dict.fromkeys(row["scenario"] for row in file.results if "scenario" in row))
    if not scenarios:
        return None
    figure, panels = plt.subplots(1, len(scenarios), figsize=(4.8 * len(scenarios), 3.6), squeeze=False)
    for panel, scenario in zip(panels[0], scenarios, strict=True):
        own = (row for row in file.results if row.get("scenario") == scenario)
        rows = sorted(own, key=lambda row: float(row["rate_per_s"]))
        names = [f"{row['peer']}\n{row['kind']}" for row in rows]
        colours = [OURS if "ours/theirs" not in row else OTHER for row in rows]
        drawn = panel.barh(names, [row["rate_per_s"] for row in rows], color=colours, height=0.6)
        panel.bar_label(drawn, [f"{row['rate_per_s']:,.0f}, p99 {row['p99_ms']:.1f} ms" for row in rows], padding=4)
        # Room for the words behind the longest bar.
        panel.set(title=scenario, xlabel="requests per second", xlim=(0.0, 1.9 * rows[-1]["rate_per_s"]))
    return figure


def _ann(file: RawResults) -> Any:
    """Recall and rate by library; settings that another of the same library beats in both are left out."""
    rows = [row for row in file.results if "recall" in row]
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    figure, panels = plt.subplots(1, len(modes), figsize=(2.4 + 4.2 * len(modes), 4.2), squeeze=False)
    for panel, mode in zip(panels[0], modes, strict=True):
        for name in dict.fromkeys(row["contender"] for row in rows):
            own = [(row["recall"], row["rate"]) for row in rows if (row["contender"], row["mode"]) == (name, mode)]
            edge: list[tuple[float, float]] = []
            for recall, rate in sorted(own, reverse=True):
                if recall >= _LEAST_RECALL and (not edge or rate > edge[-1][1]):
                    edge.append((recall, rate))
            ours = name == "heliotrope"
            panel.plot(
                [recall for recall, _ in edge],
                [rate for _, rate in edge],
                marker="o",
                markersize=3,
                label=name,
                linewidth=2.5 if ours else 1,
                zorder=3 if ours else 2,
            )
        panel.set(title=f"{mode} queries", xlabel="recall@10", ylabel="queries per CPU second", yscale="log")
        _written_out(panel.yaxis)
    panels[0][-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _growth(file: RawResults) -> Any:
    """Cost of a request and of its search over the items, with the lines that were fitted."""
    figure, panel = plt.subplots(figsize=(7.2, 3.6))
    fits = [row for row in file.results if "log_a_us" in row]
    for fit in fits:
        colour = {"request": OURS, "single": OTHER}.get(fit["mode"], LIMIT)
        kind = "whole request" if fit["mode"] == "request" else f"search alone, {fit['mode']}"
        rows = [row for row in file.results if "us" in row and row["mode"] == fit["mode"]]
        items = [row["items"] for row in rows]
        panel.plot(items, [row["us"] for row in rows], "o", color=colour, label=kind)
        line = [fit["log_a_us"] + fit["log_b_us"] * math.log2(n) for n in items]
        label = f"{fit['log_a_us']:.0f} {fit['log_b_us']:+.1f} log2 n"
        panel.plot(items, line, color=colour, linewidth=1, label=label)
    panel.set(xlabel="items", ylabel="microseconds", xscale="log")
    panel.set_xticks(sorted({row["items"] for row in file.results if "us" in row}))
    panel.xaxis.set_major_formatter("{x:,.0f}")
    panel.xaxis.set_minor_formatter(ticker.NullFormatter())
    panel.set_ylim(bottom=0)
    panel.legend(frameon=False)
    return figure


def _gpu(file: RawResults) -> Any:
    """Queries per second by batch size, of the CPU and of each index on the device."""
    searched = [row for row in file.results if row.get("batch") is not None]
    if not searched:
        return None
    figure, panel = plt.subplots(figsize=(7.2, 3.4))
    cases = list(dict.fromkeys(row["case"] for row in searched))
    for case in cases:
        rows = [row for row in searched if row["case"] == case]
        batches = [row["batch"] for row in rows]
        if case == cases[0]:
            panel.plot(batches, [row["cpu_per_s"] for row in rows], marker="o", color=OTHER, label="CPU")
        panel.plot(batches, [row["device_per_s"] for row in rows], marker="o", label=case.replace("search", "GPU"))
    panel.set(xlabel="queries at once", ylabel="queries per second", xscale="log", yscale="log")
    _written_out(panel.yaxis)
    panel.set_xticks(sorted({row["batch"] for row in searched}))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter(ticker.NullFormatter())
    panel.legend(frameon=False)
    return figure


def _rebuild(file: RawResults) -> Any:
    """A bar for each run, made of its stages."""
    figure, panel = plt.subplots(figsize=(9.6, 2.6))
    runs = list(dict.fromkeys(row["run"] for row in file.results))
    rows = [row for row in file.results if row["stage"] != "whole job"]
    left = dict.fromkeys(runs, 0.0)
    for stage in dict.fromkeys(row["stage"] for row in rows):
        lengths = {row["run"]: row["seconds"] for row in rows if row["stage"] == stage}
        panel.barh(list(lengths), list(lengths.values()), left=[left[run] for run in lengths], label=stage)
        left = {run: left[run] + lengths.get(run, 0.0) for run in runs}
    panel.invert_yaxis()
    panel.set_xlabel("seconds")
    panel.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _written_out(axis: Any) -> None:
    """Ticks of a log scale at 1, 2 and 5 times powers of ten, as plain numbers."""
    axis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(ticker.NullFormatter())


def _bars(panel: Any, bars: Sequence[tuple[str, float]], form: str) -> None:
    """Horizontal bars from below, each with its figure."""
    drawn = panel.barh([name for name, _ in bars], [value for _, value in bars], color=OURS, height=0.6)
    panel.bar_label(drawn, [form.format(value) for _, value in bars], padding=4)


def _wrapped(case: str) -> str:
    return case.replace(" of ", "\nof ").replace(", ", ",\n")


PLOTS: Mapping[str, Callable[[RawResults], Any]] = {
    "load": _load,
    "lifecycle": _lifecycle,
    "peers": _peers,
    "ann": _ann,
    "growth": _growth,
    "learning": _learning,
    "rebuild": _rebuild,
    "gpu": _gpu,
}
