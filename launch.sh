#!/usr/bin/env bash
# Set up and launch, from any folder; `./launch.sh --help` prints what `usage` below says.
set -euo pipefail

say() { printf 'launch.sh: %s\n' "$1" >&2; }
fail() { say "$2" && exit "$1"; }

usage() {
  cat <<'END'
launch.sh sets the project up and runs it, from any folder:

  ./launch.sh                            set up, then train a small example
  ./launch.sh [trainer arguments]        train, evaluate, ...: the trainer's own help says which
  ./launch.sh [accelerate flags] -- ...  the same under `accelerate launch`
  ./launch.sh test [pytest arguments]    run the tests; -m "not slow" leaves out those that take over half a second
  ./launch.sh check                      lint, format and types

It installs into .venv beside this file, or into the active virtual environment; a second start installs nothing.
To enter it and have `trainer`, `python` and `pytest` there:

  source .venv/bin/activate

TRAINER_EXTRAS=real,track ./launch.sh installs more extras, which stay installed:

  mine    scikit-learn, bm25s: build-pairs, the TF-IDF of lint, BM25 of evaluate (always installed)
  report  matplotlib: report.html (always installed)
  data    openpyxl, pyarrow: pairs and tickets in XLSX and Parquet
  track   tensorboard: log.tensorboard
  serve   onnx, onnxruntime, onnxscript: export, and what it wrote as a model
  real    all-MiniLM-L6-v2, a pretrained encoder in a package
  test    what the tests use, with all of the above (`./launch.sh test` and `check` install it)
  fuzz    atheris: bench/reliability/fuzz.py

Exit code: the trainer's own; 2 no usable Python, or an installation that cannot work; 5 disk or network.
END
}

# Print the version of Python $1; fail unless it is one that the project runs on.
version_of() {
  local code='import sys; v = sys.version_info; print("%d.%d.%d" % v[:3]); sys.exit(not (3, 11) <= v[:2] <= (3, 13))'
  "$1" -I -S -c "$code" 2>/dev/null
}

# Set `base` to a Python that can make virtual environments.
find_python() {
  local name bare=
  for name in python3.13 python3.12 python3.11 python3; do
    version_of "$name" >/dev/null || continue
    base=$name
    "$name" -c 'import venv, ensurepip' 2>/dev/null && return
    bare=$name
  done
  [[ -z $bare ]] || fail 2 "$bare has no venv module: install it (Debian, Ubuntu: apt install $bare-venv)"
  fail 2 "no Python 3.11, 3.12 or 3.13 found on PATH: install one, or activate a virtual environment that has one"
}

# Print all that decides what an installation holds, but for the extras.
recipe() { printf '%s\n' "$root" "$1" "$(<"$root/pyproject.toml")" "$(<"$root/constraints.txt")"; }

