"""The table of tokens against the tokenizer, text by text; its batches, its runs within a budget, its cache."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from transformers import AutoTokenizer

from trainer.model import tokens
from trainer.model.tokens import TokenTable, tokenize, tokenize_cached
from trainer.system.console import console

MAX_LENGTH = 12
TEXTS = [
    "printer jammed",
    "",
    "   ",
    "vpn " * 40,
    "  Leading, TRAILING and\ttabs \n\n",
    "日本語 🙂 ünïcode",
    "a",
    "x" * 500,
    "[PAD] <s> </s> [SEP]",
    "\x00\u200b",
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRAINER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


@pytest.fixture(params=["mpnet", "bert"])
def folder(request: pytest.FixtureRequest, tiny_model: Callable[[str], Path]) -> Path:
    return tiny_model(request.param)


@pytest.fixture
def tokenizer(tiny_model: Callable[[str], Path]) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model("bert"))


def rows(table: TokenTable) -> list[list[int]]:
    return [part.tolist() for part in np.split(table.ids, table.offsets[1:-1])]


def one_by_one(texts: list[str], tokenizer: Any, max_length: int = MAX_LENGTH) -> list[list[int]]:
    return [tokenizer(text, truncation=True, max_length=max_length)["input_ids"] for text in texts]


def mute(tokenizer: Any) -> Any:
    """The same tokenizer to the cache's key, but one that cannot be called."""
    return SimpleNamespace(backend_tokenizer=tokenizer.backend_tokenizer, truncation_side=tokenizer.truncation_side)


def equal(a: TokenTable, b: TokenTable) -> bool:
    return a.ids.dtype == b.ids.dtype and np.array_equal(a.ids, b.ids) and np.array_equal(a.offsets, b.offsets)


# ---- the table


@pytest.mark.parametrize("chunk", [1, 3, 4096])
def test_the_table_holds_what_the_tokenizer_says_of_each_text(
    chunk: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "CHUNK", chunk)
    table = tokenize(TEXTS, AutoTokenizer.from_pretrained(folder), MAX_LENGTH)
    expected = one_by_one(TEXTS, AutoTokenizer.from_pretrained(folder))
    assert rows(table) == expected
    assert table.lengths.tolist() == [len(ids) for ids in expected]
    assert table.lengths.min() == 2  # start and end
    assert table.lengths.max() == MAX_LENGTH
    assert (table.ids.dtype, table.offsets.dtype) == (np.int32, np.int64)


@pytest.mark.parametrize("max_length", [3, 5, 128])
def test_texts_are_cut_at_the_max_length(max_length: int, tokenizer: Any) -> None:
    table = tokenize(TEXTS, tokenizer, max_length)
    assert rows(table) == one_by_one(TEXTS, tokenizer, max_length)
    assert table.lengths.max() <= max_length


# ---- batches and runs

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=40)


