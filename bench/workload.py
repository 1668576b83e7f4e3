"""What the benchmarks work on: pairs of tickets, real or of real tickets' lengths, and models of a given shape."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from trainer.data.readers import read_table
from trainer.data.ticket_table import Columns
from trainer.model.tiny import build_tiny_mpnet


class Shape(NamedTuple):
    """What there is of a model to measure on."""

    layers: int
    max_length: int
    dims: tuple[int, ...]


MPNET_DIMS = (768, 512, 256, 128, 64)
SHAPES = {
    "mpnet-base": Shape(12, 384, MPNET_DIMS),
    "mpnet-4": Shape(4, 384, MPNET_DIMS),
    "minilm-l6": Shape(6, 256, (384, 256, 128, 64)),
}
"""mpnet-*: all-mpnet-base-v2's shape with random weights; minilm-l6: the encoder itself."""

# Tokens of the titles and bodies of 4,335 real tickets at every tenth of the ranking, special tokens left out.
TITLE_LENGTHS = (1, 4, 5, 7, 10, 13, 17, 22, 23, 28, 63)
BODY_LENGTHS = (1, 15, 24, 29, 31, 36, 44, 57, 79, 126, 5918)
WORDS = 20_000


def add_workload(parser: argparse.ArgumentParser, model: str) -> None:
    """The options that say which model is measured, and on what."""
    parser.add_argument("--model", choices=SHAPES, default=model)
    parser.add_argument("--encoder", help="folder of all-MiniLM-L6-v2: the model, or just its tokenizer")
    parser.add_argument(
        "--tickets", help="CSV with short_description and description (default: made-up words of real tickets' lengths)"
    )


def ticket_pairs(tickets: str | None, count: int = 4335) -> list[tuple[str, str]]:
    """A title and a body of each ticket, in a fixed random order; made-up words of the same lengths without a file."""
    if tickets is None:
        rng = np.random.default_rng(0)
        sides = [made_up(rng, lengths, count) for lengths in (TITLE_LENGTHS, BODY_LENGTHS)]
        return list(zip(*sides, strict=True))
    columns = read_table(tickets, Columns()).columns
    chosen: dict[str, str] = {}
    for title, body in zip(columns["text1"], columns["text2"], strict=True):
        if title.strip() and body.strip() and title.strip() != body.strip():
            chosen.setdefault(title, body)
    pairs = list(chosen.items())
    order = np.random.default_rng(0).permutation(len(pairs))[:count]
    return [pairs[i] for i in order]


def made_up(rng: np.random.Generator, lengths: tuple[int, ...], count: int) -> list[str]:
    """Texts of random words, a token each, whose lengths follow the given tenths."""
    wanted = np.interp(rng.random(count), np.linspace(0, 1, len(lengths)), lengths).astype(int)
    return [" ".join(f"w{word}" for word in rng.integers(0, WORDS, length)) for length in wanted]


def write_pairs(pairs: list[tuple[str, str]], path: Path, rows: int = 0) -> Path:
    """Labelled pairs: each title with its own body, then with that of the ticket one, two, ... places on.

    Without `rows` all are positive but the one negative that a run needs to have.
    """
    places = [(i % len(pairs), (i + i // len(pairs)) % len(pairs)) for i in range(rows or len(pairs) + 1)]
    columns = {
        "texts1": [pairs[a][0] for a, _ in places],
        "texts2": [pairs[b][1] for _, b in places],
        "labels": [int(a == b) for a, b in places],
    }
    path.write_text(json.dumps(columns))
    return path


def write_model(shape: str, encoder: str | None, folder: Path) -> Path:
    """A model of one of SHAPES as a folder; without an encoder's folder, its tokenizer knows the made-up words."""
    if shape == "minilm-l6":
        if encoder is None:
            raise SystemExit("minilm-l6 needs --encoder: the folder of all-MiniLM-L6-v2")
        return Path(encoder)
    config = AutoConfig.for_model(
        "mpnet", vocab_size=30527, num_hidden_layers=SHAPES[shape].layers, max_position_embeddings=514
    )
    torch.manual_seed(0)
    AutoModel.from_config(config, add_pooling_layer=False).save_pretrained(folder)
    if encoder is None:
        words = [" ".join(f"w{word}" for word in range(WORDS))]
        encoder = str(build_tiny_mpnet(folder.parent / "words", words, max_length=512))
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(folder)
    return folder


def write_workload(options: argparse.Namespace, folder: Path, count: int) -> tuple[Path, Path]:
    """The model and so many pairs of the tickets that the options name, as a folder and a file."""
    pairs = write_pairs(ticket_pairs(options.tickets, count), folder / "pairs.json")
    return write_model(options.model, options.encoder, folder / "model"), pairs
