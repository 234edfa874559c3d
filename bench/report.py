"""What a bench hands in: figures with their goals; printed as a table and written to results/."""

import json
from pathlib import Path
from typing import Literal, NamedTuple

RESULTS = Path(__file__).parent / "results"

Op = Literal[">=", "<=", "<"]


class Figure(NamedTuple):
    """A measured value; one without a goal is shown for what it says about another."""

    name: str
    value: float
    unit: str
    goal: float | None = None
    op: Op | None = None

    @property
    def ok(self) -> bool | None:
        """Whether the goal is reached; None where there is none."""
        if self.goal is None:
            return None
        if self.op == ">=":
            return self.value >= self.goal
        return self.value < self.goal if self.op == "<" else self.value <= self.goal


class Report:
    """Takes the figures of one bench, in the order in which they are shown."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.figures: list[Figure] = []

    def add(self, name: str, value: float, unit: str, op: Op | None = None, goal: float | None = None) -> None:
        """Adds a figure; `op` and `goal` say what it should be."""
        self.figures.append(Figure(name, float(f"{value:.4g}"), unit, goal, op))

    def write(self, *, keep: bool = False) -> None:
        """Writes results/<name>.json; `keep`: figures of other names stay, as an earlier run has written them."""
        path = RESULTS / f"{self.name}.json"
        rows = [
            {"name": f.name, "value": f.value, "unit": f.unit, "goal": f.goal, "op": f.op, "ok": f.ok}
            for f in self.figures
        ]
        if keep and path.exists():
            fresh = {row["name"] for row in rows}
            rows = [row for row in json.loads(path.read_text(encoding="utf-8")) if row["name"] not in fresh] + rows
        RESULTS.mkdir(exist_ok=True)
        text = json.dumps(rows, indent=2, ensure_ascii=False)
        path.write_text(f"{text}\n", encoding="utf-8")

    def table(self) -> str:
        """Gives the figures as lines of a table."""
        lines = [self.name]
        for figure in self.figures:
            goal = "" if figure.goal is None else f"{figure.op} {figure.goal:,g}"
            verdict = {None: "", True: "ok", False: "MISSED"}[figure.ok]
            value = f"{_shown(figure.value):>10} {figure.unit:<3}"
            lines.append(f"  {figure.name:<64} {value} {goal:>10} {verdict}".rstrip())
        return "\n".join(lines)


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.4g}"
