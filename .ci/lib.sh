# Words shared by .ci/demo and .ci/test. Sourced by bash, never run.
# A step runs in a shell of its own, so that nothing it sets or traps outlives it.
# Progress is one line a step; everything else goes to .cache/logs, whose tail is shown when a step fails.
# Packages come through apt-get, pip and npm as this machine has them set up.
# shellcheck shell=bash

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=$root/.cache
logs=$cache/logs
export venv=$root/.venv
mkdir -p "$logs"
cd "$root"

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# step NAME COMMAND…: run it quietly; say how long it took, or show the end of its log and stop.
step() {
    local name=$1 log started=$SECONDS status=0
    shift
    log=$logs/${name//[^a-z0-9]/-}.log
    printf '· %s …\n' "$name"
    set +e # a command in an `if` or before `||` would go on after its first error, whatever it sets
    (
        set -e
        "$@"
    ) >"$log" 2>&1 </dev/null
    status=$?
    set -e
    if [ $status -eq 0 ]; then
        printf '  %s: ok (%d s)\n' "$name" $((SECONDS - started))
    else
        printf '  %s: FAILED\n' "$name"
        tail -n 40 "$log" | sed 's/^/    /' >&2
        die "$name failed; the whole log is ${log#"$root"/}"
    fi
}

# at_once FUNCTION…: each with steps of its own, all at the same time. Stops when all have ended and one has failed.
at_once() {
    local pids=() status=0 function pid
    for function in "$@"; do
        "$function" &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do
        wait "$pid" || status=1
    done
    [ $status -eq 0 ] || exit 1
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root: run it as root, or install sudo"
    fi
}

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# Installs the Debian packages that are missing. The services that some of them bring (a web server, an
# engine) are not started: what the suite needs of them it starts itself.
apt_install() {
    local package missing=() policy=/usr/sbin/policy-rc.d
    for package in "$@"; do
        installed "$package" || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || die "please install: ${missing[*]} (only apt-get is known to this script)"
    as_root apt-get update -q
    if [ ! -e "$policy" ]; then
        trap 'as_root rm -f /usr/sbin/policy-rc.d' EXIT # of the step's own shell
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod 755 "$policy"
    fi
    as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 \
        apt-get install -q -y --no-install-recommends "${missing[@]}"
}

# The first python3 on PATH that is 3.11 or newer, else Debian's.
find_python() {
    local candidate
    for candidate in python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

# Debian ships python3 without ensurepip; without it no virtual environment can be made.
ensure_python() {
    python=$(find_python) || {
        apt_install python3 python3-venv
        python=$(find_python) || die "Python 3.11 or newer is needed"
    }
    "$python" -c 'import ensurepip, venv' 2>/dev/null || {
        apt_install python3-venv
        "$python" -c 'import ensurepip, venv' || die "$python cannot make virtual environments"
    }
}

# make_venv DIRECTORY: create it once; pip new enough to know dependency groups.
make_venv() {
    ensure_python
    if ! "$1/bin/python" -c 'import pip, sys; sys.exit(int(pip.__version__.split(".")[0]) < 25)' 2>/dev/null; then
        "$python" -m venv --clear "$1"
        "$1/bin/python" -m pip install -q --upgrade 'pip>=25.1'
    fi
}

# sync_venv DIRECTORY ARGUMENT…: `pip install ARGUMENT…`, skipped while neither they nor pyproject.toml change.
sync_venv() {
    local directory=$1 stamp
    shift
    make_venv "$directory"
    stamp=$( (printf '%s\n' "$root" "$@" && cat pyproject.toml) | sha256sum)
    if [ "$(cat "$directory/.stamp" 2>/dev/null)" != "$stamp" ]; then
        "$directory/bin/python" -m pip install "$@"
        printf '%s' "$stamp" >"$directory/.stamp"
    fi
}
