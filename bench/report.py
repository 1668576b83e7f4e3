"""Render the tables of every page, and the picture of bench/README.md, from the records in bench/results.

A page is a README.md; a table stands between `<!-- begin NAME -->` and `<!-- end NAME -->`, on one page or several.
A figure between markers is never typed by hand.

    python -m bench.report            rewrite the pages and draw the picture (extra `report`)
    python -m bench.report --check    exit 1 where a page is not what the records say
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"


def real_run(record: dict[str, Any]) -> list[str]:
    """Dev and STS figures of a `real_run.py` record, a row a dim."""
    lines = [
        "| dim | dev Spearman | dev ROC-AUC | dev best F1 | STS-b dev Spearman |",
        "|---:|---:|---:|---:|---:|",
    ]
    for dim, after in record["dev"]["final"].items():
        before = record["dev"]["baseline"][dim]
        sts = [record["sts"][key][dim]["spearman"] for key in ("baseline", "final")]
        cells = [change(before[key], after[key]) for key in ("spearman", "roc_auc", "f1")]
        lines.append(f"| {dim} | {' | '.join(cells)} | {change(*sts)} |")
    dev = record["dev"]
    chosen = f"{dev['verdict']} on dev, with strength {dev['strength']:.1f}, which dev chose"
    took = f"{record['steps']} steps in {record['training_seconds']:.0f} s"
    return [*lines, "", *source(record, f"{chosen}; {took}")]


def side_by_side(record: dict[str, Any]) -> list[str]:
    """Dev Spearman of each way of training, a row a way."""
    names = {
        "untouched": "untouched model",
        "notebook": "sentence-transformers, labels ignored (the notebook)",
        "documented": "sentence-transformers, positives with hard negatives (its documentation)",
        "ours": "this trainer",
    }
    dims = list(record["dev"]["untouched"])
    lines = [f"| trained by | {' | '.join(f'{dim} dims' for dim in dims)} | ROC-AUC at {dims[0]} |"]
    lines.append("|---|" + "---:|" * (len(dims) + 1))
    for kind, name in names.items():
        if kind not in record["dev"]:
            continue
        metrics = record["dev"][kind]
        cells = [f"{metrics[dim]['spearman']:.4f}" for dim in dims] + [f"{metrics[dims[0]]['roc_auc']:.4f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    settings = record["settings"]
    said = (
        f"{settings['epochs']} epochs, batch {settings['batch_size']}, peak LR {settings['lr']:.0e}, max length "
        f"{settings['max_length']}, {settings['precision']}"
    )
    return [*lines, "", *source(record, said)]


def loss(record: dict[str, Any], large: dict[str, Any]) -> list[str]:
    """Time and memory of the loss beside the plain definition, and a batch that is too large for the latter."""
    lines = [
        "| loss, forward and backward, 5 dims of 768 | this trainer | plain definition | ratio |",
        "|---|---:|---:|---:|",
    ]
    for entry in record["time"]:
        mine, theirs = (statistics.median(entry["seconds"][kind]) * 1000 for kind in ("ours", "plain"))
        lines.append(f"| time at batch {entry['size']:,} | {mine:,.0f} ms | {theirs:,.0f} ms | {entry['ratio']:.2f} |")
    memory = record["memory"]
    mine, theirs = (memory["bytes"][kind] / 2**20 for kind in ("ours", "plain"))
    row = f"| extra memory at batch {memory['size']:,} | {mine:,.0f} MiB | {theirs:,.0f} MiB | {memory['ratio']:.3f} |"
    lines.append(row)
    mine = large["bytes"] / 2**20
    lines.append(f"| extra memory at batch {large['size']:,} | {mine:,.0f} MiB | too large for this machine | |")
    return [*lines, "", *source(record, "medians of interleaved runs, fp32")]


def any_batch(lora: dict[str, Any], full: dict[str, Any], ranks: dict[str, Any]) -> list[str]:
    """A large batch beside a small one, and two processes beside one."""
    settings = lora["settings"]
    large, small = settings["batch_size"], settings["small"]
    seconds = {name: statistics.median(samples) for name, samples in ranks["seconds"].items()}
    batch = ranks["settings"]["batch_size"]
    lines = [
        f"| {settings['model']}, real tickets | | | ratio |",
        "|---|---:|---:|---:|",
    ]
    for name, caching in (("LoRA", lora), ("all weights", full)):
        sizes = " | ".join(f"{max(caching['bytes'][which]) / 2**20:,.0f} MiB" for which in ("large", "small"))
        a_pair = " | ".join(f"{1000 * caching['seconds_a_pair'][which]:.1f} ms" for which in ("large", "small"))
        lines += [
            f"| {name}, extra memory: batch {large:,} in chunks, batch {small} whole | {sizes} | "
            f"{caching['memory_ratio']:.2f} |",
            f"| {name}, time a pair, likewise | {a_pair} | {caching['time_ratio']:.2f} |",
        ]
    lines += [
        f"| time of a step of batch {batch}: two processes, one, on the same cores | "
        f"{seconds['two']:.2f} s | {seconds['one']:.2f} s | {ranks['time_ratio']:.2f} |",
        "| gradients of the two and the one, float64: difference over the largest | "
        f"{ranks['gradient_difference']:.0e} | | |",
    ]
    return [*lines, "", *source(lora, f"chunks of {settings['tokens_per_chunk']:,} tokens, fp32; processes with LoRA")]


def chaos(record: dict[str, Any]) -> list[str]:
    """What was broken, and how much of it did not end as promised."""
    lines = ["| broken and resumed | tried | not as promised |", "|---|---:|---:|"]
    lines += [f"| {name} | {found['tried']} | {found['wrong']} |" for name, found in record["campaigns"].items()]
    return [*lines, "", *source(record, "tiny model, real processes")]


def fuzz(record: dict[str, Any]) -> list[str]:
    """How many changed files were read, and what was found."""
    readers = record["readers"].values()
    calls, findings = sum(each["executions"] for each in readers), sum(len(each["findings"]) for each in readers)
    longest = max(each["seconds"] for each in readers)
    said = f"{len(readers)} kinds of files and settings, {longest} s each: {calls:,} inputs read, {findings} findings"
    return source(record, said)


def chaos_peer(record: dict[str, Any]) -> list[str]:
    """The same kills, and spoilt checkpoints, of this trainer and of Hugging Face's."""
    kills, tried, same = record["kills"]["counts"], record["kills"]["tried"], "as undisturbed"
    equal, mended = (
        [kills.get(f"{side}: {by}{same}", 0) for side in ("ours", "peer")] for by in ("", "then, by hand, ")
    )
    other = [tried - a - b for a, b in zip(equal, mended, strict=True)]
    spoilt = [f"{record[name]['wrong']} of {record[name]['tried']}" for name in ("spoilt_ours", "spoilt_peer")]
    rows = {
        f"of {tried} killed at a random moment: continued to the bits of the undisturbed run": equal,
        "resume refused; the same bits once the newest checkpoint is removed by hand": mended,
        "neither": other,
        "files of a checkpoint spoilt: not noticed, and other bits": spoilt,
    }
    lines = ["| broken and resumed, once | this trainer | `transformers.Trainer` |", "|---|---:|---:|"]
    lines += [f"| {name} | {ours} | {peer} |" for name, (ours, peer) in rows.items()]
    stops = list(record["stopped_in_order"].values())
    early = kills["peer: had no checkpoint, began anew"]
    said = (
        f"tiny model, real processes; {early} of the peer's kills came before its first checkpoint; stopped in order, "
        f"it resumes to the same bits {stops.count(same)} of {len(stops)} times"
    )
    return [*lines, "", *source(record, said)]


