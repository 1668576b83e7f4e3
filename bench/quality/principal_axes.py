"""What a turn onto principal axes keeps at fewer dims: models as they were trained, and turned.

Each model, one a seed, was trained on pairs of bug reports with `model.principal_axes = false`, such as those that
`bug_reports.py --keep` leaves. It is judged on the pairs of DATA/pairs_dev.json, by search among the reports of
DATA/tickets.csv, and where --sts names a file on general similarity; then the same embeddings turned onto the axes of
texts of DATA/pairs_train.json (and, of --shares above 0, of --general). Figures are means over the models.

    python -m bench.quality.principal_axes --model DIR --model DIR --data DIR --sts FILE
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from bench.quality.bug_reports import corpus_of_reports
from bench.quality.judging import STS, STS_SCALE, HeldOut, pair_figures
from bench.records import finish, make_parser
from trainer.data.pairs import read_pairs
from trainer.evaluation.pair_metrics import Metrics
from trainer.evaluation.scoring import pair_cosines
from trainer.evaluation.search_set import SearchSet
from trainer.model.embedding import embed_cached, tokenize_sides
from trainer.model.loading import load_encoder
from trainer.system.gpu import default_device
from trainer.training.principal_axes import MOST_TEXTS, principal_axes, second_moment


def figures_of(folder: str, options: argparse.Namespace) -> dict[str, Metrics]:
    """Pair metrics, success@10 and STS by dim of a model, as it is ("none") and turned, by share of general texts."""
    encoder = load_encoder(folder, max_length=options.max_length, announce=False).to(default_device())
    pairs, corpus = read_pairs(str(options.data / "pairs_dev.json")), corpus_of_reports(options.data)
    searched = SearchSet.build(corpus, encoder)
    tables = {"pairs": pairs} | ({"sts": HeldOut(options.sts, scale=STS_SCALE).read_pairs()} if options.sts else {})
    rows = {name: embed_cached(encoder, tokenize_sides(encoder, table.texts)) for name, table in tables.items()}
    rows["corpus"] = embed_cached(encoder, searched.tokens)

    def moment(file: str, scale: float = 1.0) -> np.ndarray:
        texts = HeldOut(file, scale=scale).read_pairs().texts
        chosen = np.random.default_rng(0).permutation(len(texts))[: options.texts]
        return second_moment(embed_cached(encoder, tokenize_sides(encoder, [texts[i] for i in sorted(chosen)])))

    own = moment(str(options.data / "pairs_train.json"))
    general = moment(options.general, STS_SCALE) if options.general else own
    turns = {"none": np.eye(encoder.width, dtype=np.float32)}
    turns |= {f"{share:g}": principal_axes((1 - share) * own + share * general) for share in options.shares}
    dims, judged = tuple(options.dims), {}
    for name, axes in turns.items():
        turned = {part: of_part @ axes.T for part, of_part in rows.items()}
        figures = pair_figures(pair_cosines(turned["pairs"], pairs, dims), pairs, dims)
        values = searched.search("model", turned["corpus"], dims)["model"]["success@10"]
        of_sts = (
            pair_figures(pair_cosines(turned["sts"], tables["sts"], dims), tables["sts"], dims) if options.sts else {}
        )
        for m, dim in enumerate(figures):
            figures[dim]["success@10"] = float(values[m].mean())
            figures[dim] |= {STS: of_sts[dim]["spearman"]} if of_sts else {}
        judged[name] = figures
    return judged


def main() -> None:
    parser = make_parser(__doc__, "principal_axes")
    parser.add_argument("--model", required=True, action="append", help="folder of a trained model; may be repeated")
    parser.add_argument("--data", required=True, type=Path, help="folder of pairs and reports")
    parser.add_argument("--sts", metavar="FILE", help="general similarity: sentence, sentence, score from 0 to 5")
    parser.add_argument("--general", metavar="FILE", help="likewise, whose texts may have a share in the axes")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0], help="of the texts of --general")
    parser.add_argument("--texts", type=int, default=MOST_TEXTS, help="texts that axes are of (default: %(default)s)")
    parser.add_argument("--dims", type=int, nargs="+", default=[384, 256, 128, 64])
    parser.add_argument("--max-length", type=int, default=128, help="tokens of a text")
    options = parser.parse_args()
    models = [figures_of(folder, options) for folder in options.model]
    figures = {
        turn: {
            dim: {
                name: {"mean": mean(values), "spread": stdev(values) if len(values) > 1 else None}
                for name in metrics
                for values in [[model[turn][dim][name] for model in models]]
            }
            for dim, metrics in by_dim.items()
        }
        for turn, by_dim in models[0].items()
    }
    settings = {name: getattr(options, name) for name in ("shares", "texts", "dims", "max_length")}
    finish(options, {"settings": settings | {"models": len(models)}, "figures": figures})


if __name__ == "__main__":
    main()
