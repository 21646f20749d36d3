"""Translators on tiny checkpoints of the published layouts, which the tests teach a few sentences."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from curate import pipeline
from curate.progress import Display
from curate.recipe import Recipe
from curate.store import Store
from schemas.columns import OPERATORS
from schemas.errors import RowError
from workers.embedder import WeightsError
from workers.sample import Sample
from workers.spans import glossary, is_mostly_han, lost, put_in, quotes, terms_in, with_quotes
from workers.translator import (
    GOLDEN,
    CausalLM,
    Language,
    Piece,
    Seq2Seq,
    Translator,
    Written,
    generated,
    instruction,
)

torch.set_num_threads(1)

PAIRS = {
    GOLDEN[0]: "寺庙的红门开着。",
    "A dog.": "一只狗。",
    "Two cats sit.": "两只猫坐着。",
}
LETTERS = sorted(set("".join([*PAIRS, *PAIRS.values()])) - {" "})


def train(model: Any, batch: dict[str, torch.Tensor], steps: int, rate: float = 3e-3) -> None:
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for _ in range(steps):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss) < 0.05
    model.eval()


def sentencepiece_file(path: Path, characters: Sequence[str]) -> None:
    """A unigram model whose pieces are single characters, made by sentencepiece itself."""
    import sentencepiece

    text = path.with_suffix(".txt")
    text.write_text("\n".join(" ".join(characters) for _ in range(20)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(path.with_suffix("")), vocab_size=len(set(characters)) + 4,
        character_coverage=1.0, model_type="char", minloglevel=2,
    )  # fmt: skip
    path.with_suffix(".model").replace(path)


@pytest.fixture(scope="module")
def marian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Marian checkpoint as Helsinki-NLP publishes them: two .spm, vocab.json, config, pytorch_model.bin."""
    from transformers import MarianConfig, MarianMTModel, MarianTokenizer

    folder = tmp_path_factory.mktemp("marian") / "opus-tiny"
    folder.mkdir()
    for name in ("source.spm", "target.spm"):
        sentencepiece_file(folder / name, LETTERS)
    words = ["</s>", "<unk>", "▁", *LETTERS, ">>cmn_Hans<<", "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "MarianTokenizer", "source_lang": "eng", "target_lang": "zho"})
    )
    pad = len(words) - 1
    config = MarianConfig(
        vocab_size=len(words), d_model=48, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=128, dropout=0.0,
        attention_dropout=0.0, pad_token_id=pad, eos_token_id=0, decoder_start_token_id=pad, forced_eos_token_id=0,
        scale_embedding=True, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = MarianTokenizer.from_pretrained(folder)
        batch = tokenizer(
            [f">>cmn_Hans<< {text}" for text in PAIRS], text_target=list(PAIRS.values()), return_tensors="pt",
            padding=True,
        )  # fmt: skip
        batch["labels"][batch["labels"] == pad] = -100
        model = MarianMTModel(config)
        train(model, dict(batch), 150)
        model.save_pretrained(folder)
    # As it is published, with no safetensors beside it.
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.fixture(scope="module")
def nllb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An NLLB checkpoint: M2M-100's model with NLLB's tokenizer, whose language codes are special tokens."""
    from transformers import M2M100Config, M2M100ForConditionalGeneration, NllbTokenizer

    folder = tmp_path_factory.mktemp("nllb") / "nllb-tiny"
    words = ["<s>", "<pad>", "</s>", "<unk>", "▁", *LETTERS]
    tokenizer = NllbTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], src_lang="eng_Latn")
    tokenizer.save_pretrained(folder)
    config = M2M100Config(
        vocab_size=len(tokenizer), d_model=48, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=128, dropout=0.0,
        attention_dropout=0.0, activation_dropout=0.0, pad_token_id=1, bos_token_id=0, eos_token_id=2,
        decoder_start_token_id=2, encoder_layerdrop=0.0, decoder_layerdrop=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    tokenizer.tgt_lang = "zho_Hans"
    batch = tokenizer(list(PAIRS), text_target=list(PAIRS.values()), return_tensors="pt", padding=True)
    batch["labels"][batch["labels"] == 1] = -100
    model = M2M100ForConditionalGeneration(config)
    train(model, dict(batch), 150)
    model.save_pretrained(folder)
    return folder


TEMPLATE = "{% for m in messages %}<user>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model with a byte-level tokenizer and a chat template of its own."""
    from cogvlm_tiny import write_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("causal") / "mt-tiny"
    folder.mkdir()
    write_tokenizer(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token="<end>", pad_token="<pad>", chat_template=TEMPLATE,
        additional_special_tokens=["<user>", "<bot>"],
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=48, intermediate_size=64, num_hidden_layers=1,
            num_attention_heads=4, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
            max_position_embeddings=1024,
        )
    )  # fmt: skip
    rows = []
    for text, chinese in PAIRS.items():
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": instruction(Piece(text), "zh")}], tokenize=False, add_generation_prompt=True
        )
        given = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        answer = [*tokenizer(chinese, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        rows.append((given + answer, [-100] * len(given) + answer))
    longest = max(len(ids) for ids, _ in rows)
    batch = {
        "input_ids": torch.tensor([[0] * (longest - len(ids)) + ids for ids, _ in rows]),
        "attention_mask": torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids, _ in rows]),
        "labels": torch.tensor([[-100] * (longest - len(ids)) + labels for ids, labels in rows]),
    }
    train(model, batch, 250, 5e-3)
    model.save_pretrained(folder)
    return folder


