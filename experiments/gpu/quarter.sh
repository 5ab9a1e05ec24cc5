# Sourced by the scripts beside it. Each fills at most a quarter of an hour on any machine with a GPU:
#   experiments/gpu/02_small_data.sh DATA OUT
# DATA has the official files of CIFAR. OUT is for what is collected: NAME.tar.gz with the run folders, without
# checkpoints, and NAME.txt with the seconds and the exit code of every command. Both are written after every
# command, and a script that finds its archive in OUT goes on from there. SMALL=1 tries a script on a CPU, with
# the embedded images. The interpreter is that of .venv, or python3 where there is none; PYTHON=python3.12 picks another.
set -uo pipefail
data="$(realpath "${1:?the folder with the files of CIFAR}")"
out="$(mkdir -p "${2:?the folder for what is collected}" && realpath "$2")"
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
name="$(basename "$0" .sh)" small="${SMALL:-}" runs="runs/gpu/$(basename "$0" .sh)"
export XDG_CACHE_HOME="$PWD/runs/gpu/cache"
unset JAX_COMPILATION_CACHE_DIR
[ ! -x .venv/bin/python ] || PYTHON="${PYTHON:-.venv/bin/python}"
mkdir -p "$runs"
[ ! -f "$out/$name.tar.gz" ] || tar -xzf "$out/$name.tar.gz" -C "$runs"

# limited SECONDS COMMAND FLAGS: an experiment, ended after so many seconds; then everything is collected.
limited() {
  local limit="$1" command="$2" start="$SECONDS" code=0
  shift 2
  timeout --kill-after=5 "$limit" "${PYTHON:-python3}" -m "experiments.$command" "$@" || code=$?
  echo "$((SECONDS - start)) s, exit code $code: $command $*" >>"$out/$name.txt"
  tar -czf "$out/$name.tar.gz" --exclude=checkpoints -C "$runs" .
}

# searched SECONDS FOLDER FLAGS: a search, resumed where there is one in the folder.
searched() {
  limited "$1" search "${@:3}" --run_dir="$runs/$2" $([ ! -d "$runs/$2" ] || echo --resume)
}

# table SECONDS TABLE COLUMN FLAGS: what a column of a table lacks, until the seconds are over.
table() {
  local seconds="$1" cells=("experiments/results/$2" "--column=$3" --skip_recorded "${@:4}")
  if [ "$small" ]; then
    seconds=60 cells=(experiments/results/small_data --column=reduced_embedded_wrn_10_1 --rows=identity,cutout)
  fi
  limited "$((seconds + 30))" table_run "${cells[@]}" --run_dir="$runs" --data_dir="$data" --seconds="$seconds"
}
