#!/usr/bin/env bash
# The small-data table on reduced CIFAR-10: WRN-40-2, 200 epochs, bfloat16, five seeds, those of a row together.
# At most 10 minutes a call.
. "$(dirname "$0")/quarter.sh"
table 540 small_data reduced_cifar10_wrn_40_2 --num_seeds=5 --seeds_at_once=5
