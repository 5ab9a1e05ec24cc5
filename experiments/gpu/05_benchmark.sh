#!/usr/bin/env bash
# The benchmark in short: a policy, a step of a search, training beside PyTorch, the device's limits. At most 10 minutes.
. "$(dirname "$0")/quarter.sh"
rm -rf "$runs/quick" # a benchmark does not go on from an earlier one
limited 570 benchmark --quick --run_dir="$runs/quick"
