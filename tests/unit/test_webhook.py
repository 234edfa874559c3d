"""Webhooks: signed as the standard says, never sent on, and every status taken for what it means."""

import base64
import hmac
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from omnid.errors import OmnidError, Rejected, Retryable
from omnid.link.destination import AFTER_S_MAX
from omnid.link.webhook import WebhookDestination, key_of, retry_after_s, signature
from omnid.model import Delivery, Problem
from omnid.secrets import Secrets
from omnid.settings import Destination
from tests.fakes.clock import FakeClock
from tests.fakes.hook import Hook
from tests.fakes.world import World
from tests.unit.test_drain import DAY_MS, carrier, carry_all, left, put, wait_out

pytestmark = pytest.mark.anyio

BODY = {
    "event": "failed",
    "text": "t7 failed",
    "task": "t7",
    "problem": Problem.make("exit_code", code=1, detail="x", task="t7"),
    "cost_usd": None,
    "target": "me",
    "session": None,
}
ANSWER = Delivery(1, "1f-ab", "hook", "answer", "task-id", BODY, 1_799_999_000_000)


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()
    yield made
    made.close()


async def send(url: str, secret: str = "", environ: dict[str, str] | None = None) -> None:
    section = Destination(name="hook", kind="webhook", url=url, secret=secret)
    await WebhookDestination(section, Secrets(environ or {}), FakeClock()).send([ANSWER])


async def fails(url: str, **more: str) -> OmnidError:
    with pytest.raises(OmnidError) as caught:
        await send(url, **more)
    return caught.value


def test_the_signature_is_that_of_the_standards_own_example() -> None:
    key = key_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signed = signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@given(st.binary(min_size=1, max_size=64))
def test_a_secret_is_its_bytes_with_the_prefix_and_itself_without(key: bytes) -> None:
    text = base64.b64encode(key).decode()
    assert key_of(f"whsec_{text}") == key
    assert key_of(text) == text.encode()


async def test_the_receiver_can_check_who_sent_what_and_when(hook: Hook) -> None:
    await send(hook.url, "env:SECRET", {"SECRET": "whsec_aGVsbG8="})
    (post,) = hook.got
    headers = post.headers
    assert (headers["webhook-id"], headers["idempotency-key"]) == ("1f-ab", "1f-ab")
    assert headers["webhook-timestamp"] == "1800000000", "of this try, not of the event"
    assert headers["content-type"] == "application/json"
    signed = f"1f-ab.1800000000.{post.body.decode()}".encode()
    expected = base64.b64encode(hmac.digest(b"hello", signed, sha256)).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert post.json()["type"] == "task.failed"
    assert post.json()["timestamp"] == "2027-01-15T07:43:20Z"
    data = post.json()["data"]
    assert (data["task"], data["text"], data["cost_usd"]) == ("t7", "t7 failed", None)
    assert data["problem"]["code"] == "exit_code"


async def test_without_a_secret_nothing_is_signed(hook: Hook) -> None:
    await send(hook.url)
    assert "webhook-signature" not in hook.got[0].headers


async def test_an_url_may_be_a_secret_and_one_that_is_missing_is_waited_for(hook: Hook) -> None:
    await send("env:URL", environ={"URL": hook.url})
    assert len(hook.got) == 1
    for error in (await fails("env:NONE"), await fails(hook.url, secret="env:NONE")):
        assert isinstance(error, Retryable)
    assert len(hook.got) == 1


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_every_success_confirms(hook: Hook, status: int) -> None:
    hook.status = status
    await send(hook.url)


@pytest.mark.parametrize("status", [301, 307, 308, 400, 401, 403, 404, 410, 422, 451])
async def test_what_the_client_did_wrong_stays_wrong_and_nothing_is_followed(hook: Hook, status: int) -> None:
    other = Hook()
    hook.status, hook.headers = status, {"location": other.url}
    error = await fails(hook.url)
    other.close()
    assert isinstance(error, Rejected)
    assert str(status) in error.what
    assert other.got == []


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
async def test_what_may_pass_is_tried_again_and_not_before_it_was_asked_for(hook: Hook, status: int) -> None:
    hook.status = status
    assert (await fails(hook.url)).code == "delivery_failed"
    hook.headers = {"retry-after": "90"}
    error = await fails(hook.url)
    assert (error.code, error.fields["after_s"]) == ("delivery_delayed", 90.0)


async def test_a_connection_that_breaks_is_tried_again(hook: Hook) -> None:
    hook.cut = True
    assert isinstance(await fails(hook.url), Retryable)
    assert isinstance(await fails("http://127.0.0.1:1/"), Retryable)


NOW_MS = 1_800_000_000_000


@pytest.mark.parametrize(
    ("value", "after_s"),
    [
        ("0", 0),
        (" 120 ", 120),
        ("99999999999", AFTER_S_MAX),
        ("Fri, 15 Jan 2027 08:01:00 GMT", 60),
        ("Fri, 15 Jan 2026 08:01:00 GMT", 0),
        ("", None),
        ("-5", None),
        ("soon", None),
        ("1.5", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, after_s: float | None) -> None:
    assert retry_after_s(value, NOW_MS) == after_s


async def test_a_server_that_cannot_show_who_it_is_gets_nothing(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "pem"
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    hook = Hook(context)
    error = await fails(hook.url)
    hook.close()
    assert isinstance(error, Retryable)
    assert "certificate" in error.what.lower()
    assert hook.got == []


async def test_one_that_is_down_for_a_day_loses_nothing_and_repeats_what_it_did_not_confirm(
    world: World, clock: FakeClock, hook: Hook
) -> None:
    section = Destination(name="a", kind="webhook", url=hook.url)
    one = carrier(world, WebhookDestination(section, Secrets({}), clock))
    hook.status, sent = 503, []
    began_ms = clock.now_ms
    while clock.now_ms < began_ms + DAY_MS:
        sent += await put(world, str(len(sent)))
        await carry_all(one)
        await wait_out(world)
    tries = len(hook.got)
    assert {post.headers["webhook-id"] for post in hook.got} == {sent[0]}
    hook.status, hook.cut = 204, True
    await carry_all(one)
    hook.cut = False
    await wait_out(world)
    await carry_all(one)
    ids = [post.headers["webhook-id"] for post in hook.got[tries:]]
    assert ids == [sent[0], *sent], "only the one whose confirmation was lost comes twice"
    assert await left(world) == []
