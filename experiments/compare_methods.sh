#!/bin/bash
# The comparison with its variables on top; from any folder. More processes: PROCESSES=4 ./compare_methods.sh
BASE=${BASE:-mini/weights/sdxl}
OUTPUT=${OUTPUT:-output/compare}
EXPERIMENTS=${EXPERIMENTS:-"methods gamma subjects size ablations"}
DETECTOR=${DETECTOR:-mini/weights/detector}
EMBEDDERS=${EMBEDDERS:-"mini/weights/embedder_a mini/weights/embedder_b"}
NUM_SEEDS=${NUM_SEEDS:-6}
GAMMA=${GAMMA:-0.4}
TRAIN_FLAGS=${TRAIN_FLAGS:-"--resolution 64 --max_train_steps 300 --train_batch_size 4 --rank 16 --learning_rate 4e-3 --lr_warmup_steps 0"}
PRIOR_FLAGS=${PRIOR_FLAGS:-"--num_images 15 --segmenter foreground --num_inference_steps 25 --dtype bf16 --threshold 0.5 --batch_size 15"}
METRIC_FLAGS=${METRIC_FLAGS-"--threshold 0.3 --nms 0.2"}
DTYPE=${DTYPE:-bf16}
BATCH_SIZE=${BATCH_SIZE:-24}
PROCESSES=${PROCESSES:-1}
LAUNCH="--num_processes=$PROCESSES"
[ "$PROCESSES" -gt 1 ] && LAUNCH="$LAUNCH --multi_gpu --main_process_port=0"

cd "$(dirname "$0")/.." || exit 1
exec accelerate launch $LAUNCH -m experiments.compare_methods \
    --pretrained_model_name_or_path="$BASE" --output="$OUTPUT" --experiments $EXPERIMENTS \
    --detector="$DETECTOR" --embedder $EMBEDDERS --num_seeds="$NUM_SEEDS" --gamma="$GAMMA" \
    --train_flags="$TRAIN_FLAGS" --prior_flags="$PRIOR_FLAGS" --metric_flags="$METRIC_FLAGS" \
    --dtype="$DTYPE" --batch_size="$BATCH_SIZE" "$@"
