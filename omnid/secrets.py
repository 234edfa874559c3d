"""Secrets as references: where a secret is kept stands in the config, the secret itself nowhere.

A reference is ``env:NAME``, ``file:/path``, ``keychain:SERVICE`` or ``keychain:SERVICE/ACCOUNT`` (macOS, untested) or
``exec:COMMAND`` (split as a shell would, run without one; what it prints is the secret).
"""

import os
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence

import anyio
import anyio.to_thread

from omnid.errors import Rejected

SCHEMES = ("env", "file", "keychain", "exec")
EXEC_TIMEOUT_S = 10.0
SECRET_BYTES_MAX = 64 * 1024
REMEMBERED_MAX = 1024
REDACTED_CHARS_MIN = 6

_REFERENCE = re.compile(rf"({'|'.join(SCHEMES)}):(.+)", re.DOTALL)
# An idempotency key is no secret, nor is a bare "key".
_KEY_NAME = re.compile(
    r"(?i)(api_?key|(?<!idempotency)[_-]key$|(^|[_-])(token|auth)$|secret|passw(or)?d|passphrase|credential|authorization)"
)
# The prefixes that providers give to their keys, and long runs that mix letters and digits as only keys do.
_KEY_VALUE = re.compile(
    r"(sk|pk|rk)[-_][A-Za-z0-9_-]{16,}|gh[opusr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|xox[abprs]-[\w-]{10,}"
    r"|AKIA[A-Z0-9]{12,}|AIza[\w-]{30,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*|-----BEGIN [A-Z ]*PRIVATE KEY"
)
_KEY_RUN = re.compile(r"(?=[^\d]*\d)(?=[^A-Za-z]*[A-Za-z])[A-Za-z0-9_-]{40,}")


def is_reference(text: str) -> bool:
    """Tells whether the text is a reference to a secret."""
    return _REFERENCE.fullmatch(text) is not None


def is_key_name(name: str) -> bool:
    """Tells whether a field or variable of this name holds a secret, going by what people call them."""
    return _KEY_NAME.search(name) is not None


def looks_plain(name: str, value: str) -> bool:
    """Tells whether a value is a secret in plain text: by its own look, or because its name says that it is one."""
    if not value or is_reference(value):
        return False
    return is_key_name(name) or _KEY_VALUE.search(value) is not None or _KEY_RUN.fullmatch(value) is not None


class Secrets:
    """Resolves references, and knows what it has handed out, so that the log can leave it out."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._handed_out: dict[str, str] = {}

    async def resolve(self, reference: str) -> str:
        """Gives the secret as it is now, without the newline at its end; takes `EXEC_TIMEOUT_S` at most.

        Raises Rejected ``secret_missing`` where it can't be had.
        """
        match = _REFERENCE.fullmatch(reference)
        if match is None:
            raise Rejected("secret_missing", reference="given", detail=f"it starts with none of {', '.join(SCHEMES)}")
        try:
            secret = await self._read(match[1], match[2])
        except TimeoutError:
            raise Rejected("secret_missing", reference=reference, detail=f"no answer in {EXEC_TIMEOUT_S} s") from None
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            detail = (isinstance(error, OSError) and error.strerror) or error
            raise Rejected("secret_missing", reference=reference, detail=detail) from error
        if not secret:
            raise Rejected("secret_missing", reference=reference, detail="it is empty")
        self._remember(secret, reference)
        return secret

    def redact(self, text: str) -> str:
        """Replaces every secret that was handed out by its reference; very short ones would garble the text."""
        for secret, reference in self._handed_out.items():
            text = text.replace(secret, f"[{reference}]")
        return text

    async def _read(self, scheme: str, rest: str) -> str:
        if scheme == "env":
            if rest not in self._environ:
                raise ValueError("the variable is not set in the daemon's environment")
            return self._environ[rest]
        if scheme == "file":
            return await anyio.to_thread.run_sync(_read_file, rest)
        if scheme == "keychain":
            service, _, account = rest.partition("/")
            return await _run(["/usr/bin/security", "find-generic-password", "-s", service, "-w", *_option(account)])
        return await _run(shlex.split(rest))

    def _remember(self, secret: str, reference: str) -> None:
        if len(secret) < REDACTED_CHARS_MIN:
            return
        self._handed_out[secret] = reference
        if len(self._handed_out) > REMEMBERED_MAX:
            del self._handed_out[next(iter(self._handed_out))]


def _option(account: str) -> list[str]:
    return ["-a", account] if account else []


def _read_file(path: str) -> str:
    # O_NONBLOCK, so that a FIFO without a writer can't hold the thread.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        return _decoded(file.read(SECRET_BYTES_MAX + 1))


async def _run(argv: Sequence[str]) -> str:
    """Runs a program without a shell; raises OSError, ValueError or TimeoutError, and leaves no process behind."""
    if not argv:
        raise ValueError("no command is given")
    with anyio.fail_after(EXEC_TIMEOUT_S):
        async with await anyio.open_process(argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            output = b""
            if process.stdout is not None:
                async for part in process.stdout:
                    output += part
                    if len(output) > SECRET_BYTES_MAX:
                        process.kill()
                        break
            code = await process.wait()
    secret = _decoded(output)
    if code != 0:
        raise ValueError(f"{argv[0]} ended with exit code {code}")
    return secret


def _decoded(content: bytes) -> str:
    if len(content) > SECRET_BYTES_MAX:
        raise ValueError(f"it has more than {SECRET_BYTES_MAX} bytes")
    return content.decode().rstrip("\r\n")
