#!/usr/bin/env bash
# lock.sh [--check]: resolve pyproject.toml into requirements.lock (what runs) and requirements-dev.lock (with the tools
# that test it). Exact versions with every hash and no index address; one lock for CPU, GPU and image.
# --check: change nothing, fail if the locks are not what pyproject.toml asks for.
set -euo pipefail
cd "$(dirname "$0")/../.."

compile() { # compile OUTPUT [ARGUMENT...]
  .venv/bin/uv pip compile pyproject.toml --quiet --output-file "$1" "${@:2}" --python-version 3.10 \
    --python-platform x86_64-manylinux_2_28 --generate-hashes --no-emit-index-url --no-header >/dev/null
}

if [ "${1:-}" != --check ]; then
  compile requirements.lock
  compile requirements-dev.lock --group dev --constraint requirements.lock
  exit
fi
# uv keeps the versions that its output file already holds wherever they still satisfy pyproject.toml.
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
cp requirements.lock requirements-dev.lock "$fresh"
compile "$fresh/requirements.lock"
compile "$fresh/requirements-dev.lock" --group dev --constraint requirements.lock
for lock in requirements.lock requirements-dev.lock; do
  if ! diff <(grep -v '^ *#' "$lock") <(grep -v '^ *#' "$fresh/$lock") >&2; then
    echo "error: $lock is not what pyproject.toml asks for: run make lock" >&2
    exit 1
  fi
  if grep -nE '://|--(extra-)?index-url|--find-links' "$lock" | grep -v '^[0-9]*: *#' >&2; then
    echo "error: $lock names a download address" >&2
    exit 1
  fi
done
