#!/usr/bin/env bash
# ./run.sh                a quick DADA search on the embedded real images, with a verdict (6 minutes on two cores)
# ./run.sh search FLAGS   a search with your own flags, for example --flagfile=experiments/flags/planted.flags
# ./run.sh train FLAGS    trains a network with a policy: --flagfile=experiments/flags/train_quick.flags
# ./run.sh tables FOLDER  tables beside the papers' values; table_run FOLDER runs what they lack
# ./run.sh pack_images --dataset=FOLDER --packed=DEST  packs images into a few large files
# ./run.sh success_table FOLDER  runs planted searches, and draws the table of what they find
# ./run.sh noise_table FOLDER  published policies beside what pure noise gives
# ./run.sh plot RUN_DIR   draws the figures of a run again
# ./run.sh verify         prints the evidence that the parts do what they say (some minutes)
# ./run.sh benchmark      what it costs, beside Pillow, vmap(lax.switch) and plain training steps
# ./run.sh test           the tests
# ./run.sh lint           ruff: rules and layout
# The first call makes .venv and installs requirements.txt; PYTHON=python3.12 ./run.sh picks the interpreter.
set -euo pipefail
cd "$(dirname "$0")"
# Large pages of memory, on Linux: the kernel prepares fresh pages at every step, small ones for a third of its time.
export GLIBC_TUNABLES="${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}"

if ! cmp -s requirements.txt .venv/installed-requirements.txt; then
  "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "error: Python 3.11 or newer is needed; PYTHON=/path/to/python ./run.sh picks one" >&2; exit 2; }
  "${PYTHON:-python3}" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
  cp requirements.txt .venv/installed-requirements.txt
fi

verb="${1:-quick}"
[ $# -eq 0 ] || shift
case "$verb" in
  quick)
    exec .venv/bin/python -m experiments.search --flagfile=experiments/flags/dada_quick.flags \
      --run_dir="runs/quick_$(date +%Y%m%d_%H%M%S)" "$@" ;;
  search | train | plot | verify | benchmark | tables | table_run | success_table | noise_table | pack_images) exec .venv/bin/python -m "experiments.$verb" "$@" ;;
  test)
    [ $# -eq 0 ] || exec .venv/bin/python -m pytest "$@"
    # Two halves of about the same length side by side: a test keeps no more than one core busy.
    log="$(mktemp)"
    .venv/bin/python -m pytest -p no:cacheprovider tests/[!bdfgh]*_test.py >"$log" 2>&1 &
    other=$!
    trap 'kill "$other" 2>/dev/null || true; rm -f "$log"' EXIT
    status=0
    .venv/bin/python -m pytest -p no:cacheprovider tests/[bdfgh]*_test.py || status=$?
    # Where pixels are compared, in a process of its own, which compiles as for users.
    .venv/bin/python -m pytest -p no:cacheprovider tests/pixels || status=$?
    wait "$other" || status=$?
    cat "$log"
    exit "$status" ;;
  lint)
    .venv/bin/ruff check .
    exec .venv/bin/ruff format --check . ;;
  *) echo "error: got '$verb', expected quick, search, train, plot, verify, benchmark, tables, table_run, success_table, noise_table, pack_images, test or lint" >&2; exit 2 ;;
esac
