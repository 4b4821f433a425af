import pytest
from hypothesis import given, settings

from aegis_pipe.memory import (
    LifetimeAnalyser,
    MemoryPlanner,
    MemoryStep,
    Part,
    TensorLifetime,
    WorkspaceId,
    check_lifetimes,
    check_plan,
)
from tests.unit.memory.instances import programs, run_apart, run_in_arena


def analyse(steps, sizes, inputs=(), outputs=(), alignment=1):
    return LifetimeAnalyser(alignment).analyse(steps, sizes, inputs=inputs, outputs=outputs)


def intervals(analysis):
    return {each.tensor_id: (each.first, each.end) for each in analysis.storages}


def unary(name, operand, result, **options):
    return MemoryStep(name, (operand,), (result,), **options)


def in_place(name, operand, result):
    return unary(name, operand, result, in_place=((operand, result),))


def view(operand, result):
    return unary("view", operand, result, views=((operand, result),))


@settings(max_examples=400, deadline=None)
@given(programs())
def test_running_in_the_arena_gives_the_same_bits(program):
    analysis = analyse(program.steps, program.sizes, program.inputs, program.outputs, 8)
    plan = MemoryPlanner(time_limit_s=0.01).plan(analysis.lifetimes)
    assert check_lifetimes(analysis.lifetimes, plan) == []
    violations = check_plan(
        analysis.steps,
        program.sizes,
        inputs=program.inputs,
        outputs=program.outputs,
        storage_of=analysis.storage_of,
        offset_of=analysis.offset_of,
        plan=plan,
        alignment_bytes=8,
    )
    assert violations == []
    result = run_in_arena(program, analysis, plan.offsets, plan.peak_bytes)
    assert result == run_apart(program)


@given(programs())
def test_sharing_never_costs_memory(program):
    apart = tuple(
        MemoryStep(step.name, step.reads, step.writes, step.workspace_bytes, views=step.views)
        for step in program.steps
    )
    facts = (program.sizes, program.inputs, program.outputs)
    shared = MemoryPlanner(time_limit_s=0).plan(analyse(program.steps, *facts).lifetimes)
    alone = MemoryPlanner(time_limit_s=0).plan(analyse(apart, *facts).lifetimes)
    assert shared.lower_bound_bytes <= alone.lower_bound_bytes


def test_a_chain_lives_from_write_to_last_read():
    steps = [unary("f", "x", "a"), unary("g", "a", "b"), unary("h", "b", "y")]
    analysis = analyse(steps, dict.fromkeys("xaby", 8), ["x"], ["y"], 64)
    assert intervals(analysis) == {"x": (0, 1), "a": (0, 2), "b": (1, 3), "y": (2, 3)}
    assert analysis.storages[0] == TensorLifetime("x", 8, 0, 1, 64)


def test_an_output_lives_to_the_end_and_an_unread_result_for_its_step():
    steps = [MemoryStep("f", ("x",), ("y", "unused")), unary("g", "x", "z"), unary("h", "z", "w")]
    analysis = analyse(steps, dict.fromkeys(["x", "y", "unused", "z", "w"], 8), ["x"], ["y"])
    assert intervals(analysis)["y"] == (0, 3)
    assert intervals(analysis)["unused"] == (0, 1)
    assert intervals(analysis)["w"] == (2, 3)


def test_an_unused_input_and_a_graph_without_steps_still_have_a_moment():
    assert intervals(analyse([], {"x": 4, "u": 4}, ["x", "u"], ["x"])) == {
        "x": (0, 1),
        "u": (0, 1),
    }


def test_in_place_results_join_the_storage_of_the_operand_that_dies():
    steps = [in_place("relu", "x", "a"), in_place("tanh", "a", "y")]
    analysis = analyse(steps, {"x": 8, "a": 8, "y": 8}, ["x"], ["y"])
    assert analysis.storage_of == {"x": "x", "a": "x", "y": "x"}
    assert intervals(analysis) == {"x": (0, 2)}


@pytest.mark.parametrize(
    ("later", "outputs"),
    [
        ([unary("late", "a", "z")], ["y"]),  # the operand is read later
        ([view("a", "v"), unary("late", "v", "z")], ["y"]),  # through a view made later
        ([], ["y", "a"]),  # the operand is an output
        ([view("a", "v")], ["y", "v"]),  # a view of it is
    ],
)
def test_an_operand_still_needed_is_not_overwritten(later, outputs):
    steps = [unary("f", "x", "a"), in_place("g", "a", "y"), *later]
    sizes = dict.fromkeys(["x", "a", "y", "z", "v"], 8)
    analysis = analyse(steps, sizes, ["x"], outputs)
    assert analysis.storage_of["y"] == "y"


