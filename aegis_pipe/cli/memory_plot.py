"""Draws a memory plan as SVG, or as an HTML page around it.

A bar for the device's total and one for host staging, each beside its budget, then a panel for
each model: steps to the right, offsets upwards, a rectangle for each storage. SVG is written here:
no plotting package is needed.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from aegis_pipe import units
from aegis_pipe.cli.tables import counted
from aegis_pipe.errors import PermanentError
from aegis_pipe.memory import AllocationPlan, BudgetPart, DevicePlan, TensorLifetime, WorkspaceId
from aegis_pipe.output_file import replace_file

_Scale = Callable[[float], float]

_WIDTH, _LEFT, _RIGHT = 1200, 96, 24
_PLOT_WIDTH = _WIDTH - _LEFT - _RIGHT
_PANEL_HEIGHT, _PANEL_TOP, _PANEL_BOTTOM = 280, 66, 44
# All light enough to be written on, and neighbours far apart.
_FILLS = (
    "#8fb8de", "#f6bd7f", "#93cf93", "#d7a9d3", "#f0e07a", "#7fcdc7", "#f4a6a6", "#c3b1e1",
    "#b7d98a", "#f2c4dc", "#a5c9f3", "#dcc39a",
)  # fmt: skip
_SCRATCH, _PEAK, _BOUND, _INK, _FAINT = "#c9c5c2", "#c8322f", "#1f2933", "#1f2933", "#5f6b76"
_GROUND = "#f0f3f7"
_LETTER_WIDTH = 6.2
"""Of the labels, in pixels."""


@dataclass(frozen=True, slots=True)
class ArenaDrawing:
    """What one panel shows."""

    title: str
    lifetimes: Sequence[TensorLifetime]
    plan: AllocationPlan
    step_names: Sequence[str]
    peak_step: int


class Budgets(NamedTuple):
    """What the bars are drawn against; None: no budget."""

    device_bytes: int | None = None
    staging_bytes: int | None = None


def write_plot(
    path: Path,
    title: str,
    arenas: Sequence[ArenaDrawing],
    device: DevicePlan,
    budgets: Budgets,
) -> None:
    """Write what the file's ending asks for: `.svg` or `.html`; PermanentError for others."""
    if path.suffix not in (".svg", ".html"):
        raise PermanentError(
            f"`{path.name}` ends in neither .svg nor .html",
            context="--plot",
            hint="name the file plan.svg or plan.html",
        )
    picture = draw_plan(title, arenas, device, budgets)
    replace_file(path, _page(title, picture) if path.suffix == ".html" else picture)


def draw_plan(
    title: str, arenas: Sequence[ArenaDrawing], device: DevicePlan, budgets: Budgets
) -> str:
    """Return the picture as one SVG document."""
    size = units.format_size
    body = [_text(_LEFT, 32, title, size=20, weight="bold")]
    heading = (
        f"device total {size(device.total_bytes)}, {_budget(budgets.device_bytes)}; "
        f"each model on its own {size(device.separate_bytes)}, saved {size(device.saved_bytes)}"
    )
    bar, top = _bar(heading, device.parts, budgets.device_bytes, top=64)
    body += bar
    heading = f"host staging {size(device.staging_bytes)}, {_budget(budgets.staging_bytes)}"
    bar, top = _bar(heading, device.staging_parts, budgets.staging_bytes, top + 20)
    body += bar
    for arena in arenas:
        body += _panel(arena, top)
        top += _PANEL_TOP + _PANEL_HEIGHT + _PANEL_BOTTOM
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" width="{_WIDTH}" '
        f'height="{top}" font-family="system-ui, sans-serif">\n'
        "<style>.t:hover{stroke:#000;stroke-width:2}</style>\n"
        f'<rect width="{_WIDTH}" height="{top}" fill="#ffffff"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _budget(budget_bytes: int | None) -> str:
    return "no budget" if budget_bytes is None else f"budget {units.format_size(budget_bytes)}"


def _bar(
    heading: str, parts: Sequence[BudgetPart], budget_bytes: int | None, top: int
) -> tuple[list[str], int]:
    """Return parts side by side against their budget, with a legend, and where it ends."""
    body = [_text(_LEFT, top, heading, size=14)]
    if not parts:
        return body, top + 20
    scale_bytes = max(sum(part.size_bytes for part in parts), budget_bytes or 0, 1)
    body.append(_ground(top + 14, 36))
    left = float(_LEFT)
    entries = []
    for number, part in enumerate(parts):
        width = part.size_bytes / scale_bytes * _PLOT_WIDTH
        fill = _FILLS[number % len(_FILLS)]
        body.append(_rectangle(left, top + 14, width, 36, fill, str(part)))
        entries.append((fill, f"{number + 1}  {part}"))
        if width >= 10 + len(str(number + 1)) * _LETTER_WIDTH:
            middle = left + width / 2
            body.append(_text(middle, top + 36, str(number + 1), 11, anchor="middle", over=True))
        left += width
    if budget_bytes is not None:
        mark = _LEFT + budget_bytes / scale_bytes * _PLOT_WIDTH
        body.append(_line(mark, top + 6, mark, top + 54, _PEAK, 2, _budget(budget_bytes)))
        anchor = "end" if mark > _WIDTH / 2 else "start"
        body.append(_text(mark, top + 2, "budget", 11, fill=_PEAK, anchor=anchor))
    legend, bottom = _legend(entries, top + 72)
    return [*body, *legend], bottom + 20


