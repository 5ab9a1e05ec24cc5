#!/usr/bin/env bash
# Cells of the papers: CIFAR-10, WRN-40-2, 200 epochs. A seed of a row takes minutes; at most 14 minutes
# a call.
. "$(dirname "$0")/quarter.sh"
table 540 dada_cifar10 wrn_40_2
table 240 trivialaugment_cifar10 wrn_40_2 --rows=trivialaugment_wide
