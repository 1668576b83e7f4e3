"""The command `trainer evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer.data.readers import PAIR_OPTIONS, add_label_options, add_reading_options, reading_from
from trainer.data.ticket_table import Columns
from trainer.errors import InputError
from trainer.system.arguments import Parser, parse_dims, parse_names, require_writable

DESCRIPTION = """Judge an encoder: on labelled pairs, or by search among the tickets of a corpus, where a ticket whose
duplicates are known should find them."""
# Options that belong to one of the two ways of judging.
OF_PAIRS = ("dev", "rule", "forgetting", "fewest", "prevalence", "alerts_per_ticket")
OF_SEARCH = ("corpus", "queries", "index_types")
OF_COLUMNS = ("number_column", "duplicate_column", "cluster_column", "date_column")
SHARED = ("model", "baseline", "pairs", "tickets", "label_scale", "positive_threshold", "metric", "resamples", "seed")


def evaluate_parser() -> Parser:
    """Options of `trainer evaluate`."""
    parser = Parser(prog="trainer evaluate", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--model", required=True, metavar="DIR|NAME")
    text = "held-out pairs to report on; positives alone are judged by search among their texts"
    parser.add_argument("--pairs", metavar="FILE", help=text)
    text = "model to compare with (default, of an exported graph: its own)"
    parser.add_argument("--baseline", metavar="NAME", help=text)
    text = "Matryoshka dims (default: the models' width, or what their folders cut to; of a graph, its own)"
    parser.add_argument("--dims", metavar="N,N,...", help=text)
    add_label_options(parser)
    text = (
        "what the verdict goes by: a metric of pairs or of search (default: spearman; mrr@10 for positives alone and "
    )
    parser.add_argument("--metric", default="auto", help=text + "for a corpus)")
    text = "STS set (sentence, sentence, score 0-5; no header) to judge before (baseline) and after"
    parser.add_argument("--forgetting", metavar="FILE", help=text)
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    text = "pairs of either kind that the diagnostic needs (default 20)"
    parser.add_argument("--fewest", type=int, default=20, help=text)
    _add_threshold_options(parser.add_argument_group("thresholds"))
    _add_search_options(parser.add_argument_group("search among a corpus"))
    add_reading_options(parser)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all figures there")
    return parser


def _add_threshold_options(group: argparse._ArgumentGroup) -> None:
    text = "pairs to fit thresholds on, which are then kept in the model's folder (default: those kept there, else "
    group.add_argument("--dev", metavar="FILE", help=text + "fitted on the judged pairs and labelled in-sample)")
    text = "f1 (default, where none are kept), or the lowest that keeps precision=P or false_positive_rate=R"
    group.add_argument("--threshold", dest="rule", default="", metavar="RULE", help=text)
    text = "share of positives among the pairs that the model will meet, as in 0.01: precision, F1 and the threshold "
    text += "there (with --dev, the threshold that is kept)"
    group.add_argument("--prevalence", type=float, metavar="P", help=text)
    text = "find the threshold at which a ticket of --tickets raises so many alerts on average (with --dev and no "
    text += "--threshold, the one that is kept)"
    group.add_argument("--alerts-per-ticket", type=float, metavar="A", help=text)


def _add_search_options(group: argparse._ArgumentGroup) -> None:
    text = (
        "tickets to search among; each with known duplicates (--duplicate-column, --cluster-column) is a query. With "
    )
    text += "--pairs: unlabelled tickets to count alerts on, in all their pairs"
    group.add_argument("--tickets", metavar="FILE", help=text)
    text = "with --pairs: tickets to search among beside the pairs' own texts; texts of positive pairs are queries"
    group.add_argument("--corpus", metavar="FILE", help=text)
    text = "only tickets whose column has this value are queries; all stay candidates"
    group.add_argument("--queries", default="", metavar="COLUMN=VALUE", help=text)
    text = "the ticket's number (default: number, or another usual name)"
    group.add_argument("--number-column", default="", metavar="NAME", help=text)
    text = "what it says, title first (default: short_description,description, or other usual names)"
    group.add_argument("--text-columns", default="", metavar="NAME,...", help=text)
    group.add_argument("--duplicate-column", metavar="NAME", help="the number of the ticket that this one duplicates")
    group.add_argument("--cluster-column", metavar="NAME", help="a name that tickets about one problem share")
    group.add_argument("--date-column", metavar="NAME", help="when it was opened; only earlier tickets are then found")
    text = "also print what an index of each type (float32 to binary) takes at each of --dims, and what it finds"
    group.add_argument("--index-types", action="store_true", help=text)


def columns_of(options: argparse.Namespace) -> Columns:
    """The columns of tickets that a command line names."""
    return Columns(
        number=options.number_column,
        texts=parse_names(options.text_columns),
        duplicate_of=options.duplicate_column or None,
        cluster=options.cluster_column or None,
        date=options.date_column,
    )


def run_evaluate(options: argparse.Namespace) -> None:
    """Evaluate a model, and a baseline beside it."""
    if not options.pairs and not options.tickets:
        raise InputError("name what to judge by: --pairs FILE, or --tickets FILE with --duplicate-column NAME")
    by_search = bool(options.corpus) or not options.pairs
    if by_search and options.pairs:
        evaluate_parser().refuse(options, (*OF_PAIRS, "tickets", "queries", *OF_COLUMNS), "for pairs with --corpus")
    elif by_search:
        evaluate_parser().refuse(options, (*OF_PAIRS, "corpus", *PAIR_OPTIONS), "for tickets alone")
    else:
        of_tickets = () if options.tickets else ("text_columns",)
        evaluate_parser().refuse(options, (*OF_SEARCH, *OF_COLUMNS, *of_tickets), "for pairs")
    if options.json:
        read = (options.pairs, options.dev, options.forgetting, options.tickets, options.corpus)
        require_writable(options.json, "--json", read)
    _judge(options, by_search)


def _judge(options: argparse.Namespace, by_search: bool) -> None:
    from trainer.evaluation.judge import judge, judgement_record, keep_thresholds
    from trainer.evaluation.question import Question, SearchQuestion, asked_of_export
    from trainer.evaluation.search_judge import judge_search, search_record
    from trainer.evaluation.show import print_judgement, print_search
    from trainer.system.files import write_json

    asked = {name: getattr(options, name) for name in (*SHARED, *(OF_SEARCH if by_search else OF_PAIRS))}
    asked |= {"dims": parse_dims(options.dims), "reading": reading_from(options)}
    for name, value in asked_of_export(options.model).items():
        asked[name] = asked[name] or value
    asked["columns"] = columns_of(options)
    if by_search:
        searched = judge_search(SearchQuestion(**asked))
        print_search(searched)
        record = search_record(searched)
    else:
        judgement = judge(Question(**asked))
        print_judgement(judgement)
        record = judgement_record(judgement)
    if options.json:
        write_json(options.json, record)
    if not by_search:
        keep_thresholds(judgement)
