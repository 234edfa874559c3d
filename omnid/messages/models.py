"""What goes wrong between a prompt and its model."""

from omnid.messages.message import Message

MODELS: dict[str, Message] = {
    "no_channel": Message(
        "No channel can take this prompt now: {detail}.",
        "Each of them is limited, away, or not for this prompt.",
        "Nothing: it goes on by itself as soon as one of them can take it.",
    ),
    "no_channel_key": Message(
        "No channel takes this prompt, for want of a key: {detail}.",
        "A key that a provider refuses, or that can't be had, is not tried again until the config or the key changes.",
        "Correct the key; `omnictl config check --live` says whether it works.",
    ),
    "no_channel_ever": Message(
        "No channel can ever take this prompt: {detail}.",
        "The config's channels don't fit it.",
        "Name another model, shorten the prompt, or add a channel to the config.",
    ),
    "no_money": Message(
        "No call can be paid for now: {detail}.",
        "The most that a call can cost is reserved before it is made, and the lid has no room for it.",
        "Raise the cap, or wait for its next window.",
    ),
    "channel_unwell": Message(
        "The channel {channel} can't be used with {key}: {detail}.",
        "It was asked something that costs nothing, as at each start and after each change of the config.",
        "{do}",
    ),
    "unknown_model": Message(
        "No channel has a model {model}{hint}.",
        "These are known: {known}.",
        "Use one of them, or add it to a [[channel]] of the config.",
    ),
    "model_failed": Message(
        "No channel gave an answer: {detail}.",
        "Each of them was tried, and none came to its end.",
        "It is tried again by itself, as often as retry.attempts_max says.",
    ),
    "cloud_gone": Message(
        "No channel can be reached: {detail}.",
        "The network or all providers are away.",
        "Nothing: it goes on by itself when one of them is back.",
    ),
    "no_local_model": Message(
        "There is no local model.",
        "Neither does the config name a command for it, nor is MLX installed.",
        "Set brainstem.argv in the config, or install omnid[local] on Apple Silicon (docs/mode.md).",
    ),
    "local_model_asleep": Message(
        "The local model stays asleep: {detail}.",
        "It is woken while the cloud is gone, for prompts with offline = local; what it needs isn't there.",
        "Nothing is lost: it is tried again, and prompts wait. `omnictl doctor` says what is missing.",
    ),
    "call_refused": Message(
        "{channel} refuses this prompt: {detail}.",
        "The provider says that the request itself is at fault, so no other way would take it.",
        "Change the prompt or the model.",
    ),
}
