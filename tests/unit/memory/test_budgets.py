import pytest
from hypothesis import given, strategies as st

from aegis_pipe.errors import BudgetExceededError
from aegis_pipe.memory import (
    BudgetPart,
    DevicePlan,
    MemoryPlanner,
    ModelMemory,
    TensorLifetime,
    WorkspaceId,
    check_budget,
    check_device_budget,
    check_model_budget,
    check_staging_budget,
    savings,
)
from aegis_pipe.memory.budgets import format_size_at_least, live_at_peak, smallest_cause
from aegis_pipe.units import format_size
from tests.unit.memory.instances import lifetimes

MIB = 1 << 20

TENSORS = [
    TensorLifetime("stem.out", 30 * MIB, 0, 12),
    TensorLifetime("conv3.out", 40 * MIB, 12, 14),
    TensorLifetime("add2.out", 30 * MIB, 12, 13),
    TensorLifetime(WorkspaceId(12), MIB, 12, 13),
]
STEP_NAMES = [*(f"step{i}" for i in range(12)), "conv3", "last"]


def refusal(check, *arguments, **options):
    with pytest.raises(BudgetExceededError) as caught:
        check(*arguments, **options)
    return str(caught.value)


def test_what_fits_is_not_refused():
    check_budget(10, [BudgetPart("`a`", 4), BudgetPart("`b`", 6)])
    check_budget(0, [])


def test_a_model_is_refused_with_the_smallest_cause():
    plan = MemoryPlanner().plan(TENSORS)
    facts = {"lifetimes": TENSORS, "plan": plan, "step_names": STEP_NAMES}
    check_model_budget("detector", 71 * MIB, **facts)
    assert refusal(check_model_budget, "detector", 64 * MIB, **facts) == (
        "model `detector`: budget 64 MiB, needs 71 MiB at step 12 (`conv3`): "
        "`conv3.out` 40 MiB + `add2.out` 30 MiB\n"
        "  hint: raise `memory_budget` to 71 MiB for model `detector`"
    )
    assert refusal(check_model_budget, "detector", 32 * MIB, **facts).startswith(
        "model `detector`: budget 32 MiB, needs 71 MiB at step 12 (`conv3`): `conv3.out` 40 MiB\n"
    )


def test_weights_gaps_and_display_names_are_parts_too():
    plan = MemoryPlanner().plan(TENSORS)
    text = refusal(
        check_model_budget,
        "m",
        80 * MIB,
        lifetimes=TENSORS[3:],
        plan=plan,
        step_names=[],
        weights_bytes=10 * MIB,
        display_names={WorkspaceId(12): "scratch"},
    )
    assert text == (
        "model `m`: budget 80 MiB, needs 81 MiB at step 12: "
        "gaps of the plan 70 MiB + weights 10 MiB + `scratch` 1 MiB\n"
        "  hint: raise `memory_budget` to 81 MiB for model `m`"
    )


def test_a_difference_too_small_to_show_is_told_in_bytes():
    text = refusal(check_budget, 64 * MIB, [BudgetPart("`a`", 64 * MIB + 1)])
    assert text.startswith("budget 67108864 B, needs 67108865 B: ")
    assert text.endswith("raise `memory_budget` to 65 MiB")


@given(st.lists(st.integers(0, 50), min_size=1), st.integers(0, 100))
def test_no_smaller_set_exceeds_the_budget(sizes, budget):
    parts = [BudgetPart(str(i), size) for i, size in enumerate(sizes)]
    cause = smallest_cause(budget, parts)
    if sum(sizes) > budget:
        assert sum(part.size_bytes for part in cause) > budget
        largest = sorted(sizes)[::-1][: len(cause) - 1]
        assert sum(largest) <= budget


@given(lifetimes())
def test_the_peak_step_is_the_first_fullest(tensors):
    step, alive = live_at_peak(tensors)
    problem_peak = sum(each.size_bytes for each in alive)
    for moment in range(-5, 40):
        total = sum(x.size_bytes for x in tensors if x.first <= moment < x.end)
        assert total < problem_peak or (total == problem_peak and moment >= step) or not total


@given(st.integers(0, 1 << 45))
def test_a_size_rounded_up_is_enough_and_exact(size):
    number, unit = format_size_at_least(size).split()
    scale = 1024 ** ["B", "KiB", "MiB", "GiB", "TiB"].index(unit)
    assert size <= float(number) * scale < size + scale


