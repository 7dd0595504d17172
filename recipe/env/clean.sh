#!/usr/bin/env bash
# clean.sh RUN: remove work/RUN, unless a stage works on it or other runs share it. Needs no Python and no container.
set -euo pipefail
# shellcheck source=recipe/env/run_name.sh
. "$(dirname "${BASH_SOURCE[0]}")/run_name.sh"
run=$(run_name "$1")

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

shopt -s nocasematch # on some file systems Models is models
case $run in
models | hub | replay) fail "RUN=$run: all runs share work/$run: remove by hand what no run needs any more" ;;
'' | .* | -* | */*) fail "RUN=$run is no run" ;;
esac
shopt -u nocasematch
removed="work/.${run:0:40}.removed" # a name that fits, however long the run's is
rm -rf "$removed" # of a clean that was killed
if [ ! -e "work/$run" ] && [ ! -L "work/$run" ]; then
  printf 'there is no work/%s: nothing to remove\n' "$run"
  exit
fi
command -v flock >/dev/null ||
  fail "flock is missing, which tells whether a stage works on work/$run: install it (util-linux), or remove work/$run by hand"
# Held until this script ends, so that no stage begins in what is on its way out.
while IFS= read -r lock; do
  exec {held}>"$lock"
  flock -n "$held" || fail "another process is working on ${lock%/*}: stop it or wait for it, then run make clean again"
done < <([ ! -d "work/$run" ] || find "work/$run/" -type f -name '.*.lock')
mv "work/$run" "$removed"
rm -rf "$removed"
printf 'removed work/%s\n' "$run"