def translator(model: Any, **options: Any) -> Translator:
    return Translator(model, engine="test", name="tiny", revision="1", **options)


def test_marian_translates_sentence_by_sentence_in_one_sorted_batch(marian: Path) -> None:
    translate = translator(Seq2Seq(marian, "marian"))
    captions = ["A dog. Two cats sit.", None, GOLDEN[0], "A dog."]
    rows = translate([Sample(i, None, {"caption_en": text}) for i, text in enumerate(captions)])
    assert [row["caption_zh"] for row in rows] == ["一只狗。两只猫坐着。", None, "寺庙的红门开着。", "一只狗。"]
    assert all(set(row) == {column.name for column in OPERATORS["translate"]} for row in rows)
    assert {row["translate_engine"] for row in rows} == {"test"}


def test_nllb_and_a_chat_model_say_the_same(nllb: Path, causal: Path) -> None:
    for model in (Seq2Seq(nllb, "nllb"), CausalLM(causal, dtype="float32", rows=2)):
        rows = translator(model)([Sample(i, None, {"caption_en": text}) for i, text in enumerate(PAIRS)])
        assert [row["caption_zh"] for row in rows] == list(PAIRS.values())


def test_a_checkpoint_whose_head_is_not_tied_fails_the_golden_sentence(marian: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(marian, tmp_path / "broken"))
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    name = next(key for key in tensors if key.endswith("shared.weight"))
    generator = torch.Generator().manual_seed(0)
    tensors[name] = torch.randn(tensors[name].shape, generator=generator) * 0.05
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=re.escape(f"{GOLDEN[0]!r} became")):
        translator(Seq2Seq(folder, "marian"))
    name = next(key for key in tensors if "fc1.weight" in key)
    del tensors[name]
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"weights missing or of another shape: .*fc1\.weight"):
        Seq2Seq(folder, "marian")
    (folder / "pytorch_model.bin").write_bytes(b"cut")
    with pytest.raises(WeightsError, match="transformers cannot load it"):
        Seq2Seq(folder, "marian")