def test_an_alias_made_earlier_and_read_later_keeps_the_storage():
    steps = [unary("f", "x", "a"), view("a", "v"), in_place("g", "a", "y"), unary("h", "v", "z")]
    analysis = analyse(steps, dict.fromkeys("xavyz", 8), ["x"], ["y", "z"])
    assert analysis.storage_of["v"] == "a"
    assert analysis.storage_of["y"] == "y"
    assert intervals(analysis)["a"] == (0, 4)


def test_in_place_wants_a_storage_large_enough():
    analysis = analyse([in_place("grow", "x", "y")], {"x": 8, "y": 9}, ["x"], ["y"])
    assert analysis.storage_of["y"] == "y"
    analysis = analyse([in_place("shrink", "x", "y")], {"x": 9, "y": 8}, ["x"], ["y"])
    assert analysis.storage_of["y"] == "x"


def test_an_operand_read_twice_is_overwritten_only_if_both_positions_allow_it():
    sizes = {"x": 8, "y": 8}
    once = MemoryStep("f", ("x", "x"), ("y",), in_place=(("x", "y"),))
    assert analyse([once], sizes, ["x"], ["y"]).storage_of["y"] == "y"
    twice = MemoryStep("f", ("x", "x"), ("y",), in_place=(("x", "y"), ("x", "y")))
    assert analyse([twice], sizes, ["x"], ["y"]).storage_of["y"] == "x"


def test_an_alias_among_the_operands_counts_as_read():
    step = MemoryStep("f", ("x", "v"), ("y",), in_place=(("x", "y"),))
    analysis = analyse([view("x", "v"), step], {"x": 8, "v": 8, "y": 8}, ["x"], ["y"])
    assert analysis.storage_of["y"] == "y"


def test_two_results_do_not_share_one_operand():
    step = MemoryStep("split", ("x",), ("y", "z"), in_place=(("x", "y"), ("x", "z")))
    analysis = analyse([step], dict.fromkeys("xyz", 8), ["x"], ["y", "z"])
    assert analysis.storage_of == {"x": "x", "y": "x", "z": "z"}


def test_a_result_is_not_written_over_a_view_made_in_the_same_step():
    step = MemoryStep("f", ("x",), ("v", "y"), views=(("x", "v"),), in_place=(("x", "y"),))
    assert analyse([step], dict.fromkeys("xvy", 8), ["x"], []).storage_of["y"] == "y"


def test_the_first_operand_that_can_be_overwritten_is():
    pairs = (("a", "y"), ("b", "y"))
    steps = [MemoryStep("add", ("a", "b"), ("y",), in_place=pairs), unary("g", "a", "z")]
    analysis = analyse(steps, dict.fromkeys("abyz", 8), ["a", "b"], ["y"])
    assert analysis.storage_of["y"] == "b"


def test_views_of_views_are_one_storage_and_views_of_constants_none():
    steps = [view("x", "v"), view("v", "w"), view("c", "d"), view("d", "e"), unary("f", "w", "y")]
    analysis = analyse(steps, dict.fromkeys("xvwdey", 8), ["x"], ["y"])
    assert analysis.storage_of == {"x": "x", "v": "x", "w": "x", "y": "y"}
    assert analysis.constant_of == {"d": "c", "e": "c"}
    assert intervals(analysis)["x"] == (0, 5)


def test_a_constant_is_never_overwritten_even_through_a_view():
    steps = [view("c", "d"), in_place("f", "d", "y"), in_place("g", "c", "z")]
    analysis = analyse(steps, dict.fromkeys("dyz", 8), [], ["y", "z"])
    assert analysis.storage_of == {"y": "y", "z": "z"}


def join(result, **parts):
    """Put `result` together of 8 bytes each."""
    joins = tuple(Part(result, operand, offset) for operand, offset in parts.items())
    return MemoryStep("concat", tuple(parts), (result,), workspace_bytes=24, joins=joins)


def split(operand, **parts):
    pieces = tuple(Part(operand, result, offset) for result, offset in parts.items())
    return MemoryStep("split", (operand,), tuple(parts), parts=pieces)


def places(analysis):
    return {
        tensor: (storage, analysis.offset_of.get(tensor, 0))
        for tensor, storage in analysis.storage_of.items()
    }


