"""What the caps allow: pure decisions about money."""

from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnid.model import Work
from omnid.money import dollars, micro, scopes_of
from omnid.route.budget import Admit, Budget, Fill, Lid, Refuse, Run, Used, decide, window_ms
from omnid.settings import Budget as Section
from omnid.settings import Cap, CommandExecutor, Config, McpExecutor

DAY = Lid("budget.day_usd", "all", "day", micro(5))
amounts = st.integers(0, 50)
fills = st.lists(
    st.builds(
        Fill,
        st.builds(Lid, st.just("lid"), st.sampled_from(["all", "executor:x"]), st.just("day"), st.integers(1, 60)),
        st.just(0),
        st.integers(1, 9),
        st.builds(Used, amounts, amounts, amounts),
    ),
    max_size=4,
)
runs = st.builds(Run, st.integers(1, 40), st.booleans(), st.none() | amounts, amounts)


def fill(used: Used, lid: Lid = DAY, end_at_ms: int = 100) -> Fill:
    return Fill(lid, 0, end_at_ms, used)


@given(runs, fills)
def test_what_is_reserved_passes_no_lid_and_no_refusal_is_without_need(run: Run, given_fills: list[Fill]) -> None:
    decision = decide(run, given_fills)
    if isinstance(decision, Admit):
        reserve = decision.reserve_microusd
        assert 0 < reserve <= run.most_microusd
        assert all(one.used.total_microusd + reserve <= one.lid.limit_microusd for one in given_fills)
        if run.task_limit_microusd is not None:
            assert run.task_used_microusd + reserve <= run.task_limit_microusd
        return
    if not decision.fills:
        assert run.task_limit_microusd is not None
        assert run.task_limit_microusd - run.task_used_microusd < decision.need_microusd
    for one in decision.fills:
        left = one.lid.limit_microusd - one.used.total_microusd
        assert left < decision.need_microusd
        assert not decision.used_up or one.lid.limit_microusd - one.used.settled_microusd < decision.need_microusd


@given(runs, fills)
def test_a_run_that_cannot_be_held_to_less_reserves_all_that_it_may_cost(run: Run, given_fills: list[Fill]) -> None:
    decision = decide(run._replace(limited=False, task_limit_microusd=None), given_fills)
    if isinstance(decision, Admit):
        assert decision.reserve_microusd == run.most_microusd


def test_a_run_that_can_be_held_to_less_gets_what_is_left_but_not_a_crumb() -> None:
    run = Run(micro(5), limited=True)
    assert decide(run, [fill(Used(micro(4)))]) == Admit(micro(1))
    refused = decide(run, [fill(Used(micro(4.6)))])
    assert isinstance(refused, Refuse)
    assert (refused.need_microusd, refused.used_up, refused.wake_at_ms) == (micro(0.5), True, 100)


def test_what_is_only_reserved_may_come_back_and_unknown_does_not() -> None:
    run = Run(micro(2), limited=False)
    reserved = decide(run, [fill(Used(micro(1), micro(3)))])
    unknown = decide(run, [fill(Used(micro(1), 0, micro(3)))])
    assert isinstance(reserved, Refuse)
    assert isinstance(unknown, Refuse)
    assert (reserved.used_up, unknown.used_up) == (False, True)


def test_the_lid_that_stays_full_longest_says_when_it_goes_on() -> None:
    month = Lid("budget.month_usd", "all", "month", micro(5))
    run = Run(micro(2), limited=False)
    refused = decide(run, [fill(Used(micro(4))), fill(Used(micro(4)), month, 900), fill(Used(0, micro(4)), month, 999)])
    assert isinstance(refused, Refuse)
    assert refused.wake_at_ms == 900


def test_a_lid_below_what_a_run_may_cost_never_lets_it_start() -> None:
    refused = decide(Run(micro(6), limited=False), [fill(Used())])
    assert isinstance(refused, Refuse)
    assert (refused.never, refused.wake_at_ms) == (True, None)


def test_the_tasks_own_lid_comes_first_and_needs_a_person() -> None:
    run = Run(micro(5), True, micro(2), micro(1.9))
    assert decide(run, []) == Refuse((), micro(0.2), used_up=True)
    assert decide(run._replace(task_used_microusd=micro(1.5)), []) == Admit(micro(0.5))
    assert isinstance(decide(run._replace(task_limit_microusd=0, task_used_microusd=0), []), Refuse)


def test_who_costs_money() -> None:
    config = Config(
        executor=(
            CommandExecutor(name="command"),
            CommandExecutor(name="claude", profile="claude-code"),
            CommandExecutor(name="codex", profile="codex", cost_max_usd=2),
            CommandExecutor(name="local", profile="codex", cost_max_usd=0),
            McpExecutor(name="search", argv=("s",), cost_max_usd=0.01),
            CommandExecutor(name="capped"),
        ),
        cap=(Cap(name="c", executor="capped", day_usd=1),),
        budget=Section(run_usd=3, task_usd=4),
    )
    kinds = {"llm": "model", **{name: one.kind for name, one in config.executors().items()}}
    budget = Budget(config, kinds)
    assert budget.paid == {"claude", "codex", "search", "capped", "llm"}
    assert budget.run("claude") == Run(micro(3), True)
    assert budget.run("codex") == Run(micro(2), False)
    assert budget.run_of("claude", Work(), 7) == Run(micro(3), True, micro(4), 7)
    assert budget.run_of("claude", Work(cost_max_usd=1), 0).task_limit_microusd == micro(1)
    assert Budget(Config(), {}).task_limit_microusd(Work()) is None


def test_which_lids_a_run_stands_under() -> None:
    config = Config(
        budget=Section(day_usd=5, month_usd=50),
        cap=(Cap(name="a", label="x", day_usd=1), Cap(name="b", executor="claude", month_usd=9), Cap(name="none")),
    )
    budget = Budget(config, {})
    everywhere = ["budget.day_usd", "budget.month_usd"]
    assert [lid.name for lid in budget.lids("other", ())] == everywhere
    assert [lid.name for lid in budget.lids("claude", ("x", "y"))] == [*everywhere, "cap.a.day_usd", "cap.b.month_usd"]
    assert budget.labels == {"x"}
    assert scopes_of("e", ("l", "l"), "m") == ["all", "executor:e", "label:l", "model:m"]


def test_windows_are_those_of_the_zone_also_when_the_clocks_change() -> None:
    zone = ZoneInfo("Europe/Berlin")
    noon = 1_774_782_000_000  # 2026-03-29T13:00+02:00, a day of 23 hours.
    begin, end = window_ms("day", noon, zone)
    assert (end - begin) / 3_600_000 == 23
    begin, end = window_ms("month", noon, zone)
    assert (end - begin) / 3_600_000 == 31 * 24 - 1


@pytest.mark.parametrize(
    ("microusd", "text"),
    [(0, "$0.00"), (1_840_000, "$1.84"), (4_200, "$0.0042"), (1, "$0.000001"), (12_345_678_900, "$12,345.68")],
)
def test_dollars(microusd: int, text: str) -> None:
    assert dollars(microusd) == text
