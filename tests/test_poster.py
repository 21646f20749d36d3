"""Posters: which pictures they are, what the captioner is told, and what a caption must quote."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from curate import pipeline
from curate.mix.settings import Settings
from curate.mix.sources import Source
from curate.progress import Display
from curate.recipe import from_tables
from curate.store import Store
from schemas.columns import OPERATORS
from workers import poster
from workers.ocr import RapidOcr
from workers.poster import COLUMNS, PosterCaptioner, clause, hint, honest, is_in, quoted_share
from workers.sample import Sample


def box(left: float, top: float, wide: float, high: float) -> list[float]:
    return [left, top, left + wide, top, left + wide, top + high, left, top + high]


POSTER: dict[str, Any] = {
    "width": 600, "height": 900, "ocr_text": "春季音乐会\n国家大剧院", "ocr_confidence": 0.98, "ocr_area": 0.2,
    "ocr_language": "zh", "ocr_boxes": [box(150, 60, 300, 60), box(180, 800, 240, 48)], "caption_en": "A red poster.",
    "caption_zh": "一张红色海报。", "caption_engine": "facts",
}  # fmt: skip


def caption_of(values: dict[str, Any], said: str | None = None) -> dict[str, Any]:
    """The columns of one row; `said` is what the captioner answers, None for none."""
    asked: list[str] = []

    def captioner(samples: Sequence[Sample]) -> list[dict[str, Any]]:
        asked.extend(sample.values["caption_raw"] for sample in samples)
        return [{"caption_en": said, "caption_engine": "model"} for _ in samples]

    (found,) = PosterCaptioner(captioner if said is not None else None, rendered=1.0)([Sample(0, None, values)])
    return found | {"asked": asked}


@pytest.mark.parametrize(
    "changed",
    [
        {"ocr_language": "en"},
        {"ocr_confidence": 0.85},
        {"ocr_confidence": None},
        {"ocr_area": 0.004},
        {"ocr_area": 0.7},
        {"ocr_text": ""},
        {"ocr_boxes": [box(150, 60, 300, 60), box(180, 800, 120, 12)]},  # half of the text is small print
    ],
)
def test_what_is_no_poster_has_no_poster_caption(changed: dict[str, Any]) -> None:
    assert PosterCaptioner(None)([Sample(0, None, POSTER | changed)]) == [dict.fromkeys(COLUMNS)]


def test_the_columns_are_those_that_are_declared() -> None:
    assert tuple(column.name for column in OPERATORS["poster"]) == COLUMNS
    assert set(caption_of(POSTER)) - {"asked"} == set(COLUMNS)


def test_without_a_captioner_the_text_is_appended_to_the_captions_of_the_row() -> None:
    found = caption_of(POSTER)
    assert found["poster_how"] == "clause"
    assert found["poster_caption_en"] == (
        'A red poster. The text in the picture reads: at the top "春季音乐会"; at the bottom "国家大剧院".'
    )
    assert found["poster_caption_zh"] == "一张红色海报。画面中的文字为：上方“春季音乐会”；下方“国家大剧院”。"
    assert (found["poster_quoted"], found["poster_engine"]) == (0.0, "facts")


def test_the_captioner_is_told_each_line_with_its_place() -> None:
    found = caption_of(POSTER, 'A poster that says "春季音乐会" and below "国家大剧院".')
    assert found["asked"] == ["at the top: 春季音乐会; at the bottom: 国家大剧院"]
    assert (found["poster_how"], found["poster_quoted"], found["poster_engine"]) == ("written", 1.0, "model")
    assert found["poster_caption_en"] == 'A poster that says "春季音乐会" and below "国家大剧院".'


def test_a_sentence_that_quotes_what_is_not_there_is_cut_out() -> None:
    said = 'A poster that says "春季音乐会" and "国家大剧院". A stamp reads "SOLD OUT" in blue. It is red.'
    found = caption_of(POSTER, said)
    assert (found["poster_how"], found["poster_invented"]) == ("cut", ["SOLD OUT"])
    assert found["poster_caption_en"] == 'A poster that says "春季音乐会" and "国家大剧院". It is red.'


def test_less_than_four_fifths_of_the_text_gets_the_clause() -> None:
    found = caption_of(POSTER, "A poster with the title “春季音乐会”.")
    assert (found["poster_how"], found["poster_quoted"]) == ("clause", 0.5)
    assert "国家大剧院" in found["poster_caption_en"]


def test_rendered_text_must_survive_verbatim_or_the_caption_is_refused() -> None:
    drawn = {
        "width": 512, "height": 512, "synth_texts": ["图书馆", "OPEN"], "synth_spec_sha": "ab", "caption_zh": None,
        "synth_lines": [box(20, 20, 90, 30), box(400, 460, 90, 30)],
    }  # fmt: skip
    good = caption_of(drawn, 'A sign: "图书馆", below it "OPEN".')
    assert good["asked"] == ["in the upper left: 图书馆; in the lower right: OPEN"]
    assert good["poster_how"] == "written"
    assert good["poster_caption_zh"] == "画面中的文字为：左上方“图书馆”；右下方“OPEN”。"
    bad = caption_of(drawn, 'A sign: "图书馆", below it "OPEM".')
    assert (bad["poster_how"], bad["poster_caption_en"], bad["poster_invented"]) == ("refused", None, ["OPEM"])
    assert caption_of(drawn) == dict.fromkeys(COLUMNS) | {"asked": []}  # without a model there is nothing to gain


def test_a_share_of_rendered_rows_is_captioned_by_key() -> None:
    worker = PosterCaptioner(lambda samples: [], rendered=0.2)
    rows = [{"synth_texts": ["国"], "synth_lines": [box(0, 0, 9, 9)], "synth_spec_sha": f"{n:x}"} for n in range(2000)]
    chosen = [bool(worker.lines(row)) for row in rows]
    assert 0.17 < sum(chosen) / len(chosen) < 0.23
    assert chosen == [bool(worker.lines(row)) for row in rows]


def test_quotations_may_differ_by_a_tenth() -> None:
    whole = poster.plain("中国人民银行北京分行")
    assert is_in("中国人民银行北京分行", whole)
    assert is_in("中国人民銀行北京分行", whole)
    assert is_in("人民银行", whole)
    assert not is_in("中國人民銀行北京分行", whole)
    assert not is_in("人民币", whole)


def test_quotations_are_found_in_all_marks_and_feet_are_none() -> None:
    text = "“甲乙” 「丙」 \"Open\" 'Late night' a 5\" nail and don't, it's"
    assert poster.quotations(text) == ["甲乙", "丙", "Open", "Late night"]
    assert honest("没有引号的说明。", ["国"]) == ("没有引号的说明。", [])
    assert honest("有“国”。有“家”。", ["国"]) == ("有“国”。", ["家"])
    assert quoted_share("“甲”", ["甲乙丙丁"]) == 0.25
    assert quoted_share("", []) == 0.0


def test_a_line_with_quotation_marks_is_put_into_others() -> None:
    line = poster.Line('12" 大屏', ("中央", "in the center"))
    assert clause([line], 1) == 'The text in the picture reads: in the center “12" 大屏”.'
    assert hint([line]) == 'in the center: 12" 大屏'


def test_a_real_poster_is_small_print_at_323_px_and_a_poster_when_that_is_allowed(shared: Path) -> None:
    sample = Sample(0, (shared / "images" / "poster_zh.jpg").read_bytes(), {"width": 323, "height": 430})
    sample.values |= RapidOcr()([sample])[0] | {"caption_en": "A poster.", "caption_zh": "一张海报。"}
    assert PosterCaptioner(None)([sample])[0]["poster_how"] is None
    found = PosterCaptioner(None, min_line_px=14)([sample])[0]
    assert found["poster_how"] == "clause"
    assert "正品促销" in found["poster_caption_en"]
    assert "大桶装更划算" in found["poster_caption_zh"]


class Model(BaseHTTPRequestHandler):
    """An endpoint that quotes the first line it is told, and one that nobody told it."""

    seen: list[str]

    def do_GET(self) -> None:
        self.answer({"data": []})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = next(part["text"] for part in body["messages"][0]["content"] if part["type"] == "text")
        self.server.seen.append(text)  # type: ignore[attr-defined]
        told = text.partition("with its place: ")[2].partition(". Describe")[0]
        first = told.split("; ")[0].partition(": ")[2]
        said = f'A sign that reads "{first}".' if first else "A picture."
        self.answer({"choices": [{"message": {"content": said}, "finish_reason": "stop"}]})

    def answer(self, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
    server.seen = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_main_job_captions_posters_with_the_captioner_of_the_recipe(
    endpoint: ThreadingHTTPServer, tmp_path: Path
) -> None:
    pictures = []
    for _ in range(2):
        out = io.BytesIO()
        Image.effect_noise((320, 256), 60).convert("RGB").save(out, "PNG")
        pictures.append(out.getvalue())
    (tmp_path / "shards").mkdir()
    table = pa.table(
        {
            "image": pa.array(pictures, pa.binary()),
            "synth_texts": [["图书馆"], None],
            "synth_lines": pa.array([[box(20, 20, 90, 30)], None], pa.list_(pa.list_(pa.float32()))),
            "synth_spec_sha": ["ab", None],
        }
    )
    pq.write_table(table, tmp_path / "shards" / "one.parquet")
    recipe = from_tables(
        {
            "input": {"uri": str(tmp_path / "shards")}, "store": {"uri": str(tmp_path / "store")},
            "engine": {"kind": "inline"}, "ocr": {"engine": "none"}, "faces": {"engine": "none"},
            "caption": {
                "engine": "openai", "endpoint": f"http://127.0.0.1:{endpoint.server_address[1]}/v1", "model": "m",
            },
            "poster": {"engine": "caption", "rendered": 1.0},
            "quality": {"engine": "none"},  # `A picture.` is too short for it
        }
    )  # fmt: skip
    assert pipeline.run(recipe, display=Display(Console(file=io.StringIO()))) == 0
    rows = Store(tmp_path / "store").rows(
        "SELECT poster_how, poster_caption_en, poster_caption_zh, poster_engine FROM samples ORDER BY row"
    )
    assert rows == [
        ("written", 'A sign that reads "图书馆".', "画面中的文字为：左上方“图书馆”。", "openai"),
        (None, None, None, None),
    ]  # fmt: skip
    assert sum("图书馆" in text for text in endpoint.seen) == 1  # type: ignore[attr-defined]
    uri = str(tmp_path / "store")
    source = Source(uri, Settings(uri, ignore_policy=True), "natural")
    mixed = source.full(np.zeros(2, np.int32), np.arange(2, dtype=np.int32))
    assert mixed["captions_en"].to_pylist() == [['A sign that reads "图书馆".'], ["A picture."]]
    assert mixed["captions_zh"].to_pylist()[0] == ["画面中的文字为：左上方“图书馆”。"]


def test_cogvlm_is_asked_again_with_the_text_of_the_picture(tmp_path: Path) -> None:
    """A tiny random checkpoint writes noise: a poster gets the clause, rendered text is refused."""
    from cogvlm_tiny import config_of, write_checkpoint

    from workers.cogvlm.captioner import CogVLM

    weights = write_checkpoint(tmp_path / "cogvlm-tiny", config_of(max_position_embeddings=2048))
    out = io.BytesIO()
    Image.effect_noise((320, 256), 60).convert("RGB").save(out, "PNG")
    (tmp_path / "shards").mkdir()
    table = pa.table(
        {
            "image": pa.array([out.getvalue()], pa.binary()),
            "synth_texts": [["图书馆"]],
            "synth_lines": pa.array([[box(20, 20, 90, 30)]], pa.list_(pa.list_(pa.float32()))),
            "synth_spec_sha": ["ab"],
        }
    )
    pq.write_table(table, tmp_path / "shards" / "one.parquet")
    caption = {"engine": "cogvlm", "weights": str(weights), "max_new_tokens": 8, "dtype": "float32", "attempts": 0}
    recipe = from_tables(
        {
            "input": {"uri": str(tmp_path / "shards")}, "store": {"uri": str(tmp_path / "store")},
            "engine": {"kind": "inline"}, "ocr": {"engine": "none"}, "faces": {"engine": "none"},
            "caption": caption, "translate": {"engine": "none"}, "poster": {"engine": "caption", "rendered": 1.0},
        }
    )  # fmt: skip
    assert pipeline.run(recipe, display=Display(Console(file=io.StringIO()))) == 0
    rows = Store(tmp_path / "store").rows(
        "SELECT poster_how, poster_quoted, poster_caption_en, caption_engine, error FROM samples"
    )
    assert rows == [("refused", 0.0, None, "cogvlm", None)]
    captioner = CogVLM(weights=weights, prompt="poster.v1", max_new_tokens=8, device="cpu")
    (found,) = PosterCaptioner(captioner)([Sample(0, out.getvalue(), POSTER)])
    asked = hint(
        [poster.Line("春季音乐会", ("上方", "at the top")), poster.Line("国家大剧院", ("下方", "at the bottom"))]
    )
    told = captioner.prompt.text(asked)
    assert "春季音乐会" in told
    assert captioner.captions[-1].tokens_in == 1 + 38 + len(told.encode())
    assert (found["poster_how"], found["poster_engine"]) == ("clause", "cogvlm")
    assert found["poster_caption_en"].endswith('at the top "春季音乐会"; at the bottom "国家大剧院".')
