"""What goes wrong with the cache of models."""

from omnid.messages.message import Message

WEIGHTS: dict[str, Message] = {
    "model_missing": Message(
        "The model {name} is not in the cache.",
        "Nothing is fetched by itself: a model is large, and it is needed when there is no network.",
        "Fetch it with `omnictl model pull {name}`.",
    ),
    "hub_down": Message(
        "The hub {hub} can't be reached: {detail}.",
        "Without it nothing can be fetched; what has come so far is kept.",
        "Run it again when the hub is back: it goes on where it broke off.",
    ),
    "hub_refused": Message(
        "The hub {hub} does not give {name}: {detail}.",
        "It answers, and this answer can't be used.",
        "Correct the name, the revision or brainstem.hub in the config.",
    ),
    "hub_lies": Message(
        "{path} came otherwise than the hub {hub} says: {detail}.",
        "Its checksum is compared before it is used; what came was thrown away.",
        "Run it again; if it stays so, don't trust that hub.",
    ),
    "pull_no_room": Message(
        "{needed_bytes} bytes are needed under {path}, and {free_bytes} are free.",
        "The room is looked at before anything is fetched.",
        "Free some space, or set brainstem.dir to another disk.",
    ),
    "cache_busy": Message(
        "Another omnictl is at work on {name}.",
        "One at a time, or both would write the same files.",
        "Wait for it.",
    ),
    "cache_unwritable": Message(
        "The cache of models can't be used: {detail}.",
        "Models lie in the state directory, or where brainstem.dir says.",
        "Make it writable for this user, or set brainstem.dir.",
    ),
}
