"""Plots of raw results for the report page: PNG beside it, and the same as SVG for inside it."""

import io
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
    offered = sorted((row for row in file.results if "offered_per_s" in row), key=lambda row: row["offered_per_s"])
    shares = [row for row in file.results if "of_ceiling" in row]
    if len(offered) < 2 and not shares:
        return None
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 3.4), width_ratios=(3, 2))
    rates = [row["offered_per_s"] for row in offered]
    for key, name, colour in (("p50_ms", "p50", OTHER), ("p99_ms", "p99", OURS), ("p99_9_ms", "p99.9", "#edae49")):
        panels[0].plot(rates, [row[key] for row in offered], marker="o", label=name, color=colour)
    panels[0].axhline(file.settings["p99_ms"], color=LIMIT, linestyle="--", linewidth=1, label="bound of p99")
    panels[0].set(xlabel="calls per second that were due", ylabel="milliseconds")
    panels[0].set_yscale("log")
    _written_out(panels[0].yaxis)
    panels[0].set_xlim(left=0)
    panels[0].legend(frameon=False)
    panels[0].set_title("Latency by rate")
    _bars(panels[1], [(_wrapped(row["case"]), row["of_ceiling"]) for row in reversed(shares)], "{:.0%}")
    panels[1].set_xlim(0, 1)
    panels[1].xaxis.set_major_formatter(ticker.PercentFormatter(1.0))
    panels[1].set_title("Of an empty handler")
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
    return case.removesuffix(", closed loop").replace(" of ", "\nof ")


PLOTS: Mapping[str, Callable[[RawResults], Any]] = {"load": _load, "learning": _learning, "rebuild": _rebuild}
