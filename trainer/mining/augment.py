"""Altered copies of texts that still say the same: a span left out, slips of the keyboard, a round trip by translation.

`None` stands for a text that cannot be altered without losing what it says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

from trainer.errors import InputError, first_line
from trainer.system.console import progress
from trainer.text.canonical import canonical_form

DELETED_SHARE = (0.1, 0.25)  # of a text's words, in one span
EDITED_SHARE = 0.1  # of a text's words, at least one
FEWEST_WORDS = 5  # a text that loses words keeps at least four
MODEL_FILES = ["*.json", "*.txt", "*.model", "*.spm", "model*.safetensors"]
TEXTS_AT_ONCE = 16
_WORD = re.compile(r"\S+")
_PLAIN = re.compile(r"[^\W\d_]{4,}")  # words that an edit may touch: ids and short words would turn into others

Translator = Callable[[Sequence[str]], list[str]]
"""Texts in, as many translations out."""


def delete_span(text: str, random: Random) -> str | None:
    """The text without one run of 10 to 25 % of its words."""
    words = list(_WORD.finditer(text))
    if len(words) < FEWEST_WORDS:
        return None
    count = max(1, int(len(words) * random.uniform(*DELETED_SHARE)))
    first = random.randrange(len(words) - count + 1)
    start, end = words[first].start(), words[first + count - 1].end()
    return (text[:start].rstrip(" ") + " " + text[end:].lstrip(" ")).strip()


def edit_text(text: str, random: Random) -> str | None:
    """The text with slips in a tenth of its words: letters swapped, dropped or doubled, neighbouring words swapped."""
    words = list(_WORD.finditer(text))
    plain = [place for place, word in enumerate(words) if _PLAIN.fullmatch(word.group())]
    if not plain:
        return None
    spelled = [word.group() for word in words]
    for place in random.sample(plain, min(len(plain), max(1, round(EDITED_SHARE * len(words))))):
        if place + 1 in plain and random.random() < 0.25:
            spelled[place], spelled[place + 1] = spelled[place + 1], spelled[place]
        else:
            spelled[place] = _slip(spelled[place], random)
    gaps = [text[before.end() : after.start()] for before, after in pairwise(words)]
    return "".join(word + gap for word, gap in zip(spelled, [*gaps, ""], strict=True))


def _slip(word: str, random: Random) -> str:
    """The word with one slip behind its first letter, which people rarely get wrong."""
    places = [place for place in range(1, len(word) - 1) if word[place] != word[place + 1]]
    kind = random.choice(("swap", "drop", "double") if places else ("drop", "double"))
    place = random.choice(places) if kind == "swap" else random.randrange(1, len(word))
    if kind == "swap":
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    return word[:place] + (word[place] * 2 if kind == "double" else "") + word[place + 1 :]


def round_trip(texts: Sequence[str], there: Translator, back: Translator) -> list[str | None]:
    """Texts translated there and back (Sennrich et al. 2016, arXiv:1511.06709).

    None where nothing changed, or where the length left 1/2 to 2 times the words: models that fail stop or repeat.
    """
    altered: list[str | None] = []
    for text, result in zip(texts, back(there(texts)), strict=True):
        words, result_words = len(text.split()), len(result.split())
        whole = words <= 2 * result_words and result_words <= 2 * words
        altered.append(result.strip() if whole and canonical_form(result) != canonical_form(text) else None)
    return altered


def load_translator(name: str) -> Translator:
    """A Hugging Face seq2seq model from a folder or the hub, as a function on texts; beam search, the same every time.

    Languages that a model wants to be told belong into its own generation_config.json (`forced_bos_token_id`) and
    tokenizer_config.json (`src_lang`). Only safetensors are loaded and no code from a model folder runs.

    Raises:
        InputError: no such model, no safetensors, or not a seq2seq model.
        StorageError: the disk is too full for what the hub has.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    from trainer.model.folder import download_model
    from trainer.model.loading import hush_transformers
    from trainer.system.gpu import default_device

    device = default_device()
    hush_transformers()
    folder = Path(name) if Path(name).is_dir() else download_model(name, MODEL_FILES, f"--translators {name}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        loaded = AutoModelForSeq2SeqLM.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, SafetensorError) as error:
        raise InputError(f"--translators {name}: cannot load it as a seq2seq model: {first_line(error)}") from error
    model: Any = loaded.eval().to(device)

    def translate(texts: Sequence[str]) -> list[str]:
        results = [""] * len(texts)
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))  # alike in length: little padding
        with progress(f"Translating with {Path(name).name}", len(texts)) as advance, torch.inference_mode():
            for start in range(0, len(order), TEXTS_AT_ONCE):
                places = order[start : start + TEXTS_AT_ONCE]
                chosen = [texts[place] for place in places]
                batch = tokenizer(chosen, padding=True, truncation=True, max_length=512, return_tensors="pt")
                batch = {key: batch[key].to(model.device) for key in ("input_ids", "attention_mask")}
                longest = 2 * batch["input_ids"].shape[1] + 16
                generated = model.generate(**batch, num_beams=4, do_sample=False, max_new_tokens=min(longest, 512))
                for place, text in zip(
                    places, tokenizer.batch_decode(generated, skip_special_tokens=True), strict=True
                ):
                    results[place] = text
                advance(len(places))
        return results

    return translate
