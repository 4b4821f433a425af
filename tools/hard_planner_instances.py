"""Write hard instances for the planner that are known to fit: planned ones, changed.

Every instance of a folder that has a capacity is planned; its plan is a picture of rectangles, and
whatever is done to the picture that keeps them apart gives another instance of the same capacity:

- `stretch`: heights are changed, by a monotone map of offsets;
- `split`: some buffers are cut in two, over time or by size;
- `grow`: buffers take up what is free beside and above them;
- `fill`: all that is free becomes buffers;
- `join`: a stretch of time of one picture beside one of another, some buffers joined at the seam;
- `stack`: two pictures, one on top of the other, each of half the height;
- `slices`: a full rectangle, cut at random; there is no waste at all.

Each is turned back to front in time every other time, and its buffers are shuffled.

    python tools/hard_planner_instances.py INSTANCES FOLDER --count 6
    python tools/bench_planner.py FOLDER
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from aegis_pipe.memory import MemoryPlanner, TensorLifetime

GRAIN = 1024
"""Sizes are multiples of it, as in the instances that this starts from."""


class Rectangle(NamedTuple):
    """A planned buffer."""

    first: int
    end: int
    low: int
    high: int


Picture = list[Rectangle]
Change = Callable[[random.Random, list[Picture], int], Picture]


def main() -> None:
    """Parse the arguments, plan, change, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("instances", type=Path, help="folder with instances as *.json")
    parser.add_argument("folder", type=Path, help="where to write the new ones")
    parser.add_argument("--count", type=int, default=6, help="instances of each kind")
    arguments = parser.parse_args()
    sources = [json.loads(path.read_text()) for path in sorted(arguments.instances.glob("*.json"))]
    sources = [each for each in sources if each["capacity"] and each["capacity"] % GRAIN == 0]
    capacity = min(each["capacity"] for each in sources)
    pictures = [picture_of(each) for each in sources if each["capacity"] == capacity]
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for kind, change in CHANGES.items():
        for seed in range(arguments.count):
            # Seeded by text, which is hashed alike in every process.
            generator = random.Random(f"{kind} {seed}")
            first = seed % len(pictures)
            picture = change(generator, pictures[first:] + pictures[:first], capacity)
            assert_is_apart(picture, capacity)
            instance = instance_of(generator, f"{kind}-{seed}", picture, capacity, seed % 2 == 1)
            path = arguments.folder / f"{kind}-{seed}.json"
            path.write_text(json.dumps(instance, indent=1) + "\n")


def picture_of(instance: dict[str, object]) -> Picture:
    """Plan an instance within its capacity."""
    lifetimes = [
        TensorLifetime(each["id"], each["size"], each["start"], each["end"], instance["alignment"])
        for each in instance["buffers"]  # type: ignore[attr-defined]
    ]
    capacity: int = instance["capacity"]  # type: ignore[assignment]
    plan = MemoryPlanner(capacity, 60.0).plan(lifetimes)
    assert plan.peak_bytes <= capacity, f"{instance['name']} is not planned within its capacity"
    return [
        Rectangle(each.first, each.end, low, low + each.size_bytes)
        for each, low in zip(lifetimes, plan.offsets.values(), strict=True)
    ]


def instance_of(
    generator: random.Random, name: str, picture: Picture, capacity: int, backwards: bool
) -> dict[str, object]:
    """Forget where everything lies."""
    end = max(each.end for each in picture)
    spans = [
        (end - each.end, end - each.first, each.high - each.low)
        if backwards
        else (each.first, each.end, each.high - each.low)
        for each in picture
    ]
    generator.shuffle(spans)
    buffers = [
        {"id": f"b{number}", "start": first, "end": last, "size": size}
        for number, (first, last, size) in enumerate(spans)
    ]
    return {"name": name, "capacity": capacity, "alignment": 1, "buffers": buffers}


def stretch(generator: random.Random, pictures: list[Picture], capacity: int) -> Picture:
    """Let every strip between two edges keep a grain, and deal out the rest anew."""
    picture = pictures[0]
    edges = sorted({0, capacity, *(y for each in picture for y in (each.low, each.high))})
    cuts = sorted(generator.sample(edges[1:-1], min(12, len(edges) - 2)))
    factor = {0: generator.uniform(0.6, 1.4)} | {cut: generator.uniform(0.6, 1.4) for cut in cuts}
    heights, current = [], factor[0]
    for low, high in itertools.pairwise(edges):
        current = factor.get(low, current)
        heights.append(current * (high - low))
    grains = capacity // GRAIN - len(heights)
    moved, total, so_far = {0: 0}, sum(heights), 0.0
    for number, (edge, height) in enumerate(zip(edges[1:], heights, strict=True), start=1):
        so_far += height
        moved[edge] = (number + round(so_far / total * grains)) * GRAIN
    return [each._replace(low=moved[each.low], high=moved[each.high]) for each in picture]


def split(generator: random.Random, pictures: list[Picture], capacity: int) -> Picture:
    """Cut a sixth of the buffers."""
    picture: Picture = []
    for each in pictures[0]:
        if generator.random() > 1 / 6:
            picture.append(each)
        elif generator.random() < 0.5 and each.high - each.low >= 2 * GRAIN:
            cut = generator.randrange(each.low + GRAIN, each.high, GRAIN)
            picture += [each._replace(high=cut), each._replace(low=cut)]
        elif each.end - each.first >= 2:
            cut = generator.randrange(each.first + 1, each.end)
            picture += [each._replace(end=cut), each._replace(first=cut)]
        else:
            picture.append(each)
    return picture


