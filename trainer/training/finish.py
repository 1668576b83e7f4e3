"""The end of a run: how far to go, the judgement by the code of `trainer evaluate`, the export and its proof."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from trainer import __version__
from trainer.checkpoint.content import RunState
from trainer.evaluation.judge import Judgement, Question, conclude, judgement_record
from trainer.evaluation.pair_metrics import spearman
from trainer.evaluation.scoring import evaluate, pair_cosines
from trainer.evaluation.thresholds import FILE as THRESHOLDS
from trainer.evaluation.thresholds import Thresholds, fit_thresholds, thresholds_text
from trainer.model.embedding import embed, embed_cached
from trainer.model.encoder import Encoder, weights_fingerprint
from trainer.model.export import check_trained, choose_probes, export, merged
from trainer.report.plots import INSTALL
from trainer.report.run_page import REPORT, write_report
from trainer.system import distributed as ranks
from trainer.system.console import console, progress
from trainer.system.files import json_ready, write_json
from trainer.system.signals import Signals
from trainer.text.masking import mask_text
from trainer.training.model_card import model_card, print_summary
from trainer.training.setup import Run
from trainer.training.strength import ALPHAS, FULL, Point, best_strength, ruled_out, set_strength

FINISHED = "metrics.json"  # the last file of a run
STRENGTH, SCORES = "strength.json", "scores.json"


RULE = "f1"  # how the thresholds that go with the model are fitted
WORST = 20  # pairs that are shown to a person
LONGEST_SHOWN = 400  # characters of their texts


def finish(run: Run, state: RunState, signals: Signals) -> None:
    """From the best weights to an exported model that was judged and proven.

    The ranks embed together; then the first goes on alone and the others are done.
    """
    assert state.best is not None  # the last step is always evaluated
    trained = state.best.weights
    run.encoder.eval()
    start = run.start_values()
    set_strength(run.parameters, start, trained, FULL)
    untouched = run.load_base().to(run.device)
    probes = choose_probes(run.data.dev.texts)
    check_trained(run.encoder, untouched, probes)
    alpha = FULL
    if run.config.eval.choose_strength:
        curve = strength_curve(run, start, trained)
        alpha = best_strength(curve, run.config.eval.forgetting_limit)
        note_strength(run, curve, alpha)
    set_strength(run.parameters, start, trained, alpha)
    systems = {"model": merged(run.encoder).to(run.device), "baseline": untouched}
    rows = embed_held_out(run, systems)
    if run.main:
        judgements = judge_run(run, systems, rows)
        records = {name: record_of(judgement) for name, judgement in judgements.items()}
        on = list(records)[-1]  # test, where there is one: dev has picked the model
        metrics: dict[str, Any] = {key: records["dev"][key] for key in ("baseline", "final")}
        metrics |= {"verdict": records[on]["verdict"], "verdict_on": on, "best_step": state.best.step}
        metrics |= {"strength": alpha, **records, "evaluations": state.evaluations}
        card = model_card(run.config, records[on], on, alpha)
        thresholds = judgements["dev"].thresholds
        differences = export(
            run.encoder,
            untouched,
            run.folder,
            card,
            probes,
            {THRESHOLDS: thresholds_text(thresholds["model"])},
            untouched=alpha == 0,
        )
        write_json(run.folder / SCORES, score_record(run, on, rows[on], thresholds))
        write_json(run.folder / "training_metadata.json", metadata(run, state, alpha, differences))
        drawn = find_spec("matplotlib") is not None
        if drawn:
            write_report(run.folder, json_ready(metrics))
        signals.ignore()
        write_json(run.folder / FINISHED, metrics)
        print_summary(records, state.best.step, alpha, run.folder / "model")
        console.print(f"Report: {run.folder / REPORT}" if drawn else INSTALL, markup=False)


def strength_curve(run: Run, start: dict[str, torch.Tensor], trained: dict[str, torch.Tensor]) -> list[Point]:
    """The metric on dev, and Spearman on the forgetting set, of the merged model at every strength and dim.

    Collective: the ranks share the texts out, and all have the same curve.
    """
    dims, metric = run.config.loss.dims, run.config.eval.metric
    curve = []
    with progress("Choosing the strength", len(ALPHAS)) as advance:
        for alpha in ALPHAS:
            set_strength(run.parameters, start, trained, alpha)
            encoder = merged(run.encoder).to(run.device)
            found = evaluate(encoder, run.dev, dims)
            point: Point = {"alpha": alpha, "dev": {dim: values[metric] for dim, values in found.items()}}
            if run.general is not None:
                table = run.general.table
                cosines = pair_cosines(embed(encoder, run.general.tokens), table, dims)
                values = (spearman(scores, table.score) for scores in cosines)
                point["forgetting"] = dict(zip(map(str, dims), values, strict=True))
            curve.append(point)
            advance(note=f"alpha {alpha:.1f}")
    return curve


def note_strength(run: Run, curve: list[Point], alpha: float) -> None:
    """Write the curve to the run's folder, and say what was chosen."""
    metric, largest = run.config.eval.metric, str(max(run.config.loss.dims))
    limit = run.config.eval.forgetting_limit
    out = ruled_out(curve, limit)
    if run.main:
        record = {"chosen": alpha, "metric": metric, "forgetting_limit": limit, "ruled_out": out, "curve": curve}
        write_json(run.folder / STRENGTH, record)
    values = {point["alpha"]: point["dev"][largest] for point in curve}
    shown = "  ".join(f"{at:.1f}: {value:.4f}" for at, value in values.items())
    console.print(f"Strength of the update, dev {metric} at {largest} dims: {shown}")
    if any("forgets" in reason for reason in out.values()):
        allowed = ", ".join(f"{at:.1f}" for at in values if at not in out)
        console.print(f"Strengths within eval.forgetting_limit = {limit:g}, and no loss at any dim of dev: {allowed}")
    console.print(f"Chosen: {alpha:.1f} ({values[alpha]:.4f}; {values[0.0]:.4f} untouched, {values[FULL]:.4f} in full)")


