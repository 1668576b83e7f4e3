"""What an index loses at fewer dims, or in fewer bytes a coordinate: how often a known duplicate is still found.

The reports of DATA/tickets.csv whose duplicates are known, and that no training pair is from, search among all. Writes
bench/results/index_types.json.

    python -m bench.quality.index_types --model DIR --data DIR
"""

from __future__ import annotations

from pathlib import Path

from bench.quality.bug_reports import corpus_of_reports
from bench.records import finish, make_parser, settings_of
from trainer.evaluation.search_set import SearchSet
from trainer.evaluation.type_comparison import compare_types, print_types
from trainer.model.embedding import embed_cached
from trainer.model.loading import load_encoder
from trainer.system.gpu import default_device


def main() -> None:
    parser = make_parser(__doc__, "index_types")
    parser.add_argument("--model", required=True, help="folder of the encoder")
    parser.add_argument("--data", required=True, type=Path, help="folder of pairs and reports")
    parser.add_argument("--dims", type=int, nargs="+", default=[384, 256, 128, 64])
    parser.add_argument("--max-length", type=int, default=128, help="tokens of a text")
    options = parser.parse_args()
    encoder = load_encoder(options.model, max_length=options.max_length, announce=False).to(default_device())
    corpus = corpus_of_reports(options.data)
    searched = SearchSet.build(corpus, encoder)
    rows = compare_types(searched, embed_cached(encoder, searched.tokens), options.dims)
    print_types(rows)
    settings = settings_of(options) | {"model": Path(options.model).name}
    del settings["data"]
    finish(options, {"settings": settings, "facts": corpus.facts, "rows": rows})


if __name__ == "__main__":
    main()
