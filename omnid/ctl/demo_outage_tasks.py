"""The twelve prompts of the outage demo, and what the scripted cloud does with each."""

import json
import os
from typing import Any, NamedTuple

from omnid.ctl.demo_cloud import COST_USD, SCRIPT

FREE, PAID = "free", "paid"
"""The two channels."""
FREE_CALLS = 2
"""How many calls the free channel takes before it is limited."""
CALL_USD = 0.04
"""What a call to the paid channel may cost at most, and a little less than what is reserved for it."""
CAP_USD = 0.70

TIMEOUT_S = 90.0
"""How long one attempt may take, so that nothing waits for a demo that was killed itself."""


class Job(NamedTuple):
    """One prompt."""

    name: str
    prompt: str
    held_for: str = ""
    """What its first call to the cloud is held for, in which it is cut."""
    needs: tuple[str, ...] = ()
    """Prompts that come before it."""
    offline: str = "park"

    def submit(self) -> dict[str, Any]:
        """Gives the parameters of its submit."""
        after = {"after": list(self.needs)} if self.needs else {}
        fields = {"prompt": self.prompt, "ref": self.name, "offline": self.offline, "timeout_s": TIMEOUT_S}
        return {**fields, "backoff_s": 0.3, **after}


GATEWAY, CLOUD = "gateway", "cloud"
_FIRST = ("summary", "title", "haiku", "mail")
_SECOND = ("recipe", "rhyme", "letter")

JOBS: tuple[Job, ...] = (
    Job("summary", "summarise the meeting"),
    Job("title", "find a title for the article"),
    Job("haiku", "write a haiku about queues"),
    Job("mail", "answer the mail about the invoice"),
    Job("recipe", "turn the recipe into a list", GATEWAY, _FIRST),
    Job("rhyme", "find a rhyme for month", GATEWAY, _FIRST),
    Job("letter", "translate the letter", GATEWAY, _FIRST),
    Job("names", "give the new server a name", CLOUD, _SECOND),
    Job("slogan", "write a slogan for the shop", CLOUD, _SECOND),
    Job("speech", "shorten the speech", CLOUD, _SECOND),
)
"""In the order of their submission."""
LATER: tuple[Job, ...] = (
    Job("plan", "plan the week"),
    Job("note", "say whether a note was lost", offline="local"),
)
"""What is submitted while the cloud is gone."""


def lay_out(cloud: str, *, has_gateway: bool) -> None:
    """Writes the cloud's script into its empty directory; raises OSError."""
    causes = (GATEWAY, CLOUD) if has_gateway else (CLOUD,)
    script = {"held": [job.prompt for job in JOBS if job.held_for in causes], "limits": {FREE: FREE_CALLS}}
    with open(os.path.join(cloud, SCRIPT), "w", encoding="utf-8") as file:
        json.dump(script, file)


def spent_usd(answered: int) -> float:
    """Gives what so many answers of the paid channel have cost."""
    return answered * COST_USD
