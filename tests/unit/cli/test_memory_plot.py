import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from aegis_pipe.cli.memory_plot import ArenaDrawing, Budgets, draw_plan, write_plot
from aegis_pipe.errors import PermanentError
from aegis_pipe.memory import (
    DevicePlan,
    MemoryPlanner,
    ModelMemory,
    TensorLifetime,
    WorkspaceId,
    live_at_peak,
)

SVG = "{http://www.w3.org/2000/svg}"


def drawing(lifetimes):
    plan = MemoryPlanner(time_limit_s=0.1).plan(lifetimes)
    peak_step = live_at_peak(lifetimes)[0] if lifetimes else 0
    return ArenaDrawing("arena of `a`", lifetimes, plan, ["first"], peak_step)


def device():
    models = [ModelMemory("a", {"w": 700}, 300), ModelMemory("b", {"w": 700}, 200)]
    return DevicePlan.build(models, stream_count=2)


def rectangles(svg):
    for each in ElementTree.fromstring(svg).iter(f"{SVG}rect"):
        title = each.find(f"{SVG}title")
        if title is not None:
            place = tuple(float(each.get(key)) for key in ("x", "y", "width", "height"))
            yield title.text, place


@pytest.mark.parametrize("count", [0, 1, 20, 2000])
def test_every_tensor_has_a_rectangle_and_none_overlap(count):
    lifetimes = [TensorLifetime(f"<{i}>", 64 + i % 7, i, i + 1 + i % 5) for i in range(count)]
    svg = draw_plan("a & b", [drawing(lifetimes)], device(), Budgets(2000))
    drawn = {
        title.split("\n")[0]: place for title, place in rectangles(svg) if title.startswith("<")
    }
    assert sorted(drawn) == sorted(each.tensor_id for each in lifetimes)
    boxes = list(drawn.values())[:60]
    for number, (x, y, width, height) in enumerate(boxes):
        for left, top, wide, high in boxes[:number]:
            apart = 0.02  # coordinates are rounded to hundredths
            across = min(x + width, left + wide) - max(x, left) > apart
            assert not (across and min(y + height, top + high) - max(y, top) > apart)


def test_gaps_are_left_out_and_scratch_is_named():
    lifetimes = [
        TensorLifetime("kept", 64, 0, 9, gaps=((2, 4),)),
        TensorLifetime(WorkspaceId(5), 64, 5, 6),
    ]
    titles = [
        title.split("\n")[0]
        for title, _ in rectangles(draw_plan("x", [drawing(lifetimes)], device(), Budgets()))
    ]
    assert titles.count("kept") == 2
    assert "workspace of step 5" in titles


def test_the_bar_shows_the_total_against_the_budget():
    svg = draw_plan("x", [], device(), Budgets(1500))
    widths = {t: place[2] for t, place in rectangles(svg) if place[3] == 36}
    total, parts = device().total_bytes, device().parts
    assert len(widths) == len(parts) == 3
    assert sum(widths.values()) == pytest.approx(1080 * total / 1500, abs=0.1)
    assert "budget 1.465 KiB" in svg


def test_staging_is_a_bar_of_its_own():
    models = [ModelMemory("a", {}, 300, 40), ModelMemory("b", {}, 200, 10)]
    plan = DevicePlan.build(models, stream_count=2)
    svg = draw_plan("x", [], plan, Budgets(staging_bytes=160))
    widths = {t: place[2] for t, place in rectangles(svg) if place[3] == 36}
    staged = [width for title, width in widths.items() if title.startswith("staging")]
    assert staged == pytest.approx([1080 * 40 / 160] * 2, abs=0.1)
    assert "host staging 80 B, budget 160 B" in svg
    assert "host staging 0 B, no budget" in draw_plan("x", [], device(), Budgets())


def test_html_holds_the_same_picture(tmp_path: Path):
    arenas = [drawing([TensorLifetime("x", 64, 0, 1)])]
    for name in ("plan.svg", "plan.html"):
        write_plot(tmp_path / name, "x", arenas, device(), Budgets())
    svg, page = ((tmp_path / name).read_text() for name in ("plan.svg", "plan.html"))
    assert svg.strip() in page
    assert not re.search(r"https?://(?!www\.w3\.org)", page)


def test_other_files_are_refused(tmp_path: Path):
    with pytest.raises(PermanentError, match=r"neither \.svg nor \.html"):
        write_plot(tmp_path / "plan.png", "x", [], device(), Budgets())
    with pytest.raises(PermanentError, match="can not be written"):
        write_plot(tmp_path / "none" / "plan.svg", "x", [], device(), Budgets())


def test_names_lose_their_middle_and_lie_over_the_lines():
    names = [f"/encoder/layer.{i}/attention/output_{i}" for i in range(8)]
    lifetimes = [TensorLifetime(name, 64, i, i + 1) for i, name in enumerate(names)]
    svg = draw_plan("x", [drawing(lifetimes)], device(), Budgets())
    texts = [each.text or "" for each in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    for number, name in enumerate(names):
        (label,) = [each for each in texts if "…" in each and each.endswith(f"output_{number}")]
        assert name.startswith(label.split("…")[0])
    assert svg.rindex("<title>peak:") < svg.index("output_0</text>")


def test_parts_of_a_bar_are_numbered_as_in_the_legend():
    svg = draw_plan("x", [], device(), Budgets(1500))
    texts = [each.text or "" for each in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    for number, part in enumerate(device().parts, start=1):
        assert {str(number), f"{number}  {part}"} <= set(texts)
