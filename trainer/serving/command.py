"""The command `trainer export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer.data.readers import PAIR_OPTIONS, READING_OPTIONS, add_label_options, add_reading_options, reading_from
from trainer.errors import Stopped
from trainer.system.arguments import Parser

DESCRIPTION = """Write a model as one graph, from token ids to the embedding, with all that a service needs to run it.
The folder is there only when another process got the model's own embeddings from it, and when it lost no more than was
allowed on held-out pairs."""


def export_parser() -> Parser:
    """Options of `trainer export`."""
    parser = Parser(prog="trainer export", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--model", required=True, metavar="DIR|NAME", help="a model or an adapter")
    parser.add_argument("--to", choices=("onnx", "openvino"), default="onnx", help="(default onnx)")
    parser.add_argument("--int8", action="store_true", help="weights in 8 bits; for OpenVINO by NNCF")
    text = "cut embeddings to so many (default: what the model's folder says, else its width)"
    parser.add_argument("--dims", type=int, metavar="N", help=text)
    text = "a new folder (default: beside the model, as in model-onnx-int8)"
    parser.add_argument("--output", type=Path, metavar="DIR", help=text)
    text = "held-out pairs to judge by (default: the dev set of the run that the model is in)"
    parser.add_argument("--pairs", default="", metavar="FILE", help=text)
    text = "how much of the run's eval.metric may be lost at any kept dim (default 0.005)"
    parser.add_argument("--allow-loss", type=float, default=0.005, metavar="L", help=text)
    add_label_options(parser)
    add_reading_options(parser)
    return parser


def run_export(options: argparse.Namespace) -> None:
    """Export a model."""
    from trainer.serving.export import ExportRequest, export
    from trainer.system.console import console
    from trainer.system.signals import Signals

    if not options.pairs:
        export_parser().refuse(options, (*PAIR_OPTIONS, *READING_OPTIONS), "without --pairs")
    request = ExportRequest(
        model=options.model,
        runtime=options.to,
        int8=options.int8,
        dim=options.dims,
        output=options.output,
        pairs=options.pairs,
        label_scale=options.label_scale,
        positive_threshold=options.positive_threshold,
        reading=reading_from(options),
        allow_loss=options.allow_loss,
    )
    with Signals(KeyboardInterrupt):  # for which the unfinished folder is removed
        try:
            folder = export(request)
        except KeyboardInterrupt:
            raise Stopped("stopped by a signal; nothing is exported, and the same command begins again") from None
    size = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
    console.print(f"Exported: {folder}, {size:.0f} MiB", markup=False)
