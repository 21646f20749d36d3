"""Train: a thin diffusion trainer over what `curate mix` wrote, and what its losses say of the data.

curate train deploy/recipes/train-tiny.toml
torchrun --nproc-per-node 8 -m curate.train RECIPE
curate train --compare RUN_A RUN_B

recipe.py      the recipe of a run
run.py         prepare, train, leave a model
loop.py        the training loop
data.py        what step s trains on: a function of (seed, step)
schedule.py    noise schedules by name, targets, loss weights
loss.py        the error of a prediction
models.py      UNet shapes, loading, LoRA
text.py        ChatGLM3, CLIP, T5 behind one shape; text cache
latents.py     pictures to latents; latent cache
tiny.py        the tiny models
keyed.py       randomness by key
checkpoint.py  atomic checkpoints
evaluate.py    fixed-timestep validation loss
grid.py        sample grids, OCR of rendered text
scores.py      CLIP score and KID
write_back.py  losses of rows as an operator of the store
compare.py     arms, paired bootstrap, the report
export.py      folders for diffusers, LoRA
launch.py      this process, torchrun, Ray Train
log.py         metrics.jsonl, TensorBoard, progress
"""
