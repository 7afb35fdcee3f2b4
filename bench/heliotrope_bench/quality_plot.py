"""Plots of the quality results, as SVG that is the same for the same results."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from heliotrope_bench.dataset import NAMES
from heliotrope_bench.protocol import Protocol
from heliotrope_bench.ranking import metrics
from heliotrope_bench.result import OURS, Result
from heliotrope_bench.summary import NDCG

Groups = dict[tuple[str, str, str], dict[str, Result]]

OUR_COLOUR, OTHER_COLOUR = "#d1495b", "#5b6c7d"


def plot_protocol(protocol: Protocol, groups: Groups, path: Path) -> None:
    """One panel a data set: NDCG@10 with its interval of each model, or along the variants where there are several."""
    names = [name for name in NAMES if any(key[0] == name for key in groups)]
    with plt.rc_context({"svg.hashsalt": protocol.name, "svg.fonttype": "none", "font.size": 9}):
        figure, panels = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.6), squeeze=False)
        for panel, name in zip(panels[0], names, strict=True):
            variants = {key[2]: group for key, group in groups.items() if key[0] == name}
            if len(variants) == 1:
                _bars(panel, next(iter(variants.values())))
            else:
                _lines(panel, variants)
            panel.set_title(name)
            panel.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def _bars(panel: Any, group: dict[str, Result]) -> None:
    rows = {model: metrics(result.ranks, result.user_array) for model, result in group.items()}
    models = sorted(rows, key=lambda model: rows[model][NDCG])
    for place, model in enumerate(models):
        row = rows[model]
        colour = OUR_COLOUR if model.startswith(OURS) else OTHER_COLOUR
        panel.plot([row[f"{NDCG}_low"], row[f"{NDCG}_high"]], [place, place], color=colour, linewidth=2)
        panel.plot(row[NDCG], place, "o", color=colour)
    panel.set_yticks(range(len(models)), models)
    panel.set_xlim(left=0)
    panel.set_xlabel(NDCG)


def _lines(panel: Any, variants: dict[str, dict[str, Result]]) -> None:
    models = sorted({model for group in variants.values() for model in group}, key=lambda model: (model != OURS, model))
    for model in models:
        places = [place for place, group in enumerate(variants.values()) if model in group]
        rows = [metrics(group[model].ranks, group[model].user_array) for group in variants.values() if model in group]
        ours = model.startswith(OURS)
        # A model whose users are all alike has an interval of no width, to rounding on either side.
        errors = [
            [max(row[NDCG] - row[f"{NDCG}_low"], 0.0) for row in rows],
            [max(row[f"{NDCG}_high"] - row[NDCG], 0.0) for row in rows],
        ]
        panel.errorbar(
            places,
            [row[NDCG] for row in rows],
            yerr=errors,
            label=model,
            marker="o",
            capsize=2,
            linewidth=2 if ours else 1,
            color=OUR_COLOUR if ours else None,
        )
    panel.set_xticks(range(len(variants)), [variant.replace(", ", ",\n") for variant in variants])
    panel.set_ylim(bottom=0)
    panel.set_ylabel(NDCG)
    panel.legend(fontsize=7, frameon=False)
