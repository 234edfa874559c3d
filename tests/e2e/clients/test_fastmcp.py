"""fastmcp with fastmcp-tasks, which speaks tasks of 2026-07-28."""

from pathlib import Path

from tests.e2e.clients.user import PYTHON, User, result_in

SCRIPT = Path(__file__).with_name("fastmcp_client.py")


def test_its_tasks_are_tasks_of_the_journal(user: User) -> None:
    said = result_in(user.run(PYTHON, SCRIPT))
    done = said["done"]
    assert (done["state"], done["attempts"][0]["output"]) == ("completed", "from fastmcp\n")
    assert said["statuses"] == ["working", "cancelled"]
    assert said["inbox"] == ["completed", "cancelled"]
    states = {task["id"]: task["state"] for task in user.client.call("omnid/task.list", {})["tasks"]}
    assert states == {done["id"]: "completed", said["task"]: "cancelled"}