def saving(record: dict[str, Any]) -> list[str]:
    """What the cadence of checkpoints takes of a run."""
    settings, stretches = record["settings"], record["stretches"]
    seconds = [row["saving_seconds"] for row in stretches]
    lines = [
        f"| a checkpoint every {settings['every']} steps, all-MiniLM-L6-v2, LoRA, batch {settings['batch_size']} | |",
        "|---|---:|",
        f"| of {record['checkpoint_bytes'] / 2**20:.1f} MiB, saved in (median, slowest) | "
        f"{1000 * statistics.median(seconds):.0f} ms, {1000 * max(seconds):.0f} ms |",
        f"| share of the run's seconds (all, worst stretch) | {record['share_of_seconds']:.3%}, "
        f"{record['worst_share_of_seconds']:.3%} |",
        f"| share of its processor seconds | {record['share_of_cpu_seconds']:.3%} |",
    ]
    said = f"{len(record['updates'])} steps on real tickets, fp32, {record['file_system']}"
    return [*lines, "", *source(record, said)]


def judging(record: dict[str, Any]) -> list[str]:
    """What judging many pairs costs."""
    pairs, dims = f"{record['pairs']:,} pairs", f"{len(record['dims'])} dims"
    lines = [
        f"| judging {pairs} at {dims}, {record['resamples']:,} resamples | processor time |",
        "|---|---:|",
        f"| intervals of every pair metric, one model | {record['bootstrap_of_one_model']['cpu_seconds']:.1f} s |",
        f"| the whole judgement of a model and its baseline, retrieval too | {record['cpu_seconds']:.1f} s |",
    ]
    return [*lines, "", *source(record, "embeddings given")]


