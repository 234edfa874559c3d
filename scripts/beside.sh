#!/bin/sh
# Makes .venv-NAME with what `make bench` compares with; nothing of omnid needs it.
# usage: beside.sh proxy    LiteLLM's own proxy
#        beside.sh celery   Celery
set -eu
cd "$(dirname "$0")/.."

lock=bench/requirements-$1.txt
venv=.venv-$1
if cmp -s "$lock" "$venv/lock"; then
    exit 0
fi
echo "setting up $venv" >&2
rm -rf "$venv"
.venv/bin/python -m venv --without-pip "$venv"
.venv/bin/python -m pip --python "$venv/bin/python" install --quiet --disable-pip-version-check --no-input \
    --progress-bar off --require-hashes -r "$lock"
cp "$lock" "$venv/lock"
