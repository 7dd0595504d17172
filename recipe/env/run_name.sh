# shellcheck shell=bash
# To be sourced: the name of a run's folder, as recipe/cli/parser.py makes it of what was typed.

# run_name NAME: print NAME with letters and their marks composed (Unicode's NFC). macOS types é as e and a mark.
run_name() {
  local LC_ALL=C # in which the range below is that of ASCII
  case $1 in
  *[!\ -~]*)
    PYTHONUTF8=1 python3 -c 'import sys, unicodedata as u; sys.stdout.write(u.normalize("NFC", sys.argv[1]))' "$1" 2>/dev/null ||
      printf '%s' "$1" # without Python: as it was typed, which is composed nearly everywhere
    ;;
  *) printf '%s' "$1" ;;
  esac
}