def _legend(entries: Iterable[tuple[str, str]], top: int) -> tuple[list[str], int]:
    body: list[str] = []
    left = float(_LEFT)
    for fill, label in entries:
        width = 22 + len(label) * _LETTER_WIDTH + 16
        if left > _LEFT and left + width > _WIDTH - _RIGHT:
            left, top = float(_LEFT), top + 20
        body.append(_rectangle(left, top - 10, 12, 12, fill, label))
        body.append(_text(left + 18, top, label, size=11, fill=_FAINT))
        left += width
    return body, top


def _panel(arena: ArenaDrawing, top: int) -> list[str]:
    plan = arena.plan
    steps = max((each.end for each in arena.lifetimes), default=1)
    start = min((each.first for each in arena.lifetimes), default=0)
    step_width = _PLOT_WIDTH / max(1, steps - start)
    height_bytes = max(plan.peak_bytes, 1)
    base = top + _PANEL_TOP + _PANEL_HEIGHT

    def at_step(step: float) -> float:
        return _LEFT + (step - start) * step_width

    def at_offset(offset: float) -> float:
        return base - offset / height_bytes * _PANEL_HEIGHT

    quality = "optimal" if plan.optimal else f"at most {plan.gap:.2%} above the optimum"
    tensors = counted(len(arena.lifetimes), "tensor")
    peak, bound = units.format_size(plan.peak_bytes), units.format_size(plan.lower_bound_bytes)
    body = [
        _text(_LEFT, top + 20, arena.title, size=15, weight="bold"),
        _text(
            _LEFT,
            top + 40,
            f"{tensors}, peak {peak}, lower bound {bound} ({quality}; {plan.algorithm})",
            size=12,
            fill=_FAINT,
        ),
        _ground(top + _PANEL_TOP, _PANEL_HEIGHT),
    ]
    rectangles, labels = _tensors(arena, at_step, at_offset)
    # Names are read over the lines.
    body += [*rectangles, *_marks(arena, at_step, at_offset, base), *labels]
    body += _axes(start, steps, plan.peak_bytes, at_step, at_offset, base)
    return body


def _tensors(
    arena: ArenaDrawing, at_step: _Scale, at_offset: _Scale
) -> tuple[list[str], list[str]]:
    """Return the rectangles, and the names of those that have room for one."""
    body, labels = [], []
    for number, each in enumerate(arena.lifetimes):
        offset = arena.plan.offsets[each.tensor_id]
        name = str(each.tensor_id)
        place = f"offset {offset}, steps {each.first} to {each.end - 1}"
        hover = f"{name}\n{units.format_size(each.size_bytes)}, {place}"
        scratch = isinstance(each.tensor_id, WorkspaceId)
        fill = _SCRATCH if scratch else _FILLS[number % len(_FILLS)]
        y = at_offset(offset + each.size_bytes)
        height = at_offset(offset) - y
        for first, end in _stretches(each):
            x, width = at_step(first), at_step(end) - at_step(first)
            body.append(_rectangle(x, y, width, height, fill, hover))
            if height >= 13 and width >= 56:
                label = _shortened(name, int((width - 8) / _LETTER_WIDTH))
                label_y = y + min(height, 16) - 4
                labels.append(_text(x + 4, label_y, label, 11, over=True, halo=fill))
    return body, labels


