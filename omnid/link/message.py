"""The form in which messages cross a broker: versioned JSON, signed where both ends have a key, checked at the door.

``{"omnid": 1, "kind": "command", "from": "home", "to": "gpu-1", "body": {...}, "mac": "..."}``. The MAC is HMAC-SHA256
(RFC 2104) in hex over version, kind, sender, addressee and body, separated by newlines, so that no message can be
turned into another, or be given to another end. A repeat of the same message is dropped by whoever gets it, because it
knows the attempt.
"""

import hmac
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Annotated

import msgspec
from msgspec import Meta, Raw, Struct, field

from omnid.errors import Rejected
from omnid.link.interface import Message, Poison
from omnid.links import END_NAME
from omnid.model import Cancel, Command, Heartbeat, Mark, Result, Watch, Work

VERSION = 1
MESSAGE_BYTES_MAX = 16 << 20
"""More than any command or result of omnid's has, and what RabbitMQ takes since its version 4."""
KEY_BYTES_MIN = 16
COMMANDS: Mapping[str, type[Message]] = {"command": Command, "cancel": Cancel, "watch": Watch, "mark": Mark}
"""What a runner takes."""
RESULTS: Mapping[str, type[Message]] = {"result": Result, "heartbeat": Heartbeat}
"""What a daemon takes."""
_KINDS = {kind: name for name, kind in {**COMMANDS, **RESULTS}.items()}


class _Head(Struct, frozen=True):
    """What every version has."""

    omnid: int


class _Envelope(Struct, frozen=True, kw_only=True):
    omnid: int
    kind: str
    sender: str = field(name="from")
    to: str
    body: Raw
    mac: str = ""


Short = Annotated[str, Meta(max_length=200)]


class _Claim(Struct, frozen=True):
    """As much of an envelope as is looked at where it is refused; a later version may lack any of it."""

    kind: Short = ""
    sender: Short = field(name="from", default="")
    body: Raw = Raw(b"null")


class _CommandClaim(Struct, frozen=True):
    """As much of a command as its answer needs."""

    attempt_id: Short
    task_id: Short = ""
    number: int = 0
    name: Short = ""
    executor: Short = ""


class Codec:
    """Writes messages to others, and reads those to the end `name`: the kinds in `takes`, signed where `key` is given.

    What is signed with one of `accepted` is read too, and nothing is ever signed with it: so keys are exchanged while
    messages are on their way. Raises Rejected(`link_refused`) for a key that is too short to keep anybody out.
    """

    def __init__(
        self,
        link: str,
        name: str,
        takes: Mapping[str, type[Message]],
        key: str = "",
        accepted: Sequence[str] = (),
    ) -> None:
        keys = [one.encode() for one in (key, *accepted) if one]
        if any(len(one) < KEY_BYTES_MIN for one in keys):
            detail = f"its key has less than {KEY_BYTES_MIN} bytes"
            raise Rejected("link_refused", link=link, detail=detail)
        self.link = link
        self.name = name
        self._takes = takes
        self._key = key.encode()
        self._accepted = keys

    def encode(self, to: str, batch: Sequence[Message]) -> list[bytes]:
        """Writes messages to one end; raises Rejected(`message_refused`) where one is too large."""
        return [self._encoded(to, message) for message in batch]

    def _encoded(self, to: str, message: Message) -> bytes:
        kind = _KINDS[type(message)]
        body = msgspec.json.encode(message)
        mac = _mac(self._key, kind, self.name, to, body) if self._key else ""
        data = msgspec.json.encode(
            _Envelope(omnid=VERSION, kind=kind, sender=self.name, to=to, body=Raw(body), mac=mac)
        )
        if len(data) > MESSAGE_BYTES_MAX:
            raise self.refused(f"it has {len(data)} bytes, and at most {MESSAGE_BYTES_MAX} are sent")
        return data

    def read(self, data: bytes) -> tuple[str, Message | Poison]:
        """Reads what has come to this end, and who sent it; see `Received.sender`."""
        try:
            return self.decode(data)
        except Rejected as error:
            return _claimed(data, str(error.fields["detail"]))

    def decode(self, data: bytes) -> tuple[str, Message]:
        """Reads a message to this end, and who sent it; raises Rejected(`message_refused`) for all that is none."""
        if len(data) > MESSAGE_BYTES_MAX:
            raise self.refused(f"it has {len(data)} bytes, and at most {MESSAGE_BYTES_MAX} are read")
        try:
            version = msgspec.json.decode(data, type=_Head).omnid
            if version != VERSION:
                # Before anything else is looked at: a later version may look otherwise.
                raise self.refused(f"it is of version {version}, and this omnid knows version {VERSION}")
            envelope = msgspec.json.decode(data, type=_Envelope)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise self.refused(f"it isn't omnid's ({error})") from error
        body = bytes(envelope.body)
        if envelope.to != self.name:
            raise self.refused(f"it is addressed to {envelope.to[:100]}")
        if self._key and not self._is_signed(envelope, body):
            raise self.refused("its signature is wrong" if envelope.mac else "it isn't signed")
        if END_NAME.fullmatch(envelope.sender) is None:
            raise self.refused("its sender has no name that could be answered")
        kind = self._takes.get(envelope.kind)
        if kind is None:
            raise self.refused(f"it is a {envelope.kind[:100]}, which nobody takes here")
        try:
            return envelope.sender, msgspec.json.decode(body, type=kind)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise self.refused(f"it is no {envelope.kind} ({error})") from error

    def refused(self, detail: str) -> Rejected:
        """Makes the error of a message that is none."""
        return Rejected("message_refused", link=self.link, detail=detail)

    def _is_signed(self, envelope: _Envelope, body: bytes) -> bool:
        macs = (_mac(key, envelope.kind, envelope.sender, envelope.to, body) for key in self._accepted)
        return any(hmac.compare_digest(mac.encode(), envelope.mac.encode()) for mac in macs)


def _mac(key: bytes, kind: str, sender: str, to: str, body: bytes) -> str:
    signed = b"\n".join((str(VERSION).encode(), kind.encode(), sender.encode(), to.encode(), body))
    return hmac.new(key, signed, sha256).hexdigest()


def _claimed(data: bytes, why: str) -> tuple[str, Poison]:
    """Gives what a message that is refused says of itself, as far as it can be read."""
    if len(data) > MESSAGE_BYTES_MAX:
        return "", Poison(why, data)
    try:
        claim = msgspec.json.decode(data, type=_Claim)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return "", Poison(why, data)
    sender = claim.sender if END_NAME.fullmatch(claim.sender) else ""
    return sender, Poison(why, data, claim.kind, _command(claim) if claim.kind == "command" else None)


def _command(claim: _Claim) -> Command | None:
    try:
        said = msgspec.json.decode(claim.body, type=_CommandClaim)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return Command(said.attempt_id, said.task_id, said.number, said.name, said.executor, Work(), 0.0)
