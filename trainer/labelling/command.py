"""The command `trainer label`."""

from __future__ import annotations

import argparse
import getpass
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.data.readers import PAIR_OPTIONS, READING_OPTIONS, add_label_options, add_reading_options, reading_from
from trainer.errors import InputError, Stopped
from trainer.system.arguments import Parser, parse_names
from trainer.system.run_files import CONFIG

if TYPE_CHECKING:
    from trainer.labelling.answers import Answers, Pair
    from trainer.labelling.pool import Pool

DESCRIPTION = """Ask a person, pair by pair, whether two texts tell of the same problem. Each answer is saved at once;
the same command goes on where it was left. What comes out is a file of pairs for trainer train and trainer evaluate."""
EPILOG = """Rules for --choose: random; threshold (nearest to the model's); disagree (the model and TF-IDF); wrong
(labelled pairs that the model gets most wrong, as in a report); order (as in the file); agreement (what others labelled
in --output). Without --choose: the first four in turns, as far as they can be had. Only random pairs give an honest
estimate."""
AGREEMENT = "agreement"
OF_COLUMNS = ("number_column", "text_columns", "category_column")
OF_SCORES = ("model", "threshold")


def label_parser() -> Parser:
    """Options of `trainer label`."""
    parser = Parser(prog="trainer label", description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False)
    source = parser.add_mutually_exclusive_group()
    text = "labelled pairs, whose labels are in doubt; or the folder of a finished run: the pairs that it was judged on"
    source.add_argument("--pairs", metavar="FILE|RUN", help=text)
    source.add_argument("--tickets", metavar="FILE", help="raw tickets, of which candidates are made")
    text = "encoder that finds and chooses; without, TF-IDF does"
    parser.add_argument("--model", default="", metavar="DIR|NAME", help=text)
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.json", help="the labels, new or to go on")
    parser.add_argument("--choose", default="", metavar="RULE,...", help="which pairs are asked (see below)")
    parser.add_argument(
        "--count", type=int, default=20, metavar="N", help="pairs in this session (default %(default)s)"
    )
    parser.add_argument("--labeller", default="", metavar="NAME", help="who answers (default: the login name)")
    text = "the cosine from which on the model calls two texts the same problem (default: what is kept beside it, else "
    parser.add_argument("--threshold", type=float, metavar="T", help=text + "the best F1 on the pairs)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all draws (default %(default)s)")
    parser.add_argument("--number-column", default="", metavar="NAME", help="of tickets, as for trainer build-pairs")
    parser.add_argument("--text-columns", default="", metavar="NAME,...", help="of tickets, title first")
    parser.add_argument("--category-column", default="", metavar="NAME", help="of tickets")
    add_label_options(parser)
    add_reading_options(parser)
    return parser


def run_label(options: argparse.Namespace) -> None:
    """Choose pairs and ask about them."""
    from trainer.labelling.answers import Answers
    from trainer.labelling.screen import Screen
    from trainer.labelling.session import label, summary
    from trainer.system.files import only_writer_of
    from trainer.system.signals import Signals

    if options.count < 0:
        raise InputError(f"--count {options.count}: write how many pairs to ask about")
    if options.seed < 0:
        raise InputError(f"--seed {options.seed}: write a whole number from 0")
    labeller = options.labeller.strip() or _login()
    Answers.open(options.output)  # a file of another kind gets no lock beside it
    with Signals(), only_writer_of(options.output):
        try:
            answers = Answers.open(options.output)
            pairs, notes = _questions(options, answers, labeller)
            with Screen.open() as screen:
                for note in notes:
                    screen.say(note)
                if pairs:
                    label(answers, pairs, labeller, screen)
                for line in summary(answers):
                    screen.say(line)
        except Stopped:
            raise Stopped("stopped by a signal; all answers are saved, and the same command goes on") from None


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in some containers
        raise InputError("your login name cannot be told: name yourself with --labeller") from None


