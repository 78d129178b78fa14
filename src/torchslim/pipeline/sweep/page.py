"""The sweep on one offline page without scripts, and as a picture."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from markupsafe import Markup, escape

from torchslim.pipeline.sweep.result import COSTS, SweepResult, SweepTrial
from torchslim.report import style_sheet
from torchslim.utils.files import write_atomically
from torchslim.utils.formatting import NONE, format_count, format_metric, percent
from torchslim.utils.svg import coordinate, figure, join, percent_of, tag, ticks, y_axis

HEIGHT = 320.0
STYLE = """
.point circle { stroke: var(--panel); stroke-width: 1; }
.point text { display: none; }
.point:hover text, .point:focus text { display: block; }
.point:hover circle, .point:focus circle { stroke: var(--ink); stroke-width: 2; }
.point:focus { outline: none; }
.front td:last-child, .front th:last-child { text-align: left; }
"""


def render(result: SweepResult) -> str:
    """The page as text; equal results give equal pages."""
    front, count = result.front, len(result.trials)
    states = ", ".join(f"{sum(trial.state == state for trial in result.trials)} {state}"
                       for state in ("complete", "stopped", "failed"))
    cost = COSTS[result.objective]
    heading = f"{result.metric} against {cost}"
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    best = "" if result.best is None else f" Trial {result.best} was picked."
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(result.title)}: {escape(heading)}</title>
<link rel="icon" href="data:,">
<style>
{style_sheet()}{STYLE}</style>
</head>
<body>
<header><p class="eyebrow">{escape(result.title)}</p>
<h1>{escape(heading)}: <strong>{len(front)}</strong> of {count} trials on the front</h1></header>
<main>
<section class="panel">
<p class="legend"><span><span class="key phase-0"></span>on the front</span> <span><span class="key before"></span>\
complete</span> <span><span class="key removed"></span>stopped</span></p>
<figure>{_chart(result)}<figcaption>Each point is a trial; under the pointer, or with the keyboard's focus, it says \
its settings. {escape(result.metric)} is that on held-out data, {cost} are shares of the uncut network's.{best}\
</figcaption></figure>
</section>
<section class="panel"><h2>The front</h2>{_table(result, front)}</section>
<section class="panel"><h2>All trials</h2><p class="quiet">{states}.</p>{_table(result, list(result.trials))}</section>
</main>
<footer><p>Uncut: {escape(result.metric)} {format_metric(result.metric, result.baseline)}, \
{format_count(result.macs)} MACs, {format_count(result.params)} parameters.</p>
<pre>{escape(result.command)}</pre></footer>
</body>
</html>
"""


def _table(result: SweepResult, trials: list[SweepTrial]) -> Markup:
    heads = ("Trial", "State", result.metric, *(COSTS[name] for name in _costs(result)), "Settings")
    rows = join(tag("tr", tag("th", str(trial.number), scope="row") + join(tag("td", text) for text in (
        trial.state, format_metric(result.metric, trial.score),
        *(percent((trial.costs or {}).get(name)) for name in _costs(result)), trial.settings_text() or NONE)))
        for trial in trials)
    head = tag("tr", join(tag("th", head, scope="col") for head in heads))
    return tag("div", tag("table", tag("thead", head) + tag("tbody", rows), cls="front"), cls="wide", tabindex="0",
               role="region", aria_label="Trials as a table")


def _costs(result: SweepResult) -> list[str]:
    return list(dict.fromkeys([result.objective, "macs", "params"]))


def _shown(result: SweepResult) -> list[SweepTrial]:
    """Trials that have a place in the chart, those on the front last, so that they lie above the others."""
    front = {trial.number for trial in result.front}
    return sorted((trial for trial in result.trials if trial.state in ("complete", "stopped")
                   and trial.score is not None and trial.cost is not None),
                  key=lambda trial: (trial.number in front, trial.number))


