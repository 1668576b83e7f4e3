"""Tables and the picture of what time and memory things take, from the records of bench/speed."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from bench.markdown import mebibytes, table


def throughput(*records: dict[str, Any]) -> list[str]:
    """Training steps beside the peer's on the same batches, a row a model."""
    headings = ["training step on real tickets", "this trainer", "sentence-transformers", "times as fast"]
    headings += ["of sgemm peak", "in bf16", "waiting for data", "peak memory"]
    rows = []
    for record in records:
        settings, peak = record["settings"], record["peak_memory"]
        mine, theirs = (median(sample["seconds"] for sample in record[kind]) for kind in ("ours", "peer"))
        rows.append(
            [
                f"{settings['model']}, batch {settings['batch_size']}, max length {settings['max_length']}",
                f"{mine:.1f} s",
                f"{theirs:.1f} s",
                f"{record['ratio']:.1f}",
                f"{record['mfu']:.0%}",
                f"{record['bf16_ratio']:.2f} x faster",
                f"{record['waiting_share']:.2%}",
                f"{peak / 2**30:.1f} GiB" if peak else "not taken",
            ]
        )
    first = records[0]
    split = ", ".join(f"{name} {share:.1%}" for name, share in first["split"].items())
    steps = f"LoRA on all attention projections, {len(first['ours'])} steps each in turns, fp32"
    return table(headings, rows, first, f"{steps}; {first['settings']['model']}: {split}")


def throughput_gpu(*records: dict[str, Any]) -> list[str]:
    """Training steps on a GPU, beside the peer's on the same batches where it was asked, a row a model and batch."""
    headings = ["training step on real tickets", "this trainer", "sentence-transformers", "times as fast"]
    headings += ["pairs/s", "of the bf16 peak", "waiting for data", "peak memory"]
    rows = []
    for record in records:
        settings = record["settings"]
        mine = median(sample["seconds"] for sample in record["ours"])
        theirs = times = ""
        if "peer" in record:
            milliseconds = 1000 * median(sample["seconds"] for sample in record["peer"])
            theirs, times = f"{milliseconds:.0f} ms ({settings['peer_attention']})", f"{record['ratio']:.1f}"
        rows.append(
            [
                f"{settings['model']}, batch {settings['batch_size']}, max length {settings['max_length']}",
                f"{mine * 1000:.0f} ms",
                theirs,
                times,
                f"{record['pairs_per_s']:,.0f}",
                f"{record['mfu']:.1%}",
                f"{record['waiting_share']:.2%}",
                f"{record['peak_memory'] / 2**30:.1f} GiB",
            ]
        )
    first = records[0]
    split = ", ".join(f"{name} {share:.1%}" for name, share in first["split"].items())
    settings = first["settings"]
    steps = f"LoRA on all attention projections, {settings['precision']}, in turns with the peer where there is one"
    return table(headings, rows, first, f"{steps}, layers not compiled; {settings['model']}: {split}")


