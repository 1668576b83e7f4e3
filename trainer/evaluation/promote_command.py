"""The command `trainer promote`."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer.data.readers import PAIR_OPTIONS, add_label_options, add_reading_options, reading_from
from trainer.errors import NotPromoted
from trainer.evaluation.command import OF_COLUMNS, columns_of
from trainer.system.arguments import Parser, parse_dims, require_writable

DESCRIPTION = """Decide whether a model takes the place of the deployed one: only where it is BETTER on what neither has
seen. Nothing is copied; the exit code tells a script what to do, and a line of the record why."""
EPILOG = "Exit code 0: promoted; 1: not, the deployed model stays; others: no decision was reached."


def promote_parser() -> Parser:
    """Options of `trainer promote`."""
    parser = Parser(prog="trainer promote", description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False)
    parser.add_argument("candidate", metavar="CANDIDATE", help="folder or name of the new model")
    parser.add_argument("--over", required=True, metavar="DEPLOYED", help="the model that it would replace")
    text = "held-out pairs; with --duplicate-column or --cluster-column tickets, of which those with a known duplicate "
    text += "search"
    parser.add_argument("--test", required=True, metavar="FILE", help=text)
    text = "tickets to search among beside the pairs' own texts: the verdict is then that of the search"
    parser.add_argument("--corpus", metavar="FILE", help=text)
    text = "promote also what is surely not worse by more than M, by the metric, success@10 and MAP@100, at every dim"
    parser.add_argument("--margin", type=float, metavar="M", help=text)
    text = "share of the pairs that may hold a text that one of the two was trained on (default 0)"
    parser.add_argument("--allow-overlap", type=float, default=0.0, metavar="SHARE", help=text)
    text = "file that gets a line of JSON for each decision (default: %(default)s)"
    parser.add_argument("--record", type=Path, default=Path("promotions.jsonl"), metavar="FILE", help=text)
    parser.add_argument("--dims", metavar="N,N,...", help="as for trainer evaluate, like the options that follow")
    parser.add_argument("--metric", default="auto", metavar="NAME")
    add_label_options(parser)
    parser.add_argument("--resamples", type=int, default=1000, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    for option, metavar in (("number", "NAME"), ("text", "NAME,..."), ("duplicate", "NAME"), ("cluster", "NAME")):
        parser.add_argument(f"--{option}-column{'s' * (option == 'text')}", default="", metavar=metavar)
    parser.add_argument("--date-column", metavar="NAME")
    add_reading_options(parser)
    return parser


def run_promote(options: argparse.Namespace) -> None:
    """Judge, print, write the decision down. Raises NotPromoted where the deployed model stays."""
    from trainer.evaluation.promote import keep_record, promote, record_of
    from trainer.evaluation.question import Question, SearchQuestion
    from trainer.evaluation.search_judge import SearchJudgement
    from trainer.evaluation.show import print_judgement, print_search
    from trainer.system.console import console

    linked = bool(options.duplicate_column or options.cluster_column)
    if linked:
        unused: tuple[str, ...] = ("corpus", "allow_overlap", *PAIR_OPTIONS)
        promote_parser().refuse(options, unused, "for tickets, which search among themselves")
    else:
        unused = (*OF_COLUMNS, "allow_overlap" if options.corpus else "text_columns")
        where = "with --corpus" if options.corpus else "alone, without --duplicate-column or --cluster-column"
        promote_parser().refuse(options, unused, f"for pairs {where}")
    require_writable(options.record, "--record", (options.test, options.corpus))
    shared = {name: getattr(options, name) for name in ("label_scale", "positive_threshold", "metric", "resamples")}
    shared |= {"dims": parse_dims(options.dims), "reading": reading_from(options), "seed": options.seed}
    shared |= {"model": options.candidate, "baseline": options.over, "tickets" if linked else "pairs": options.test}
    shared["columns"] = columns_of(options)
    by_search = linked or options.corpus
    question = SearchQuestion(**shared, corpus=options.corpus) if by_search else Question(**shared)
    promotion = promote(question, options.margin, options.allow_overlap)
    judgement = promotion.judgement
    if isinstance(judgement, SearchJudgement):
        print_search(judgement)
    else:
        print_judgement(judgement)
    keep_record(options.record, record_of(promotion, options.margin))
    for note in promotion.notes:
        console.print(note, markup=False)
    dims = ", ".join(map(str, judgement.question.dims))
    console.print(f"Compared at {dims} dims; decision written to {options.record}", markup=False)
    if not promotion.promoted:
        raise NotPromoted(f"not promoted, {options.over} stays: {promotion.reason}")
    console.print(f"Promoted over {options.over}: {promotion.reason}", markup=False)
