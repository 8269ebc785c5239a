#!/usr/bin/env bash
# The FLUX run's recipe on FLUX.2-klein. Edit the variables, then: bash flux2/example.sh
set -euo pipefail
cd "$(dirname "$0")/.."

MODEL_NAME=black-forest-labs/FLUX.2-klein-base-4B   # a folder or a hub id; Apache-2.0
DISTILLED=black-forest-labs/FLUX.2-klein-4B         # what the LoRA will be used on, in 4 steps
TRAIN_CONFIG_PATH=dataset/category/robot_and_teddy  # photos, masks and metadata.jsonl
VAL_PROMPT="a photo of a olis robot and a hta teddy bear on a bench in a park"
# Nobody has run this on the real weights yet. On a small GPU add
# --quantize_base nf4 --gradient_checkpointing --encode_on_cpu, and leave --validation_model out.

accelerate launch flux2/train_segmix_lora_klein.py \
    --pretrained_model_name_or_path="$MODEL_NAME" --mixed_precision="bf16" \
    --instance_data_dir="$TRAIN_CONFIG_PATH" --resolution=512 --learning_rate=1e-4 \
    --train_batch_size=1 --gradient_accumulation_steps=4 --rank=32 --max_train_steps=2010 \
    --save_steps=500 --checkpointing_steps=500 --lr_scheduler="constant" --lr_warmup_steps=0 \
    --seed=42 --segmix_prob=0.3 --output_dir="output_klein/robot_and_teddy" \
    --validation_prompt="$VAL_PROMPT" --validation_epochs=40 \
    --validation_model="$DISTILLED" --num_validation_inference_steps=4
