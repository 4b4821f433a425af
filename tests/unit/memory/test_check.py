import itertools

import pytest
from hypothesis import given, settings, strategies as st

from aegis_pipe.memory import (
    AllocationPlan,
    LifetimeAnalyser,
    MemoryPlanner,
    MemoryStep,
    Part,
    TensorLifetime,
    WorkspaceId,
    assert_plan_is_sound,
    check_lifetimes,
    check_plan,
)
from tests.unit.memory.instances import lifetimes, programs, run_apart, run_in_arena

STEPS = (
    MemoryStep("relu", ("x",), ("a",), in_place=(("x", "a"),)),
    MemoryStep("conv", ("a",), ("b",), workspace_bytes=8),
    MemoryStep("reshape", ("b",), ("v",), views=(("b", "v"),)),
    MemoryStep("add", ("a", "v"), ("y",)),
)
SIZES = dict.fromkeys("xabvy", 8)
STORAGE_OF = {"x": "x", "a": "x", "b": "b", "v": "b", "y": "y"}
OFFSETS = {"x": 0, "b": 8, WorkspaceId(1): 16, "y": 16}


def allocation(offsets, peak=24):
    return AllocationPlan(offsets, peak, peak, "by hand")


def check(offsets=None, *, storage_of=None, peak=24, alignment=8, steps=STEPS):
    return check_plan(
        steps,
        SIZES,
        inputs=["x"],
        outputs=["y"],
        storage_of=storage_of or STORAGE_OF,
        plan=allocation({**OFFSETS, **(offsets or {})}, peak),
        alignment_bytes=alignment,
    )


def test_a_sound_plan_has_no_violations():
    assert check() == []


@pytest.mark.parametrize(
    ("offsets", "step", "tensor", "other", "words"),
    [
        ({"b": 0}, 1, "a", "b", "`conv` reads `a` at [0, 8) while it writes `b` at [0, 8)"),
        ({"y": 8}, 3, "v", "y", "`add` reads `v` at [8, 16) while it writes `y` at [8, 16)"),
        (
            {WorkspaceId(1): 0},
            1,
            "a",
            "workspace of `conv`",
            "`conv` reads `a` at [0, 8) while it writes workspace of `conv` at [0, 8)",
        ),
        (
            {WorkspaceId(1): 8},
            1,
            "b",
            "workspace of `conv`",
            "after `conv`, its writer, reads `b` at [8, 16), but [8, 16) holds workspace of `conv`",
        ),
        ({"y": 24}, 3, "y", "", "`y` takes [24, 32) of a block of 24 bytes"),
        ({"b": -8}, 1, "b", "", "`b` takes [-8, 0) of a block of 24 bytes"),
        ({"y": 12}, 3, "y", "", "`y` at 12 is not aligned to 8"),
    ],
)
def test_each_way_to_be_wrong_is_named_with_step_and_tensors(offsets, step, tensor, other, words):
    found = check(offsets)
    assert (step, tensor, other, words) in [
        (each.step, each.tensor, each.other, each.message) for each in found
    ]


def test_a_tensor_overwritten_between_two_steps_is_found_at_its_reader():
    steps = (
        MemoryStep("f", ("x",), ("a",)),
        MemoryStep("g", (), ("b",)),
        MemoryStep("h", ("a",), ("y",)),
    )
    found = check_plan(
        steps,
        SIZES,
        inputs=["x"],
        outputs=["y", "x"],
        storage_of={tensor: tensor for tensor in "xaby"},
        plan=allocation({"x": 0, "a": 8, "b": 12, "y": 0}),
    )
    assert [str(each) for each in found] == [
        "step 2: `h` reads `a` at [8, 16), but [12, 16) holds `b`",
        "step 3: the copy out reads `x` at [0, 8), but [0, 8) holds `y`",
    ]


def test_inputs_must_not_share_and_views_must_not_be_apart():
    found = check_plan(
        (),
        {"x": 8, "z": 8},
        inputs=["x", "z"],
        outputs=[],
        storage_of={"x": "x", "z": "x"},
        plan=allocation({"x": 0}),
    )
    assert [each.message for each in found] == [
        "the copy in reads `x` at [0, 8), but [0, 8) holds `z`"
    ]
    apart = check({"v": 0}, storage_of={**STORAGE_OF, "v": "v"})
    assert "`v` is a view of `b` but lies elsewhere" in [each.message for each in apart]