def test_a_run_translates_raw_captions_by_marian_and_by_a_chat_model(
    marian: Path, causal: Path, captioned: Callable[..., Recipe], quiet: Callable[[], Display]
) -> None:
    captions = [*PAIRS, None, "一只狗。"]
    keys = {"engine": "marian", "weights": str(marian), "raw": True, "glossary": ""}
    recipe = captioned(captions, translate=keys, quality={"engine": "rules"})
    assert pipeline.run(recipe, display=quiet()) == 0
    store = Store(recipe.store.uri)
    columns = "caption_raw_zh, caption_raw_zh_reason, translate_raw_cut, translate_model, translate_engine"
    assert store.rows(f"SELECT {columns} FROM samples ORDER BY row") == [
        *[(chinese, None, False, "opus-tiny", "marian") for chinese in PAIRS.values()],
        (None, None, None, "opus-tiny", "marian"), (None, None, None, "opus-tiny", "marian"),
    ]  # fmt: skip
    chat = replace(recipe.translate, engine="causal-lm", weights=str(causal), dtype="float32")
    assert pipeline.run(replace(recipe, translate=chat), display=quiet()) == 0
    assert store.rows("SELECT caption_raw_zh, translate_model FROM samples WHERE row < 3 ORDER BY row") == [
        (chinese, "mt-tiny") for chinese in PAIRS.values()
    ]
    assert store.rows("SELECT count(caption_raw_en) FROM samples") == [(1,)]  # it goes both ways, Marian does not


def test_a_translation_that_meets_its_token_limit_is_cut(marian: Path, causal: Path) -> None:
    for model in (Seq2Seq(marian, "marian"), CausalLM(causal, dtype="float32")):
        tokens = model._tokenizer([GOLDEN[0]], return_tensors="pt")["input_ids"].shape[1]
        texts = [GOLDEN[0], GOLDEN[0]]
        options = {"skip_prompt": model.sentencewise is False, "num_beams": 1}
        if model.sentencewise:
            texts = [f">>cmn_Hans<< {text}" for text in texts]
            (whole, _) = generated(model._model, model._tokenizer, texts, 2, **options)
            assert (whole.text.replace(" ", ""), whole.cut) == (PAIRS[GOLDEN[0]], False)
        (cut, _) = generated(model._model, model._tokenizer, texts, 2, most=4, **options)
        assert cut.cut
        model._tokenizer.model_max_length = tokens - 2
        assert generated(model._model, model._tokenizer, texts, 2, **options)[0].cut


def test_a_model_of_another_kind_is_refused(marian: Path, nllb: Path) -> None:
    with pytest.raises(WeightsError, match="no >>cmn_Hans<<"):
        Seq2Seq(nllb, "marian")
    with pytest.raises(WeightsError, match="no zho_Hans"):
        Seq2Seq(marian, "nllb")


class Words:
    """A dictionary as a model: what it does not know it leaves out, as models do with names."""

    sentencewise = True

    def __init__(self, words: dict[str, str], ways: frozenset[tuple[Language, Language]]) -> None:
        self.words = words
        self.ways = ways
        self.asked: list[str] = []

    def translate(self, pieces: Sequence[Piece], source: Language, target: Language) -> list[Written | RowError]:
        self.asked += [piece.text for piece in pieces]
        return [self.said(piece.text) for piece in pieces]

    def said(self, text: str) -> Written | RowError:
        if "fails" in text:
            return RowError("endpoint_failed", "no answer")
        words = re.findall(r"[\w']+|[^\w\s]", text)
        known = {mark: mark for mark in ("Q1Z", "Q2Z")} | self.words
        return Written("".join(known.get(word, word if not word.isascii() else "") for word in words), "long" in words)


BOTH: frozenset[tuple[Language, Language]] = frozenset({("en", "zh"), ("zh", "en")})
GATE = {
    "red": "紅",
    "gate": "門",
    "the": "",
    "The": "",
    ".": "。",
    '"': '"',
    "a": "",
    "A": "",
    "3": "3",
    "OPEN": "开放",
}


