"""What can be wrong between two files of labelled pairs: pure functions, each from two parts to findings.

Legend: N pairs, T texts.
"""

from __future__ import annotations

import numpy as np

from trainer.lint.findings import Finding, Limit, Part, counted, name_of, share_of, worst
from trainer.lint.table_checks import CONTRADICTED, clusters

# Held-out rows that training has seen measure memory. In 1 of 100 that moves a metric by as much as models differ.
SEEN = Limit(0, 0.01)
# Texts of a template recur in any real queue and then differ in what matters; whole pairs are the same question again.
SEEN_TEMPLATES = Limit(0.05, 0.50)
SEEN_TEMPLATE_PAIRS = Limit(0.01, 0.05)


def contradictions_between(part: Part, other: Part) -> list[Finding]:
    """The same two texts with one label in a training file and the other label in another."""
    keys, other_keys, label = part.keys(part.form), other.keys(other.form), part.table.label
    rows = np.where(other.table.label, np.isin(other_keys, keys[~label]), np.isin(other_keys, keys[label]))
    return other.finding(
        CONTRADICTED.severity(rows.mean()),
        "contradictory labels",
        f"{share_of(rows)} rows have the other label in {name_of(part.table.source)}",
        counted(rows) | {"with": part.table.source},
        rows,
        "decide which label is right, remove the other row",
    )


def overlap(seen: Part, held: Part) -> list[Finding]:
    """What a held-out file shares with another: texts, tickets (texts that positives connect), templates."""
    text = np.isin(held.form, seen.form)
    cluster = clusters(held, int(max(seen.form.max(), held.form.max())) + 1)
    by_text = held.touched(text)
    by_ticket = held.touched(np.isin(cluster[held.form], cluster[seen.form])) & ~by_text
    by_template = held.touched(np.isin(held.template, seen.template) & ~text) & ~by_text
    pairs = np.isin(held.keys(held.template), seen.keys(seen.template)) & ~by_text
    other, findings = name_of(seen.table.source), []
    for rows, name, what in (
        (by_text, "text overlap", f"hold one of {len(np.unique(held.form[text]))} texts"),
        (by_ticket, "ticket overlap", "hold a text that positives connect with one"),
    ):
        findings += held.finding(
            SEEN.severity(rows.mean()),
            name,
            f"{share_of(rows)} rows {what} that {other} also holds",
            counted(rows) | {"with": other},
            rows,
            "remove these rows from one of the files; split by ticket, not by pair",
        )
    return findings + held.finding(
        worst(SEEN_TEMPLATE_PAIRS.severity(pairs.mean()), SEEN_TEMPLATES.severity(by_template.mean())),
        "template overlap",
        f"{share_of(by_template)} more rows hold a copy of a template in {other}; {int(pairs.sum())} "
        "are its pairs but for ids, names and numbers",
        counted(by_template) | {"pairs": int(pairs.sum()), "with": other},
        pairs if pairs.any() else by_template,
        "split by template (trainer build-pairs does)",
    )
