"""Mix: from a scored store to a training set, and from the training set to a trainer.

    curate mix STORE -o DIR --ratio 0.5 --languages en=0.5,zh=0.5 --seed 1
    curate mix verify DIR

    keyed.py      hashes that replace random state
    rounding.py   whole numbers for a table of shares, exact in every margin
    decide.py     for every (epoch, row): raw or synthetic, which language, which variant
    buckets.py    aspect-ratio buckets (NovelAI's rule)
    plan.py       which rows, in which split, bucket and cell; jobs for the export
    shards.py     one job to one shard: Parquet, WebDataset, folder
    parquet.py    Parquet files whose pictures are copied from where they lie
    stream.py     a file that is hashed while it is written
    jobs.py       all jobs in this process, in others, or on Ray
    export.py     all jobs, on any number of workers; resumable
    manifest.py   what was asked and what was achieved, hash tree
    verify.py     computes the manifest again from the files
    loader.py     MixDataset
    pixels.py     picture to bucket: decode, cover, crop

The interface of the loader (torch is imported when it is first used):

    from curate.mix import MixDataset

    data = MixDataset("DIR", batch_size=8, rank=rank, world=world)       # local path, s3:// or gs://
    for batch in data: ...                                               # one epoch; the next `for` is the next epoch
    for batch in data.loader(num_workers=4): ...                         # the same batches in the same order

    MixDataset(
        uri,                   # what `curate mix -o` wrote as parquet or webdataset
        *,
        split="train",         # or "validation"
        seed=None,             # of order, captions and crops; None: the seed of the mix
        batch_size=None,       # rows a rank gets at once, all of one bucket; None: single rows, buckets as they come
        leftovers="short",     # what fills no batch of its bucket: "short" makes short batches, "base" joins it in full
                               # ones of the base bucket, "drop" leaves it out; data.left_over(epoch): nobody gets it
        rank=0, world=1,       # this process among all; the order of the epoch does not depend on them
        buckets=None,          # others than the export's: "novelai-512", "novelai-1024", "sdxl", "square-512", ...
        crop="random",         # or "center"
        flip=False,            # mirror half of the pictures, keyed (never for the pool "text")
        shuffle=True,          # False: the order of the shards
        decode=True,           # False: no pixels are read (latents are cached); all else is the same
        columns=(),            # further columns of the shards for each item, e.g. ("concept", "tier")
    )

An item is a dict:

    image            uint8 tensor (3, height, width), RGB, exactly the bucket's size; None when decode=False
    caption          the text for this epoch
    caption_source   "raw" or "synthetic"
    language         "en" or "zh"
    variant          which of several synthetic captions, from 0
    copy             0; 1, 2, ... for further appearances of a row of the highest tier in the same epoch
    pool             "natural", "top" (highest tier) or "text" (rendered text)
    row_id           identity of the row
    sha256           of the original bytes: key of a latent cache, with `bucket`, `resized` and `crop`
    epoch, index     epoch from 0; place in the epoch's order from 0, the same for any rank, world or worker
    bucket           (width, height)
    original_size    (height, width) before any rescaling, as displayed
    resized          (height, width) that covers the bucket
    crop             (top, left) of the crop in the resized picture, exactly as cut
    target_size      (height, width) of the bucket
    flipped          whether it is mirrored

With `batch_size` an item is a batch: the same keys with a list of each (so `row_id` is a list of text), and `image` one
tensor (rows, 3, height, width); `bucket`, `target_size` and `epoch` are lists too. All ranks get the same bucket at the
same step and the same number of steps. With leftovers="base" or "drop" every batch is full; with "short" a rank's batch
may be short, or even empty when fewer rows than ranks are left.

Random access, for trainers in which everything is a function of the step:

    data.steps(epoch)            steps (batches, or rows of this rank when batch_size is None) in the epoch
    data.batch(epoch, step)      that batch of this rank; the same as the iterator yields
    data.left_over(epoch)        rows of the epoch that no rank gets

Resume: `data.state_dict()` is {"epoch", "step", "fingerprint"}, under 200 bytes; `load_state_dict` refuses another mix
or other settings, and iteration goes on with the first batch that was not yielded. In a DataLoader with workers the
state moves in the workers' copies: every pass is the next epoch, but its middle is not known. Use
`data.loader(num_workers=4, **options of torch's DataLoader)`, which keeps it, goes on to the next epoch with the next
`for`, and has `state_dict` and `load_state_dict` too. `data.seek(epoch, step)` sets it by hand.

`data.manifest` is manifest.json; `data.manifest_hash` the hash of the release (the root of its hash tree).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curate.mix.loader import MixDataset

__all__ = ["MixDataset"]


def __getattr__(name: str) -> Any:
    if name == "MixDataset":
        from curate.mix.loader import MixDataset

        return MixDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
