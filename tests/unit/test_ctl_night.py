"""``omnictl away`` and ``omnictl receipt``: what a person reads in the morning."""

from omnid.api import shapes_night
from omnid.ctl.render import width
from tests.fakes.ctl_world import AWAY, NOW_MS, RECEIPT, Daemon, Ran


def test_away_says_the_line_what_failed_and_what_needs_you() -> None:
    ran = Ran("away", daemon=Daemon(away=AWAY))
    assert ran.code == 0
    assert ran.out.splitlines() == [
        "7 done, 1 failed, 1 needs you.",
        "",
        "Failed",
        "  t9  make -C x: The command ended with exit code 2.",
        "",
        "Needs you (1)",
        "  t12  wants to run on command: git push",
        "      omnictl approve t12 | deny t12",
    ]
    assert ran.err.endswith("(8 h ago).\n")
    assert ran.calls[0] == ("away", {})


def test_away_takes_a_time_and_may_leave_the_mark() -> None:
    ran = Ran("away", "--since", "2h", "--keep", daemon=Daemon(away=AWAY))
    assert ran.calls[0] == ("away", {"since_ms": NOW_MS - 7_200_000, "keep": True})
    assert Ran("away", "--json", daemon=Daemon(away=AWAY)).json["result"]["ended"] == {"completed": 7, "failed": 1}


def test_a_receipt_on_a_screen() -> None:
    ran = Ran("receipt", "t7", daemon=Daemon(task__receipt=RECEIPT))
    assert ran.code == 0
    for part in (
        "command claude -p 'fix | it'",
        "claude-code: rule programming",
        "outlived 2 restarts of omnid",
        "$0.25 spent in 2 calls, 1 of unknown cost, $1.00 reserved",
        "make test: passed",
        "│ 41 passed",
        "12 entries",
        f"SHA-256 {RECEIPT.sha256}",
    ):
        assert part in " ".join(ran.out.split()), part
    assert all(width(line) <= 80 for line in ran.out.splitlines())


def test_a_receipt_as_markdown_holds_no_markup_of_others() -> None:
    hostile = RECEIPT.__class__(
        **{
            **{field: getattr(RECEIPT, field) for field in RECEIPT.__struct_fields__},
            "check": shapes_night.CheckReceipt(("x",), None, "```\n# heading\x1b[31m\n"),
            "asked": {"argv": ["a`b``c"]},
        }
    )
    ran = Ran("receipt", "--md", "t7", daemon=Daemon(task__receipt=hostile))
    assert ran.code == 0
    assert "\x1b" not in ran.out
    assert "    # heading\\x1b[31m" in ran.out.splitlines()
    assert "```'a`b``c'```" in ran.out
    assert all(line.count(" | ") == 1 for line in ran.out.splitlines() if line.startswith("| "))