def searching(record: dict[str, Any]) -> list[str]:
    """What judging by search costs."""
    lines = [
        f"| {record['queries']:,} queries among {record['texts']:,} texts, {len(record['dims'])} dims of "
        f"{record['width']}, {record['models']} models | |",
        "|---|---:|",
        f"| all measures, intervals, differences | {record['seconds']:.0f} s |",
        f"| processor time of it | {record['cpu_seconds']:.0f} s |",
        f"| memory beside the embeddings | {record['extra_bytes'] / 2**20:.0f} MiB |",
    ]
    return [*lines, "", *source(record, "embeddings given")]


def search_quality(record: dict[str, Any]) -> list[str]:
    """Who finds the right ticket how often, a row a system and dim."""
    names = ("success@5", "success@10", "map@100")
    titles = {"bm25": "BM25", "baseline": "untouched", "model": record["settings"]["models"]["model"]}
    titles |= {f"bm25+{system}": f"BM25 and {titles[system]}" for system in record["settings"]["models"]}
    lines = [f"| search by | dims | {' | '.join(names)} |", "|---|---:|---:|---:|---:|"]
    for system, title in titles.items():
        for dim in reversed(record["metrics"].get(system, {})):
            cells = (
                "{:.3f} ({:.3f}, {:.3f})".format(
                    record["metrics"][system][dim][name], *record["intervals"][system][dim][name]
                )
                for name in names
            )
            lines.append(f"| {title} | {'' if system == 'bm25' else dim} | {' | '.join(cells)} |")
            if system == "bm25":
                break
    facts, settings = record["facts"], record["settings"]
    said = (
        f"{facts['queries']:,} queries of {record['groups']['count']:,} clusters among {facts['texts']:,} tickets, "
        f"{settings['max_length']['model']} tokens a text, {settings['resamples']:,} resamples"
    )
    return [*lines, "", *source(record, said)]


def build_pairs(record: dict[str, Any]) -> list[str]:
    """Time and memory of building pairs by number of tickets."""
    lines = ["| tickets | processor seconds | clock seconds | peak memory |", "|---:|---:|---:|---:|"]
    for run in record["growth"]:
        row = f"{run['tickets']:,} | {run['cpu_seconds']:.0f} | {run['seconds']:.0f}"
        lines.append(f"| {row} | {run['peak_bytes'] / 2**30:.2f} GiB |")
    return [*lines, "", *source(record, record["made_from"])]


