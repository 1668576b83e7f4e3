"""The end of a run: how far to go, the judgement by the code of `trainer evaluate`, the export and its proof."""

from __future__ import annotations

import platform
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer import __version__
from trainer.checkpoint.content import RunState
from trainer.errors import CheckpointError
from trainer.evaluation.assessment import Assessment
from trainer.evaluation.metric_choice import judged_on
from trainer.evaluation.pair_metrics import most_wrong
from trainer.evaluation.scoring import pair_cosines
from trainer.evaluation.thresholds import Thresholds, thresholds_text
from trainer.evaluation.type_comparison import compare_types
from trainer.model.encoder import Encoder, weights_fingerprint
from trainer.model.export import export
from trainer.model.proof import check_trained, choose_probes, merged
from trainer.report.plots import INSTALL
from trainer.report.run_page import write_report
from trainer.system import distributed as ranks
from trainer.system.console import console
from trainer.system.files import json_ready, write_json
from trainer.system.run_files import METADATA, METRICS, MODEL, REPORT, SCORES, THRESHOLDS
from trainer.system.signals import Signals
from trainer.text.masking import mask_text
from trainer.training.base_model import load_base, load_original, origin_of_run
from trainer.training.card_alerts import alerts_on_training
from trainer.training.corpus_search import corpus_record, print_corpus, search_corpus
from trainer.training.judging import (
    add_original,
    embed_held_out,
    embed_original,
    judge_run,
    record_beside_original,
    record_of,
)
from trainer.training.model_card import CardFacts, licence_in, model_card
from trainer.training.plan import source_record
from trainer.training.principal_axes import turn_onto_axes
from trainer.training.run_folder import clear_results
from trainer.training.setup import Run
from trainer.training.strength import FULL, choose_strength, set_strength
from trainer.training.summary import print_summary

WORST = 20  # pairs that are shown to a person
LONGEST_SHOWN = 400  # characters of their texts


def finish(run: Run, state: RunState, signals: Signals) -> dict[str, Any] | None:
    """From the best weights to an exported model that was judged and proven. Returns what metrics.json holds.

    The ranks embed together; then the first goes on alone and the others are done, with None.

    Raises:
        CheckpointError: training changed nothing, what was exported is not what was trained, or the model that it began
            with has changed.
        StorageError: a file cannot be written.
    """
    untouched, probes = load_untouched(run), choose_probes(run.data.dev.texts)
    dims = run.config.loss.dims
    alpha = settle_weights(run, state, untouched, probes)

    # ---- Judgement, before and after, on every held-out set.
    systems = {"model": merged(run.encoder).to(run.device), "baseline": untouched}
    embeddings = embed_held_out(run, systems)
    axes = turn_onto_axes(run, systems["model"], embeddings) if alpha else None
    original = load_original(run.config, untouched)
    of_original = embed_original(run, original.to(run.device)) if original is not None else {}
    if not run.is_main:
        return None
    search = search_corpus(run, embeddings)
    judgements = judge_run(run, systems, embeddings, search)
    records = {name: record_of(judgement) for name, judgement in judgements.items()}
    pairs = list(records)[-1]  # test, where there is one: dev may have picked the model
    if original is not None:
        add_original(records[pairs], record_beside_original(run, systems, original, embeddings, of_original))
    metrics = metrics_record(run, state, alpha, records, search)
    if axes is not None:
        metrics["principal_axes"] = axes
    fitted = judgements["dev"].thresholds.get("model")  # not by positives alone
    if fitted is not None:
        alerts = alerts_on_training(systems["model"], run.data.train, fitted, run.config.train.seed)
        metrics["alerts_on_training_texts"] = alerts
    if run.corpus is not None:
        metrics["index_types"] = compare_types(run.corpus, embeddings["corpus"]["model"], dims)

    # ---- Export, read back from disk and compared.
    facts = card_facts(run, state.step)
    card = model_card(run.config, metrics, facts)
    extra_files = {THRESHOLDS: thresholds_text(fitted)} if fitted is not None else {}
    differences = export(run.encoder, untouched, run.folder, card, probes, extra_files, alpha == 0, dims)

    # ---- The last files. With metrics.json the run is finished, so no signal may come between it and the exit code.
    write_json(run.folder / SCORES, score_record(run, pairs, embeddings[pairs], judgements[pairs].thresholds))
    write_json(run.folder / METADATA, metadata(run, state, alpha, differences))
    drawn = find_spec("matplotlib") is not None
    if drawn:
        write_report(run.folder, json_ready(metrics))
    signals.ignore()
    write_json(run.folder / METRICS, metrics)
    print_corpus(run, search)
    print_summary(run.config, metrics, run.folder / MODEL, facts.sided)
    console.print(f"Report: {run.folder / REPORT}" if drawn else INSTALL, markup=False)
    return metrics


def load_untouched(run: Run) -> Encoder:
    """The encoder that training began with, read again. Raises CheckpointError where its weights are others by now."""
    untouched = load_base(run.config, run.model_name)
    if weights_fingerprint(untouched) != run.fingerprints["base_weights"]:
        raise CheckpointError(
            f"{run.model_name}: its weights have changed since training began; restore the model, then go on with "
            f"--resume --output-dir {run.folder}"
        )
    return untouched


