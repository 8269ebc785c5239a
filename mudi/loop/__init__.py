"""Iterative training: on the photos, and on the model's own pictures in which nothing is mixed.

`python -m mudi.loop loop.toml` (`__main__`) does, in rounds:

1. train: the training script; round 0 on the photos, later ones from the last LoRA.
2. held out: pictures of prompts that it never learns from, judged; the loop ends where they get no
   better (`rounds.ended`).
3. pictures of the prompts that it learns from, judged (`judge`) about the subjects that each names.
4. pick (`picking`): all of these there and unmixed, above a bar, few a prompt, no two alike.
5. cut (`cut`): each subject out of its picture; the next round's data folder, in which the photos
   keep their share of the draws.

Every stage is a program of its own, through `accelerate launch`, that goes on where it was stopped;
`stages` has their command lines, `settings` what a loop.toml says, `page` the page of what came.
A TOML file, not a shell script: the whole loop can be checked before its first hour begins, and a
stopped one goes on by the same line.
"""