def grow(generator: random.Random, pictures: list[Picture], capacity: int) -> Picture:
    """Let every other buffer grow in one direction, as far as it may."""
    picture = list(pictures[0])
    start, end = min(each.first for each in picture), max(each.end for each in picture)
    for number in generator.sample(range(len(picture)), len(picture) // 2):
        own = picture[number]
        others = picture[:number] + picture[number + 1 :]
        beside = [each for each in others if each.low < own.high and own.low < each.high]
        along = [each for each in others if each.first < own.end and own.first < each.end]
        direction = generator.randrange(3)
        if direction == 0:
            limit = min((each.first for each in beside if each.first >= own.end), default=end)
            picture[number] = own._replace(end=limit)
        elif direction == 1:
            limit = max((each.end for each in beside if each.end <= own.first), default=start)
            picture[number] = own._replace(first=limit)
        else:
            limit = min((each.low for each in along if each.low >= own.high), default=capacity)
            picture[number] = own._replace(high=limit)
    return picture


def fill(generator: random.Random, pictures: list[Picture], capacity: int) -> Picture:
    """Turn what is free into buffers as wide as they can be, then as high."""
    picture = list(pictures[0])
    moments = sorted({x for each in picture for x in (each.first, each.end)})
    edges = sorted({0, capacity, *(y for each in picture for y in (each.low, each.high))})
    columns, rows = range(len(moments) - 1), range(len(edges) - 1)
    column_of = {x: number for number, x in enumerate(moments)}
    row_of = {y: number for number, y in enumerate(edges)}
    taken = {
        (column, row)
        for each in picture
        for column in range(column_of[each.first], column_of[each.end])
        for row in range(row_of[each.low], row_of[each.high])
    }
    for row in rows:
        for column in columns:
            if (column, row) in taken:
                continue
            end, top = column + 1, row + 1
            while end in columns and (end, row) not in taken:
                end += 1
            while top in rows and not any((x, top) in taken for x in range(column, end)):
                top += 1
            taken |= {(x, y) for x in range(column, end) for y in range(row, top)}
            picture.append(Rectangle(moments[column], moments[end], edges[row], edges[top]))
    return picture


def join(generator: random.Random, pictures: list[Picture], capacity: int) -> Picture:
    """Put two stretches of time side by side; buffers that can be joined at the seam are."""
    left = _window(generator, pictures[0])
    right = _window(generator, generator.choice(pictures[1:]))
    seam = max(each.end for each in left)
    right = [each._replace(first=each.first + seam, end=each.end + seam) for each in right]
    for each in [one for one in left if one.end == seam]:
        touching = [
            one
            for one in right
            if one.first == seam and one.low < each.high and each.low < one.high
        ]
        inside = [one for one in touching if one.low <= each.low and each.high <= one.high]
        if inside:
            end = generator.randrange(seam, inside[0].end)
            cut = [inside[0]._replace(high=each.low), inside[0]._replace(low=each.high)]
            if end > seam:
                right.remove(inside[0])
                left[left.index(each)] = each._replace(end=end)
                right += [one for one in cut if one.low < one.high]
                right.append(inside[0]._replace(low=each.low, high=each.high, first=end))
    return left + right


def _window(generator: random.Random, picture: Picture) -> Picture:
    moments = sorted({each.first for each in picture})
    start = moments[generator.randrange(len(moments) // 3)]
    end = moments[-1 - generator.randrange(len(moments) // 3)]
    return [
        each._replace(first=max(each.first, start) - start, end=min(each.end, end) - start)
        for each in picture
        if each.first < end and start < each.end
    ]


def stack(generator: random.Random, pictures: list[Picture], capacity: int) -> Picture:
    """Put one picture on top of another; the shorter one's time is stretched."""
    below, above = pictures[0], generator.choice(pictures[1:])
    width = max(each.end for each in below)
    factor = width / max(each.end for each in above)
    half = capacity // 2
    picture = [each._replace(low=each.low // 2, high=each.high // 2) for each in below]
    for each in above:
        first, end = round(each.first * factor), round(each.end * factor)
        if first < end:
            picture.append(Rectangle(first, end, half + each.low // 2, half + each.high // 2))
    return picture


def slices(generator: random.Random, pictures: list[Picture], capacity: int) -> Picture:
    """Cut a rectangle until there are enough pieces; the larger ones are cut more often."""
    picture = [Rectangle(0, 100, 0, capacity)]
    count = generator.randrange(60, 200)
    while len(picture) < count:
        some = generator.sample(picture, min(3, len(picture)))
        each = max(some, key=lambda one: (one.end - one.first) * (one.high - one.low))
        if generator.random() < 0.5 and each.end - each.first >= 2:
            cut = generator.randrange(each.first + 1, each.end)
            picture += [each._replace(end=cut), each._replace(first=cut)]
        elif each.high - each.low >= 2 * GRAIN:
            cut = generator.randrange(each.low + GRAIN, each.high, GRAIN)
            picture += [each._replace(high=cut), each._replace(low=cut)]
        else:
            continue
        picture.remove(each)
    return picture


CHANGES: dict[str, Change] = {
    "stretch": stretch,
    "split": split,
    "grow": grow,
    "fill": fill,
    "join": join,
    "stack": stack,
    "slices": slices,
}


def assert_is_apart(picture: Picture, capacity: int) -> None:
    """See that no two rectangles overlap and all lie within the capacity."""
    for number, each in enumerate(picture):
        assert each.first < each.end, each
        assert 0 <= each.low < each.high <= capacity, each
        for other in picture[:number]:
            together = each.first < other.end and other.first < each.end
            assert not (together and each.low < other.high and other.low < each.high), (each, other)


if __name__ == "__main__":
    main()
