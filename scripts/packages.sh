#!/bin/sh
# Installs Debian packages that are missing, and starts no service; where that can't be done, says what is missing.
# usage: packages.sh PACKAGE...      ends with 1 if some are missing still
set -eu

missing=
for package in "$@"; do
    # A program of the package's name is as good as the package, wherever it comes from.
    if ! command -v "$package" >/dev/null 2>&1 && ! [ -x "/usr/sbin/$package" ] \
        && ! dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed'; then
        missing="$missing $package"
    fi
done
[ -n "$missing" ] || exit 0

root=
if [ "$(id -u)" -ne 0 ]; then
    root='sudo -n'
fi
if ! command -v apt-get >/dev/null 2>&1 || ! $root true 2>/dev/null; then
    echo "missing here:$missing" >&2
    exit 1
fi

# invoke-rc.d and systemd's helper ask this file whether a service may start; 101 is "no". One that is there stays.
policy=/usr/sbin/policy-rc.d
if ! [ -e "$policy" ]; then
    trap '$root rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM
    printf '#!/bin/sh\nexit 101\n' | $root tee "$policy" >/dev/null
    $root chmod 755 "$policy"
fi

echo "installing:$missing"
install="$root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o=Dpkg::Use-Pty=0 -o=DPkg::Lock::Timeout=300"
# shellcheck disable=SC2086
if ! { $install update && $install install -y --no-install-recommends $missing; } </dev/null >/dev/null; then
    echo "missing here, and apt-get could not bring it:$missing" >&2
    exit 1
fi
