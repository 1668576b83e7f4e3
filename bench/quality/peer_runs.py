"""One run of `side_by_side.py`: a kind of training at a rate with a seed, and how it is judged."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.measuring import clocked
from bench.peer import RANKING, columns_for, load_peer, loss_of, train_peer
from bench.quality.judging import HeldOut, judge_model
from trainer.config_file import load_config
from trainer.data.pairs import PairTable, read_pairs
from trainer.data.search_corpus import SearchCorpus, corpus_of_pairs
from trainer.data.split import hold_out, sample_pairs
from trainer.evaluation.search_set import SearchSet
from trainer.model.embedding import embed
from trainer.model.loading import load_encoder
from trainer.system.gpu import default_device
from trainer.training.loop import train

OURS = "ours"
SEARCHED = ("accuracy@10", "mrr@10", "map@100")


def train_part(options: argparse.Namespace) -> tuple[PairTable, PairTable]:
    """The pairs that all train on, and those that choose."""
    split = hold_out(read_pairs(options.train), 0.1, seed=0)
    return (sample_pairs(split.rest, options.limit, seed=0) if options.limit else split.rest), split.held_out


def trainer_arguments(kind: str, options: argparse.Namespace, rate: float, seed: int) -> dict[str, Any]:
    """What the peer's trainer is given."""
    return {
        # Triplets bring as many texts with two thirds of the rows: a batch holds the positives of one of ours.
        "per_device_train_batch_size": options.batch_size // 2 if kind in RANKING else options.batch_size,
        "batch_sampler": "no_duplicates" if kind in RANKING else "batch_sampler",
        "learning_rate": rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.15,
        "bf16": options.precision == "bf16",
        "seed": seed,
        "disable_tqdm": True,
    }


def train_theirs(kind: str, options: argparse.Namespace, rate: float, seed: int, folder: Path) -> Path:
    """Train with sentence-transformers' trainer, keeping the best epoch. Returns the folder of the model."""
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

    table, choosing = train_part(options)
    model = load_peer(options.model, options.max_length, options.packed)
    guide = load_peer(options.model, options.max_length, options.packed) if "gist" in kind else None
    held_out = choosing.columns()
    train_peer(
        model,
        columns_for(kind, table),
        loss_of(kind, model, guide, options.dims),
        folder / "out",
        evaluator=EmbeddingSimilarityEvaluator(
            held_out["texts1"], held_out["texts2"], held_out["labels"], name="held_out"
        ),
        num_train_epochs=options.epochs,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_only_model=True,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_held_out_spearman_cosine",
        **trainer_arguments(kind, options, rate, seed),
    )
    model.save(str(folder / "model"))
    return folder / "model"


def train_ours(options: argparse.Namespace, rate: float, seed: int, folder: Path) -> Path:
    """Train with this trainer. Returns the folder of the model."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, table in zip(("train", "dev"), train_part(options), strict=True):
        files[name] = folder / f"{name}.json"
        files[name].write_text(json.dumps(table.columns()), encoding="utf-8")
    settings: dict[str, Any] = {
        "model.name": options.model,
        "model.max_length": options.max_length,
        "data.train": str(files["train"]),
        "data.dev": str(files["dev"]),
        "curriculum.epochs": options.epochs,
        "train.batch_size": options.batch_size,
        "train.precision": options.precision,
        "train.seed": seed,
        "optim.lr": rate,
        "loss.dims": list(options.dims),
        "output.dir": str(folder / "run"),
    }
    given = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return train(load_config(options.config, [*given, *options.set])).folder / "model"


def search_figures(folder: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """What sentence-transformers' evaluator says of a search by the model's embeddings, by dim."""
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
    from sentence_transformers.util import cos_sim

    held_out = HeldOut(options.dev, corpus=options.corpus, queries=options.queries)
    corpus: SearchCorpus = held_out.read_corpus() or corpus_of_pairs(held_out.read_pairs())
    encoder = load_encoder(folder, max_length=options.max_length, announce=False).to(default_device())
    searched = SearchSet.build(corpus, encoder)
    rows = torch.from_numpy(embed(encoder, searched.tokens)[searched.place])
    excluded = torch.from_numpy(corpus.excluded.toarray())

    class Embedded:
        """A model whose texts are numbers of rows."""

        def encode_query(self, texts: list[str], truncate_dim: int | None = None, **_: Any) -> torch.Tensor:
            return rows[[int(text) for text in texts], :truncate_dim]

        encode_document = encode_query

    names = [str(row) for row in range(len(rows))]
    queries = [names[row] for row in corpus.queries]
    relevant = corpus.relevant.tocsr()
    answers = {query: {names[row] for row in relevant[q].indices} for q, query in enumerate(queries)}
    figures = {}
    for dim in options.dims:
        # Annotated to take a whole model and return bare figures; it takes what encodes, and nests the figures.
        evaluator: Any = InformationRetrievalEvaluator(
            dict(zip(queries, queries, strict=True)),
            dict(zip(names, names, strict=True)),
            answers,
            truncate_dim=dim,
            # A query and its copies are no answers to it, which the evaluator leaves to its caller.
            score_functions={"cosine": lambda first, second: cos_sim(first, second).masked_fill(excluded, -2.0)},
        )
        found = evaluator.compute_all_metrics(Embedded())["cosine"]
        figures[str(dim)] = {
            name: float(found[f"{name.split('@')[0]}@k"][int(name.split("@")[1])]) for name in SEARCHED
        }
    return figures


def run_once(kind: str, options: argparse.Namespace, rate: float, seed: int) -> tuple[dict[str, Any], np.ndarray]:
    """Train and judge, in a process of its own. Returns figures, and the cosines [M, N] of dev."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with clocked() as took:
            if kind == "untouched":
                model = Path(options.model)
            elif kind == OURS:
                model = train_ours(options, rate, seed, folder / "ours")
            else:
                model = train_theirs(kind, options, rate, seed, folder)
        chosen = HeldOut(train_part(options)[1])
        by_choosing = judge_model(str(model), chosen, options.dims, options.max_length)[0]
        figures, cosines = judge_model(str(model), HeldOut(options.dev), options.dims, options.max_length)
        searched = search_figures(str(model), options)
    largest = str(max(options.dims))
    return {
        "held_out": by_choosing[largest]["spearman"],
        "dev": figures,
        "search": searched,
        **{name: round(value, 1) for name, value in took.items()},
    }, cosines


def first_losses(kind: str, options: argparse.Namespace, packed: bool, steps: int = 3) -> list[float]:
    """The losses of the first steps of the peer's trainer, dropout off, in fp32."""
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    models = [load_peer(options.model, options.max_length, packed, config_kwargs=no_dropout) for _ in range(2)]
    loss, values = loss_of(kind, models[0], models[1], options.dims), list[float]()
    loss.register_forward_hook(lambda module, inputs, value: values.append(float(value)))
    columns = columns_for(kind, train_part(options)[0])
    arguments = trainer_arguments(kind, options, max(options.rates), 0) | {"max_steps": steps, "bf16": False}
    with tempfile.TemporaryDirectory() as scratch:
        train_peer(models[0], columns, loss, Path(scratch), **arguments)
    return values


def largest_difference(kind: str, options: argparse.Namespace) -> float:
    """By what share the first losses of a kind differ between the packed and the peer's own forward."""
    own, packed = (first_losses(kind, options, way) for way in (False, True))
    return max(abs(a - b) / max(abs(a), 1.0) for a, b in zip(own, packed, strict=True))