# The stamp is written after a complete installation: a line with its extras, then its recipe. Sets `installed`.
ready() {
  local stamped version extra
  installed=
  [[ -f $stamp ]] && version=$(version_of "$python") || return 1
  stamped=$(<"$stamp")
  installed=${stamped%%$'\n'*}
  [[ ${stamped#*$'\n'} == "$(recipe "$version")" ]] || return 1
  for extra in ${extras//,/ }; do
    [[ ,$installed, == *,"$extra",* ]] || return 1
  done
}

# Say in one line why the installation failed, from what the log holds, and stop.
explain() {
  local text room cause full="no space left|quota exceeded"
  local unreachable="connection broken|name resolution|timed out|proxyerror|sslerror|from versions: none"
  text=$(<"$log")
  # Until pip says this it has only resolved and downloaded: what was installed before still is.
  [[ -z $previous || $text == *"Installing collected packages"* ]] || printf '%s\n' "$previous" >"$stamp"
  room=$(df -Pk "$venv" | awk 'NR == 2 { print int($4 / 1024) }')
  shopt -s nocasematch
  if ((room < 1)) || [[ $text =~ $full ]]; then
    cause="$room MB free for $venv; 2 GB are needed, 8 GB with CUDA, and as much in ${TMPDIR:-/tmp}"
    fail 5 "no disk space left ($cause); log: $log"
  elif [[ $text =~ $unreachable ]]; then
    fail 5 "no package index within reach, or it lacks a package: check the network and pip's settings; log: $log"
  elif [[ $text == *"no module named pip"* ]]; then
    fail 2 "$venv has no pip: run '$python -m ensurepip', or deactivate it and a .venv is made"
  fi
  cause=$(grep -E '^ *ERROR: ' "$log" | tail -n 1) || cause=$(tail -n 1 "$log")
  fail 2 "installation failed: ${cause#*ERROR: }; log: $log"
}

# Make the virtual environment where it is ours and missing, broken or half made; install into it; write the stamp.
install() {
  local base version previous= extra
  if [[ -n ${VIRTUAL_ENV:-} ]]; then
    version=$(version_of "$python") ||
      fail 2 "$venv has Python ${version:-missing}, not 3.11 to 3.13: deactivate it and a .venv is made"
  fi
  for extra in ${extras//,/ }; do
    [[ $'\n'$(<"$root/pyproject.toml") == *$'\n'"$extra = ["* ]] ||
      fail 2 "TRAINER_EXTRAS: pyproject.toml has no extra '$extra'"
  done
  if command -v flock >/dev/null; then # two first starts at once: one installs, the other waits
    exec 9<"${VIRTUAL_ENV:-$root}"
    flock -n 9 || { say "waiting for another start that is installing" && flock 9; }
    ! ready || return 0
  fi
  # A log without a stamp was left by an installation that was cut short: nothing in it can be trusted.
  if [[ -z ${VIRTUAL_ENV:-} ]] && { [[ -f $log && ! -f $stamp ]] || ! version=$(version_of "$python"); }; then
    find_python
    say "making $venv with $base"
    rm -rf "$venv" && mkdir "$venv" || fail 5 "cannot write to $root"
    "$base" -m venv "$venv" >"$log" 2>&1 || explain
    version=$(version_of "$python")
  fi
  extras=$(printf '%s\n' ${extras//,/ } ${installed//,/ } | sort -u | paste -sd, -)
  say "installing matryoshka-trainer[$extras] into $venv, some minutes the first time; log: $log"
  [[ ! -f $stamp ]] || previous=$(<"$stamp")
  rm -f "$stamp"
  (cd "$root" && "$python" -m pip install --disable-pip-version-check --no-input --progress-bar off \
    --constraint constraints.txt --editable ".[$extras]") >"$log" 2>&1 </dev/null || explain
  { printf '%s\n' "$extras" && recipe "$version"; } >"$stamp"
}

self=${BASH_SOURCE[0]}
[[ ! -L $self ]] || self=$(readlink -f -- "$self")
[[ $self == */* ]] || self=./$self
root=$(CDPATH='' cd -- "${self%/*}" && pwd -P)
venv=${VIRTUAL_ENV:-$root/.venv}
python=$venv/bin/python
stamp=$venv/matryoshka-trainer.stamp
log=$venv/matryoshka-trainer.log
extras=mine,report,${TRAINER_EXTRAS:-} # the first two: what the default run looks at and draws
extras=${extras// /}
[[ ${1:-} != test && ${1:-} != check ]] || extras=$extras,test

if [[ ${1:-} == --help || ${1:-} == -h ]]; then
  usage
  ready || { printf "\nOnce it is set up (./launch.sh), the trainer's own help follows here.\n" && exit 0; }
  printf "\nThe trainer's own help:\n\n"
fi
ready || install
exec 9<&- # the lock, where there was one

case ${1:-} in
  test)
    cd "$root"
    exec "$python" -m pytest "${@:2}"
    ;;
  check)
    cd "$root"
    status=0
    "$python" -m ruff check . || status=1
    "$python" -m ruff format --check . || status=1
    "$python" -m mypy || status=1
    exit "$status"
    ;;
  *) exec "$python" -P -m trainer.launcher "$@" ;;
esac
