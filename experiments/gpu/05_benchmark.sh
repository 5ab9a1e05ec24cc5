#!/usr/bin/env bash
# What training with a policy costs and the share of the device's limits, then a step of a search. At most 10 minutes.
. "$(dirname "$0")/quarter.sh"
network=wrn_40_2 steps=steps
if [ "$small" ]; then
  network=wrn_10_1 steps=augment
fi
limited 250 benchmark --only=train,limits --models=$network --run_dir="$runs/train"
limited 300 benchmark --only=$steps --models=$network --run_dir="$runs/$steps"
