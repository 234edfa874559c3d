"""A certificate for 127.0.0.1 that only those trust who are told to."""

import os
import subprocess


def make_certificate(certificate: str, private_key: str) -> None:
    """Writes a certificate and its key, in PEM; both may go to one file."""
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    made += ["-subj", "/CN=omnid", "-addext", "subjectAltName=IP:127.0.0.1"]
    made += ["-keyout", private_key, "-out", certificate]
    subprocess.run(made, env={"PATH": os.environ["PATH"]}, check=True, capture_output=True, timeout=30)
