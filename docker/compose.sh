#!/usr/bin/env bash
# compose.sh ARGUMENT...: `docker compose ARGUMENT...` with what this machine decides: who the user is, whether there is a GPU,
#                         which commit this is.
# compose.sh stage VERB [OPTION...]: one stage in a container, with the same arguments and results as `python -m recipe VERB …`.
set -euo pipefail
cd -P "$(dirname "$0")/.." # by whatever link it was called, a checkout is one project
# shellcheck source=recipe/env/run_name.sh
. recipe/env/run_name.sh

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# setting NAME DEFAULT: what the environment says or else .env, as compose reads them.
setting() {
  local told=${!1:-}
  [ -n "$told" ] || told=$(LC_ALL=C sed -nE "s/^$1=//p" .env 2>/dev/null | tail -n 1)
  printf '%s' "${told:-$2}"
}

docker info >/dev/null 2>&1 ||
  fail "no Docker engine answers: start it (systemctl start docker), or use RUNTIME=local, which needs none"

# A container never runs as root: where root calls this, the results go to the user behind sudo, or to uid 1000.
RECIPE_UID=${RECIPE_UID:-$(id -u)} RECIPE_GID=${RECIPE_GID:-$(id -g)}
if [ "$RECIPE_UID" = 0 ]; then
  RECIPE_UID=${SUDO_UID:-1000} RECIPE_GID=${SUDO_GID:-1000}
  mkdir -p work && chown -R "$RECIPE_UID:$RECIPE_GID" work
fi
# Not REVISION, which is a model's.
RECIPE_REVISION=${RECIPE_REVISION:-$(git rev-parse HEAD 2>/dev/null || echo unknown)}
export RECIPE_UID RECIPE_GID RECIPE_REVISION
# A project for each checkout and user: under one name for all, a second clone would take over the page of the first.
if [ -z "$(setting COMPOSE_PROJECT_NAME "")" ]; then
  place=$(printf '%s %s' "$PWD" "$RECIPE_UID" | cksum)
  export COMPOSE_PROJECT_NAME=internlm2-identity-${place%% *}
fi
if [ -z "$(setting COMPOSE_FILE "")" ] && ! nvidia-smi -L >/dev/null 2>&1; then
  export COMPOSE_FILE=compose.yaml:docker/compose.cpu.yaml
fi

host=$(setting HOST 127.0.0.1) image=internlm2-identity-recipe:$(setting TAG latest)
server=demo variable=PORT default=6006
case "${1:-} ${2:-}" in
"up api") server=api variable=API_PORT default=8000 ;;
"up vllm") server=vllm variable=API_PORT default=8000 ;;
"up vllm-page") server=vllm-page ;;
esac
# A profile starts what is in none, too.
case " $* " in
*" --profile "*" up "*)
  case ${*: -1} in
  up | -*) fail "name the service, as in docker/compose.sh up vllm-page: a profile alone starts the page of demo too, on the same port" ;;
  esac
  ;;
esac
if [ "$server" != demo ]; then
  [ -n "$(setting API_KEY "")" ] || fail "API_KEY is missing: choose a key, and set it in the environment or in .env"
fi
if [[ $server == vllm* ]] && ! nvidia-smi -L >/dev/null 2>&1; then
  fail "vLLM needs an NVIDIA GPU, and nvidia-smi finds none here: docker/compose.sh up demo needs none"
fi
port=$(setting "$variable" "$default")
if [ "${1:-}" = up ] && [ -z "$(docker compose ps --quiet "$server")" ] && (exec 3<>"/dev/tcp/$host/$port") 2>/dev/null; then
  fail "port $port is taken: stop what listens there, or choose another with $variable=$((port + 1))"
fi
if [ "${1:-}" != stage ]; then
  exec docker compose "$@"
fi
shift

# mount PATH: to be read, where it is; with what the links in a folder point to, as in a Hugging Face cache.
mounts=()
mount() {
  local path
  while read -r path; do
    mounts+=(--volume "$path:$path:ro")
  done < <(printf '%s\n' "$1" && find "$1" -type l -exec realpath -e {} + 2>/dev/null | grep -vF "$1/" | sort -u)
}

# GPUS in .env, too, is both: how many a container gets and how many processes train.
gpus=$(setting GPUS all)
case ${1:-} in
config | train | quickstart)
  if [ "$gpus" != all ] && [[ " $* " != *" --gpus "* ]]; then set -- "$@" --gpus "$gpus"; fi
  ;;
esac

# A file or folder of the user's that an option names is mounted; what lies under work/ is there already.
arguments=() run=main option=''
[ "${1:-}" != quickstart ] || run=quickstart
service=recipe # without a network, but for these
case ${1:-} in
model | publish) service=fetch ;;
train | quickstart) several=cluster ;;
esac
for argument in "$@"; do
  case $argument in --offline | --dry-run) service=recipe ;; esac
  case $option in
  --run) run=$(run_name "$argument") ;;
  --nnodes) [ "$argument" = 1 ] || service=${several:-$service} ;;
  --data | --model | --config | --adapter)
    if [ -e "$argument" ]; then
      path=$(realpath "$argument")
      case $path in
      "$PWD"/work/*) argument=${path#"$PWD"/} ;;
      *)
        argument=$path
        mount "$path"
        ;;
      esac
    fi
    ;;
  esac
  arguments+=("$argument")
  case $argument in -*) option=$argument ;; esac # --data takes several
done
# What the run remembers (recipe/pipeline/choices.py) and is not named again.
while read -r path; do
  if [ -e "$path" ] && [[ " ${arguments[*]} " != *" $path "* ]]; then mount "$path"; fi
done < <(LC_ALL=C sed -nE 's#^ *("(data|model|config)": )?"(/.*)",?$#\3#p' "work/$run/run.json" 2>/dev/null)

RECIPE_IMAGE=$(docker image inspect --format '{{.Id}}' "$image" 2>/dev/null) ||
  fail "the image $image is not there: run make build"
export RECIPE_IMAGE
exec docker compose run --rm --quiet-pull "${mounts[@]}" "$service" "${arguments[@]}"
