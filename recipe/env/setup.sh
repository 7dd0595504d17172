#!/usr/bin/env bash
# setup.sh LOCK VENV: make VENV hold exactly the packages of LOCK, on Python 3.10.
# Needs bash and either uv or any python3; brings uv and, through it, Python 3.10 where they are missing.
set -euo pipefail
lock=$1 venv=$2
# shellcheck source=recipe/env/heartbeat.sh
. "$(dirname "${BASH_SOURCE[0]}")/heartbeat.sh"

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# uv keeps what it has fetched. The shell ends by the signal itself, so that make stops as well.
stop() {
  echo "stopped; what was fetched is kept: run the same command again, and it goes on" >&2
  for job in $(jobs -p); do kill "$job" 2>/dev/null || true; done # the heartbeat, which would hold the output
  trap - INT
  kill -INT $$
}
trap stop INT

# Not its value, which may hold a password.
mirror() { [ -z "${UV_DEFAULT_INDEX:-}" ] && echo "UV_DEFAULT_INDEX names a mirror" || echo "check UV_DEFAULT_INDEX, which is set"; }

# Two `make` at once: the second waits here and then finds the work done.
mkdir -p "$(dirname "$venv")"
if command -v flock >/dev/null; then
  exec 9>"$venv.lock"
  flock 9
fi

# The version and the hashes of uv in the lock, as pip reads them.
pinned_uv() { sed -n '/^uv==/,/[^\\]$/p' "$(dirname "$lock")/requirements-dev.lock"; }

find_uv() {
  local tool=$venv-uv
  if command -v uv; then return; fi
  if [ ! -x "$tool/bin/uv" ]; then
    command -v python3 >/dev/null ||
      fail "neither uv nor python3 is installed: install uv (https://docs.astral.sh/uv/) and run make again"
    echo "installing uv into $tool" >&2
    [ -z "${UV_DEFAULT_INDEX:-}" ] || export PIP_INDEX_URL=${PIP_INDEX_URL:-$UV_DEFAULT_INDEX}
    { python3 -m venv "$tool" && pinned_uv >"$tool/requirements.txt" && patiently "installing uv" "$tool/bin/python" \
      -m pip install --quiet --disable-pip-version-check --require-hashes --requirement "$tool/requirements.txt"; } >&2 ||
      fail "uv could not be installed with python3: install it yourself (https://docs.astral.sh/uv/; on Debian and" \
        "Ubuntu, 'apt-get install python3-venv' mends python3; $(mirror)) and run make again"
  fi
  echo "$tool/bin/uv"
}

works() { "$1" -c 'import sys, venv; sys.exit(sys.version_info[:2] != (3, 10))' 2>/dev/null; }

find_python() {
  local candidate
  for candidate in "$(command -v python3.10 || true)" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.10.*/bin/python3.10; do
    if [ -n "$candidate" ] && [ -x "$candidate" ] && works "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  candidate=$("$uv" python find 3.10 2>/dev/null || true)
  if [ -n "$candidate" ] && works "$candidate"; then
    echo "$candidate"
    return
  fi
  echo "no Python 3.10 here: letting uv install one" >&2
  if ! patiently "installing Python 3.10" "$uv" python install 3.10 >&2; then
    fail "XTuner 0.1.17 needs Python 3.10 and none was found: uv fetches one from GitHub, or from the mirror in" \
      "UV_PYTHON_INSTALL_MIRROR (UV_SYSTEM_CERTS=1 takes the system's certificates); Debian 12 and Ubuntu 24.04 have no" \
      "package of it, but 'conda create -p ~/py310 python=3.10' and ~/py310/bin in PATH do: then run make again;" \
      "docs/troubleshooting.md has more ways"
  fi
  "$uv" python find 3.10
}

uv=$(find_uv)
if ! works "$venv/bin/python"; then
  python=$(find_python)
  rm -rf "$venv"
  "$uv" venv --quiet --python "$python" "$venv"
fi
# `sync` removes what a lock does not name: where the test tools are installed, keep them.
[ ! -e "$venv/.installed-dev" ] || lock=$(dirname "$lock")/requirements-dev.lock
# uv unpacks what it fetches into its cache, and at the end links or copies it into VENV: the larger of the two is there.
kilobytes() { local sum=0 _; read -r sum _ < <(du -sk "$1" 2>/dev/null) || true; echo "${sum:-0}"; }
ALL_GB=5.7
cache=$("$uv" cache dir 2>/dev/null || true) cache_before=0
[ -z "$cache" ] || cache_before=$(kilobytes "$cache")
installed() {
  local here fetched tenths
  here=$(kilobytes "$venv") fetched=0
  [ -z "$cache" ] || fetched=$(($(kilobytes "$cache") - cache_before))
  tenths=$(((here > fetched ? here : fetched) * 1024 / 100000000))
  echo ", $((tenths / 10)).$((tenths % 10)) of $ALL_GB GB"
}
echo "installing the $(grep -c '^[a-z0-9].*==' "$lock") packages of $(basename "$lock") into $venv ($ALL_GB GB on disk)" >&2
sync() { "$uv" pip sync --quiet "$@" --python "$venv/bin/python" --require-hashes "$lock"; }
so_far() { installed; }
if ! patiently "installing packages" sync; then
  fail "the packages could not be installed (see above): check the network and the free disk space, then run make again;" \
    "$(mirror), and UV_SYSTEM_CERTS=1 takes the system's certificates (docs/troubleshooting.md)"
fi
so_far() { :; }
echo "compiling the packages" >&2 # else the silence before it and that in it add up
patiently "compiling packages" sync --compile-bytecode # otherwise the first command would, and again for each new user
