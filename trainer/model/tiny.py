"""A tiny random-weight encoder and tokenizer, built on the spot: a model to try the trainer on, with no download."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import BertWordPieceTokenizer, Tokenizer
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PreTrainedTokenizerFast

from trainer.errors import InputError, StorageError
from trainer.model.families import FAMILIES, without_pooler

# By transformers' names. All but the mask come first in the vocabulary, in the order of their ids in the published
# models: families that count positions from the padding id on have it at 1.
ROBERTA = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
BERT = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}


def build_tiny_mpnet(
    folder: Path,
    texts: Iterable[str],
    *,
    seed: int = 0,
    family: str = "mpnet",
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    max_length: int = 128,
) -> Path:
    """Write a random-weight encoder and its tokenizer for `texts` into `folder`, which must not exist yet or be empty.

    `AutoModel.from_pretrained` (without a pooler, which is not saved) and `AutoTokenizer.from_pretrained` read it back.
    The files are a pure function of the arguments (the order of `texts` does not matter), the folder appears whole or
    not at all, and torch's random state is left as it was.

        >>> from pathlib import Path
        >>> from trainer.model.tiny import build_tiny_mpnet
        >>> folder = build_tiny_mpnet(Path("models/tiny"), ["the printer is jammed", "vpn drops every hour"])
        >>> (folder / "model.safetensors").is_file()
        True

    Args:
        texts: what the vocabulary is built from: their words, and their characters to spell any other word with.
        family: the model type, one of `families.FAMILIES`; the tokenizer is WordPiece in all of them.
        hidden: width of the embeddings; the feed-forward layers are twice as wide.
        max_length: tokens of the longest sequence, start and end included.

    Raises:
        InputError: an unknown `family`.
        StorageError: `folder` holds something, or cannot be written.
    """
    if family not in FAMILIES:
        raise InputError(f"tiny model: family is {family!r}; use one of {', '.join(FAMILIES)}")
    traits = FAMILIES[family]
    tokenizer = _tokenizer(texts, ROBERTA if traits.position_offset else BERT, max_length)
    positions = max_length + tokenizer.pad_token_id + 1 if traits.position_offset else max_length
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=positions,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        **{traits.feed_forward: 2 * hidden},
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        kind: Any = MODEL_MAPPING[type(config)]
        model = AutoModel.from_config(config, **without_pooler(kind))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
            whole = Path(scratch) / "model"
            model.save_pretrained(whole)
            tokenizer.save_pretrained(whole)
            whole.rename(folder)
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot write the tiny model there ({error.strerror}); name a new folder"
        ) from error
    return folder


def _tokenizer(texts: Iterable[str], special: dict[str, str], max_length: int) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer whose template is start, text, end."""
    normalizer, splitter = BertNormalizer(lowercase=True), BertPreTokenizer()
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    characters = sorted({character for word in words for character in word})
    # Words with a digit (hosts, users, times) are spelled out: new ones keep coming, and their digits are known.
    plain = sorted(word for word in words if len(word) > 1 and not any(map(str.isdigit, word)))
    *first, mask = special.values()
    tokens = [*first, *characters, *(f"##{character}" for character in characters), *plain, mask]
    backend = BertWordPieceTokenizer({token: number for number, token in enumerate(tokens)}, **special)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(backend.to_str()),
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        bos_token=special["cls_token"],
        eos_token=special["sep_token"],
        **special,
    )
