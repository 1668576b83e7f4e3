"""Does the right ticket come up? BM25, a model, a baseline beside it, and fusions, on tickets with known duplicates.

The judgement is that of `trainer evaluate --tickets` (embeddings come from the cache where they are there). Writes
bench/results/NAME.json.

    python -m bench.quality.search --model DIR --tickets FILE --duplicate-column NAME [--queries COLUMN=VALUE]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.records import RESULTS, environment, save_record
from trainer.data.ticket_table import Columns
from trainer.evaluation.question import SearchQuestion
from trainer.evaluation.search_judge import judge_search, search_record
from trainer.evaluation.show import print_search
from trainer.model.loading import load_encoder
from trainer.system.arguments import parse_dims


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the encoder to judge")
    parser.add_argument("--baseline", help="folder of the one that it began as")
    parser.add_argument("--tickets", required=True)
    parser.add_argument("--duplicate-column", required=True)
    parser.add_argument("--queries", default="", help="COLUMN=VALUE: which tickets search")
    parser.add_argument("--dims", default="384,64")
    parser.add_argument("--name", default="search_bugs", help="name of the record")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the record")
    options = parser.parse_args()
    columns = Columns(duplicate_of=options.duplicate_column)
    models = {"model": options.model} | ({"baseline": options.baseline} if options.baseline else {})
    dims = parse_dims(options.dims)
    judgement = judge_search(
        SearchQuestion(**models, tickets=options.tickets, columns=columns, queries=options.queries, dims=dims)
    )
    print_search(judgement)
    found = {key: each for key, each in search_record(judgement).items() if key not in ("question", "source")}
    settings = {
        "models": {system: Path(name).name for system, name in models.items()},
        "max_length": {system: load_encoder(name).spec.max_length for system, name in models.items()},
        "queries": options.queries,
        "resamples": judgement.question.resamples,
    }
    path = save_record(options.name, {"environment": environment(), "settings": settings, **found}, options.results)
    print(f"Record: {path}")


if __name__ == "__main__":
    main()
