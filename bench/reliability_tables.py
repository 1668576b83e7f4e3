"""Tables of what was broken and resumed, from the records of bench/reliability."""

from __future__ import annotations

from typing import Any

from bench.markdown import source, table


def chaos(record: dict[str, Any]) -> list[str]:
    """What was broken, and how much of it did not end as promised."""
    rows = [[name, found["tried"], found["wrong"]] for name, found in record["campaigns"].items()]
    return table(["broken and resumed", "tried", "not as promised"], rows, record, "tiny model, real processes")


def fuzz(record: dict[str, Any]) -> list[str]:
    """How many changed files were read, and what was found."""
    readers = record["readers"].values()
    calls, findings = sum(each["executions"] for each in readers), sum(len(each["findings"]) for each in readers)
    longest = max(each["seconds"] for each in readers)
    said = f"{len(readers)} kinds of files and settings, {longest} s each: {calls:,} inputs read, {findings} findings"
    return [source(record, said)]


def chaos_peer(record: dict[str, Any]) -> list[str]:
    """The same kills, and spoilt checkpoints, of this trainer and of Hugging Face's."""
    kills, tried, same = record["kills"]["counts"], record["kills"]["tried"], "as undisturbed"
    equal, mended = (
        [kills.get(f"{side}: {by}{same}", 0) for side in ("ours", "peer")] for by in ("", "then, by hand, ")
    )
    other = [tried - a - b for a, b in zip(equal, mended, strict=True)]
    spoilt = [f"{record[name]['wrong']} of {record[name]['tried']}" for name in ("spoilt_ours", "spoilt_peer")]
    rows = [
        [f"of {tried} killed at a random moment: continued to the bits of the undisturbed run", *equal],
        ["resume refused; the same bits once the newest checkpoint is removed by hand", *mended],
        ["neither", *other],
        ["files of a checkpoint spoilt: not noticed, and other bits", *spoilt],
    ]
    stops = list(record["stopped_in_order"].values())
    early = kills["peer: had no checkpoint, began anew"]
    said = (
        f"tiny model, real processes; {early} of the peer's kills came before its first checkpoint; stopped in order, "
        f"it resumes to the same bits {stops.count(same)} of {len(stops)} times"
    )
    return table(["broken and resumed, once", "this trainer", "`transformers.Trainer`"], rows, record, said)
