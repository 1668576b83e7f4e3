"""What can be wrong with labelled pairs that the table alone shows: pure functions, each from parts to findings.

Legend: N pairs, T texts.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from trainer.data.raw_table import brief, place_of
from trainer.data.split import connect
from trainer.evaluation.prevalence import percent
from trainer.lint import limits
from trainer.lint.findings import (
    ALL,
    Finding,
    Part,
    counted,
    masks_of_phases,
    name_of,
    share_of,
)
from trainer.lint.limits import WARNING, worst
from trainer.text.cleaning import count_words, strip_mail
from trainer.text.masking import mask_text

NEAR_EMPTY_LENGTH = 300  # characters; a longer text is not cleaned to see whether anything is left
ASSUMED_LENGTH = 384  # tokens, all-mpnet-base-v2's
# Words and single marks, as BERT's vocabularies split a text before they cut words up; MiniLM's makes 1.2 tokens of one
# on real tickets, and the estimate then says of 99.9 % of them rightly whether they reach 384 tokens.
PIECE = re.compile(r"[^\W_]+|[^\w\s]|_")
TOKENS_PER_PIECE = 1.2


def contradictions(part: Part) -> list[Finding]:
    """The same two texts with both labels; a text against itself."""
    table, keys = part.table, part.keys(part.form)
    self_pair = part.form[table.text1] == part.form[table.text2]
    _, place = np.unique(keys, return_inverse=True)
    positive, both = np.bincount(place, weights=table.label), np.bincount(place)
    rows = ((positive > 0) & (positive < both))[place]
    order = np.argsort(place, kind="stable")  # contradicting rows stand together
    findings = part.finding(
        limits.CONTRADICTED.severity(rows.mean()),
        "contradictory labels",
        f"{share_of(rows)} rows: the same two texts are labelled positive and negative",
        counted(rows),
        order[rows[order]],
        "decide which label is right, remove the other row",
    )
    negative = int((self_pair & ~table.label).sum())
    return findings + part.finding(
        worst(limits.SELF_PAIRS.severity(self_pair.mean()), limits.CONTRADICTED.severity(negative / len(table))),
        "self pairs",
        f"{share_of(self_pair)} rows pair a text with itself, {negative} of them as negatives",
        counted(self_pair) | {"negatives": negative},
        self_pair,
        "remove them: nothing is to be learnt from a text and itself",
    )


def contradictions_between(part: Part, other: Part) -> list[Finding]:
    """The same two texts with one label in a training file and the other label in another."""
    labelled, other_labelled = (each.keys(each.form) * 2 + each.table.label for each in (part, other))
    rows = np.isin(other_labelled, labelled ^ 1)
    rows_there = np.unique(part.table.row[np.isin(labelled, other_labelled ^ 1)]).tolist()  # a triplet is two pairs
    source = name_of(part.table.source)
    return other.share_finding(
        limits.CONTRADICTED,
        "contradictory labels",
        f"have the other label in {source}: there {place_of(rows_there)}",
        rows,
        f"decide which labels are right; remove the other rows, here or in {source} (rows_there in lint.json)",
        {"with": part.table.source, "rows_there": rows_there},
    )


def clusters(part: Part, size: int) -> NDArray[np.int32]:
    """[size] number of the cluster of each canonical text, where positive pairs connect; `size` numbers are in use."""
    first, second = (part.form[side[part.table.label]] for side in (part.table.text1, part.table.text2))
    return connect(first, second, size)


def broken_chains(part: Part) -> list[Finding]:
    """Negatives whose two texts a chain of positives connects (connected components)."""
    table, keys = part.table, part.keys(part.form)
    of_text = clusters(part, int(part.form.max()) + 1)
    first, second = part.form[table.text1], part.form[table.text2]
    direct = np.isin(keys, keys[table.label])
    rows = ~table.label & (of_text[first] == of_text[second]) & (first != second) & ~direct
    return part.share_finding(
        limits.BROKEN_CHAINS,
        "contradiction through a chain",
        "are negative though positives (A like B, B like C, ...) connect their texts",
        rows,
        "one link of each chain is wrong: correct it, or remove the negative",
    )


def repeats(part: Part) -> list[Finding]:
    """Rows said before: the same texts and label, or the same two templates and label."""
    table = part.table
    again, template_again = (
        _seen_before(part.keys(numbers) * 2 + table.label) for numbers in (part.form, part.template)
    )
    template_again &= ~again
    findings = part.share_finding(
        limits.DUPLICATES, "duplicates", "repeat an earlier one, texts and label", again, "keep one of each"
    )
    return findings + part.share_finding(
        limits.TEMPLATES,
        "templated duplicates",
        "repeat an earlier one but for ids, names and numbers",
        template_again,
        "keep one or a few of each template (trainer build-pairs does)",
    )


def _seen_before(keys: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[N] mask of the rows whose key stands in an earlier row."""
    seen = np.ones(len(keys), dtype=np.bool_)
    seen[np.unique(keys, return_index=True)[1]] = False
    return seen


def dominance(part: Part) -> list[Finding]:
    """One text in a large share of the pairs."""
    table = part.table
    first, second = part.form[table.text1], part.form[table.text2]
    common = int(np.bincount(np.concatenate([first, second[second != first]])).argmax())
    text = brief(mask_text(table.texts[int(np.argmax(part.form == common))]))
    rows = part.touched(part.form == common)
    return part.finding(
        limits.DOMINANT.severity(rows.mean()) if rows.sum() >= limits.DOMINANT_ROWS else None,
        "one text in many pairs",
        f"{text} is in {share_of(rows)} rows",
        counted(rows),
        rows,
        "cap the pairs of a text, at a few dozen",
    )


