#!/usr/bin/env bash
# The paper's CIFAR-10 search from an empty cache of compiled programs, with a full one, and with eight seeds at
# once; then planted ops with eight seeds each. At most 14 minutes.
. "$(dirname "$0")/quarter.sh"
flags=experiments/flags seeds=8 ops=(Rotate90 Invert Rotate+ Brightness:0.3 TranslateX- Equalize) short=()
if [ "$small" ]; then
  seeds=2 ops=(Rotate90)
  short=(--dataset=reduced_embedded --model=wrn_10_1 --batch_size=64 --valid_batch_size=64 --max_steps=2)
fi
paper=(--flagfile=$flags/dada_cifar10.flags --data_dir="$data" "${short[@]}")
export XDG_CACHE_HOME="$PWD/runs/gpu/cache_of_cold"
rm -rf "$XDG_CACHE_HOME"
searched 150 cold "${paper[@]}"
searched 90 warm "${paper[@]}"
searched 180 eight_seeds "${paper[@]}" --num_seeds=$seeds
for op in "${ops[@]}"; do
  [ "$SECONDS" -lt 720 ] || break
  searched 120 "planted/$op" --flagfile=$flags/planted.flags "${short[@]}" --num_seeds=$seeds --planted_op="$op"
done
