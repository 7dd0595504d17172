# shellcheck shell=bash
# To be sourced: no silence over ten seconds where a tool shows nothing by itself.

# pause FD: ten seconds, by waiting for what never comes: a `sleep` would outlive the script and hold its lock and output.
pause() { read -r -t 10 -u "$1" || true; }

# so_far: what the script that sources this adds to each of these lines, such as ", 1.2 of 5.7 GB".
so_far() { :; }

# patiently WHAT COMMAND [ARGUMENT...]: run COMMAND, and say on stderr every ten seconds that WHAT goes on.
patiently() {
  local what=$1 seconds=0 status=0 silence beats
  shift
  exec {silence}<> <(:)
  while pause "$silence" && kill -0 $$ 2>/dev/null; do
    seconds=$((seconds + 10))
    echo "$what: $seconds s$(so_far)" >&2
  done &
  beats=$!
  "$@" || status=$?
  kill "$beats" 2>/dev/null || true
  wait "$beats" 2>/dev/null || true
  exec {silence}>&-
  return "$status"
}
