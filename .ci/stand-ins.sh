#!/usr/bin/env bash
# stand-ins.sh FILE: on a machine that can pull no image, write FILE, a compose override by which the Dockerfile's base images
# are stand-ins made here: the same job, other contents, no GPU. Needs ../shared/tools/docker-engine.sh and its engine running.
set -euo pipefail
cd "$(dirname "$0")/.."
engine=../shared/tools/docker-engine.sh
bash "$engine" base stand-in/cuda:latest
bash "$engine" uv stand-in/uv:latest
default() { sed -nE "s/^ARG $1=(.*)/\1/p" Dockerfile; }
for service in recipe demo api; do
  cat <<EOF
  $service:
    build:
      additional_contexts:
        "$(default CUDA_IMAGE)": docker-image://stand-in/cuda:latest
        "$(default UV_IMAGE)": docker-image://stand-in/uv:latest
EOF
done | { echo services: && cat; } >"$1"