def _chart(result: SweepResult) -> Markup:
    shown, front = _shown(result), result.front
    scores = [trial.score or 0.0 for trial in shown] + [result.baseline]
    steps = ticks(min(scores), max(scores))
    right = max([1.0, *(trial.cost or 0.0 for trial in shown)])

    def x(cost: float | None) -> str:
        return percent_of(cost or 0.0, right)

    def y(score: float | None) -> float:
        return HEIGHT * (steps[-1] - (score or 0.0)) / (steps[-1] - steps[0])

    line = "".join(f"{'L' if at else 'M'}{coordinate(1000 * (trial.cost or 0.0) / right)} {coordinate(y(trial.score))}"
                   for at, trial in enumerate(front))
    path = tag("svg", tag("path", cls="line phase-0", d=line), viewBox=f"0 0 1000 {coordinate(HEIGHT)}", width="100%",
               height=HEIGHT, preserveAspectRatio="none") if len(front) > 1 else Markup("")
    axis = join(tag("text", f"{step:.0%}", cls="tick", x=x(step), y=HEIGHT + 18, text_anchor="middle")
                for step in ticks(0.0, right) if step <= right)
    uncut = tag("line", cls="rule", x1=0, x2="100%", y1=y(result.baseline), y2=y(result.baseline)) + tag(
        "text", "uncut", cls="tick", x="100%", y=y(result.baseline) - 5, text_anchor="end")
    numbers = {trial.number for trial in front}
    points = join(_point(result, trial, trial.number in numbers, x(trial.cost), y(trial.score)) for trial in shown)
    body = y_axis(steps, lambda step: format_metric(result.metric, step), y) + axis + uncut + path + points
    return figure("front", f"{result.metric} against {COSTS[result.objective]}",
                  "; ".join(result.line(trial) for trial in front), HEIGHT + 70, body, cls="chart plot")


def _point(result: SweepResult, trial: SweepTrial, on_front: bool, x: str, y: float) -> Markup:
    colour = "phase-0" if on_front else "before" if trial.state == "complete" else "removed"
    first, _, settings = result.line(trial).rpartition("; ")
    texts = tag("text", first, x=0, y=HEIGHT + 42) + tag("text", settings, x=0, y=HEIGHT + 60)
    circle = tag("circle", tag("title", result.line(trial)), cls=colour, cx=x, cy=y,
                 r=8 if trial.number == result.best else 6 if on_front else 4)
    return tag("g", circle + texts, cls="point", tabindex="0")


def draw_png(result: SweepResult, path: Path) -> bool:
    """Draw the same by matplotlib; False if it is not installed."""
    if find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(8, 4.5), layout="constrained")
    axes = drawn.subplots()
    numbers = {trial.number for trial in result.front}
    groups: dict[str, list[SweepTrial]] = {
        "stopped": [trial for trial in _shown(result) if trial.state == "stopped"],
        "complete": [trial for trial in _shown(result) if trial.state == "complete" and trial.number not in numbers],
        "on the front": result.front}
    for (label, trials), colour, mark in zip(groups.items(), ("#d9730d", "#a9b4c1", "#0b6bb8"), ("o", "o", "o-"),
                                             strict=True):
        axes.plot([100 * (trial.cost or 0.0) for trial in trials], [trial.score or 0.0 for trial in trials], mark,
                  markersize=5, color=colour, label=label)
    for trial in result.front:
        axes.annotate(str(trial.number), (100 * (trial.cost or 0.0), trial.score or 0.0), xytext=(4, -12),
                      textcoords="offset points", fontsize=8)
    axes.axhline(result.baseline, color="#59636f", linestyle=":", label="uncut")
    axes.set_xlim(0, 100 * max([1.0, *(trial.cost or 0.0 for trial in _shown(result))]))
    axes.set(xlabel=f"{COSTS[result.objective]}, % of the uncut network's", ylabel=result.metric, title=result.title)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    write_atomically(path, lambda part: drawn.savefig(part, format="png", dpi=120, metadata={"Software": None}))
    return True
