#!/usr/bin/env bash
# lock.sh [--check]: resolve pyproject.toml into requirements.lock (what runs), requirements-dev.lock (with the tools that
# test it) and requirements-demo.lock (the part of it that the web page needs, for its image). Exact versions with every
# hash and no index address; one lock for CPU, GPU and image.
# --check: change nothing, fail if the locks are not what pyproject.toml asks for.
set -euo pipefail
cd "$(dirname "$0")/../.."

locks=(requirements.lock requirements-dev.lock requirements-demo.lock)

compile() { # compile OUTPUT ARGUMENT...
  .venv/bin/uv pip compile --quiet --output-file "$@" --python-version 3.10 \
    --python-platform x86_64-manylinux_2_28 --generate-hashes --no-emit-index-url --no-header >/dev/null
}

compile_all() { # compile_all FOLDER
  compile "$1/requirements.lock" pyproject.toml
  compile "$1/requirements-dev.lock" pyproject.toml --group dev --constraint requirements.lock
  compile "$1/requirements-demo.lock" --group demo --constraint requirements.lock
}

if [ "${1:-}" != --check ]; then
  compile_all .
  exit
fi
# uv keeps the versions that its output file already holds wherever they still satisfy pyproject.toml.
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
cp "${locks[@]}" "$fresh"
compile_all "$fresh"
for lock in "${locks[@]}"; do
  if ! diff <(grep -v '^ *#' "$lock") <(grep -v '^ *#' "$fresh/$lock") >&2; then
    echo "error: $lock is not what pyproject.toml asks for: run make lock" >&2
    exit 1
  fi
  if grep -nE '://|--(extra-)?index-url|--find-links' "$lock" | grep -v '^[0-9]*: *#' >&2; then
    echo "error: $lock names a download address" >&2
    exit 1
  fi
done