def test_what_is_put_together_is_written_into_place():
    steps = [
        unary("f", "x", "a"),
        in_place("relu", "a", "b"),
        unary("g", "x", "c"),
        join("d", b=0, c=8),
        unary("h", "d", "y"),
    ]
    analysis = analyse(steps, dict.fromkeys("xabcy", 8) | {"d": 16}, ["x"], ["y"], 8)
    assert places(analysis) == {
        "x": ("x", 0), "a": ("d", 0), "b": ("d", 0), "c": ("d", 8), "d": ("d", 0), "y": ("y", 0),
    }  # fmt: skip
    assert intervals(analysis) == {"x": (0, 3), "d": (0, 5), "y": (4, 5)}
    assert analysis.workspaces == ()
    assert analysis.steps[3].moves


def test_joins_of_joins_are_one_storage():
    steps = [
        unary("f", "x", "a"),
        join("d", x=0, a=8),
        unary("g", "d", "b"),
        join("e", d=0, b=16),
        unary("h", "e", "y"),
    ]
    sizes = dict.fromkeys("xaby", 8) | {"d": 16, "e": 24}
    analysis = analyse(steps, sizes, ["x"], ["y"], 8)
    assert places(analysis)["a"] == ("e", 8)
    assert places(analysis)["d"] == ("e", 0)
    assert places(analysis)["b"] == ("e", 16)


@pytest.mark.parametrize(
    "steps",
    [
        [unary("f", "x", "a"), join("d", a=0, k=8)],  # a constant
        [unary("f", "x", "a"), view("a", "v"), join("d", a=0, v=8)],  # twice the same bytes
        [split("w", p=0, q=8), join("d", p=0, x=8)],  # part of something larger
        [unary("f", "x", "a"), join("c", a=0, x=8), join("d", a=0, x=8)],  # part of another
        [unary("f", "x", "a"), join("d", a=0, x=4)],  # not aligned
    ],
)
def test_what_can_not_lie_in_place_is_left_to_a_kernel(steps):
    sizes = dict.fromkeys("xavpq", 8) | {"w": 16, "c": 16, "d": 16, "u": 16}
    outputs = ["c", "d", "w"] if any("c" in step.writes for step in steps) else ["d", "w"]
    analysis = analyse(steps, sizes, ["x", "w"], outputs, 8)
    assert not analysis.steps[-1].moves
    assert analysis.storage_of["d"] == "d"
    assert analysis.workspaces[-1].size_bytes == 24


def test_parts_are_views_and_may_be_overwritten_once_all_are_dead():
    steps = [split("w", p=0, q=8), unary("f", "p", "a"), in_place("g", "q", "y")]
    analysis = analyse(steps, dict.fromkeys("pqay", 8) | {"w": 16}, ["w"], ["y", "a"], 8)
    assert places(analysis)["q"] == ("w", 8)
    assert places(analysis)["y"] == ("w", 8)


def test_a_part_is_not_written_over_the_rest_while_that_is_read():
    step = MemoryStep("f", ("p", "q"), ("y",), in_place=(("p", "y"), ("q", "y")))
    sizes = dict.fromkeys("pq", 8) | {"w": 16, "y": 16}
    analysis = analyse([split("w", p=0, q=8), step], sizes, ["w"], ["y"], 8)
    assert analysis.storage_of["y"] == "y"


def test_a_small_part_does_not_keep_a_large_whole_alive():
    steps = [split("w", p=0), unary("f", "p", "a"), unary("g", "a", "b"), join("y", b=0, p=64)]
    sizes = {"w": 1000, "p": 8, "a": 1000, "b": 64, "y": 72}
    analysis = analyse(steps, sizes, ["w"], ["y"], 8)
    assert not analysis.steps[0].moves
    assert analysis.steps[-1].moves


def test_workspaces_live_for_their_step_and_never_clash_with_names():
    steps = [unary("f", "x", "a", workspace_bytes=100), unary("g", "a", "WorkspaceId(step=0)")]
    analysis = analyse(steps, dict.fromkeys(["x", "a", "WorkspaceId(step=0)"], 8), ["x"], [], 16)
    assert analysis.workspaces == (TensorLifetime(WorkspaceId(0), 100, 0, 1, 16),)
    assert analysis.lifetimes == analysis.storages + analysis.workspaces


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([unary("f", "a", "y")], "reads `a` before it is written"),
        ([unary("f", "x", "y"), unary("g", "x", "y")], "writes `y` again"),
        ([unary("f", "x", "y"), view("x", "y")], "writes `y` again"),
        ([view("x", "x")], "writes `x` again"),
        ([unary("f", "x", "nowhere")], "`nowhere` has no size"),
        ([view("x", "big")], "`big` outgrows `x`"),
    ],
)
def test_impossible_steps_are_a_bug_of_the_caller(steps, words):
    with pytest.raises(AssertionError, match=words):
        analyse(steps, {"x": 8, "a": 8, "y": 8, "big": 16}, ["x"], [])
