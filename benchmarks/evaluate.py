"""`curate evaluate` without its judge: `python -m benchmarks.evaluate`.

proxies    microseconds of processor time a caption, of 30 and of 130 words, one core
intervals  seconds for the tables of 4 captioners over 500 and 100,000 pictures

Last line: `RESULT ` and the figures as JSON.
"""

from __future__ import annotations

import json
import time

import numpy as np

from curate.balance.concepts import load as load_taxonomy
from curate.evaluate import compare, lexicon, proxies
from curate.store.captioners import Captioner

SENTENCES = (
    "A man in a red shirt and a woman with long brown hair stand at a wooden table in a bright kitchen.",
    "On the table are two white plates, a glass of water and a loaf of bread.",
    "Behind them a window shows green trees, and a sign on the wall reads \"OPEN DAILY\".",
    "The two people smile, and the atmosphere is cozy and inviting.",
)  # fmt: skip
MEASURED = {
    "width": 1200, "height": 800, "faces": 2, "face_area": 0.02, "ocr_text": "OPEN DAILY", "ocr_scores": [0.97],
    "colors": ["brown", "white", "green"], "color_shares": [0.4, 0.3, 0.2], "colorfulness": 44.0,
    "clip_concept": "people", "clip_concept_score": 0.6,
}  # fmt: skip


def caption_us(text: str, seconds: float = 1.0) -> float:
    """Processor time of one caption, microseconds."""
    words, taxonomy = lexicon.load("lexicon.v1"), load_taxonomy("taxonomy.v1")
    proxies.score(text, "en", MEASURED, words, taxonomy)
    begun, done = time.process_time(), 0
    while time.process_time() - begun < seconds:
        proxies.score(text, "en", MEASURED, words, taxonomy)
        done += 1
    return (time.process_time() - begun) / done * 1e6


def intervals_s(pictures: int) -> float:
    """Processor time of one judge's table over so many pictures and 4 captioners, seconds."""
    scores = np.random.default_rng(0).integers(1, 6, (pictures, 4, 5)).astype(np.float32)
    who = [Captioner(str(n), "synthetic", "en", f"captioner {n}", "vlm", None, True, pictures, None) for n in range(4)]
    begun = time.process_time()
    compare.block("proxies", "en", scores, who)
    return time.process_time() - begun


def main() -> None:
    """Print the figures."""
    short, long = SENTENCES[0] + " " + SENTENCES[3], " ".join(SENTENCES * 2)
    figures = {
        f"proxies, us a caption of {len(text.split())} words": round(caption_us(text)) for text in (short, long)
    } | {f"intervals, s for {n:,} pictures": round(intervals_s(n), 2) for n in (500, 100_000)}
    for name, value in figures.items():
        print(f"{name:45} {value:,}")
    print("RESULT " + json.dumps(figures))


if __name__ == "__main__":
    main()