def draw_throughput(path: Path, *records: dict[str, Any]) -> None:
    """Bars of real tokens a second: the peer, ours, ours in bf16."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "throughput"  # the same picture from the same records
    labels, rates, colours = [], [], []
    for record in records:
        rows = {"sentence-transformers": "peer", "this trainer": "ours", "this trainer, bf16": "bf16"}
        for (label, kind), colour in zip(rows.items(), ("#9aa0a6", "#1a73e8", "#0b3d91"), strict=True):
            labels.append(f"{record['settings']['model']}: {label}")
            # The batches are the same, so the tokens of ours are everyone's.
            pairs = zip(record["ours"], record[kind], strict=True)
            rates.append(median(mine["tokens"] / other["seconds"] for mine, other in pairs))
            colours.append(colour)
    figure, axes = pyplot.subplots(figsize=(8, 0.45 * len(labels) + 0.9))
    axes.bar_label(axes.barh(labels, rates, color=colours), fmt="{:,.0f}", padding=3)
    axes.invert_yaxis()
    axes.set_xlabel("real tokens a second")
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def input_pipeline(record: dict[str, Any]) -> list[str]:
    """Tokenising, collating, starting."""
    settings = record["settings"]
    rows = [
        ["tokenising, once a data set", f"{record['tokenising_tokens_per_s']:,.0f} tokens/s"],
        [
            f"laying out and collating a batch of {settings['batch_size']}",
            f"{record['collating_tokens_per_s']:,.0f} tokens/s, {record['share_of_step']:.2%} of a step",
        ],
        [
            f"from the command to the first step, {settings['pairs']:,} pairs, tokens cached",
            f"{record['start_seconds']:.1f} s",
        ],
    ]
    return table(["input", ""], rows, record, f"{settings['model']}, median of {len(record['starts'])} starts")


def loss(record: dict[str, Any], large: dict[str, Any]) -> list[str]:
    """Time and memory of the loss beside the plain definition, and a batch that is too large for the latter."""
    headings = ["loss, forward and backward, 5 dims of 768", "this trainer", "plain definition", "ratio"]
    rows = []
    for entry in record["time"]:
        times = (f"{median(entry['seconds'][kind]) * 1000:,.0f} ms" for kind in ("ours", "plain"))
        rows.append([f"time at batch {entry['size']:,}", *times, f"{entry['ratio']:.2f}"])
    memory = record["memory"]
    held = (mebibytes(memory["bytes"][kind]) for kind in ("ours", "plain"))
    rows.append([f"extra memory at batch {memory['size']:,}", *held, f"{memory['ratio']:.3f}"])
    rows.append(
        [f"extra memory at batch {large['size']:,}", mebibytes(large["bytes"]), "too large for this machine", ""]
    )
    return table(headings, rows, record, "medians of interleaved runs, fp32")


def any_batch(lora: dict[str, Any], full: dict[str, Any], ranks: dict[str, Any]) -> list[str]:
    """A large batch beside a small one, and two processes beside one."""
    settings = lora["settings"]
    large, small = settings["batch_size"], settings["small"]
    rows = []
    for name, caching in (("LoRA", lora), ("all weights", full)):
        sizes = (mebibytes(max(caching["bytes"][which])) for which in ("large", "small"))
        a_pair = (f"{1000 * caching['seconds_a_pair'][which]:.1f} ms" for which in ("large", "small"))
        batches = f"batch {large:,} in chunks, batch {small} whole"
        rows.append([f"{name}, extra memory: {batches}", *sizes, f"{caching['memory_ratio']:.2f}"])
        rows.append([f"{name}, time a pair, likewise", *a_pair, f"{caching['time_ratio']:.2f}"])
    step = f"time of a step of batch {ranks['settings']['batch_size']}: two processes, one, on the same cores"
    seconds = (f"{median(ranks['seconds'][processes]):.2f} s" for processes in ("two", "one"))
    rows.append([step, *seconds, f"{ranks['time_ratio']:.2f}"])
    gradients = "gradients of the two and the one, float64: difference over the largest"
    rows.append([gradients, f"{ranks['gradient_difference']:.0e}", "", ""])
    said = f"chunks of {settings['tokens_per_chunk']:,} tokens, fp32; processes with LoRA"
    return table([f"{settings['model']}, real tickets", "", "", "ratio"], rows, lora, said)


def saving(record: dict[str, Any]) -> list[str]:
    """What the cadence of checkpoints takes of a run."""
    settings, seconds = record["settings"], [row["saving_seconds"] for row in record["stretches"]]
    heading = f"a checkpoint every {settings['every']} steps, all-MiniLM-L6-v2, LoRA, batch {settings['batch_size']}"
    rows = [
        [
            f"of {record['checkpoint_bytes'] / 2**20:.1f} MiB, saved in (median, slowest)",
            f"{1000 * median(seconds):.0f} ms, {1000 * max(seconds):.0f} ms",
        ],
        [
            "share of the run's seconds (all, worst stretch)",
            f"{record['share_of_seconds']:.3%}, {record['worst_share_of_seconds']:.3%}",
        ],
        ["share of its processor seconds", f"{record['share_of_cpu_seconds']:.3%}"],
    ]
    said = f"{len(record['updates'])} steps on real tickets, fp32, {record['file_system']}"
    return table([heading, ""], rows, record, said)


def judging(record: dict[str, Any]) -> list[str]:
    """What judging many pairs costs."""
    asked = f"judging {record['pairs']:,} pairs at {len(record['dims'])} dims, {record['resamples']:,} resamples"
    one = f"{record['bootstrap_of_one_model']['cpu_seconds']:.1f} s"
    rows = [
        ["intervals of every pair metric, one model", one],
        ["the whole judgement of a model and its baseline, retrieval too", f"{record['cpu_seconds']:.1f} s"],
    ]
    return table([asked, "processor time"], rows, record, "embeddings given")


def searching(record: dict[str, Any]) -> list[str]:
    """What judging by search costs."""
    asked = (
        f"{record['queries']:,} queries among {record['texts']:,} texts, {len(record['dims'])} dims of "
        f"{record['width']}, {record['models']} models"
    )
    rows = [
        ["all measures, intervals, differences", f"{record['seconds']:.0f} s"],
        ["processor time of it", f"{record['cpu_seconds']:.0f} s"],
        ["memory beside the embeddings", mebibytes(record["extra_bytes"])],
    ]
    return table([asked, ""], rows, record, "embeddings given")


def index(record: dict[str, Any]) -> list[str]:
    """What an index costs, a row a width and type."""
    headings = ["dims", "type", "index", "memory", "candidates", "recall@10", "query", "with BM25", "exact"]
    rows = []
    for run in record["runs"]:
        times = run["cpu_milliseconds"]
        rows.append(
            [
                run["width"],
                run["type"],
                mebibytes(run["bytes"]),
                f"{run['memory_by_index']:.2f} x",
                f"{run['candidates']:,}",
                f"{run['recall']:.4f}",
                *(f"{times[how]['median']:.1f} ms" for how in ("embeddings", "embeddings and BM25", "exact")),
            ]
        )
    asked = record["settings"]
    said = (
        f"{asked['count']:,} tickets, {asked['queries']} queries one by one, median processor time once embedded; "
        "memory beside an encoder; recall of the exact search of the same index"
    )
    return table(headings, rows, record, said, left=2)


def build_pairs(record: dict[str, Any]) -> list[str]:
    """Time and memory of building pairs by number of tickets."""
    rows = [
        [
            f"{run['tickets']:,}",
            f"{run['cpu_seconds']:.0f}",
            f"{run['seconds']:.0f}",
            f"{run['peak_bytes'] / 2**30:.2f} GiB",
        ]
        for run in record["growth"]
    ]
    headings = ["tickets", "processor seconds", "clock seconds", "peak memory"]
    return table(headings, rows, record, record["made_from"], left=0)


def serving(record: dict[str, Any]) -> list[str]:
    """Speed, size and Spearman of a model's exported forms."""
    dims, counts, rows = list(record["forms"]["torch"]["dims"]), record["counts"], []
    for form, figures in record["forms"].items():
        rate = median(figures["texts_per_second"])
        by_dim = figures.get("dims", {})
        changed = {dim: each.get("interval") for dim, each in by_dim.items()}
        cells = [
            f"{by_dim[dim]['spearman']:.4f}" + ("" if not changed[dim] else " ({:+.4f}, {:+.4f})".format(*changed[dim]))
            for dim in by_dim
        ]
        rows.append([form, f"{rate:.1f}", mebibytes(figures["bytes"]) if "bytes" in figures else "", *cells])
        rows[-1] += [""] * (3 + len(dims) - len(rows[-1]))
    said = (
        f"{record['settings']['model']}; {counts['texts']:,} texts of {counts['mean_tokens']:.0f} tokens on average, "
        f"{counts['most_tokens']} at most, median of {record['settings']['rounds']} rounds in turns; Spearman on "
        f"{counts['pairs']:,} pairs of {record['settings']['pairs']}, in brackets the change's 95 % interval"
    )
    return table(
        ["form", "texts a processor second", "size", *(f"Spearman, {dim} dims" for dim in dims)], rows, record, said
    )
