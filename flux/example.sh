#!/usr/bin/env bash
# The published FLUX run. Edit the variables, then: bash flux/example.sh
set -euo pipefail
cd "$(dirname "$0")/.."

MODEL_NAME=black-forest-labs/FLUX.1-dev     # a folder or a hub id
TRAIN_CONFIG_PATH=flux/teddys               # photos, masks and metadata.jsonl; the published value
WANDB_NAME=teddys
VAL_PROMPT="a photo of two teddy bears sitting on a bench in a park"
# flux/teddys is the authors' data: `python dataset/download.py flux/teddys` fetches it.
# Ready in this repository: TRAIN_CONFIG_PATH=dataset/category/robot_and_teddy with
# VAL_PROMPT="a photo of a olis robot and a hta teddy bear on a bench in a park".
# wandb wants `wandb login`, or WANDB_MODE=offline. On a small GPU add
# --quantize_base nf4 --gradient_checkpointing --encode_on_cpu.

if [ ! -f "$TRAIN_CONFIG_PATH/metadata.jsonl" ]; then
    echo "$TRAIN_CONFIG_PATH has no metadata.jsonl: fetch it with: python dataset/download.py flux/teddys," \
        "or set TRAIN_CONFIG_PATH=dataset/category/robot_and_teddy" >&2
    exit 1
fi

accelerate launch flux/train_segmix_lora_flux.py \
    --pretrained_model_name_or_path="$MODEL_NAME" --mixed_precision="bf16" \
    --instance_data_dir="$TRAIN_CONFIG_PATH" --caption_column="text" \
    --resolution=512 --learning_rate=3e-4 --train_batch_size=1 --gradient_accumulation_steps=4 \
    --rank=32 --max_train_steps=2010 --checkpointing_steps=20000 --save_steps=500 \
    --validation_epochs 40 --lr_scheduler="constant" --lr_warmup_steps=0 --seed=42 \
    --output_dir="output_flux/"$WANDB_NAME --validation_prompt="$VAL_PROMPT" --report_to="wandb" \
    --wandb_name=$WANDB_NAME --guidance_scale=1 --segmix_prob=0.3 --segmix_start_step=0
