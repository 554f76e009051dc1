"""Draws the dashboard from a real Prometheus, without Grafana: `python -m deploy.monitoring.render URL PNG [MINUTES]`.

Each panel stands where Grafana would put it. A panel without data says so.
"""

import json
import re
import sys
import time
from typing import Any, Final

import httpx
import matplotlib as mpl

from deploy.monitoring.__main__ import HERE

mpl.use("agg")
import matplotlib.pyplot as plt

Panel = dict[str, Any]
Series = list[tuple[str, list[float], list[float]]]

WIDTH: Final = 24  # of Grafana's grid


def main(url: str, file: str, minutes: float = 5.0) -> None:
    panels = json.loads((HERE / "coatstream.json").read_text("utf-8"))["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = plt.figure(figsize=(20, rows * 0.38))
    with httpx.Client(base_url=url, timeout=30) as prometheus:
        for panel in panels:
            place = panel["gridPos"]
            left, bottom = place["x"] / WIDTH, 1 - (place["y"] + place["h"]) / rows
            if panel["type"] == "row":
                figure.text(left + 0.005, bottom + 0.2 / rows, panel["title"], weight="bold", size=13)
                continue
            inner = (left + 0.025, bottom + 0.6 / rows, place["w"] / WIDTH - 0.035, (place["h"] - 1.9) / rows)
            _draw(figure.add_axes(inner), panel, _series(prometheus, panel, minutes))
    figure.savefig(file, dpi=70)


def _series(prometheus: httpx.Client, panel: Panel, minutes: float) -> Series:
    now, found = time.time(), []
    for target in panel["targets"]:
        asked = {
            "query": target["expr"].replace("$namespace", ".*"),
            "start": now - minutes * 60,
            "end": now,
            "step": 2,
        }
        for result in prometheus.get("/api/v1/query_range", params=asked).json()["data"]["result"]:
            times, values = zip(*((moment - now, float(value)) for moment, value in result["values"]), strict=True)
            found.append((_legend(target["legendFormat"], result["metric"]), list(times), list(values)))
    return found


def _legend(form: str, labels: dict[str, str]) -> str:
    named = re.sub(r"\{\{(\w+)\}\}", lambda name: labels.get(name[1], ""), form).strip()
    return named or " ".join(value for key, value in labels.items() if key not in ("__name__", "job"))


def _draw(axes: Any, panel: Panel, series: Series) -> None:
    axes.set_title(panel["title"], size=10, loc="left")
    if panel["type"] == "timeseries" and series:
        for name, times, values in series:
            axes.plot(times, values, label=name, color="red" if name == "labels" else None)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=7)
        axes.legend(fontsize=7, loc="upper left")
        return
    axes.set_axis_off()
    lines = [f"{values[-1]:.3g}" if panel["type"] == "stat" else name for name, _, values in series] or ["no data"]
    size = 26 if panel["type"] == "stat" else 8
    axes.text(0.02, 0.5, "\n".join(lines[:12]), size=size, va="center", wrap=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(float, sys.argv[3:]))