def test_quotes_come_back_as_they_stood_and_traditional_becomes_simplified() -> None:
    translate = translator(Words(GATE, BOTH))
    (row,) = translate([Sample(0, None, {"caption_en": 'A red gate "OPEN".'})])
    assert row["caption_zh"] == '红门"OPEN"。'
    assert row["translate_lost"] == []


def test_a_quotation_is_never_put_where_another_stood() -> None:
    assert with_quotes("写着“甲”", ["A"]) == "写着“A”"
    assert with_quotes("“B”旁边的牌子写着“A”", ["A", "B"]) == "“B”旁边的牌子写着“A”"
    assert with_quotes("“乙”旁边的牌子写着“A”", ["A", "B"]) == "“B”旁边的牌子写着“A”"
    assert with_quotes("“乙”旁边的牌子写着“甲”", ["A", "B"]) == "“乙”旁边的牌子写着“甲”"
    assert with_quotes("所谓“甲”写着“乙”", ["A"]) == "所谓“甲”写着“乙”"
    assert lost('A sign "OPEN" next to "NEW".', "“新”旁边的牌子写着“开放”。", {}) == ["OPEN", "NEW"]


def test_quotations_that_cannot_be_told_apart_travel_as_marks() -> None:
    words = GATE | {"NEW": "新"}
    model = Words(words, BOTH)
    (row,) = translator(model)([Sample(0, None, {"caption_en": 'A gate "OPEN" "NEW".'})])
    assert (row["caption_zh"], row["translate_lost"]) == ('门"OPEN""NEW"。', [])
    assert model.asked[-1] == 'A gate "Q1Z" "Q2Z".'
    (row,) = translator(Words(words | {"Q1Z": "", "Q2Z": "Q2ZQ2Z"}, BOTH))(
        [Sample(0, None, {"caption_en": 'A gate "OPEN" "NEW".'})]
    )
    assert (row["caption_zh"], row["translate_lost"]) == ('门"开放""新"。', ["OPEN", "NEW"])


def test_a_text_that_gets_no_translation_fails_alone_and_keeps_what_there_is() -> None:
    samples = [Sample(0, None, {"caption_en": "A gate fails."}), Sample(1, None, {"caption_en": "A red gate."})]
    samples.append(Sample(2, None, {"caption_en": "The long gate.", "caption_raw": "fails"}))
    failure, good, partly = translator(Words(GATE, BOTH), raw=True)(samples)
    assert isinstance(failure, RowError)
    assert (good["caption_zh"], good["translate_cut"]) == ("红门。", False)
    assert isinstance(partly, RowError)
    assert (partly.columns["caption_zh"], partly.columns["translate_cut"]) == ("门。", True)


def test_a_lost_name_is_tried_again_in_chinese_and_named_when_it_is_lost_all_the_same() -> None:
    model = Words(GATE, BOTH)
    translate = translator(model, terms={"Forbidden City": "故宫", "mooncake": "月饼"})
    (row,) = translate([Sample(0, None, {"caption_en": "The gate, the Forbidden City, 7 mooncakes."})])
    assert "故宫" in row["caption_zh"]
    assert "月饼" in row["caption_zh"]
    assert row["translate_lost"] == ["7"]
    assert model.asked[-1] == "The gate, the 故宫, 7 月饼."


def test_raw_captions_go_in_the_direction_that_they_need() -> None:
    model = Words(GATE | {"红": "red", "门": "gate", "红门": "red gate"}, BOTH)
    samples = [
        Sample(i, None, {"caption_en": None, "caption_raw": raw}) for i, raw in enumerate(["red gate", "红门", ""])
    ]
    rows = translator(model, raw=True)(samples)
    assert [(row["caption_raw_zh"], row["caption_raw_en"]) for row in rows] == [
        ("红门", None), (None, "red gate"), (None, None),
    ]  # fmt: skip
    rows = translator(Words(GATE, frozenset({("en", "zh")})), raw=True)(samples)
    assert [row["caption_raw_en"] for row in rows] == [None, None, None]
    assert [row["caption_raw_zh"] for row in translator(model)(samples)] == [None, None, None]


