"""Every wording of a limit that is known, in one table; and the times that they name."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnid.executor.profiles.known import PROFILES
from omnid.executor.profiles.limits import AHEAD_S_MAX, find, is_alone, reset_ms

BERLIN = ZoneInfo("Europe/Berlin")
NOW = "2026-11-21 16:00 UTC"


def ms(text: str) -> int:
    """Reads ``2026-11-21 16:00 Europe/Berlin``."""
    moment, _, zone = text.rpartition(" ")
    return round(datetime.fromisoformat(moment).replace(tzinfo=ZoneInfo(zone)).timestamp() * 1000)


CLAUDE, CODEX, GEMINI, OPENCLAW = "claude-code", "codex", "gemini", "openclaw"
LIMIT, LOGIN = "rate_limit", "login"

KNOWN: list[tuple[str, str, str, str | None]] = [
    (
        CLAUDE,
        "You've hit your session limit · resets 8pm (America/New_York)",
        LIMIT,
        "2026-11-21 20:00 America/New_York",
    ),
    (CLAUDE, "You've hit your limit · resets 2:18am (UTC)", LIMIT, "2026-11-22 02:18 UTC"),
    (
        CLAUDE,
        "You\u2019ve hit your session limit ∙ resets 10:30pm (Europe/Berlin)",
        LIMIT,
        "2026-11-21 22:30 Europe/Berlin",
    ),
    (
        CLAUDE,
        "You've hit your session limit · resets 1:20am (Europe/Vienna)\n/upgrade to increase",
        LIMIT,
        "2026-11-22 01:20 Europe/Vienna",
    ),
    (CLAUDE, "You've hit your weekly limit · resets Nov 25 at 10am (Asia/Seoul)", LIMIT, "2026-11-25 10:00 Asia/Seoul"),
    (
        CLAUDE,
        "You've hit your weekly limit · resets Nov 25, 10:59am (America/New_York)",
        LIMIT,
        "2026-11-25 10:59 America/New_York",
    ),
    (
        CLAUDE,
        "Weekly limit reached · resets 10am (Asia/Seoul) · /upgrade to Max or turn on /extra-usage",
        LIMIT,
        "2026-11-22 10:00 Asia/Seoul",
    ),
    (CLAUDE, "Opus weekly limit reached ∙ resets Nov 24, 9pm (Etc/GMT+5)", LIMIT, "2026-11-24 21:00 Etc/GMT+5"),
    (CLAUDE, "5-hour limit reached ∙ resets 9pm", LIMIT, "2026-11-21 21:00 Europe/Berlin"),
    (CLAUDE, "You're out of extra usage · resets 11:30am (Asia/Colombo)", LIMIT, "2026-11-22 11:30 Asia/Colombo"),
    (CLAUDE, "Claude AI usage limit reached|1795300000", LIMIT, "2026-11-21 22:26:40 UTC"),
    (CLAUDE, "usage limit reached|1752678000", LIMIT, "2026-11-21 16:00:15 UTC"),
    (
        CLAUDE,
        "Claude usage limit reached. Your limit will reset at 9pm (America/New_York).",
        LIMIT,
        "2026-11-21 21:00 America/New_York",
    ),
    (
        CLAUDE,
        "You have reached your specified API usage limits. You will regain access on 2026-11-25 at 00:00 UTC.",
        LIMIT,
        "2026-11-25 00:00 UTC",
    ),
    (CLAUDE, "API Error: Request rejected (429) · This request would exceed your account's rate limit.", LIMIT, None),
    (CLAUDE, 'API Error: 429 {"type":"error","error":{"type":"rate_limit_error","message":"..."}}', LIMIT, None),
    (CLAUDE, 'API Error: 529 {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}', LIMIT, None),
    (
        CLAUDE,
        "API Error: 529 Overloaded. This is a server-side issue, usually temporary - try again in a moment.",
        LIMIT,
        None,
    ),
    (CLAUDE, "API Error: Repeated 529 Overloaded errors", LIMIT, None),
    (CLAUDE, "API Error: Server is temporarily limiting requests (not your usage limit) · Rate limited", LIMIT, None),
    (CLAUDE, "Not logged in · Please run /login", LOGIN, None),
    (CLAUDE, "Invalid API key · Fix external API key", LOGIN, None),
    (CLAUDE, "Invalid API key · Please run /login", LOGIN, None),
    (CLAUDE, "API Error: 401 · Please run /login", LOGIN, None),
    (CLAUDE, "OAuth token revoked · Please run /login", LOGIN, None),
    (CLAUDE, "OAuth token has expired. Please obtain a new token", LOGIN, None),
    (CLAUDE, "Credit balance is too low", LOGIN, None),
    (
        CODEX,
        "You\u2019ve hit your usage limit. Visit https://example.org to purchase more credits or try again later.",
        LIMIT,
        None,
    ),
    (
        CODEX,
        "You've hit your usage limit. Upgrade to Pro or try again at Nov 23rd, 2026 3:45 PM.",
        LIMIT,
        "2026-11-23 15:45 Europe/Berlin",
    ),
    (CODEX, "You've hit your usage limit. Try again at 7:21 PM.", LIMIT, "2026-11-21 19:21 Europe/Berlin"),
    (CODEX, "You've hit your usage limit. Try again in 3 days 4 hours 12 minutes.", LIMIT, "2026-11-24 20:12 UTC"),
    (
        CODEX,
        "Rate limit reached for gpt-5 on tokens per min (TPM). Please try again in 11.054s.",
        LIMIT,
        "2026-11-21 16:00:11.054 UTC",
    ),
    (CODEX, "exceeded retry limit, last status: 429 Too Many Requests", LIMIT, None),
    (CODEX, "Quota exceeded. Check your plan and billing details.", LIMIT, None),
    (CODEX, "Selected model is at capacity. Please try a different model.", LIMIT, None),
    (CODEX, "unexpected status 401 Unauthorized: Incorrect API key provided, url: http://x", LOGIN, None),
    (GEMINI, "You have exhausted your daily quota on this model.", LIMIT, None),
    (GEMINI, "RESOURCE_EXHAUSTED: quota will reset after 12h3m5s.", LIMIT, "2026-11-22 04:03:05 UTC"),
    (
        GEMINI,
        '{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","details":[{"retryDelay":"3600s"}]}}',
        LIMIT,
        "2026-11-21 17:00 UTC",
    ),
    (GEMINI, "You exceeded your current quota. Please retry in 12h3m.", LIMIT, "2026-11-22 04:03 UTC"),
    (GEMINI, "No capacity available (MODEL_CAPACITY_EXHAUSTED)", LIMIT, None),
    (GEMINI, "Please set an Auth method in your settings.json or specify GEMINI_API_KEY", LOGIN, None),
    (GEMINI, "API key not valid. Please pass a valid API key.", LOGIN, None),
    (OPENCLAW, "⚠️ API rate limit reached. Please try again later.", LIMIT, None),
    (OPENCLAW, "The AI service is temporarily overloaded. Please try again in a moment.", LIMIT, None),
    (OPENCLAW, 'No API key found for provider "anthropic".', LOGIN, None),
]


@pytest.mark.parametrize(("profile", "text", "cause", "at"), KNOWN)
def test_known_wordings(profile: str, text: str, cause: str, at: str | None) -> None:
    for around in (text, f"some words before\n{text}\n"):
        limit = find(PROFILES[profile].texts, around, ms(NOW), BERLIN)
        assert limit is not None
        assert (limit.cause, limit.capped) == (cause, False)
        assert limit.wake_at_ms == (None if at is None else ms(at))
        assert limit.said in " ".join(around.split())


@pytest.mark.parametrize("text", ["", "All done.", "TypeError: x is not a function", "Reached maximum budget ($0.01)"])
@pytest.mark.parametrize("profile", PROFILES)
def test_other_words_are_no_limit(profile: str, text: str) -> None:
    assert find(PROFILES[profile].texts, text, ms(NOW), BERLIN) is None


@pytest.mark.parametrize(
    ("now", "text", "at"),
    [
        # Across midnight, on either side of it, and of the new year.
        ("2026-11-21 23:30 UTC", "resets 1am (UTC)", "2026-11-22 01:00 UTC"),
        ("2026-12-31 23:30 UTC", "resets 1am (UTC)", "2027-01-01 01:00 UTC"),
        ("2026-12-30 12:00 UTC", "resets Jan 2 at 9am (UTC)", "2027-01-02 09:00 UTC"),
        ("2026-11-21 16:00 UTC", "resets 12am (UTC)", "2026-11-22 00:00 UTC"),
        ("2026-11-21 06:00 UTC", "resets 12pm (UTC)", "2026-11-21 12:00 UTC"),
        ("2026-11-21 16:00 UTC", "resets at 17:45 (UTC)", "2026-11-21 17:45 UTC"),
        # The zone's own day, not ours.
        ("2026-11-21 23:00 UTC", "resets 8pm (America/Los_Angeles)", "2026-11-21 20:00 America/Los_Angeles"),
        ("2026-11-21 23:00 UTC", "resets 9am (Asia/Tokyo)", "2026-11-22 09:00 Asia/Tokyo"),
        # The night in which clocks go back (25 October 2026, 03:00 CEST) and the one in which they go forward.
        ("2026-10-24 22:00 UTC", "resets 4am (Europe/Berlin)", "2026-10-25 04:00 Europe/Berlin"),
        ("2026-10-24 22:00 UTC", "resets 2:30am (Europe/Berlin)", "2026-10-25 00:30 UTC"),
        ("2027-03-27 23:00 UTC", "resets 2:30am (Europe/Berlin)", "2027-03-28 01:30 UTC"),
        # A time that has just passed is not tomorrow's, and a date that has passed not next year's.
        ("2026-11-21 16:00:20 UTC", "resets 4pm (UTC)", "2026-11-21 16:00:35 UTC"),
        ("2026-11-21 16:50 UTC", "resets 4pm (UTC)", "2026-11-21 16:50:15 UTC"),
        ("2026-11-21 17:30 UTC", "resets 4pm (UTC)", "2026-11-22 16:00 UTC"),
        ("2026-11-21 16:00 UTC", "resets Nov 20 at 9am (UTC)", "2026-11-21 16:00:15 UTC"),
        # What names no time.
        ("2026-11-21 16:00 UTC", "resets soon", None),
        ("2026-11-21 16:00 UTC", "resets 25pm (UTC)", None),
        ("2026-11-21 16:00 UTC", "resets Feb 30 at 9am (UTC)", None),
        ("2026-11-21 16:00 UTC", "resets 5", None),
        ("2026-11-21 16:00 UTC", "try again later", None),
        # A zone that nobody knows is taken for the machine's.
        ("2026-11-21 16:00 UTC", "resets 9pm (Mars/Olympus)", "2026-11-21 21:00 Europe/Berlin"),
        ("2026-11-21 16:00 UTC", "resets 9pm (../etc)", "2026-11-21 21:00 Europe/Berlin"),
        ("2026-11-21 16:00 UTC", "retry-after: 7200", "2026-11-21 18:00 UTC"),
        ("2026-11-21 16:00 UTC", "resets in 2h 5m", "2026-11-21 18:05 UTC"),
        ("2026-11-21 16:00 UTC", "until 2026-11-22T09:00:00+01:00", "2026-11-22 08:00 UTC"),
    ],
)
def test_times(now: str, text: str, at: str | None) -> None:
    assert reset_ms(text, ms(now), BERLIN) == (None if at is None else ms(at))


@pytest.mark.parametrize(
    "text", ["resets Dec 24 at 9am (UTC)", "resets in 90 days", "resets Nov 21, 2027 at 9am (UTC)"]
)
def test_a_time_far_ahead_is_capped_and_that_is_said(text: str) -> None:
    limit = find(PROFILES[CLAUDE].texts, f"You've hit your weekly limit · {text}", ms(NOW), BERLIN)
    assert limit is not None
    assert limit.capped
    assert limit.wake_at_ms == ms(NOW) + AHEAD_S_MAX * 1000


def test_an_answer_that_is_nothing_but_the_limit() -> None:
    texts = PROFILES[CLAUDE].texts
    assert is_alone(texts, "Claude AI usage limit reached|1795300000\n")
    assert is_alone(texts, "You've hit your limit · resets 8pm (UTC)")
    assert not is_alone(texts, "The page now says: You've hit your limit · resets 8pm (UTC)")
    assert not is_alone(PROFILES[OPENCLAW].texts, "Usage limit added to the API.")


@given(st.text(max_size=200), st.sampled_from(sorted(PROFILES)))
def test_any_text_is_read_and_any_time_is_ahead(text: str, profile: str) -> None:
    limit = find(PROFILES[profile].texts, f"rate_limit_error usage limit resets {text}", ms(NOW), BERLIN)
    if limit is not None and limit.wake_at_ms is not None:
        assert ms(NOW) < limit.wake_at_ms <= ms(NOW) + AHEAD_S_MAX * 1000
