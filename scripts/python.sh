#!/bin/sh
# Prints the path of a Python that omnid runs on (3.11 to 3.14); where there is none, says the one command that brings one.
set -eu

fits='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))'

for name in ${PYTHON:-} python3.14 python3.13 python3.12 python3.11 python3; do
    # A name can be a shim without a Python behind it, so each is tried.
    if command -v "$name" >/dev/null 2>&1 && "$name" -c "$fits" >/dev/null 2>&1; then
        exec "$name" -c 'import sys; print(sys.executable)'
    fi
done

# Where the installer of uv puts it, if this shell was started before.
PATH="$PATH:${HOME:-}/.local/bin"
if command -v uv >/dev/null 2>&1; then
    uv python find --quiet '>=3.11,<3.15' 2>/dev/null && exit 0
    uv python install --quiet 3.13 >&2
    exec uv python find --quiet 3.13
fi

echo "omnid needs Python 3.11 to 3.14, and there is none here. This brings one:" >&2
# Debian 11 and Ubuntu 22.04 have a python3 that is too old, and so has who knows what else.
if command -v apt-cache >/dev/null 2>&1; then
    packaged=$(apt-cache policy python3 2>/dev/null | sed -n 's/^ *Candidate: *\(3\.[0-9]*\).*/\1/p')
else
    packaged=
fi
case "$(uname -s) $packaged" in
    Linux\ 3.11 | Linux\ 3.12 | Linux\ 3.13 | Linux\ 3.14) echo "    sudo apt-get install python3 python3-venv" >&2 ;;
    *)
        if command -v brew >/dev/null 2>&1; then
            echo "    brew install python@3.13" >&2
        elif command -v curl >/dev/null 2>&1 || ! command -v wget >/dev/null 2>&1; then
            echo "    curl -LsSf https://astral.sh/uv/install.sh | sh" >&2
        else
            echo "    wget -qO- https://astral.sh/uv/install.sh | sh" >&2
        fi
        ;;
esac
exit 1