def two_models():
    return [
        ModelMemory("detector", {"w1": 100 * MIB, "shared": 50 * MIB}, 40 * MIB, 2 * MIB),
        ModelMemory("classifier", {"shared": 50 * MIB, "w2": 10 * MIB}, 30 * MIB, MIB),
    ]


def test_a_device_stores_weights_once_and_an_arena_per_stream():
    plan = DevicePlan.build(two_models(), stream_count=2)
    assert plan.weights_bytes == 160 * MIB
    assert plan.weights_offsets == {"w1": 0, "shared": 100 * MIB, "w2": 150 * MIB}
    assert (plan.arena_bytes, plan.arenas[0].models) == (40 * MIB, ("detector",))
    assert plan.total_bytes == (160 + 2 * 40) * MIB
    assert plan.separate_bytes == (210 + 2 * 70) * MIB
    assert plan.saved_bytes == 110 * MIB
    assert sum(part.size_bytes for part in plan.parts) == plan.total_bytes
    assert [str(part) for part in plan.parts] == [
        "weights of `detector` 150 MiB",
        "weights of `classifier` 10 MiB",
        "arena of stream 0 (set by `detector`) 40 MiB",
        "arena of stream 1 (set by `detector`) 40 MiB",
    ]
    assert plan.staging_bytes == 2 * 2 * MIB
    assert [str(part) for part in plan.staging_parts] == [
        "staging of stream 0 (set by `detector`) 2 MiB",
        "staging of stream 1 (set by `detector`) 2 MiB",
    ]


def test_inputs_of_one_request_more_than_streams_have_are_planned():
    models = [
        ModelMemory("small", {}, 0, 2 * MIB, staging_ahead_bytes=MIB),
        ModelMemory("large", {}, 0, 8 * MIB, staging_ahead_bytes=3 * MIB),
    ]
    plan = DevicePlan.build(models, stream_count=2)
    assert plan.staging_bytes == (2 * 8 + 3 * 3) * MIB
    assert [str(part) for part in plan.staging_parts] == [
        "staging of stream 0 (set by `large`) 8 MiB",
        "staging of stream 1 (set by `large`) 8 MiB",
        "staging of the next 3 requests (set by `large`) 9 MiB",
    ]
    assert (plan.staging_ahead.parts, plan.staging_ahead.part_bytes) == (3, 3 * MIB)


def test_alignment_gaps_are_counted_and_named():
    models = [ModelMemory("m", {"a": 10, "b": 10}, 100)]
    plan = DevicePlan.build(models, stream_count=1, alignment_bytes=64)
    assert plan.weights_offsets == {"a": 0, "b": 64}
    assert (plan.weights_bytes, plan.arena_bytes) == (74, 128)
    assert BudgetPart("gaps for alignment", 54) in plan.parts
    assert sum(part.size_bytes for part in plan.parts) == plan.total_bytes


def test_no_models_need_nothing():
    plan = DevicePlan.build([], stream_count=4)
    assert (plan.total_bytes, plan.saved_bytes, plan.parts) == (0, 0, ())


def test_a_device_is_refused_with_both_ways_out():
    plan = DevicePlan.build(two_models(), stream_count=4)
    check_device_budget(plan, plan.total_bytes)
    assert refusal(check_device_budget, plan, 256 * MIB, device="cpu") == (
        "device `cpu`: budget 256 MiB, needs 320 MiB: weights of `detector` 150 MiB"
        " + arena of stream 0 (set by `detector`) 40 MiB"
        " + arena of stream 1 (set by `detector`) 40 MiB"
        " + arena of stream 2 (set by `detector`) 40 MiB\n"
        "  hint: raise `memory_budget` to 320 MiB, or move model `detector` elsewhere, which "
        "saves 140 MiB, or lower `streams.count` to 2, which saves 80 MiB, or set "
        '`streams.affinity = "memory"` and `concurrency = 1` for model `detector`, which saves '
        "30 MiB (not enough alone)"
    )


def test_fewer_streams_are_not_offered_where_there_is_one():
    plan = DevicePlan.build(two_models(), stream_count=1)
    assert "streams" not in refusal(check_device_budget, plan, 100 * MIB)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (640, "640 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (71 * MIB, "71 MiB"),
        (3 * 512 * MIB, "1.5 GiB"),
        (1024 * MIB - 1, "1 GiB"),
        (1010 * MIB, "1010 MiB"),
        (123456789, "117.7 MiB"),
    ],
)
def test_sizes_as_people_write_them(size, text):
    assert format_size(size) == text


