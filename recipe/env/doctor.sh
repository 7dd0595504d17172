#!/usr/bin/env bash
# doctor.sh: what this machine has of what the recipe needs, a line each, with the fix where something is missing.
# Ends non-zero if something is missing that RUNTIME (docker or local, $1) cannot do without. Needs bash alone.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit
runtime=${1:-local} port=${PORT:-6006} failed=0

ok() { printf 'ok    %-11s %s\n' "$1" "$2"; }
note() { printf 'note  %-11s %s\n      %-11s -> %s\n' "$1" "$2" "" "$3"; }
bad() {
  printf 'BAD   %-11s %s\n      %-11s -> %s\n' "$1" "$2" "" "$3"
  failed=1
}
# Missing: bad where the stages are to run in Docker, worth a note otherwise.
docker_lacks() {
  if [ "$runtime" = docker ]; then bad "$@"; else note "$1" "$2" "needed for containers alone: ${3%, or RUNTIME=local}"; fi
}
# at_least 1.10 1.9: whether version $1 is $2 or later.
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

engine() {
  local version
  if ! command -v docker >/dev/null; then
    docker_lacks engine "docker is not installed" "https://docs.docker.com/engine/install/, or RUNTIME=local"
  elif ! version=$(timeout 10 docker version --format '{{.Server.Version}}' 2>/dev/null); then
    if [ -S /var/run/docker.sock ] && [ ! -w /var/run/docker.sock ]; then
      docker_lacks engine "you may not talk to the Docker engine" "sudo usermod -aG docker $(id -un), then log in again"
    else
      docker_lacks engine "the Docker engine does not answer" "sudo systemctl start docker, or RUNTIME=local"
    fi
  elif ! at_least "$version" 25; then
    docker_lacks engine "Docker $version is too old" "install Docker 25 or newer"
  else
    ok engine "Docker $version"
  fi
}

compose() {
  local version
  if ! version=$(docker compose version --short 2>/dev/null); then
    docker_lacks compose "docker compose is not installed" "apt-get install docker-compose-plugin"
  elif ! at_least "${version#v}" 2.24.4; then # the first that understands !reset in an override file
    docker_lacks compose "docker compose $version is too old" "install 2.24.4 or newer"
  else
    ok compose "docker compose $version"
  fi
}

gpu() {
  local needed lowest bfloat16 name memory version capability status=0
  needed=$(sed -nE 's/^DRIVER = "(.*)"/\1/p' recipe/device.py)
  lowest=$(sed -nE 's/^CAPABILITY = "(.*)"/\1/p' recipe/device.py)
  bfloat16=$(sed -nE 's/^BFLOAT16 = "(.*)"/\1/p' recipe/device.py)
  timeout 30 nvidia-smi -L >/dev/null 2>&1 || status=$?
  if [ "$status" = 124 ]; then
    bad gpu "nvidia-smi does not answer" "the driver hangs: look into dmesg, and restart the machine"
    return
  elif [ "$status" != 0 ]; then
    note gpu "no NVIDIA GPU answers to nvidia-smi" \
      "fine for make quickstart; the 1.8B model needs one, with driver $needed or newer"
    return
  fi
  while IFS=, read -r name version memory; do
    version=${version# } memory=${memory# }
    if ! at_least "$version" "$needed"; then
      bad driver "$version is too old for CUDA 13.0" "install driver $needed or newer"
    else
      ok driver "$version"
    fi
    if [[ $memory =~ ^[0-9]+$ ]] && [ "$memory" -lt 7500 ]; then # MiB; what an 8 GB card reports is a little less than 8192
      bad "gpu memory" "$name has $memory MiB" "the 1.8B model needs a card of 8 GB"
    else
      ok "gpu memory" "$name, $memory MiB"
    fi
  done < <(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader,nounits)
  while IFS=, read -r name capability; do
    capability=${capability# }
    [[ $capability =~ ^[0-9]+\.[0-9]+$ ]] || continue
    if ! at_least "$capability" "$lowest"; then
      bad "gpu kernels" "$name has compute capability $capability" \
        "the locked torch has kernels from $lowest on; bfloat16 wants $bfloat16: RTX 30, A10, A100 or later"
    elif ! at_least "$capability" "$bfloat16"; then
      note "gpu kernels" "$name has compute capability $capability, without bfloat16" \
        "every preset but tutorial computes in it: take $bfloat16 or newer (RTX 30, A10, A100)"
    fi
  done < <(nvidia-smi --query-gpu=name,compute_cap --format=csv,noheader,nounits)
  if [ "$runtime" = docker ] && ! grep -q nvidia < <(for list in Runtimes DiscoveredDevices; do # the second since Docker 28.2
    docker info --format "{{json .$list}}" 2>/dev/null
  done); then
    bad "gpu docker" "Docker knows no nvidia runtime" \
      "install the NVIDIA Container Toolkit, then nvidia-ctk runtime configure and restart Docker"
  fi
}

disk() { # disk WHAT FOLDER GB FIX
  local free
  free=$(df -Pk "$2" 2>/dev/null | awk 'NR == 2 {print int($4 / 1048576)}')
  if [ -z "$free" ]; then
    note "$1" "$2 cannot be looked at" "check that $3 GB are free there"
  elif [ "$free" -lt "$3" ]; then
    bad "$1" "$free GB free in $2" "$4"
  else
    ok "$1" "$free GB free in $2"
  fi
}

lock() {
  local stamp=.venv/.installed
  if [ "$runtime" = docker ]; then
    if docker image inspect "internlm2-identity-recipe:${TAG:-latest}" >/dev/null 2>&1; then
      ok image "internlm2-identity-recipe:${TAG:-latest}"
    else
      note image "not built yet" "make build does it, and so does every stage"
    fi
  elif [ ! -e "$stamp" ]; then
    note lock "nothing is installed yet" "make setup does it, and so does every stage"
  elif [ requirements.lock -nt "$stamp" ]; then
    note lock "requirements.lock changed since it was installed" "make setup, which every stage does too"
  else
    ok lock "the packages of requirements.lock are installed"
  fi
}

results() {
  if [ -e work ] && [ ! -w work ]; then
    bad work "you may not write to work/" "sudo chown -R $(id -un) work"
  else
    ok work "results can be written to work/"
  fi
}

listening() {
  if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
    note port "something listens on port $port already" "fine if it is the demo; otherwise PORT=$((port + 1))"
  else
    ok port "$port is free for make demo"
  fi
}

printf 'RUNTIME=%s\n' "$runtime"
engine
compose
gpu
disk disk . 6 "free some: the packages take 5.7 GB, a run of the 1.8B model 8 GB more"
if [ "$runtime" = docker ]; then
  folder=$(docker info --format '{{.DockerRootDir}}' 2>/dev/null) # an empty line where no engine answers
  disk "docker disk" "${folder:-/}" 20 \
    "free some (docker system df shows what takes it): the images take 8 GB, their build twice that"
fi
lock
results
listening
exit "$failed"