def near_empty(part: Part) -> list[Finding]:
    """Texts of which nothing is left without mail headers, greeting and signature."""
    texts = part.table.texts
    empty = [len(text) <= NEAR_EMPTY_LENGTH and count_words(strip_mail(text)) < limits.FEWEST_WORDS for text in texts]
    rows = part.touched(np.array(empty))
    return part.share_finding(
        limits.NEAR_EMPTY,
        "near-empty texts",
        f"hold a text of fewer than {limits.FEWEST_WORDS} words beside headers, greeting and signature",
        rows,
        "remove these rows",
        {"texts": sum(empty)},
    )


def estimated_tokens(texts: list[str]) -> NDArray[np.int64]:
    """[T] tokens by a rule of thumb, special tokens included."""
    return np.array([round(TOKENS_PER_PIECE * len(PIECE.findall(text))) + 2 for text in texts], dtype=np.int64)


def truncation(part: Part, tokens: NDArray[np.int64], longest: int, estimated: bool) -> list[Finding]:
    """Texts cut at the model's max length. `tokens` [T] may be cut there already."""
    cut = tokens >= longest
    how = f"by an estimate, {TOKENS_PER_PIECE} tokens a word or mark" if estimated else "by the tokenizer"
    return part.finding(
        limits.TRUNCATED.severity(cut.mean()),
        "truncated texts",
        f"{share_of(cut)} texts reach {longest} tokens, where they are cut ({how})",
        {"texts": int(cut.sum()), "share": float(cut.mean()), "max_length": longest, "estimated": estimated},
        part.touched(cut),
        "raise model.max_length where the model allows it, or put what matters first",
    )


def balance(part: Part) -> list[Finding]:
    """Labels, in all and by phase; phases of very different size.

    No fault are positives alone (see `lint_tables`), nor that negatives are many where each is of an anchor with a
    positive, as in n-tuples.
    """
    table, findings = part.table, []
    anchors = table.canonical[table.text1]
    have_positive = bool(np.isin(anchors[~table.label], anchors[table.label]).all())
    for phase, rows in masks_of_phases(table).items():
        name, share = "the file" if phase == ALL else f"phase {phase}", float(table.label[rows].mean())
        no_fault = table.label.all() or (have_positive and share < 0.5)
        findings += part.finding(
            None if no_fault else limits.BALANCE.severity(max(share, 1 - share)),
            "label balance",
            f"{percent(share)} of the {int(rows.sum())} rows of {name} are positive",
            {"group": name, "positives": share},
            rows & (table.label == (share < 0.5)),
            f"add {'negatives' if share > 0.5 else 'positives'}, or check the positive threshold",
        )
    phases, sizes = np.unique(table.phase, return_counts=True)
    small = sizes < limits.SMALL_PHASE * sizes.max()
    by_phase = {str(phase): int(size) for phase, size in zip(phases, sizes, strict=True)}
    return findings + part.finding(
        WARNING if small.any() else None,
        "phase balance",
        f"rows by phase are {', '.join(f'{phase}: {size}' for phase, size in by_phase.items())}",
        {"sizes": by_phase},
        np.isin(table.phase, phases[small]),
        "fill the small phase, or leave it out (curriculum.phases); "
        f"under {percent(limits.SMALL_PHASE)} of the largest",
    )


def telling_categories(part: Part) -> list[Finding]:
    """Categories, on either side, whose rows nearly all have one label, more than luck explains (binomial test)."""
    table = part.table
    base = float(table.label.mean())
    if table.categories1 is None or table.categories2 is None or base in (0.0, 1.0):
        return []
    rows, examples = np.zeros(len(table), dtype=np.bool_), []
    for side, cells in (("category1", table.categories1), ("category2", table.categories2)):
        names, of_row = np.unique(np.array(cells, dtype=object).astype(str), return_inverse=True)
        total, positive = np.bincount(of_row), np.bincount(of_row, weights=table.label)
        # Chance of so many of one label, at the file's own share of it.
        chance = np.minimum(binom.sf(positive - 1, total, base), binom.cdf(positive, total, base))
        share = positive / total
        telling = (total >= limits.ONE_SIDED_ROWS) & (np.maximum(share, 1 - share) >= limits.ONE_SIDED)
        telling &= (chance * len(names) <= limits.ONE_SIDED_CHANCE) & (names != "")
        rows |= telling[of_row]
        examples += [
            (int(total[i]), f"{side} {brief(str(names[i]))}: {int(positive[i])} of {int(total[i])} positive")
            for i in np.flatnonzero(telling)
        ]
    largest = "; ".join(text for _, text in sorted(examples, reverse=True)[:2])
    return part.share_finding(
        limits.CATEGORY,
        "category predicts the label",
        f"are in {len(examples)} categories that are nearly all of one label ({largest})",
        rows,
        "add pairs of the other label in these categories",
        {"categories": len(examples)},
    )


CHECKS = (contradictions, broken_chains, repeats, dominance, near_empty, balance, telling_categories)
"""Those that a table alone is put to."""


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
        fix = "remove these rows from one of the files; split by ticket, not by pair"
        findings += held.share_finding(limits.SEEN, name, f"{what} that {other} also holds", rows, fix, {"with": other})
    return findings + held.finding(
        worst(limits.SEEN_TEMPLATE_PAIRS.severity(pairs.mean()), limits.SEEN_TEMPLATES.severity(by_template.mean())),
        "template overlap",
        f"{share_of(by_template)} more rows hold a copy of a template in {other}; {int(pairs.sum())} "
        "are its pairs but for ids, names and numbers",
        counted(by_template) | {"pairs": int(pairs.sum()), "with": other},
        pairs if pairs.any() else by_template,
        "split by template (trainer build-pairs does)",
    )
