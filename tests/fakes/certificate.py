"""Certificates that only those trust who are told to."""

import os
import ssl
import subprocess
from pathlib import Path


def make_certificate(certificate: str, private_key: str) -> None:
    """Writes a certificate for 127.0.0.1 and its key, in PEM."""
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    made += ["-subj", "/CN=omnid", "-addext", "subjectAltName=IP:127.0.0.1"]
    made += ["-keyout", private_key, "-out", certificate]
    subprocess.run(made, env={"PATH": os.environ["PATH"]}, check=True, capture_output=True, timeout=30)


def untrusted(directory: Path) -> ssl.SSLContext:
    """What a server needs to present it; its files go into the directory."""
    certificate, private_key = directory / "certificate.pem", directory / "key.pem"
    make_certificate(str(certificate), str(private_key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, private_key)
    return context
