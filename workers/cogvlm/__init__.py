"""CogVLM and CogVLM2 (Wang et al. 2023, arXiv:2311.03079), from the published checkpoints, with no remote code.

    config.py     the checkpoint's config.json, checked
    vision.py     picture -> image features: EVA2-CLIP-E tower and GLU adapter
    decoder.py    token embeddings -> logits: decoder layers with a vision and a language expert
    prompt.py     text around the picture: chat template, caption prompts, tokenizer, expert mask, positions
    load.py       checkpoint files -> model, every key accounted for
    attention.py  attention of one new token to a row's cache
    quantize.py   8-bit weights (int8, fp8) for the decoder's matrices
    generate.py   continuous batching over a static key-value cache
    captioner.py  the worker: samples in, captions out
    golden.py     a folder of golden vectors, checked
    parity.py     `python -m workers.cogvlm.parity DIR` compares the model with a folder of golden vectors

docs/cogvlm.md explains the model with its shapes. Importing the package imports no torch.
"""
