#!/bin/sh
# Install Debian/Ubuntu packages that are missing: apt.sh [--optional] PACKAGE:"what it is for" ...
# As root or with a sudo that asks nothing; otherwise it says what to install, and fails unless --optional.
set -u

optional=0
if [ "${1:-}" = "--optional" ]; then optional=1; shift; fi

wanted="" why=""
for entry in "$@"; do
    package=${entry%%:*}
    if ! dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q "ok installed"; then
        wanted="$wanted $package"
        why="$why $package (${entry#*:})"
    fi
done
[ -z "$wanted" ] && exit 0

run=""
if [ "$(id -u)" != 0 ]; then
    if sudo -n true 2>/dev/null; then run="sudo -n"; else run=none; fi
fi
if [ "$run" != none ] && command -v apt-get >/dev/null; then
    echo "installing$wanted"
    # shellcheck disable=SC2086
    if DEBIAN_FRONTEND=noninteractive $run apt-get install -y -qq --no-install-recommends $wanted >/dev/null 2>&1 ||
        { $run apt-get update -qq >/dev/null 2>&1 &&
            DEBIAN_FRONTEND=noninteractive $run apt-get install -y -qq --no-install-recommends $wanted >/dev/null; }; then
        exit 0
    fi
fi
echo "not installed:$why. Install with: apt-get install$wanted" >&2
[ "$optional" = 1 ]