def embed_held_out(run: Run, systems: dict[str, Encoder]) -> dict[str, dict[str, np.ndarray]]:
    """Embeddings [T, E] by set ("dev", "test", "general") and system, in fp32. Collective."""
    sets = {"dev": run.dev, "test": run.test, "general": run.general}
    return {
        name: {
            system: (embed_cached if system == "baseline" else embed)(encoder, pairs.tokens)
            for system, encoder in systems.items()
        }
        for name, pairs in sets.items()
        if pairs is not None
    }


def judge_run(run: Run, systems: dict[str, Encoder], rows: dict[str, dict[str, np.ndarray]]) -> dict[str, Judgement]:
    """Judgements on "dev" and, where there is one, "test", in this order; thresholds are fitted on dev."""
    config, dev = run.config, run.data.dev
    thresholds = {
        system: fit_thresholds(
            pair_cosines(rows["dev"][system], dev, config.loss.dims),
            dev,
            config.loss.dims,
            RULE,
            weights_fingerprint(encoder),
        )
        for system, encoder in systems.items()
    }
    general = (run.data.general, rows["general"]) if run.data.general is not None else None
    found = {}
    for name, table in (("dev", dev), ("test", run.data.test)):
        if table is not None:
            question = Question(
                model="model",  # within the folder of the run, wherever that is
                pairs=table.source,
                dev=dev.source if name == "test" else None,
                baseline=config.model.name,
                dims=config.loss.dims,
                label_scale=config.data.label_scale,
                positive_threshold=config.data.positive_threshold or None,
                rule=RULE,
                metric=config.eval.metric,
                forgetting=config.data.forgetting or None,
            )
            found[name] = conclude(question, table, rows[name], thresholds, general if name == "dev" else None)
    return found


def record_of(judgement: Judgement) -> dict[str, Any]:
    """As `trainer evaluate --json` writes it, the trained model called "final"."""
    record = judgement_record(judgement)
    return {"baseline": record.pop("baseline"), "final": record.pop("model"), **record}


def score_record(run: Run, name: str, rows: dict[str, np.ndarray], thresholds: dict[str, Thresholds]) -> dict[str, Any]:
    """scores.json: the cosine of every judged pair before and after, and the pairs most wrong after, texts masked."""
    table = run.data.test if name == "test" and run.data.test is not None else run.data.dev
    dims = run.config.loss.dims
    names = {"baseline": "baseline", "model": "final"}
    cosines = {names[system]: pair_cosines(rows[system], table, dims) for system in names}
    largest = dims.index(max(dims))
    threshold = thresholds["model"].values[str(max(dims))]
    wrong_by = np.where(table.label, threshold - cosines["final"][largest], cosines["final"][largest] - threshold)
    worst = np.argsort(-wrong_by, kind="stable")[:WORST]
    return {
        "set": name,
        "labels": table.label.astype(int).tolist(),
        "thresholds": {names[system]: fitted.values for system, fitted in thresholds.items()},
        **{
            system: {str(dim): np.round(scores, 5).tolist() for dim, scores in zip(dims, found, strict=True)}
            for system, found in cosines.items()
        },
        "worst": [
            {
                "row": int(table.row[pair]),
                "label": int(table.label[pair]),
                "texts": [shown(table.texts[texts[pair]]) for texts in (table.text1, table.text2)],
                **{system: round(float(found[largest, pair]), 4) for system, found in cosines.items()},
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
    spec = run.encoder.spec
    return {
        "versions": {
            "trainer": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "peft", "accelerate")},
        },
        "device": str(run.device),
        "encoder_path": run.encoder.path,
        "choices": asdict(run.choices),
        "precision": run.accelerator.mixed_precision,
        "processes": ranks.world_size(),
        "threads": torch.get_num_threads(),
        "model": {
            "name": spec.name,
            "pooling": spec.pooling,
            "max_length": spec.max_length,
            "width": run.encoder.width,
            "parameters": sum(parameter.numel() for parameter in run.encoder.parameters()),
        },
        "trained": {name: list(parameter.shape) for name, parameter in run.parameters.items()},
        "trained_count": sum(parameter.numel() for parameter in run.parameters.values()),
        "strength": alpha,
        "fingerprints": run.fingerprints,
        "rows": {"train": len(run.data.train), "dev": len(run.data.dev)},
        "overlapping_texts": run.data.overlap,
        "texts_at_max_length": int((run.tokens.lengths == spec.max_length).sum()),
        "scale": float(torch.as_tensor(run.objective.scale).detach()),
        "steps": state.step,
        "seconds": round(state.seconds, 3),
        "resumed_at": state.resumed_at,
        "inexact_resumes": state.inexact,
        "reload_differences": differences,
    }
