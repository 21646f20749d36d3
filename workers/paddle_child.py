"""The process that holds PaddleOCR, in an environment of its own: PYTHON paddle_child.py '{"detector": ..., ...}'.

Its wheels pin other versions of OpenCV and NumPy, and on a GPU of CUDA, than torch's; so nothing of curate is imported
here. On standard input come pictures: a line of JSON {"height", "width"}, then height * width * 3 bytes, RGB. For each,
a line of JSON goes to standard output: PaddleOCR's `dt_polys`, `rec_polys`, `rec_texts`, `rec_scores`, or `error`.
"""

import json
import os
import sys
from typing import Any


def plain(polygons: Any) -> list[Any]:
    """Polygons as lists of [x, y]."""
    return [[[float(x), float(y)] for x, y in polygon] for polygon in polygons]


def main() -> None:
    """Load the models, say so, answer pictures until the input ends."""
    options = json.loads(sys.argv[1])
    # What the libraries print must not end up among the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        import numpy as np
        from paddleocr import PaddleOCR  # type: ignore[import-not-found]  # in the other environment

        reader = PaddleOCR(
            use_doc_orientation_classify=False, use_doc_unwarping=False, use_textline_orientation=False, **options
        )
    except BaseException as why:
        say({"error": f"{type(why).__name__}: {(str(why).splitlines() or [''])[0]}"})
        return
    say({"ready": True})
    while line := sys.stdin.buffer.readline():
        head = json.loads(line)
        count = head["height"] * head["width"] * 3
        rgb = np.frombuffer(sys.stdin.buffer.read(count), np.uint8).reshape(head["height"], head["width"], 3)
        try:
            (found,) = reader.predict(np.ascontiguousarray(rgb[..., ::-1]))
            say(
                {
                    "dt_polys": plain(found["dt_polys"]),
                    "rec_polys": plain(found["rec_polys"]),
                    "rec_texts": list(found["rec_texts"]),
                    "rec_scores": [float(score) for score in found["rec_scores"]],
                }
            )
        except Exception as why:
            say({"error": f"{type(why).__name__}: {why}"[:500]})


if __name__ == "__main__":
    main()
