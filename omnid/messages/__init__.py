"""What omnid says when something fails: a table for each part of the house, and all of them in one.

Standard library only, because the relay and ``omnictl`` import it.
"""

from omnid.messages.agents import AGENTS
from omnid.messages.attempts import ATTEMPTS
from omnid.messages.connections import CONNECTIONS
from omnid.messages.message import Message
from omnid.messages.models import MODELS
from omnid.messages.requests import REQUESTS
from omnid.messages.settings import SETTINGS
from omnid.messages.storage import STORAGE
from omnid.messages.terminal import TERMINAL
from omnid.messages.weights import WEIGHTS
from omnid.messages.workspaces import WORKSPACES

CATALOGUE: dict[str, Message] = {
    **REQUESTS,
    **TERMINAL,
    **STORAGE,
    **SETTINGS,
    **CONNECTIONS,
    **ATTEMPTS,
    **AGENTS,
    **WORKSPACES,
    **MODELS,
    **WEIGHTS,
}
