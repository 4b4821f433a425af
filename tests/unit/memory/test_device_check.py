"""The check of a device's plan notices whatever is moved."""

from dataclasses import replace

import pytest

from aegis_pipe.memory import ArenaPlan, DevicePlan, ModelMemory, StagingPlan, check_device_plan

MODELS = (
    ModelMemory("large", {"a": 100, "b": 50}, 1000, 512, 128),
    ModelMemory("small", {"b": 50, "c": 64}, 300, arena_group=1),
    ModelMemory("confined", {"d": 10}, 500, streams_max=1),
)
BY_NAME = {each.model: each for each in MODELS}
PLAN = DevicePlan.build(MODELS, stream_count=2, alignment_bytes=64)


def test_a_plan_as_it_is_made_is_sound():
    assert check_device_plan(PLAN, BY_NAME, PLAN.total_bytes) == []


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (replace(PLAN, weights_offsets={**PLAN.weights_offsets, "b": 64}), "overlaps `a`"),
        (replace(PLAN, weights_offsets={**PLAN.weights_offsets, "d": 400}), "not aligned to 64"),
        (replace(PLAN, weights_offsets={"a": 0}), "weight `b` has no place"),
        (replace(PLAN, weights_bytes=200), "the weights end at 266, their pool at 200"),
        (
            replace(PLAN, arenas=(ArenaPlan(1000, {0: 0, 1: 1024}, ()), PLAN.arenas[1])),
            "`small` ends at 1324 of arena 0, which ends at 1000",
        ),
        (
            replace(PLAN, arenas=(ArenaPlan(2048, {0: 0, 1: 512}, ()), PLAN.arenas[1])),
            "groups 0 and 1 of arena 0 overlap",
        ),
        (
            replace(PLAN, staging=(PLAN.staging[0], StagingPlan(256, "large"))),
            "`large` stages 512 bytes on stream 1, which has 256",
        ),
        (
            replace(PLAN, staging_ahead=StagingPlan(383, "large", 3)),
            "`large` stages 384 bytes ahead, and there are 383",
        ),
        (
            replace(PLAN, staging_ahead=StagingPlan(256, "large", 2)),
            "2 requests are staged ahead, and streams can have 2",
        ),
        (replace(PLAN, staging=PLAN.staging[:1]), "1 streams stage copies, of 2"),
        (
            replace(PLAN, requests_per_stream=2),
            "2 requests can be on stream 0, whose staging has 1 parts",
        ),
    ],
)
def test_what_is_moved_is_noticed(plan, words):
    assert any(words in each for each in check_device_plan(plan, BY_NAME, None))


def test_a_stream_for_two_requests_stages_both():
    plan = DevicePlan.build(MODELS, stream_count=2, alignment_bytes=64, requests_per_stream=2)
    assert [each.size_bytes for each in plan.staging] == [
        2 * each.size_bytes for each in PLAN.staging
    ]
    assert plan.staging_ahead == StagingPlan(5 * 128, "large", 5)
    assert check_device_plan(plan, BY_NAME, None, 2 * 1024 + 5 * 128) == []
    smaller = replace(plan.staging[0], size_bytes=plan.staging[0].size_bytes - 1)
    found = check_device_plan(replace(plan, staging=(smaller, plan.staging[1])), BY_NAME, None)
    assert any("`large` stages 1024 bytes on stream 0, which has 1023" in each for each in found)


def test_a_total_over_budget_is_noticed():
    found = check_device_plan(PLAN, BY_NAME, PLAN.total_bytes - 1)
    assert found == [
        f"the total of {PLAN.total_bytes} exceeds the budget of {PLAN.total_bytes - 1}"
    ]
    assert check_device_plan(PLAN, BY_NAME, None, 1408) == []
    assert check_device_plan(PLAN, BY_NAME, None, 1407) == [
        "staging of 1408 exceeds its budget of 1407"
    ]
