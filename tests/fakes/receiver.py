"""Stands in for programs that deliver a message (openclaw, notify-send, a command): ``receiver.py DIRECTORY ARGS...``.

Each call appends what it was given to DIRECTORY/got, as a JSON line. DIRECTORY/mode says how it behaves: ``ok``,
``down`` (says so and fails), ``reject`` (fails for good), ``slow`` (never ends, and neither does a child of it),
``deaf`` (doesn't read its input).
"""

import json
import os
import subprocess
import sys
import time


def main(directory: str, argv: list[str]) -> int:
    mode = "ok"
    if os.path.exists(os.path.join(directory, "mode")):
        with open(os.path.join(directory, "mode")) as file:
            mode = file.read().strip()
    given = {
        "argv": argv,
        "stdin": "" if mode == "deaf" else sys.stdin.read(),
        "env": {name: value for name, value in os.environ.items() if name.startswith("OMNID_")},
        "mode": mode,
    }
    if mode == "slow":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        given["pids"] = [os.getpid(), child.pid]
    with open(os.path.join(directory, "got"), "a") as file:
        file.write(json.dumps(given) + "\n")
    if os.path.exists(os.path.join(directory, "signal")):
        with open(os.path.join(directory, "signal"), "w") as file:
            file.write(f"{mode}\n")
    if mode == "slow":
        time.sleep(60)
    if mode == "down":
        print("the gateway is down")
    return {"down": 1, "reject": 65}.get(mode, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
