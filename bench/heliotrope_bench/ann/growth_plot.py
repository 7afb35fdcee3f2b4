"""The plot of `heliotrope bench growth`, as SVG that is the same for the same results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

COLOURS = {"request": "#30638e", "single": "#d1495b", "batch": "#5b6c7d"}
NAMES = {"request": "whole request", "single": "search alone, single query", "batch": "search alone, in a batch"}


def plot_growth(results: Sequence[Mapping[str, Any]], fits: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Time of a request over the items, on a logarithmic axis: where `a + b log n` holds the points lie on a line."""
    with plt.rc_context({"svg.hashsalt": "growth", "svg.fonttype": "none", "font.size": 9}):
        figure, panel = plt.subplots(figsize=(5.4, 3.6))
        for line in fits:
            rows = [row for row in results if row["mode"] == line["mode"]]
            items = np.array([row["items"] for row in rows])
            colour = COLOURS[line["mode"]]
            panel.plot(items, [row["us"] for row in rows], "o", color=colour, label=NAMES[line["mode"]])
            fitted = line["log_a_us"] + line["log_b_us"] * np.log2(items)
            label = f"{line['log_a_us']:.0f} + {line['log_b_us']:.1f} log2 n"
            panel.plot(items, fitted, color=colour, linewidth=1, label=label)
        panel.set_xscale("log")
        panel.set_ylim(bottom=0)
        panel.set_xlabel("items")
        panel.set_ylabel("microseconds of CPU")
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(fontsize=7, frameon=False)
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