def test_a_view_of_a_constant_has_no_storage():
    step = MemoryStep("reshape", ("c",), ("v",), views=(("c", "v"),))
    facts = {"inputs": [], "outputs": ["v"], "plan": allocation({"v": 0})}
    assert check_plan([step], {"v": 8}, storage_of={}, **facts) == []
    found = check_plan([step], {"v": 8}, storage_of={"v": "v"}, **facts)
    assert found[0].message == "`v` is a view of constant `c` but has a storage"


JOINED = (
    MemoryStep("f", ("x",), ("a",)),
    MemoryStep("concat", ("a", "x"), ("d",), joins=(Part("d", "a", 0), Part("d", "x", 8))),
    MemoryStep("g", ("d",), ("y",)),
)


def check_joined(steps=JOINED, offset_of=None, **offsets):
    return [
        each.message
        for each in check_plan(
            steps,
            {**SIZES, "d": 16},
            inputs=["x"],
            outputs=["y"],
            storage_of={"a": "d", "x": "d", "d": "d", "y": "y"},
            offset_of={"x": 8} if offset_of is None else offset_of,
            plan=allocation({"d": 0, "y": 16, **offsets}),
            alignment_bytes=8,
        )
    ]


def test_what_nobody_moves_has_to_lie_in_place():
    assert check_joined() == []
    assert "`a` is part of `d` but lies elsewhere" in check_joined(offset_of={"a": 8})
    halfway = check_joined(offset_of={"x": 12}, y=24)
    assert "12 bytes into `d` is not aligned to 8" in halfway
    assert "`x` is part of `d` but lies elsewhere" in halfway


def test_a_part_overwritten_before_the_whole_is_read_is_found():
    steps = (JOINED[0], JOINED[1], MemoryStep("h", (), ("w",)), JOINED[2])
    found = check_plan(
        steps,
        {**SIZES, "d": 16, "w": 8},
        inputs=["x"],
        outputs=["y"],
        storage_of={"a": "d", "x": "d", "d": "d", "y": "y", "w": "w"},
        offset_of={"x": 8},
        plan=allocation({"d": 0, "y": 16, "w": 8}),
    )
    assert [str(each) for each in found] == [
        "step 3: `g` reads `d` at [0, 16), but [8, 16) holds `w`"
    ]


def test_a_join_with_a_gap_or_a_constant_is_found():
    gap = MemoryStep("concat", ("a",), ("d",), joins=(Part("d", "a", 0),))
    assert "8 bytes of `d` were never written" in check_joined((JOINED[0], gap, JOINED[2]))
    constant = MemoryStep("concat", ("k",), ("d",), joins=(Part("d", "k", 0),))
    found = check_joined((constant, JOINED[2]))
    assert found[0] == "constant `k` is part of `d`, but nobody writes it there"


def test_a_slice_of_the_wrong_bytes_is_found():
    step = MemoryStep("slice", ("w",), ("v",), parts=(Part("w", "v", 8),))

    def found(shift):
        return check_plan(
            [step],
            {"w": 16, "v": 8},
            inputs=["w"],
            outputs=["v"],
            storage_of={"w": "w", "v": "w"},
            offset_of={"v": shift},
            plan=allocation({"w": 0}),
        )

    assert found(8) == []
    assert found(0)[0].message == "`v` is a view of `w` but lies elsewhere"


def test_what_was_never_written_or_placed_is_found():
    facts = {"inputs": [], "outputs": ["y"]}
    step = MemoryStep("f", ("a",), ("y",))
    found = check_plan(
        [step], SIZES, storage_of={"a": "a", "y": "y"}, plan=allocation({"a": 0}), **facts
    )
    assert [each.message for each in found] == [
        "`f` reads `a` before it is written",
        "`f` reads `a` at [0, 8) while it writes `y` at [0, 8)",
        "`y` has no offset",
    ]
    found = check_plan([step], SIZES, storage_of={}, plan=allocation({}), **facts)
    assert [each.message for each in found] == ["`y` is written but has no storage"]


def test_a_view_larger_than_its_operand_reads_bytes_never_written():
    found = check_plan(
        [MemoryStep("view", ("x",), ("v",), views=(("x", "v"),))],
        {"x": 8, "v": 12},
        inputs=["x"],
        outputs=["v"],
        storage_of={"x": "x", "v": "x"},
        plan=allocation({"x": 0}),
    )
    assert found[-1].message == "4 bytes of `v` were never written"