def _shortened(name: str, letters: int) -> str:
    """Return a name with its middle left out: names of a model begin alike."""
    if len(name) <= letters:
        return name
    tail = max(1, 2 * (letters - 1) // 3)
    return name[: letters - 1 - tail] + "…" + name[-tail:]


def _stretches(lifetime: TensorLifetime) -> list[tuple[int, int]]:
    edges = [lifetime.first, *(edge for gap in lifetime.gaps for edge in gap), lifetime.end]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _marks(arena: ArenaDrawing, at_step: _Scale, at_offset: _Scale, base: int) -> list[str]:
    """Return the peak step and the lower bound."""
    step, bound_bytes = arena.peak_step, arena.plan.lower_bound_bytes
    name = arena.step_names[step] if step < len(arena.step_names) else ""
    middle = at_step(step + 0.5)
    label = f"peak: step {step}" + (f", {name}" if name else "")
    label = _shortened(label, 90)
    on_right = middle > _WIDTH / 2
    bound = at_offset(bound_bytes)
    return [
        _line(middle, base - _PANEL_HEIGHT - 4, middle, base, _PEAK, 1.5, label, dashed=True),
        _text(
            middle + (-6 if on_right else 6),
            base - _PANEL_HEIGHT - 6,
            label,
            size=11,
            fill=_PEAK,
            anchor="end" if on_right else "start",
        ),
        _line(_LEFT, bound, _LEFT + _PLOT_WIDTH, bound, _BOUND, 1.5, "lower bound", dashed=True),
    ]


def _axes(
    start: int, steps: int, peak_bytes: int, at_step: _Scale, at_offset: _Scale, base: int
) -> list[str]:
    body = []
    for offset in _offset_ticks(peak_bytes):
        y = at_offset(offset)
        body.append(_line(_LEFT - 4, y, _LEFT, y, _FAINT, 1, ""))
        size = units.format_size(offset)
        body.append(_text(_LEFT - 8, y + 4, size, size=11, fill=_FAINT, anchor="end"))
    every = _tick_distance(steps - start)
    for step in range(-(-start // every) * every, steps, every):
        x = at_step(step + 0.5)
        body.append(_text(x, base + 16, str(step), size=11, fill=_FAINT, anchor="middle"))
    body.append(_text(_LEFT + _PLOT_WIDTH / 2, base + 34, "step", 11, fill=_FAINT, anchor="middle"))
    return body


def _offset_ticks(peak_bytes: int) -> list[int]:
    """Return the peak, and round sizes below it that leave its label room."""
    distance = 1
    while 5 * distance < peak_bytes:
        distance *= 2
    return [*range(0, round(0.94 * peak_bytes), distance), peak_bytes]


def _tick_distance(steps: int) -> int:
    """Return the smallest of 1, 2, 5, 10, 20, ... that leaves a dozen ticks or fewer."""
    distances = (int(digit * 10**power) for power in itertools.count() for digit in (1, 2, 5))
    return next(distance for distance in distances if steps <= 12 * distance)


def _rectangle(x: float, y: float, width: float, height: float, fill: str, hover: str) -> str:
    # Borders would hide what is thin.
    border = ' stroke="#ffffff" stroke-width="0.6"' if min(width, height) >= 4 else ""
    return (
        f'<rect class="t" x="{x:.2f}" y="{y:.2f}" width="{max(width, 0.4):.2f}" '
        f'height="{max(height, 0.4):.2f}" fill="{fill}"{border}>'
        f"<title>{html.escape(hover)}</title></rect>"
    )


def _line(
    x1: float, y1: float, x2: float, y2: float, stroke: str, width: float, hover: str,
    *, dashed: bool = False,
) -> str:  # fmt: skip
    dashes = ' stroke-dasharray="6 4"' if dashed else ""
    return (
        f'<line x1="{x1:.2f}" y1="{y1:.2f}" x2="{x2:.2f}" y2="{y2:.2f}" stroke="{stroke}" '
        f'stroke-width="{width}"{dashes}><title>{html.escape(hover)}</title></line>'
    )


def _text(
    x: float, y: float, text: str, size: int, *, fill: str = _INK, weight: str = "normal",
    anchor: str = "start", over: bool = False, halo: str = "",
) -> str:  # fmt: skip
    through = ' pointer-events="none"' if over else ""
    around = f' stroke="{halo}" stroke-width="3" paint-order="stroke"' if halo else ""
    return (
        f'<text x="{x:.2f}" y="{y:.2f}" font-size="{size}" fill="{fill}" font-weight="{weight}" '
        f'text-anchor="{anchor}"{through}{around}>{html.escape(text)}</text>'
    )


def _ground(top: float, height: float) -> str:
    return f'<rect x="{_LEFT}" y="{top}" width="{_PLOT_WIDTH}" height="{height}" fill="{_GROUND}"/>'


def _page(title: str, picture: str) -> str:
    """Return a page whose tooltip follows the pointer; without scripts the titles still show."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}: memory plan</title>
<style>
body {{ margin: 0; background: #fff; }}
svg {{ max-width: 100%; height: auto; display: block; margin: auto; }}
#tip {{ position: fixed; display: none; padding: 6px 9px; background: #1f2933; color: #fff;
  font: 12px/1.4 system-ui, sans-serif; white-space: pre; pointer-events: none;
  border-radius: 4px; }}
</style></head><body>
{picture}
<div id="tip"></div>
<script>
const tip = document.getElementById("tip");
for (const each of document.querySelectorAll("rect.t")) {{
  const title = each.querySelector("title"), words = title.textContent;
  title.remove();
  each.addEventListener("mousemove", event => {{
    tip.textContent = words;
    tip.style.display = "block";
    tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 4) + "px";
    tip.style.top = Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 4) + "px";
  }});
  each.addEventListener("mouseleave", () => {{ tip.style.display = "none"; }});
}}
</script></body></html>
"""
