"""What differs between base models: one file each.

table: what a backbone is, in a row; sdxl, flux, klein, zimage: load its parts, encode prompts,
predict; flow: flow matching; parts: load or build networks; quantization: in fewer bits.

A new one needs its file with `SPACE`, `to_pipeline`, `load_<denoiser>`, `load_vae`,
`load_text_pipeline`, `free_text_encoders` and `Denoiser`; its row; a row of
`mudi.ground.lora_families`; a training script; for benchmarks and tests a tiny pipeline in
`mini.tiny` and the published configuration. Nothing else asks which one it is.
"""