def test_groups_stand_side_by_side_in_an_arena():
    models = [
        ModelMemory("a", {}, 100, arena_group=0),
        ModelMemory("b", {}, 300, arena_group=0),
        ModelMemory("urgent", {}, 65, arena_group=10),
    ]
    plan = DevicePlan.build(models, stream_count=2, alignment_bytes=64)
    assert plan.arenas[0].offsets == {0: 0, 10: 320}
    assert plan.arena_bytes == 320 + 128
    assert plan.arenas[0].models == ("b", "urgent")
    assert plan.total_bytes == 2 * 448


def test_confined_models_make_arenas_smaller_and_share_the_last_streams():
    models = [
        ModelMemory("small", {}, 100),
        ModelMemory("large", {}, 300, streams_max=1),
        ModelMemory("medium", {}, 200, streams_max=2),
    ]
    plan = DevicePlan.build(models, stream_count=3)
    assert [arena.size_bytes for arena in plan.arenas] == [100, 200, 300]
    assert [list(plan.streams_of(each.model)) for each in models] == [[0, 1, 2], [2], [1, 2]]
    assert plan.arenas_bytes == plan.total_bytes == 600
    assert plan.separate_bytes == 3 * 100 + 300 + 2 * 200
    assert sum(part.size_bytes for part in plan.parts) == 600


def test_what_would_help_is_planned_again():
    models = [
        ModelMemory("large", {"a": 1000}, 300 * MIB),
        ModelMemory("small", {"b": 1000}, 100 * MIB),
    ]
    plan = DevicePlan.build(models, stream_count=2)
    assert [(way.name, way.size_bytes // MIB) for way in savings(plan, 350 * MIB)] == [
        ("move model `large` elsewhere", 400),
        ("lower `streams.count` to 1", 300),
        ('set `streams.affinity = "memory"` and `concurrency = 1` for model `large`', 200),
    ]
    words = refusal(check_device_budget, plan, 350 * MIB)
    assert "`concurrency = 1` for model `large`, which saves 200 MiB (not enough alone)" in words
    assert "lower `streams.count` to 1, which saves 300 MiB, or" in words


def test_staging_has_a_budget_of_its_own():
    plan = DevicePlan.build(two_models(), stream_count=4)
    check_staging_budget(plan, 8 * MIB)
    check_device_budget(plan, plan.total_bytes)
    assert refusal(check_staging_budget, plan, 5 * MIB, device="cuda:0") == (
        "host staging of device `cuda:0`: budget 5 MiB, needs 8 MiB: "
        "staging of stream 0 (set by `detector`) 2 MiB"
        " + staging of stream 1 (set by `detector`) 2 MiB"
        " + staging of stream 2 (set by `detector`) 2 MiB\n"
        "  hint: raise `staging_budget` to 8 MiB, or lower `streams.count` to 2, which saves "
        "4 MiB, or move model `detector` elsewhere, which saves 4 MiB, or set "
        '`streams.affinity = "memory"` and `concurrency = 1` for model `detector`, which saves '
        "3 MiB"
    )


def batches(rows_max):
    return [
        ModelMemory("net", {"w": MIB}, 10 * MIB, MIB),
        *(
            ModelMemory(
                f"net@{rows}", {"w": MIB}, rows * 10 * MIB, rows * MIB, variant_of="net", rows=rows
            )
            for rows in (2, 4, 8)
            if rows <= rows_max
        ),
    ]


@pytest.mark.parametrize(
    ("budget_mib", "rows", "saved_mib", "words"),
    [
        (70, 4, 40, "lower `batching.max_batch` to 4"),
        (25, 2, 60, "lower `batching.max_batch` to 2"),
        (12, 1, 70, "leave `batching` out"),
        (5, 1, 70, "leave `batching` out"),
    ],
)
def test_a_smaller_batch_is_offered_as_far_as_it_has_to_be(budget_mib, rows, saved_mib, words):
    plan = DevicePlan.build(batches(8), stream_count=1)
    smaller = DevicePlan.build(batches(rows), stream_count=1)
    assert plan.total_bytes - smaller.total_bytes == saved_mib * MIB
    alone = "" if budget_mib > 10 else " (not enough alone)"
    message = refusal(check_device_budget, plan, budget_mib * MIB)
    assert f"{words} for model `net`, which saves {saved_mib} MiB{alone}" in message
    assert "@" not in message.split("hint")[1]
    message = refusal(check_staging_budget, plan, 7 * MIB)
    assert "lower `batching.max_batch` to 4 for model `net`, which saves 4 MiB" in message
