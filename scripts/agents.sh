#!/bin/sh
# Installs the agents that tests drive (tests/agents), where its lock has changed since the last time. Scripts of the
# packages don't run: the tests start the programs where they lie.
set -eu
cd "$(dirname "$0")/../tests/agents"
stamp=node_modules/.omnid-lock
cmp -s package-lock.json "$stamp" && exit 0
command -v npm >/dev/null || { echo "npm is not there; with Node.js 20 or newer it is." >&2; exit 1; }
npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2
cp package-lock.json "$stamp"
