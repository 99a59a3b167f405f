#!/bin/sh
# venv.sh VENV STAMP PIP-ARGUMENTS...
#
# Makes the virtual environment VENV if it is not there, installs into it, and touches STAMP.
# What is missing on the machine is named with the command that installs it.
set -eu

venv=$1 stamp=$2
shift 2
python=${PYTHON:-python3}

say() { printf '%s\n' "$*" >&2; }

command -v "$python" >/dev/null 2>&1 || {
    say "$python is not installed. On Debian: apt-get install python3 python3-venv"
    exit 1
}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    say "$python is $("$python" --version 2>&1); Python 3.11 or newer is needed. Name one: make PYTHON=/path/to/python3.11"
    exit 1
}
"$python" -c 'import ensurepip, venv' >/dev/null 2>&1 || {
    say "$python has no venv module. On Debian: apt-get install python3-venv"
    exit 1
}

# A copied or moved checkout has a broken environment: make it anew.
if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -c '' 2>/dev/null; then
    say "making the environment $venv"
    "$python" -m venv --clear "$venv"
fi
say "installing: pip install $*"
log=$venv/install.log
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-warn-script-location "$@" >"$log" 2>&1 || {
    cat "$log" >&2
    say "pip could not install what is needed (see above; is a package index reachable?). The log is $log"
    exit 1
}
touch "$stamp"