def throughput(*records: dict[str, Any]) -> list[str]:
    """Training steps beside the peer's on the same batches, a row a model."""
    lines = [
        "| training step on real tickets | this trainer | sentence-transformers | times as fast | of sgemm peak | "
        "in bf16 | waiting for data | peak memory |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for record in records:
        settings = record["settings"]
        name = f"{settings['model']}, batch {settings['batch_size']}, max length {settings['max_length']}"
        mine, theirs = (statistics.median(sample["seconds"] for sample in record[kind]) for kind in ("ours", "peer"))
        lines.append(
            f"| {name} | {mine:.1f} s | {theirs:.1f} s | {record['ratio']:.1f} | {record['mfu']:.0%} | "
            f"{record['bf16_ratio']:.2f} x faster | {record['waiting_share']:.2%} | "
            + (f"{record['peak_memory'] / 2**30:.1f} GiB |" if record["peak_memory"] else "not taken |")
        )
    steps = len(records[0]["ours"])
    said = f"LoRA on all attention projections, {steps} steps each in turns, fp32; {where_time_goes(records[0])}"
    return [*lines, "", *source(records[0], said)]


def where_time_goes(record: dict[str, Any]) -> str:
    """The split of a step, in words."""
    split = record["split"]
    return f"{record['settings']['model']}: " + ", ".join(f"{name} {share:.1%}" for name, share in split.items())


def draw_throughput(*records: dict[str, Any]) -> None:
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
            rates.append(statistics.median(mine["tokens"] / other["seconds"] for mine, other in pairs))
            colours.append(colour)
    figure, axes = pyplot.subplots(figsize=(8, 0.45 * len(labels) + 0.9))
    axes.bar_label(axes.barh(labels, rates, color=colours), fmt="{:,.0f}", padding=3)
    axes.invert_yaxis()
    axes.set_xlabel("real tokens a second")
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(RESULTS / "throughput.svg", metadata={"Date": None})


def input_pipeline(record: dict[str, Any]) -> list[str]:
    """Tokenising, collating, starting."""
    settings = record["settings"]
    lines = [
        "| input | |",
        "|---|---:|",
        f"| tokenising, once a data set | {record['tokenising_tokens_per_s']:,.0f} tokens/s |",
        f"| laying out and collating a batch of {settings['batch_size']} | "
        f"{record['collating_tokens_per_s']:,.0f} tokens/s, {record['share_of_step']:.2%} of a step |",
        f"| from the command to the first step, {settings['pairs']:,} pairs, tokens cached | "
        f"{record['start_seconds']:.1f} s |",
    ]
    return [*lines, "", *source(record, f"{settings['model']}, median of {len(record['starts'])} starts")]


def change(before: float, after: float) -> str:
    """Two values and their difference."""
    return f"{before:.4f} → {after:.4f} ({after - before:+.4f})"


def source(record: dict[str, Any], said: str) -> list[str]:
    """The line under a table: what it was measured on."""
    env = record["environment"]
    threads = f"{env['threads']} thread{'s' if env['threads'] > 1 else ''}"
    where = env["gpu"] or f"{env['processor']}, {threads} of {env['cores']} cores"
    packages = env["packages"]
    return [f"{said}; {where}; torch {packages['torch']}, transformers {packages['transformers']}; {env['date'][:10]}."]


THROUGHPUT = ("throughput_mpnet-4_fp32_cpu", "throughput_minilm-l6_fp32_cpu")
BLOCKS: dict[str, tuple[tuple[str, ...], Callable[..., list[str]]]] = {
    "real run": (("itsm_minilm",), real_run),
    "real run, LoRA": (("itsm_minilm_lora",), real_run),
    "loss": (("loss", "loss_large"), loss),
    "any batch": (("gradient_caching", "gradient_caching_full", "two_ranks"), any_batch),
    "throughput": (THROUGHPUT, throughput),
    "input pipeline": (("input_pipeline",), input_pipeline),
    "build pairs": (("build_pairs",), build_pairs),
    "chaos": (("chaos",), chaos),
    "fuzz": (("fuzz",), fuzz),
    "chaos, peer": (("chaos_peer",), chaos_peer),
    "saving": (("saving",), saving),
    "judging": (("intervals",), judging),
    "searching": (("search",), searching),
    "search, bugs": (("search_bugs",), search_quality),
    "side by side": (("side_by_side",), side_by_side),
}


def read_record(name: str) -> dict[str, Any]:
    """A record of bench/results."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def pages(root: Path = ROOT) -> list[Path]:
    """README.md of the project and of its folders."""
    folders = ("trainer", "configs", "bench", "tests")
    return [root / "README.md", *(page for name in folders for page in sorted((root / name).rglob("README.md")))]


def render(text: str, page: str) -> tuple[str, set[str]]:
    """A page with every table between its markers written anew from its records, and the names of its tables."""
    names = re.findall("<!-- begin (.+?) -->", text)
    for name in names:
        if name not in BLOCKS:
            raise SystemExit(f"{page}: no table is called {name!r}; there are {', '.join(sorted(BLOCKS))}")
        records, table = BLOCKS[name]
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        body = "\n".join([begin, "", *table(*map(read_record, records)), "", end])
        text, found = re.subn(re.escape(begin) + ".*?" + re.escape(end), lambda _, body=body: body, text, flags=re.S)
        if found != 1:
            raise SystemExit(f"{page}: expected one {begin} with its end, found {found}")
    return text, set(names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a page would change")
    options = parser.parse_args()
    stale, shown = [], set[str]()
    for page in pages():
        name, old = str(page.relative_to(ROOT)), page.read_text(encoding="utf-8")
        new, names = render(old, name)
        shown |= names
        if new != old:
            stale.append(name)
            if not options.check:
                page.write_text(new, encoding="utf-8")
    if unseen := set(BLOCKS) - shown:
        raise SystemExit(f"no page shows {', '.join(sorted(unseen))}")
    if options.check:
        sys.exit(f"not what the records say: {', '.join(stale)}; run python -m bench.report" if stale else 0)
    draw_throughput(*map(read_record, THROUGHPUT))


if __name__ == "__main__":
    main()
