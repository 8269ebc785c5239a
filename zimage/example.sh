#!/usr/bin/env bash
# A run on Z-Image. Edit the variables, then: bash zimage/example.sh
# Not tried on the real weights: rate, rank and batch are those of diffusers' example of this model
# (1e-4, one picture times four, constant), the steps those of MuDI's FLUX run.
set -euo pipefail
cd "$(dirname "$0")/.."

MODEL_NAME=Tongyi-MAI/Z-Image               # a folder or a hub id; train on the base ...
USED_ON=Tongyi-MAI/Z-Image-Turbo            # ... and look at the model that the LoRA is for
DATASET_NAME=robot_and_teddy
VAL_PROMPT="a photo of a olis robot and a hta teddy bear on a bench in a park"
# This takes 12 GB, simulated (add --dry_run): USED_ON's transformer stays loaded beside the one that
# trains. Without --validation_model and the two flags after it, 8 GB do.

accelerate launch zimage/train_segmix_lora_zimage.py \
    --pretrained_model_name_or_path="$MODEL_NAME" --mixed_precision="bf16" \
    --instance_data_dir="dataset/category/$DATASET_NAME" --output_dir="output_zimage/$DATASET_NAME" \
    --resolution=1024 --learning_rate=1e-4 --train_batch_size=1 --gradient_accumulation_steps=4 \
    --rank=32 --max_train_steps=2010 --checkpointing_steps=1000 --save_steps=500 \
    --lr_scheduler="constant" --lr_warmup_steps=0 --seed=42 --segmix_prob=0.3 \
    --gradient_checkpointing --quantize_base=nf4 --encode_on_cpu --cache_latents \
    --validation_prompt="$VAL_PROMPT" --validation_epochs=40 \
    --validation_model="$USED_ON" --validation_guidance_scale=0 --num_validation_inference_steps=8