def table_of(lengths: list[int]) -> TokenTable:
    """A table whose tokens are all different, so that none can be taken for another."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TokenTable(np.arange(offsets[-1], dtype=np.int32) + 100, offsets)


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(LENGTHS, st.data())
def test_a_batch_holds_the_texts_asked_for_in_that_order(lengths: list[int], data: st.DataObject) -> None:
    table = table_of(lengths)
    texts = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=20)))
    batch = table.batch(texts)
    run = batch.input_ids.split(batch.lengths.tolist())
    wanted = rows(table)
    assert [run[place].tolist() for place in batch.order] == [wanted[text] for text in texts]
    assert batch.token_count == table.lengths[texts].sum()
    assert batch.lengths.tolist() == sorted(table.lengths[texts].tolist(), reverse=True)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(LENGTHS, st.integers(1, 80), st.data())
def test_runs_cover_every_position_once_within_the_budget_longest_first(
    lengths: list[int], budget: int, data: st.DataObject
) -> None:
    table = table_of(lengths)
    texts = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=30)))
    runs = table.chunks(texts, budget)
    assert all(len(run) for run in runs)
    joined = np.concatenate(runs)
    assert sorted(joined.tolist()) == list(range(len(texts)))
    assert (np.diff(table.lengths[texts[joined]]) <= 0).all()
    loads = [int(table.lengths[texts[run]].sum()) for run in runs]
    assert all(load <= budget or len(run) == 1 for load, run in zip(loads, runs, strict=True))
    # No run ends before the next text would have been too much.
    assert all(load + table.lengths[texts[after[0]]] > budget for load, after in zip(loads, runs[1:], strict=False))


def test_a_budget_of_nothing_is_no_limit() -> None:
    texts = np.array([2, 0, 1, 2])
    (run,) = table_of([5, 3, 9]).chunks(texts, 0)
    assert run.tolist() == [0, 1, 2, 3]


def test_runs_are_batches_of_the_same_texts() -> None:
    table, texts = table_of([5, 3, 9, 4]), np.array([3, 1, 0, 2, 2])
    for run in table.chunks(texts, 10):
        batch = table.batch(texts[run])
        assert torch.equal(batch.lengths, torch.from_numpy(np.sort(table.lengths[texts[run]])[::-1].copy()))


# ---- the cache


def test_what_was_tokenised_once_is_not_tokenised_again(tokenizer: Any) -> None:
    table = tokenize_cached(TEXTS, tokenizer, MAX_LENGTH)
    assert equal(tokenize_cached(TEXTS, mute(tokenizer), MAX_LENGTH), table)
    with pytest.raises(TypeError, match="not callable"):  # the stand-in would be found out
        tokenize_cached([*TEXTS, "new"], mute(tokenizer), MAX_LENGTH)


def test_another_process_finds_all_that_the_first_one_tokenised(folder: Path, cache: Path) -> None:
    """A call leaves its truncation in the tokenizer, and a hit makes no call; neither may change the key."""
    first = AutoTokenizer.from_pretrained(folder)
    tables = [tokenize_cached(texts, first, MAX_LENGTH) for texts in (TEXTS, ["other"])]
    first("call", padding="max_length", max_length=7, truncation=True)
    for used in (first, AutoTokenizer.from_pretrained(folder)):
        for texts, table in zip((TEXTS, ["other"]), tables, strict=True):
            assert equal(tokenize_cached(texts, mute(used), MAX_LENGTH), table)
    assert len(list(cache.iterdir())) == 2


def variants(folder: Path, tmp_path: Path) -> Iterator[tuple[str, list[str], Any, int]]:
    """Inputs that each differ from the plain ones in one thing."""
    plain = AutoTokenizer.from_pretrained(folder)
    yield "plain", TEXTS, plain, MAX_LENGTH
    yield "max length", TEXTS, plain, MAX_LENGTH + 1
    yield "a text", [*TEXTS[:-1], "changed"], plain, MAX_LENGTH
    yield "one text less", TEXTS[:-1], plain, MAX_LENGTH
    yield "order", TEXTS[::-1], plain, MAX_LENGTH
    yield "case", [text.upper() for text in TEXTS], plain, MAX_LENGTH
    left = AutoTokenizer.from_pretrained(folder)
    left.truncation_side = "left"
    yield "side", TEXTS, left, MAX_LENGTH
    copy = tmp_path / "cased"
    shutil.copytree(folder, copy)
    text = (copy / "tokenizer.json").read_text(encoding="utf-8")
    (copy / "tokenizer.json").write_text(text.replace('"lowercase": true', '"lowercase": false'), encoding="utf-8")
    yield "normaliser", TEXTS, AutoTokenizer.from_pretrained(copy), MAX_LENGTH
    words = AutoTokenizer.from_pretrained(folder)
    words.add_tokens(["vpn vpn"])
    yield "vocabulary", TEXTS, words, MAX_LENGTH


def test_whatever_changes_the_tokens_changes_the_key(folder: Path, cache: Path, tmp_path: Path) -> None:
    seen: set[Path] = set()
    for what, texts, tokenizer, max_length in variants(folder, tmp_path):
        table = tokenize_cached(texts, tokenizer, max_length)
        assert rows(table) == one_by_one(texts, tokenizer, max_length), what
        new = set(cache.iterdir()) - seen
        assert len(new) == 1, what
        seen |= new


@pytest.mark.parametrize("texts", [["ab", "c"], ["a", "bc"], ["abc", ""], ["", "abc"], ["abc"]])
def test_the_key_knows_where_a_text_ends(texts: list[str], tokenizer: Any, cache: Path) -> None:
    tokenize_cached(["a", "b", "c"], tokenizer, MAX_LENGTH)
    tokenize_cached(texts, tokenizer, MAX_LENGTH)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: bytes(len(data)),
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:],
        lambda data: data + b"\x00",
        lambda data: b"no safetensors",
    ],
    ids=["empty", "zero", "truncated", "half", "bit", "longer", "other"],
)
def test_a_damaged_cache_is_made_again(damage: Callable[[bytes], bytes], tokenizer: Any, cache: Path) -> None:
    table = tokenize_cached(TEXTS, tokenizer, MAX_LENGTH)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with console.capture() as captured:
        assert equal(tokenize_cached(TEXTS, tokenizer, MAX_LENGTH), table)
    assert captured.get() == f"{path}: damaged; tokenising again\n"
    assert path.read_bytes() == whole


@pytest.mark.slow
def test_a_flipped_bit_in_any_byte_is_noticed_or_harmless(tokenizer: Any, cache: Path) -> None:
    table = tokenize_cached(TEXTS[:3], tokenizer, MAX_LENGTH)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    rng = np.random.default_rng(len(whole))
    unnoticed = 0
    for byte in range(len(whole)):
        path.write_bytes(whole[:byte] + bytes([whole[byte] ^ 1 << int(rng.integers(8))]) + whole[byte + 1 :])
        with console.capture() as captured:
            assert equal(tokenize_cached(TEXTS[:3], tokenizer, MAX_LENGTH), table)
        unnoticed += captured.get() == ""
    assert unnoticed < 10  # at most in the padding of the header


def test_it_is_the_checksum_that_tells(tokenizer: Any, cache: Path) -> None:
    table = tokenize_cached(TEXTS, tokenizer, MAX_LENGTH)
    (path,) = cache.iterdir()
    other = TokenTable(table.ids ^ 1, table.offsets)
    for digest, expected in ((table.fingerprint(), table), (other.fingerprint(), other)):
        save_file({"ids": other.ids, "offsets": other.offsets}, path, {"sha256": digest})
        with console.capture():
            assert equal(tokenize_cached(TEXTS, tokenizer, MAX_LENGTH), expected)


def test_without_the_cache_nothing_is_written(tokenizer: Any, cache: Path) -> None:
    assert equal(tokenize(TEXTS, tokenizer, MAX_LENGTH), tokenize(TEXTS, tokenizer, MAX_LENGTH))
    assert not cache.exists()
