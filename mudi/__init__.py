"""MuDI (arXiv 2404.04243): several subjects in one picture without mixed identities.

One photo on its way to the loss (`train_segmix_lora_sdxl.py` is the loop around it):

1. `metadata.load_subjects`: a line of metadata.jsonl becomes a `Photo` of a subject.
2. `data.SegMixDataset`: a `Draw` takes the photo, or by --segmix_prob a collage instead:
   `segmix.cut_out`, `resize` and `compose` (section 4.1). Both are a `Sample` with mask and prompt.
3. `data.make_loader`: samples become a `Batch`, in an order that a resumed run repeats.
4. `latents.encode_images`: pixels become latents; `losses.latent_weight`: masks their weight.
5. `denoising.make_task`: the backbone's `Schedule.corrupt` adds noise and names the target.
6. `denoising.training_loss`: the network answers, with adapters and for DCO without;
   `losses.masked_mse` and `losses.dco_loss` compare.

One prompt on its way to its picture (`inference.py`):

1. `pictures.shot_args.named_subjects`: which subjects the prompt names.
2. `layouts.random_layout`, or `layout_json`: where each stands.
3. `pictures.sampling.Stage`: their cut-outs in one `init_noise.Scene`, by `compose_layout`.
4. `init_noise.subject_latents`, `gamma_map`, `mean_shifted_noise`: the start (section 4.2).
5. `pictures.sampling.Sampler`: a stock pipeline goes on from there, guided by `pictures.reward` if
   so told.

The wings, of which none imports another: `backbones` (what differs between base models), then
`training`, `pictures` and `masks`. Below all is `ground`, which knows nothing of the method.
Above the metric, which judges pictures, stands `best_of` (what is asked for, the best of several
kept), above that `loop` (trains in rounds on its own successes) and `studio` (the page).
`tests/test_layers.py` holds imports to that.
"""