def _questions(options: argparse.Namespace, answers: Answers, labeller: str) -> tuple[list[Pair], list[str]]:
    """The pairs of this session, and what to say before it."""
    from trainer.labelling.choice import check_rules, choose, needs_of, settle_rules

    asked = parse_names(options.choose)
    if AGREEMENT in asked:
        if len(asked) > 1:
            raise InputError(f"--choose {options.choose}: agreement stands alone: leave out the other rules")
        unused = "pairs", "tickets", "seed", *OF_SCORES, *OF_COLUMNS, *PAIR_OPTIONS, *READING_OPTIONS
        label_parser().refuse(options, unused, "for --choose agreement, which asks about pairs of --output alone")
        if not options.output.exists():
            raise InputError(
                f"--output {options.output}: is not there: agreement asks about pairs that others labelled in it"
            )
        pairs = answers.by_others(labeller)[: options.count]
        return pairs, [_opening(pairs, labeller, "which others have labelled")]
    if not (options.pairs or options.tickets):
        raise InputError("name what to label: --pairs FILE, --pairs RUN or --tickets FILE")
    is_run = bool(options.pairs) and Path(options.pairs, CONFIG).is_file()
    if options.tickets:
        label_parser().refuse(options, PAIR_OPTIONS, "for tickets")
    elif is_run:
        of_files = *OF_SCORES, *OF_COLUMNS, *PAIR_OPTIONS, *READING_OPTIONS
        label_parser().refuse(options, of_files, "for the folder of a run, which has its own")
    else:
        label_parser().refuse(options, OF_COLUMNS, "for pairs")
    check_rules(asked, [*(["label"] if options.tickets else []), *([] if options.model or is_run else ["words"])])
    pool = _pool(options, needs_of(asked), is_run)
    rules, left_out = settle_rules(asked, pool.scores)
    seen = set(answers.rows)
    taken = set()
    for place, pair in enumerate(pool.pairs):
        if pair.key in seen:
            taken.add(place)
        seen.add(pair.key)
    chosen = choose(rules, pool.scores, taken, options.count, options.seed)
    pairs = [replace(pool.pairs[place], chosen_by=rule) for place, rule in chosen]
    by_rule = Counter(pair.chosen_by for pair in pairs)
    notes = [*pool.notes, *([f"Not chosen by: {'; '.join(left_out)}"] if left_out else [])]
    how = ", ".join(f"{by_rule[rule]} {rule}" for rule in rules)
    notes.append(_opening(pairs, labeller, f"of {len(pool.pairs)} in {pool.source} ({how})"))
    return pairs, notes


def _opening(pairs: Sequence[Pair], labeller: str, which: str) -> str:
    asked = f"{len(pairs)} pair{'s' * (len(pairs) > 1)} for" if pairs else "Nothing left to ask"
    return f"{asked} {labeller}, {which}"


def _pool(options: argparse.Namespace, needs: Collection[str], is_run: bool) -> Pool:
    """The pairs that may be asked about, with the scores that are needed. Raises InputError."""
    from trainer.labelling.pool import pool_of_pairs, pool_of_run

    if options.threshold is not None and not -1 <= options.threshold <= 1:
        raise InputError(f"--threshold {options.threshold:g}: write a cosine, from -1 to 1")
    if options.tickets:
        from trainer.data.ticket_table import Columns
        from trainer.labelling.candidates import pool_of_tickets

        columns = Columns(options.number_column, parse_names(options.text_columns), category=options.category_column)
        reading = reading_from(options)
        return pool_of_tickets(options.tickets, columns, reading, options.model, options.threshold, options.seed)
    if is_run:
        return pool_of_run(Path(options.pairs), needs)
    return pool_of_pairs(
        options.pairs,
        options.model,
        options.threshold,
        needs,
        label_scale=options.label_scale,
        positive_threshold=options.positive_threshold,
        reading=reading_from(options),
    )
