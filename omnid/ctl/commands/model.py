"""``omnictl model``: the cache of models for when the cloud is gone."""

from collections.abc import Mapping
from typing import Any

from omnid import platform, weights
from omnid.ctl import times
from omnid.ctl.commands.config import ask
from omnid.ctl.context import Context
from omnid.ctl.hub import Hub
from omnid.ctl.options import Option, Verb
from omnid.ctl.pull import Pull, opened
from omnid.ctl.render import Cell, size
from omnid.errors import Rejected
from omnid.weights import NAME, Weights

REHEARSAL_S_MAX = 600.0


def _model(context: Context) -> int:
    given = context.given
    action, name, *more = (*given.arguments, "", "")[:3]
    if action not in (*_ACTIONS, "preload") or any(more):
        given.misuse("It is list, pull, verify or preload, and at most one model")
    if (given.flag("revision") or given.flag("only")) and action != "pull":
        given.misuse("--revision and --only are for pull")
    if action == "preload":
        if name:
            given.misuse("preload wakes the model of the config")
        return _preload(context)
    settings = {row["key"]: row["value"] for row in ask(context, "show")["rows"]}
    if name and not NAME.fullmatch(name):
        given.misuse("A model is named OWNER/NAME, as its hub names it")
    return _ACTIONS[action](context, settings, name)


def _root(context: Context, settings: Mapping[str, Any]) -> str:
    directory = settings["brainstem.dir"] or f"{settings['state.dir']}/models"
    return platform.absolute(directory, context.world.environ)


def _list(context: Context, settings: Mapping[str, Any], name: str) -> int:
    found = [one for one in weights.cached(_root(context, settings)) if name in ("", one.name)]
    if context.json:
        context.give_json({"models": [_shown(one) for one in found]})
        return 0
    wanted = settings["brainstem.weights"]
    rows = [
        (
            Cell(one.name, "bold" if one.name == wanted else ""),
            Cell(one.revision[:12]),
            Cell(size(one.size_bytes)),
            Cell(times.stamp(one.verified_at_ms)),
            Cell(_state(one), "red" if weights.look(one) else "green"),
            Cell(one.directory, "dim"),
        )
        for one in found
    ]
    if rows:
        context.screen.table(("MODEL", "VERSION", "SIZE", "VERIFIED", "STATE", "WHERE"), rows)
    else:
        context.screen.tell(f"The cache is empty; `omnictl model pull` fetches {wanted}.")
    return 0


def _pull(context: Context, settings: Mapping[str, Any], name: str) -> int:
    name = name or settings["brainstem.weights"]
    pull = Pull(Hub(settings["brainstem.hub"]), _root(context, settings), name, context.world, context.screen)
    pulled = pull.run(context.given.text("revision") or "main", context.given.many("only") or ())
    context.screen.progress("")
    if context.json:
        context.give_json(_shown(pulled))
    else:
        context.screen.put(f"{pulled.name} {pulled.revision[:12]}: {size(pulled.size_bytes)} in {pulled.directory}")
    return 0


def _verify(context: Context, settings: Mapping[str, Any], name: str) -> int:
    root, names = _root(context, settings), [name] if name else []
    names = names or list(dict.fromkeys(one.name for one in weights.cached(root)))
    names = names or [settings["brainstem.weights"]]
    verified: list[Weights] = []
    for one in names:
        found = weights.find(root, one)
        if found is None:
            raise Rejected("model_missing", name=one)
        with opened(root, one):
            verified.append(_read(context, found))
    if context.json:
        context.give_json({"models": [_shown(one) for one in verified]})
    else:
        for one in verified:
            label, style = ("!!", "red") if one.damaged else ("ok", "green")
            again = f"; do: omnictl model pull {one.name} --revision {one.revision}" if one.damaged else ""
            context.screen.paragraph(label, f"{one.name}: {_state(one)}{again}", 4, label_style=style)
    return 1 if any(one.damaged for one in verified) else 0


def _read(context: Context, found: Weights) -> Weights:
    done_bytes = 0

    def read_bytes(count: int) -> None:
        nonlocal done_bytes
        done_bytes += count
        context.screen.progress(f"{found.name}: {size(done_bytes)} of {size(found.size_bytes)}")

    verified = weights.verify(found, context.world.now_ms(), read_bytes)
    context.screen.progress("")
    return verified


def _preload(context: Context) -> int:
    context.answer_s = REHEARSAL_S_MAX
    found = context.call("model.rehearse")
    if context.json:
        context.give_json(found)
    elif found["problem"]:
        context.screen.put(f"The local model can't be woken: {found['problem']}.")
    else:
        held = "" if found["memory_bytes"] is None else f", and held {size(found['memory_bytes'])} of memory"
        after = "it is awake" if found["local_model"]["phase"] == "ready" else "it was killed again"
        context.screen.put(f"The local model was ready after {found['ready_s']:.1f} s{held}; {after}.")
    return 1 if found["problem"] else 0


def _state(one: Weights) -> str:
    wrong = weights.look(one)
    return f"damaged: {', '.join(wrong)}" if wrong else "whole"


def _shown(one: Weights) -> dict[str, Any]:
    return {
        "name": one.name,
        "revision": one.revision,
        "directory": one.directory,
        "size_bytes": one.size_bytes,
        "files": [{"path": file.path, "size_bytes": file.size_bytes, "sha256": file.sha256} for file in one.files],
        "pulled_at_ms": one.pulled_at_ms,
        "verified_at_ms": one.verified_at_ms,
        "damaged": weights.look(one),
    }


_ACTIONS = {"list": _list, "pull": _pull, "verify": _verify}

VERBS = {
    "model": Verb(
        _model,
        "list: the models in the cache, their versions, and whether they are whole. pull: fetches one (the config's "
        "without a name), goes on where it broke off, and compares checksums. verify: reads all bytes again (exit code "
        "1 where something is damaged). preload: wakes the local model for a look, and kills it again.",
        "list|pull|verify|preload [MODEL]",
        (
            Option("revision", "REVISION", "With pull: a branch, a tag or a commit (main)"),
            Option("only", "PATTERN", "With pull: only files like this, as in '*q4_k_m.gguf'", many=True),
        ),
        ("omnictl model pull", "omnictl model verify", "omnictl model preload"),
    ),
}
