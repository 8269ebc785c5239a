#!/bin/bash
# The comparison with its variables on top; from any folder. More processes: PROCESSES=4 ./compare_methods.sh
BASE=${BASE:-mini/weights/sdxl}
OUTPUT=${OUTPUT:-output/compare}
EXPERIMENTS=${EXPERIMENTS:-methods} # losses words gamma subjects size ablations interventions dose
TRAININGS=${TRAININGS:-"0 1 2"}     # seeds of the LoRAs of each pair
BATCH_SIZE=${BATCH_SIZE:-24}
PROCESSES=${PROCESSES:-1}
LAUNCH="--num_processes=$PROCESSES"
[ "$PROCESSES" -gt 1 ] && LAUNCH="$LAUNCH --multi_gpu --main_process_port=0"

cd "$(dirname "$0")/.." || exit 1
exec accelerate launch $LAUNCH -m experiments.compare_methods \
    --pretrained_model_name_or_path="$BASE" --output="$OUTPUT" --experiments $EXPERIMENTS \
    --trainings $TRAININGS --batch_size="$BATCH_SIZE" "$@"
