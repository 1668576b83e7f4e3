"""Altered texts: how much may change, what never does, and round trips through two real seq2seq models."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer

from trainer.errors import InputError
from trainer.mining.augment import DELETED_SHARE, delete_span, edit_text, load_translator, round_trip
from trainer.model.tiny import build_tiny_mpnet

TEXT = "the printer INC0001234 on floor 2 prints blank pages since the last update of driver v1.2 yesterday"
WORDS = TEXT.split()


def texts(seed: int, count: int = 200) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.sample(WORDS, rng.randint(5, 16))).replace(" floor ", "\nfloor ") for _ in range(count)]


@pytest.mark.parametrize("seed", range(3))
def test_one_span_of_the_right_size_is_left_out(seed: int) -> None:
    for text in texts(seed):
        words, kept = text.split(), (delete_span(text, random.Random(seed)) or "").split()
        gone = len(words) - len(kept)
        assert 1 <= gone <= max(1, DELETED_SHARE[1] * len(words))
        assert any(words[:start] + words[start + gone :] == kept for start in range(len(words)))


@pytest.mark.parametrize("seed", range(3))
def test_edits_touch_a_tenth_of_the_words_and_no_id(seed: int) -> None:
    for text in texts(seed):
        edited = edit_text(text, random.Random(seed))
        assert edited is not None and edited != text
        before, after = text.split(), edited.split()
        changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
        assert 1 <= len(changed) <= 2 * max(1, round(0.1 * len(before)))  # a swap of neighbours changes two
        assert all(a.isalpha() and len(a) >= 4 for a, _ in changed)
        for word in after:  # each is a word of before, or one with a slip behind its first letter
            assert any(word[0] == own[0] and abs(len(word) - len(own)) <= 1 for own in before)


def test_short_texts_and_ids_alone_are_left_alone() -> None:
    rng = random.Random(0)
    assert delete_span("no sound at all", rng) is None
    assert edit_text("INC0001 10.1.2.3 vpn x1234", rng) is None


def test_the_same_seed_makes_the_same_text() -> None:
    for alter in (delete_span, edit_text):
        first, again, other = ([alter(text, random.Random(seed)) for text in texts(0, 20)] for seed in (1, 1, 2))
        assert first == again != other


def test_round_trips_that_say_nothing_new_or_too_little_are_none() -> None:
    answers = {
        "a b c": "A  b c",  # only case and spacing changed
        "d e f g": "d",  # broke off
        "h i": "h i h i h i",  # repeats itself
        "j k l": " l k j ",
    }
    there = [f"<{text}>" for text in answers]
    asked: list[str] = []

    def forward(given: list[str]) -> list[str]:
        asked.extend(given)
        return there

    def back(given: list[str]) -> list[str]:
        assert given == there
        return list(answers.values())

    assert round_trip(list(answers), forward, back) == [None, None, None, "l k j"]
    assert asked == list(answers)


@pytest.fixture(scope="module")
def seq2seq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random-weight T5."""
    folder = build_tiny_mpnet(tmp_path_factory.mktemp("seq2seq") / "model", [TEXT], family="bert")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = AutoConfig.for_model(
        "t5", vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
        decoder_start_token_id=tokenizer.cls_token_id, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSeq2SeqLM.from_config(config)
    folder = folder.with_name("t5")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_seq2seq_model_translates_as_transformers_does_one_text_at_a_time(seq2seq: Path) -> None:
    translate = load_translator(str(seq2seq))
    given = ["the printer prints blank pages", "update", "blank pages since yesterday on the last floor"] * 7
    tokenizer, model = AutoTokenizer.from_pretrained(seq2seq), AutoModelForSeq2SeqLM.from_pretrained(seq2seq).eval()
    expected = []
    for text in given[:3]:
        batch = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        longest = min(2 * max(len(tokenizer(other).input_ids) for other in given) + 16, 512)
        made = model.generate(**batch, num_beams=4, do_sample=False, max_new_tokens=longest)
        expected.append(tokenizer.decode(made[0], skip_special_tokens=True))
    results = translate(given)
    assert len(results) == len(given) and all(results)
    for text, result in zip(expected, results, strict=False):
        shorter = min(len(text), len(result))  # batches may stop earlier: their own longest text decides
        assert text[:shorter] == result[:shorter] and shorter > 20
    assert translate([]) == []


def test_no_code_of_a_translators_folder_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is asked whether it may either."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a person was asked"))
    kinds = {"AutoConfig": "code.Config", "AutoModelForSeq2SeqLM": "code.Model", "AutoTokenizer": ["code.Words", None]}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": kinds}))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(InputError, match="--translators"):
        load_translator(str(tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("wrong", ["missing", "encoder", "pickle"])
def test_what_is_no_seq2seq_model_is_one_line(
    wrong: str, seq2seq: Path, tmp_path: Path, tiny_model, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = str(tiny_model("bert")) if wrong == "encoder" else "nobody/nothing"
    if wrong == "pickle":
        name = str(tmp_path)
        (tmp_path / "config.json").write_text((seq2seq / "config.json").read_text())
        (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="--translators") as error:
        load_translator(name)
    assert "\n" not in str(error.value)
