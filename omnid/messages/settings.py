"""What is wrong with the config and its secrets."""

from omnid.messages.message import Message

SETTINGS: dict[str, Message] = {
    "config_unreadable": Message(
        "The config {path} can't be read: {detail}.",
        "The file is not valid TOML, or this user may not read it.",
        "Correct it (`omnictl config check` says where); until then the config in use stays.",
    ),
    "config_unknown_key": Message(
        "The config has an unknown key {key}{hint}.",
        "Unknown keys are refused, because a mistyped one would be silently without effect.",
        "Correct or remove it; config/omnid.toml lists every key.",
    ),
    "config_bad_value": Message(
        "The config's {key} = {value} can't be used: {detail}.",
        "Every value is checked once, before any of it takes effect.",
        "Correct {key}; config/omnid.toml says what it takes.",
    ),
    "option_bad_value": Message(
        "{option} {value} can't be used: {detail}.",
        "It stands on the command line, which goes before the config.",
        "Give {wanted} instead.",
    ),
    "secret_plain": Message(
        "{key} holds what looks like a secret in plain text.",
        "Secrets are kept as references, so that they appear in no log, journal or backup.",
        "Write env:NAME, file:/path, keychain:SERVICE or exec:COMMAND instead.",
    ),
    "secret_missing": Message(
        "The secret {reference} can't be had: {detail}.",
        "A reference is resolved when it is used.",
        "Provide it, or correct the reference in the config.",
    ),
}