def test_in_place_means_at_the_same_offset():
    step = MemoryStep("relu", ("x",), ("y",), in_place=(("x", "y"),))
    facts = {"inputs": ["x"], "outputs": ["y"], "storage_of": {"x": "x", "y": "y"}}
    assert check_plan([step], SIZES, plan=allocation({"x": 0, "y": 0}), **facts) == []
    found = check_plan([step], SIZES, plan=allocation({"x": 0, "y": 4}), **facts)
    assert [each.message for each in found] == [
        "`relu` reads `x` at [0, 8) while it writes `y` at [4, 12)"
    ]


def test_a_view_of_the_first_half_outlives_the_second_half():
    found = check_plan(
        [
            MemoryStep("view", ("x",), ("v",), views=(("x", "v"),)),
            MemoryStep("f", (), ("b",)),
            MemoryStep("g", ("v",), ("y",)),
        ],
        {**SIZES, "v": 4, "b": 4},
        inputs=["x"],
        outputs=["y", "b"],
        storage_of={"x": "x", "v": "x", "b": "b", "y": "y"},
        plan=allocation({"x": 0, "b": 4, "y": 8}),
    )
    assert found == []


def test_a_bad_plan_stops_the_load_even_without_asserts():
    with pytest.raises(AssertionError, match=r"has 2 violations.*\n.*while it writes `b`"):
        assert_plan_is_sound(
            STEPS[:2],
            SIZES,
            inputs=["x"],
            outputs=["a"],
            storage_of=STORAGE_OF,
            plan=allocation({**OFFSETS, "b": 0}),
        )


@st.composite
def programs_with_any_offsets(draw):
    program = draw(programs())
    analysis = LifetimeAnalyser().analyse(
        program.steps, program.sizes, inputs=program.inputs, outputs=program.outputs
    )
    grain = draw(st.sampled_from([1, 4, 8]))
    offsets = {
        each.tensor_id: draw(st.integers(0, 64 // grain)) * grain for each in analysis.lifetimes
    }
    return program, analysis, offsets


@settings(max_examples=400, deadline=None)
@given(programs_with_any_offsets())
def test_whatever_it_accepts_computes_the_same_bits(case):
    program, analysis, offsets = case
    violations = check_plan(
        analysis.steps,
        program.sizes,
        inputs=program.inputs,
        outputs=program.outputs,
        storage_of=analysis.storage_of,
        offset_of=analysis.offset_of,
        plan=allocation(offsets, 1024),
    )
    result = run_in_arena(program, analysis, offsets, 1024)
    if result != run_apart(program):
        assert violations


@given(lifetimes(max_count=8), st.data())
def test_the_sweep_agrees_with_all_pairs(tensors, data):
    offsets = {each.tensor_id: data.draw(st.integers(0, 3000)) for each in tensors}
    clash = any(
        one.first < other.end
        and other.first < one.end
        and offsets[one.tensor_id] < offsets[other.tensor_id] + other.size_bytes
        and offsets[other.tensor_id] < offsets[one.tensor_id] + one.size_bytes
        and one.size_bytes
        and other.size_bytes
        for number, one in enumerate(tensors)
        for other in tensors[:number]
    )
    found = check_lifetimes(tensors, allocation(offsets, 10**6))
    assert any("overlaps" in each.message for each in found) == clash


def test_the_sweep_names_both_and_the_step():
    tensors = [TensorLifetime("a", 10, 0, 5), TensorLifetime("b", 10, 3, 6)]
    found = check_lifetimes(tensors, allocation({"a": 0, "b": 8}))
    assert [str(each) for each in found] == ["step 3: `b` at [8, 18) overlaps `a` at [0, 10)"]
    assert (found[0].tensor, found[0].other) == ("b", "a")


def test_moving_any_live_tensor_onto_another_is_noticed():
    tensors = [TensorLifetime(str(i), 10 + i, i, i + 3) for i in range(12)]
    plan = MemoryPlanner().plan(tensors)
    for one, other in itertools.pairwise(tensors):
        offsets = {**plan.offsets, one.tensor_id: plan.offsets[other.tensor_id]}
        assert check_lifetimes(tensors, allocation(offsets, 10**6))
