"""Every column that an operator writes, declared once, in the order of the path.

A part of operator `op` holds `shard, row`, the columns declared here for `op`, then `error, message`.
docs/columns.md is written from this file (`make docs`), and a test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

TEXT = pa.string()
INT = pa.int32()
LONG = pa.int64()
BOOL = pa.bool_()
REAL = pa.float32()
BOX = pa.list_(REAL)
TEXTS = pa.list_(TEXT)


@dataclass(frozen=True)
class Column:
    """One column: its name, Arrow type and meaning. Units and range stand in `about`."""

    name: str
    type: pa.DataType
    about: str


OPERATORS: dict[str, tuple[Column, ...]] = {
    # The row as it came. The input's own columns follow under their own names.
    "input": (Column("caption_raw", TEXT, "caption that came with the picture; null when there was none"),),
    "size": (
        Column("bytes", LONG, "length of the original file, bytes"),
        Column("format", TEXT, "container: JPEG, PNG, WEBP, GIF, TIFF, BMP or AVIF"),
        Column("mode", TEXT, "pixel mode of the file as Pillow names it: RGB, CMYK, L, I;16, P, RGBA, 1, ..."),
        Column("width", INT, "width as displayed (after EXIF orientation), px"),
        Column("height", INT, "height as displayed (after EXIF orientation), px"),
        Column("aspect", REAL, "width / height"),
        Column("bits_per_pixel", REAL, "8 * bytes / (width * height)"),
        Column("frames", INT, "frames of an animation; 1 for a still"),
        Column("exif_orientation", INT, "EXIF orientation tag 1..8; 1 when absent"),
    ),
    "identity": (
        Column("sha256", TEXT, "SHA-256 of the original bytes, hex: the identity of the content"),
        Column("pixels_hash", TEXT, "XXH3-128 of the decoded pixels, hex: equal when every pixel is"),
        Column("pdq", TEXT, "PDQ perceptual hash, 256 bit as 64 hex digits; <= 31 differing bits is a near duplicate"),
        Column("pdq_quality", INT, "PDQ quality 0..100; below 50 the picture is too flat for its hash to mean much"),
        Column("pdq_centred", TEXT, "PDQ of a centred grid, 64 hex digits: that of a turned picture follows from it"),
        Column("look", TEXT, "mean color of 3 x 3 tiles, 27 bytes of sRGB as 54 hex digits"),
    ),
    "sharpness": (
        Column("sharpness", REAL, "variance of the Laplacian of 8-bit luma at the canonical size, whole picture"),
        Column("sharpness_tile", REAL, "the same in the sharpest tile: a sharp subject on a soft ground scores high"),
        Column("tenengrad", REAL, "mean squared Sobel gradient of 8-bit luma at the canonical size, whole picture"),
        Column("tenengrad_tile", REAL, "the same in the strongest tile"),
    ),
    "photometry": (
        Column("luma", REAL, "mean luma (BT.601), 0..255"),
        Column("contrast", REAL, "standard deviation of luma, 0..127.5"),
        Column("underexposed", REAL, "share of pixels with luma <= 10, 0..1"),
        Column("overexposed", REAL, "share of pixels with luma >= 245, 0..1"),
        Column("colorfulness", REAL, "Hasler-Suesstrunk (2003) M3; 0 is grey, above 60 is vivid"),
        Column("saturation", REAL, "mean HSV saturation, 0..1"),
        Column("entropy", REAL, "Shannon entropy of the luma histogram, bits, 0..8"),
        Column("border", REAL, "share of the picture in uniform bars at its edges (letterbox, frame), 0..1"),
        Column("colors", pa.list_(TEXT), "names of the dominant colors, most frequent first, at most four"),
        Column("color_shares", pa.list_(REAL), "share of the picture that each of `colors` covers, 0..1"),
    ),
    "aesthetic": (
        Column("aesthetic", REAL, "aesthetic score 1..10 of the engine named beside it"),
        Column(
            "aesthetic_engine",
            TEXT,
            "what scored: `photometric`, a classical baseline and no learned model; or a learned head",
        ),
    ),
    "embed": (
        Column("embedding", pa.list_(pa.float16()), "unit vector of the picture by the model named beside it"),
        Column("embedding_model", TEXT, "model that made `embedding`"),
        Column("embedding_revision", TEXT, "revision of its weights"),
    ),
    "concepts": (
        Column("clip_concept", TEXT, "concept of the taxonomy that CLIP finds likeliest"),
        Column("clip_concept_score", REAL, "probability of `clip_concept` among the taxonomy's concepts, 0..1"),
        Column(
            "clip_nsfw", REAL, "CLIP's zero-shot probability of unsafe content, 0..1, uncalibrated; null: not asked"
        ),
        Column("clip_watermark", REAL, "the same of a watermark"),
        Column("clip_taxonomy", TEXT, "name of the taxonomy"),
    ),
    "faces": (
        Column("faces", INT, "number of human faces found"),
        Column("face_area", REAL, "largest face box / picture area, 0..1; 0 without a face"),
        Column("face_boxes", pa.list_(BOX), "[left, top, width, height, score] of each face, px as displayed"),
        Column("face_engine", TEXT, "detector: haar or yunet"),
    ),
    "ocr": (
        Column("ocr_text", TEXT, "recognised lines in reading order, joined by newline; empty when there is none"),
        Column("ocr_lines", INT, "recognised lines"),
        Column("ocr_characters", INT, "recognised characters without white space"),
        Column("ocr_confidence", REAL, "mean recognition confidence weighted by line length, 0..1; null without text"),
        Column("ocr_area", REAL, "share of the picture under the union of detected text boxes, 0..1"),
        Column("ocr_border", REAL, "share of the detected text area within 10 % of an edge (watermarks), 0..1"),
        Column("ocr_language", TEXT, "script of the text: zh, en, mixed, other, or none"),
        Column("ocr_boxes", pa.list_(BOX), "[x1, y1, ... x4, y4] of each detected box; px of the displayed picture"),
        Column("ocr_scores", pa.list_(REAL), "recognition confidence of each line of `ocr_text`, 0..1"),
        Column("ocr_engine", TEXT, "engine and model family"),
    ),
    "caption": (
        Column("caption_en", TEXT, "synthetic English caption"),
        Column("caption_engine", TEXT, "what wrote it: `facts` composes what was measured and is no model"),
        Column("caption_model", TEXT, "model name"),
        Column("caption_revision", TEXT, "revision of the model's weights or of the composing code"),
        Column("caption_prompt", TEXT, "name or text of the prompt that was used"),
        Column("caption_tokens_in", INT, "tokens of the prompt, picture included; null for `facts`"),
        Column("caption_tokens_out", INT, "tokens written, without the end of sequence; null for `facts`"),
        Column("caption_finish", TEXT, "`stop` (the model ended) or `length` (its limit); null for `facts`"),
        Column("caption_seconds", REAL, "seconds of generation, shared with the batch; null for `facts`"),
        Column("caption_attempts", TEXTS, "`reason: caption` of each try that was rejected"),
    ),
    "translate": (
        Column("caption_zh", TEXT, "the synthetic caption in Simplified Chinese"),
        Column("caption_raw_zh", TEXT, "an English raw caption in Simplified Chinese, with translate.raw; else null"),
        Column("caption_raw_en", TEXT, "a Chinese raw caption in English, with translate.raw; else null"),
        Column("translate_lost", TEXTS, "quoted text, numbers, glossary names of caption_en that caption_zh lacks"),
        Column("translate_cut", BOOL, "whether the translator met its token limit on caption_en: text is missing"),
        Column("translate_raw_lost", TEXTS, "translate_lost of the translated raw caption"),
        Column("translate_raw_cut", BOOL, "translate_cut of the translated raw caption"),
        Column("translate_engine", TEXT, "what translated it"),
        Column("translate_model", TEXT, "model name"),
        Column("translate_revision", TEXT, "revision of the model's weights or of the composing code"),
    ),
    "poster": (
        Column("poster_caption_en", TEXT, "English caption of a poster or scene text that quotes what OCR read"),
        Column("poster_caption_zh", TEXT, "the same in Chinese; quoted text is never translated"),
        Column("poster_how", TEXT, "written, cut (a sentence with a false quotation), clause (text appended), refused"),
        Column("poster_quoted", REAL, "share of the text that the captioner quoted by itself, 0..1"),
        Column("poster_invented", TEXTS, "quotations that are not in the picture; their sentences were cut out"),
        Column("poster_engine", TEXT, "what wrote the caption; null for a row that is no poster"),
    ),
    "similarity": (
        Column("similarity_raw", REAL, "cosine of picture and English raw caption by the embedding's model, -1..1"),
        Column("similarity_en", REAL, "the same of the synthetic English caption: mean over its sentences"),
        Column("similarity_en_least", REAL, "the least over its sentences: the first place to look for an invention"),
        Column("similarity_en_sentences", pa.list_(REAL), "the same of each sentence"),
    ),
    "quality": (
        Column("caption_raw_reason", TEXT, "why the raw caption is not to be used (docs/quality.md); null: use it"),
        Column("caption_raw_zh_reason", TEXT, "why the translation caption_raw_zh is not to be used; null: use it"),
        Column("caption_raw_en_reason", TEXT, "why the translation caption_raw_en is not to be used; null: use it"),
        Column("caption_en_reason", TEXT, "why the English caption is not to be used; null: use it"),
        Column("caption_en_words", INT, "words of the English caption"),
        Column("caption_en_language", TEXT, "en, zh, other or none, by its letters and function words"),
        Column("caption_en_repetition", REAL, "share of its runs of four words that stood before, 0..1"),
        Column("caption_en_opening", TEXT, "boilerplate that it begins with"),
        Column(
            "caption_en_quote_precision", REAL, "share of its quoted parts that OCR read, 0..1; null: it quotes none"
        ),
        Column("caption_en_quote_recall", REAL, "share of the lines that OCR read well that it has, 0..1"),
        Column("caption_zh_reason", TEXT, "why the Chinese caption is not to be used; null: use it"),
        Column("caption_zh_han", REAL, "share of Chinese characters in it, 0..1"),
        Column("caption_zh_latin", REAL, "share of Latin letters outside quotation marks, 0..1"),
        Column("caption_zh_ratio", REAL, "its characters for each English word"),
        Column("caption_zh_repetition", REAL, "share of its runs of four characters that stood before, 0..1"),
    ),
    "dedup": (
        Column("dedup_group", TEXT, "row_id of the first row of the group of copies; its own for a row without copies"),
        Column("dedup_size", INT, "rows in the group; 1 without copies"),
        Column("dedup_keep", BOOL, "whether the row is the one of its group to use; true without copies"),
        Column("dedup_keeper", TEXT, "row_id of the row that stands for this one; its own when that is itself"),
        Column(
            "dedup_reason",
            TEXT,
            "bytes, pixels, pdq, turned, semantic or caption: why it is a copy of its keeper; "
            "`chain`: only by way of others; null for a keeper",
        ),
        Column("dedup_turn", TEXT, "how this picture must be turned to look like its keeper's; null when it need not"),
        Column("dedup_distance", INT, "differing bits of the PDQ hashes of row and keeper, 0..256; null without hash"),
        Column("dedup_similarity", REAL, "cosine of the embeddings of row and keeper, -1..1; null without embedding"),
        Column("dedup_captions", TEXTS, "of a keeper, with --pool-captions: raw captions of its copies, its own first"),
    ),
    "balance": (
        Column("concept", TEXT, "concept of the taxonomy that the row belongs to; `other` when none fits"),
        Column("concept_score", REAL, "share of the evidence (keywords) or probability (embedding) of `concept`, 0..1"),
        Column("concept_engine", TEXT, "what decided: `keywords` or `embedding`"),
        Column("concept_terms", TEXTS, "keywords that spoke for `concept`; empty for `embedding`"),
        Column("balance_probability", REAL, "chance of the row to be kept, 0..1; null when it was not to be balanced"),
        Column("balance_weight", REAL, "expected uses of the row in an epoch; 0 when it is not kept"),
        Column("balance_keep", BOOL, "whether a draw keyed by seed and row_id keeps it; null when not to be balanced"),
    ),
    "alike": (
        Column("caption_en_alike", INT, "other pictures (copies aside) whose English caption says nearly the same"),
        Column(
            "caption_en_alike_first", TEXT, "row_id of the first row with that caption; its own where none is alike"
        ),
        Column("caption_en_alike_reason", TEXT, "`near_identical`: more pictures share it than `curate alike` allows"),
    ),
    "predicted": (
        Column("predicted_tier", INT, "tier 1..5 that people would give, learned from their ratings (`curate fit`)"),
        Column("predicted_score", REAL, "expected tier, 1..5: the mean of the model's distribution over tiers"),
        Column("predicted_keep", REAL, "calibrated probability of a tier that is kept (>= keep_tier of the fit), 0..1"),
    ),
    # One entry for each caption of the row and each judge of it: the view `evaluations` has them one a row.
    "evaluate": (
        Column("evaluate_caption", TEXTS, "fingerprint of the version that wrote the caption (view `captions`)"),
        Column("evaluate_kind", TEXTS, "raw, translated (a raw caption), synthetic or poster"),
        Column("evaluate_language", TEXTS, "language of the caption, en or zh"),
        Column(
            "evaluate_scorer", TEXTS, "who scored: `proxies` (rules), `judge MODEL/RUBRIC`, `people` (mean of votes)"
        ),
        Column("evaluate_length", BOX, "length, 1..5 (docs/evaluate.md); null: not scored"),
        Column("evaluate_completeness", BOX, "completeness, 1..5: what is visible is described"),
        Column("evaluate_correlation", BOX, "correlation, 1..5: what is described is described rightly"),
        Column("evaluate_hallucination", BOX, "hallucination, 1..5: 5 is none"),
        Column("evaluate_subjectivity", BOX, "subjectivity, 1..5: 5 is none"),
        Column(
            "evaluate_reason", TEXTS, "why there are no scores: refused, malformed, cut or a row error, with details"
        ),
        Column("evaluate_found", TEXTS, "what decided: contradicted claims, what is missing, opinions"),
    ),
    "loss": (
        Column("train_loss", REAL, "error of the trained model, mean of 8 timesteps; raw caption, else synthetic"),
        Column("train_loss_raw", REAL, "the same under the raw caption"),
        Column("train_loss_en", REAL, "the same under the synthetic English caption"),
        Column("train_loss_zh", REAL, "the same under the synthetic Chinese caption"),
        Column("train_loss_none", REAL, "the same under the empty caption"),
        Column("train_caption_gain", REAL, "share of the empty caption's error that the caption saves; 0: none"),
        Column("train_split", TEXT, "train or validation: rows that were trained on have lower errors"),
        Column("train_run", TEXT, "run and step of the model that was asked"),
    ),
}

# Operators that look at the whole store (curate/store/derived.py): no part of the path of a run.
DERIVED: tuple[str, ...] = ("dedup", "balance", "alike", "predicted", "evaluate", "loss")

ROW = (Column("shard", TEXT, "shard that the row came from"), Column("row", LONG, "row in the shard, from 0"))
FAILURE = (
    Column("error", TEXT, "stable word for what went wrong (docs/errors.md); null when nothing did"),
    Column("message", TEXT, "what went wrong, in a sentence"),
)

# What the view `samples` adds to the operators' own columns.
VERDICT = (
    Column("row_id", TEXT, "`shard:row`, the identity of the input row"),
    Column("keep", pa.bool_(), "true: passes the policy; false: dropped or failed; null: not decided yet"),
    Column("drop_reason", TEXT, "first predicate of the policy that the row fails; `<name>_null` when it was NULL"),
    Column("error", TEXT, "first error of any operator on this row"),
)

# The order that others rely on: `samples` begins with these.
SAMPLES_FIRST = (
    "row_id", "shard", "row", "sha256", "width", "height", "sharpness", "faces", "ocr_text", "ocr_confidence",
    "ocr_area", "aesthetic", "caption_raw", "caption_en", "caption_zh", "keep", "drop_reason", "error",
)  # fmt: skip

RESERVED = (
    {c.name for columns in OPERATORS.values() for c in columns}
    | {c.name for c in ROW + FAILURE + VERDICT}
)  # fmt: skip


def part_schema(operator: str) -> pa.Schema:
    """Arrow schema of the parts that `operator` writes; `input` has the input's own columns between."""
    return pa.schema([pa.field(c.name, c.type) for c in (*ROW, *OPERATORS[operator], *FAILURE)])


def indexed(kind: pa.DataType) -> bool:
    """Whether a column of this type is in the DuckDB index. Half floats (embeddings) stay in the parts: DuckDB has no
    such type, and nobody asks SQL for them."""
    return not pa.types.is_float16(kind.value_type if pa.types.is_list(kind) else kind)


def operator_of(column: str) -> str | None:
    """The operator that writes `column`, or None when no operator does."""
    return next((op for op, columns in OPERATORS.items() if any(c.name == column for c in columns)), None)
