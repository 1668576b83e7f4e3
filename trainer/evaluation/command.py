"""The command `trainer evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer.data.readers import add_reading_options, reading_from
from trainer.system.arguments import Parser, parse_dims

NOT_ASKED = ("json", "dims", "encoding", "separator", "columns")  # options that `Question` has no field for


def evaluate_parser() -> argparse.ArgumentParser:
    """Options of `trainer evaluate`."""
    parser = Parser(prog="trainer evaluate", description="Judge an encoder on labelled pairs.", allow_abbrev=False)
    parser.add_argument("--model", required=True, metavar="DIR|NAME")
    parser.add_argument(
        "--pairs",
        required=True,
        metavar="FILE",
        help="held-out pairs to report on; positives alone are judged by search among their texts",
    )
    parser.add_argument(
        "--dev",
        metavar="FILE",
        help="pairs to fit thresholds on, which are then kept in the model's folder (default: those kept there, else "
        "fitted on the judged pairs and labelled in-sample)",
    )
    parser.add_argument("--baseline", metavar="NAME", help="model to compare with")
    parser.add_argument("--dims", metavar="N,N,...", help="Matryoshka dims (default: the models' width)")
    parser.add_argument("--label-scale", type=float, default=1.0, help="labels run from 0 to this (default 1)")
    parser.add_argument("--positive-threshold", type=float, help="labels from here on are positive (default: half)")
    parser.add_argument(
        "--threshold",
        dest="rule",
        default="f1",
        metavar="RULE",
        help="f1 (default), or the lowest that keeps precision=P or false_positive_rate=R",
    )
    parser.add_argument(
        "--metric",
        default="auto",
        help="what the verdict goes by: a metric of pairs or of search (default: spearman; mrr@10 for positives alone)",
    )
    parser.add_argument(
        "--forgetting",
        metavar="FILE",
        help="STS set (sentence, sentence, score 0-5; no header) to judge before (baseline) and after",
    )
    parser.add_argument(
        "--prevalence",
        type=float,
        metavar="P",
        help="share of positives among the pairs that the model will meet, as in 0.01: precision, F1 and the threshold "
        "there (with --dev, the threshold that is kept)",
    )
    parser.add_argument("--tickets", metavar="FILE", help="unlabelled tickets to count alerts on, in all their pairs")
    parser.add_argument(
        "--alerts-per-ticket",
        type=float,
        metavar="A",
        help="find the threshold at which a ticket of --tickets raises so many alerts on average",
    )
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    parser.add_argument(
        "--fewest", type=int, default=20, help="pairs of either kind that the diagnostic needs (default 20)"
    )
    add_reading_options(parser)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all figures there")
    return parser


def run_evaluate(options: argparse.Namespace) -> None:
    """Evaluate a model, and a baseline beside it."""
    from trainer.evaluation.judge import Question, judge, judgement_record, keep_thresholds
    from trainer.evaluation.show import print_judgement

    asked = {key: value for key, value in vars(options).items() if key not in NOT_ASKED}
    judgement = judge(Question(**asked, dims=parse_dims(options.dims), reading=reading_from(options)))
    print_judgement(judgement)
    if options.json:
        from trainer.system.files import write_json

        write_json(options.json, judgement_record(judgement))
    keep_thresholds(judgement)
