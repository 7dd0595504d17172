#!/usr/bin/env bash
# setup.sh LOCK VENV: make VENV hold exactly the packages of LOCK, on Python 3.10.
# Needs bash and either uv or any python3; brings uv and, through it, Python 3.10 where they are missing.
set -euo pipefail
lock=$1 venv=$2

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Two `make` at once: the second waits here and then finds the work done.
mkdir -p "$(dirname "$venv")"
if command -v flock >/dev/null; then
  exec 9>"$venv.lock"
  flock 9
fi

find_uv() {
  local version tool
  if command -v uv; then return; fi
  version=$(sed -nE 's/^uv==([^ ]+).*/\1/p' "$(dirname "$lock")/requirements-dev.lock")
  tool=$venv-uv
  if [ ! -x "$tool/bin/uv" ]; then
    command -v python3 >/dev/null ||
      fail "neither uv nor python3 is installed: install uv (https://docs.astral.sh/uv/) and run make again"
    echo "installing uv $version into $tool" >&2
    { python3 -m venv "$tool" && "$tool/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$version"; } >&2 ||
      fail "uv could not be installed with python3: install it yourself (https://docs.astral.sh/uv/; on Debian and" \
        "Ubuntu, 'apt-get install python3-venv' mends python3) and run make again"
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
  if ! "$uv" python install 3.10 >&2; then
    fail "XTuner 0.1.17 needs Python 3.10 and none was found: install it (apt-get install python3.10, pyenv install" \
      "3.10, or conda create -p ~/py310 python=3.10 and add ~/py310/bin to PATH) and run make again"
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
echo "installing the $(grep -c '^[a-z0-9].*==' "$lock") packages of $(basename "$lock") into $venv (5.7 GB on disk)" >&2
"$uv" pip sync --quiet --compile-bytecode --python "$venv/bin/python" --require-hashes "$lock" ||
  fail "the packages could not be installed (see above): check the network and the free disk space, then run make again"