@pytest.mark.parametrize(
    ("source", "target", "missing"),
    [
        ("A sign reads “STOP”.", "牌子上写着“STOP”。", []),
        ("A sign reads “STOP”.", "牌子上写着“停”。", ["STOP"]),
        ("1,250 people in 1998", "1998年有1250人", []),
        ("1,250 people in 1998", "1998年有125人", ["1,250"]),
        ("3 dogs and 3 cats", "三只狗和3只猫", []),
        ("12 dogs", "十三只狗", ["12"]),
        ("15 balloons", "十五个气球", []),
        ("a 20th century house", "二十世纪的房子", []),
        ("1.5 million people", "一百五十万人", []),
        ("1.5 million people", "150万人", []),
        ("10,000 people in the 1990s", "九十年代的一万人", []),
        ("in 1998", "一九九八年", []),
        ("105 rooms", "一百零五间房", []),
        ("the clock says 12:30", "钟上是十二点半", []),
        ("the clock says 12:45", "钟上是十二点半", ["12:45"]),
        ("at 3 pm", "15点", []),
        ("3.5 m", "三点五米", []),
        ("2 and 1", "二十一", ["2", "1"]),
        ("A sign “A”.", "一只Aardvark。", ["A"]),
        ("A sign reads 'OPEN'.", "牌子上写着“开”。", ["OPEN"]),
        ("the Great Walls", "长城", []),
        ("the great wall", "大墙", ["Great Wall"]),
        ("the temple 天坛 at noon", "中午的寺庙", ["天坛"]),
        ("2 dogs", "两只狗", []),
        ("version B12", "版本B12", []),
    ],
)
def test_what_a_translation_lost_is_named(source: str, target: str, missing: list[str]) -> None:
    assert lost(source, target, {"Great Wall": "长城"}) == missing


def test_glossary_terms_are_whole_words_and_the_longest_wins() -> None:
    terms = {"Wall": "墙", "Great Wall": "长城", "pipa": "琵琶"}
    assert terms_in("The Great Wall and pipas", terms) == {"Great Wall": "长城", "pipa": "琵琶"}
    assert terms_in("Wallpaper", terms) == {}
    assert put_in("The Great Wall and a wall", terms) == "The 长城 and a 墙"
    assert quotes('“a” and "b" 「c」') == ["a", "b", "c"]
    assert quotes("the dogs' toys, a '70s car and the cat's 'NEW' toys") == ["NEW"]
    assert quotes("‘It’s open’ and 'Don't walk'") == ["It’s open", "Don't walk"]
    assert len(glossary("glossary.v1")) > 10


@pytest.mark.parametrize("text", ["[terms", "a = 1", "[terms]\na = 3", '[terms]\n" " = "x"'])
def test_a_glossary_that_is_odd_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "g.toml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "g.toml"))):
        glossary(str(tmp_path / "g.toml"))
    with pytest.raises(ValueError, match=r"shipped are glossary\.v1"):
        glossary("nope")


def test_the_prompt_of_a_language_model_is_hy_mt_s() -> None:
    assert instruction(Piece("A gate."), "zh") == (
        "将以下文本翻译为中文，注意只需要输出翻译后的结果，不要额外解释：\n\nA gate."
    )
    assert instruction(Piece("A gate.", {"gate": "门"}), "zh").startswith("参考下面的翻译：\ngate 翻译成 门\n\n将")


def test_a_caption_is_chinese_when_a_third_of_its_letters_are() -> None:
    assert is_mostly_han("iPhone 手机壳新款")
    assert not is_mostly_han("a cup of 茶 on the table")
    assert not is_mostly_han("123")