def settle_weights(run: Run, state: RunState, untouched: Encoder, probes: list[str]) -> float:
    """Put the run's encoder as far from the untouched one, towards the best weights, as is best; returns the strength.

    Collective. Moves the untouched encoder to the device.

    Raises:
        CheckpointError: training changed nothing that the probes, some texts, would show.
    """
    assert state.best is not None  # the last step is always evaluated
    # ---- The best weights: what merging keeps, and training has changed.
    trained, start = state.best.weights, run.start_values(untouched)
    untouched.to(run.device)
    run.encoder.eval()
    set_strength(run.parameters, start, trained, FULL)
    check_trained(run.encoder, untouched, probes)

    # ---- Nothing that an earlier try left may outlive it; of its strengths, what is the same is taken again.
    ranks.on_first_rank(lambda: clear_results(run.folder, keeps_strength=run.config.eval.choose_strength))

    # ---- Strength: how far to go from the untouched weights to these.
    alpha = choose_strength(run, start, trained) if run.config.eval.choose_strength else FULL
    set_strength(run.parameters, start, trained, alpha)
    return alpha


def card_facts(run: Run, steps: int) -> CardFacts:
    """What the card says beside settings and judgement, after so many steps."""
    spec = run.encoder.spec
    return CardFacts(
        sources=source_record(run, steps),
        date=datetime.now(UTC).date().isoformat(),
        max_length=spec.max_length,
        licence=licence_in(Path(run.config.model.name)),
        sided=bool(spec.query_prompt or spec.document_prompt),
        steps=steps,
        planned_steps=len(run.sampler),
    )


def metrics_record(
    run: Run, state: RunState, alpha: float, records: dict[str, dict[str, Any]], search: Assessment | None
) -> dict[str, Any]:
    """What metrics.json holds: the verdict, the judgement of each held-out set, all evaluations, the corpus."""
    judged = list(records)[-1]
    return {
        **{key: records["dev"][key] for key in ("baseline", "final")},
        **{key: records[judged][key] for key in ("verdict", "sentences", "surely_worse")},
        "verdict_on": judged_on(run.config.eval.metric, judged, run.corpus is not None),
        "best_step": state.best.step if state.best else None,
        "strength": alpha,
        **records,
        "evaluations": state.evaluations,
        **corpus_record(run, search),
    }


def score_record(
    run: Run, name: str, embeddings: dict[str, np.ndarray], thresholds: dict[str, Thresholds]
) -> dict[str, Any]:
    """scores.json: the cosine of every judged pair before and after, and the pairs most wrong after, texts masked.

    Of positives alone, which have no threshold, the most wrong are the least alike.
    """
    table = run.data.held_out[name]
    dims = run.config.loss.dims
    names = {"baseline": "baseline", "model": "final"}
    cosines = {names[system]: pair_cosines(embeddings[system], table, dims) for system in names}
    largest = dims.index(max(dims))
    threshold = thresholds["model"].values[str(max(dims))] if thresholds else 0.0
    worst = most_wrong(cosines["final"][largest], table.label, threshold)[:WORST]
    return {
        "set": name,
        "labels": table.label.astype(int).tolist(),
        "thresholds": {names[system]: fitted.values for system, fitted in thresholds.items()},
        **{
            system: {str(dim): np.round(scores, 5).tolist() for dim, scores in zip(dims, rows, strict=True)}
            for system, rows in cosines.items()
        },
        "worst": [
            {
                "file": table.sources[table.part[pair]],
                "row": int(table.row[pair]),
                "label": int(table.label[pair]),
                "texts": [shown(table.texts[texts[pair]]) for texts in (table.text1, table.text2)],
                **{system: round(float(rows[largest, pair]), 4) for system, rows in cosines.items()},
            }
            for pair in worst
        ],
    }


def shown(text: str) -> str:
    """A text as it may leave the data set: masked, and not longer than a person reads."""
    masked = " ".join(mask_text(text).split())
    return masked if len(masked) <= LONGEST_SHOWN else masked[:LONGEST_SHOWN] + " ..."


def metadata(run: Run, state: RunState, alpha: float, differences: dict[str, float]) -> dict[str, Any]:
    """training_metadata.json, read from what is there."""
    spec, data = run.encoder.spec, run.data
    return {
        "versions": {
            "trainer": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "peft", "accelerate")},
        },
        "device": str(run.device),
        "encoder_path": run.encoder.path,
        "precision": run.numerics.precision,
        "products": dict(run.numerics.products),
        "precision_reason": run.numerics.reason,
        "fast_paths": asdict(run.fast_paths),
        "processes": ranks.world_size(),
        "threads": torch.get_num_threads(),
        "model": {
            "name": spec.name,
            "pooling": spec.pooling,
            "max_length": spec.max_length,
            "query_prompt": spec.query_prompt,
            "document_prompt": spec.document_prompt,
            "width": run.encoder.width,
            "parameters": sum(parameter.numel() for parameter in run.encoder.parameters()),
        },
        "trained": {name: list(parameter.shape) for name, parameter in run.parameters.items()},
        "trained_count": sum(parameter.numel() for parameter in run.parameters.values()),
        "strength": alpha,
        "original": asdict(origin_of_run(spec, run.fingerprints["base_weights"])),
        # That of the forgetting set is for the record alone: a resume may have another one.
        "fingerprints": run.fingerprints | ({"forgetting": data.general.fingerprint()} if data.general else {}),
        "rows": {
            "train": len(data.train),
            "beyond data.limit": data.beyond_limit,
            "dev": len(data.dev),
            "left out": data.left_out,
        },
        "sources": source_record(run, state.step),
        "overlapping_texts": data.overlap,
        "texts_at_max_length": int((run.tokens.longest(len(data.train.texts)) == spec.max_length).sum()),
        "steps": state.step,
        "planned_steps": len(run.sampler),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(state.seconds, 3),
        "resumed_at": state.resumed_at,
        "inexact_resumes": state.inexact,
        "reload_differences": differences,
    }
