"""An index of tickets: brute-force twins of search and grouping, updates, kills, damage, the commands."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from oracles import Killed
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist

from trainer.errors import CheckpointError, InputError, Stopped, StorageError
from trainer.evaluation.search import Block
from trainer.evaluation.search_scores import BM25Scores, EmbeddingScores, FusedScores
from trainer.main import cli
from trainer.model.embedding_types import TYPES, EmbeddingType, unit_prefixes
from trainer.model.encoder import EmbeddingConditions, Encoder
from trainer.search import command
from trainer.search import duplicates as grouping
from trainer.search import update as updating
from trainer.search.duplicates import complete_link, find_duplicates, similar_pairs
from trainer.search.index import TOP, Index, measure_reach
from trainer.search.show import print_update
from trainer.search.storage import Ticket, read_index, write_index
from trainer.search.ticket_texts import Preparation
from trainer.search.update import IndexRequest, Update, update_index
from trainer.text.bm25 import WordIndex

MODEL = EmbeddingConditions("0" * 64, "mean", 128, "", "")


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def clustered(count: int, width: int, rng: np.random.Generator, noise: float = 0.6, size: int = 20) -> np.ndarray:
    """Rows of length 1 in clusters."""
    centres = rng.standard_normal((count // size + 1, width))
    rows = centres[rng.integers(len(centres), size=count)] + noise * rng.standard_normal((count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def sentences(count: int, rng: np.random.Generator) -> list[str]:
    words = [f"{a}{b}" for a in ("vpn", "mail", "disk", "user", "file") for b in ("down", "slow", "full", "lost")]
    return [" ".join(rng.choice(words, size=6)) for _ in range(count)]


def write(
    folder: Path,
    rows: np.ndarray,
    texts: list[str] | None = None,
    words: bool = False,
    type: str = "float32",
    **facts: object,
) -> Path:
    """An index of given embeddings, without a model."""
    texts = texts or [f"text {row}" for row in range(len(rows))]
    tickets = [Ticket(f"INC{row}", sha256(text), text) for row, text in enumerate(texts)]
    kept = EmbeddingType.fit(type, rows)
    stored = kept.encode(rows)
    known = {"model_name": "none", "model": MODEL, "preparation": Preparation()}
    known |= measure_reach(stored, kept=kept)._asdict()
    write_index(folder, stored, tickets, WordIndex.of(texts) if words else None, known | facts, kept)
    return folder


# ---- search


@pytest.mark.parametrize(("count", "width"), [(1, 3), (2, 64), (7, 65), (333, 100)])
def test_a_small_index_is_searched_exactly(tmp_path: Path, count: int, width: int) -> None:
    rng = np.random.default_rng()
    rows = clustered(count, width, rng)
    index, queries = Index.open(write(tmp_path / "index", rows), model=None), clustered(5, width, rng)
    for query, hits in zip(queries, index.search_embeddings(queries, top=3), strict=True):
        cosines = rows.astype(np.float64) @ query
        assert [hit.cosine for hit in hits] == pytest.approx(np.sort(cosines)[::-1][:3], abs=1e-6)
        assert [cosines[int(hit.id[3:])] for hit in hits] == pytest.approx([hit.cosine for hit in hits], abs=1e-6)
        without = index.search_embeddings(query[None], top=3, ids=[hits[0].id.lower()])[0]
        assert [hit.id for hit in without] == [hit.id for hit in index.search_embeddings(query[None], top=4)[0][1:]]


def test_a_prefix_finds_what_the_full_width_ranks(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    rows = clustered(901, 96, rng)
    index = Index.open(write(tmp_path / "index", rows, prefix=16, candidates=50), model=None)
    queries = clustered(20, 96, rng)
    short = unit_prefixes(rows, 16)
    as_int8 = EmbeddingType.fit("int8", short)
    missed = 0
    for query, hits in zip(queries, index.search_embeddings(queries, top=10), strict=True):
        near = as_int8.decode(as_int8.encode(short)) @ query[:16]
        among = np.argsort(-near)[:50]
        best = among[np.argsort(-(rows[among].astype(np.float64) @ query))][:10]
        assert [hit.id for hit in hits] == [f"INC{row}" for row in best]
        exact = [hit.id for hit in index.search_embeddings(query[None], top=10, exact=True)[0]]
        assert exact == [f"INC{row}" for row in np.argsort(-(rows.astype(np.float64) @ query))[:10]]
        missed += len({*exact} - {hit.id for hit in hits})
    assert missed  # or the two ways could not be told apart


@pytest.mark.parametrize("type", TYPES)
def test_an_index_of_each_type_ranks_by_what_it_keeps(tmp_path: Path, type: str) -> None:
    rng = np.random.default_rng()
    rows, queries = clustered(301, 37, rng), clustered(9, 37, rng)
    folder = write(tmp_path / "index", rows, type=type)
    stored = read_index(folder)
    assert command.TYPES == TYPES  # which `--help` must know without torch
    assert stored.embeddings.nbytes == 301 * stored.type.bytes_each and stored.contents.type == type
    decoded = stored.rows()
    for query, hits in zip(queries, Index.open(folder, model=None).search_embeddings(queries, top=10), strict=True):
        cosines = decoded.astype(np.float64) @ query
        assert [hit.cosine for hit in hits] == pytest.approx(np.sort(cosines)[::-1][:10], abs=1e-5)
        assert [cosines[int(hit.id[3:])] for hit in hits] == pytest.approx([hit.cosine for hit in hits], abs=1e-5)
    assert find_duplicates(folder, alerts_per_ticket=2.0).groups
    if type == "binary":
        with pytest.raises(InputError, match="--alerts-per-ticket"):
            find_duplicates(folder, threshold=0.5)
    else:
        assert find_duplicates(folder, threshold=0.5).groups


@pytest.mark.slow
def test_the_reach_of_a_prefix_is_measured() -> None:
    rng = np.random.default_rng()
    rows = clustered(5001, 96, rng, noise=0.3)
    reach = measure_reach(rows)
    assert (reach.prefix, reach.measured_on) == (64, 256) and reach.recall >= 0.99
    cosines = rows[:40] @ rows.T
    np.fill_diagonal(cosines, -1)
    near = rows[:40, :64] @ (rows[:, :64] / np.linalg.norm(rows[:, :64], axis=1, keepdims=True)).T
    np.fill_diagonal(near, -1)
    found = np.argsort(-near, axis=1)[:, : reach.candidates]
    recall = [np.isin(best, some).mean() for best, some in zip(np.argsort(-cosines)[:, :TOP], found, strict=True)]
    assert np.mean(recall) >= 0.99
    # Negative control: a prefix that tells nothing apart is not trusted, and all tickets are compared.
    rows[:, :64] = clustered(5001, 64, rng) / 8
    assert measure_reach(rows / np.linalg.norm(rows, axis=1, keepdims=True)).candidates == 5001


def test_words_help_as_they_do_in_a_judgement(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    rows, texts = clustered(150, 24, rng), sentences(150, rng)
    index = Index.open(write(tmp_path / "index", rows, texts, words=True), model=None)
    queries, asked = clustered(6, 24, rng), sentences(6, rng)
    everyone = np.arange(150)
    cells = np.repeat(np.arange(6), 150), np.tile(everyone, 6)
    none = np.empty(0, dtype=np.int64)
    fused = FusedScores(BM25Scores(asked, texts), EmbeddingScores(queries, rows, (24,)))
    scores = fused.open(Block(0, 6, *cells, none, none, np.full(6, 150))).relevant[0].reshape(6, 150)
    alone = index.search_embeddings(queries, 12)
    for place, hits in enumerate(index.search_embeddings(queries, 12, asked)):
        assert [hit.score for hit in hits] == pytest.approx(np.sort(scores[place])[::-1][:12])
        assert [scores[place][int(hit.id[3:])] for hit in hits] == pytest.approx([hit.score for hit in hits])
        assert [hit.cosine for hit in hits] == pytest.approx(rows[[int(hit.id[3:]) for hit in hits]] @ queries[place])
    assert [hit.id for hit in alone[0]] != [hit.id for hit in index.search_embeddings(queries, 12, asked)[0]]


# ---- duplicates


@pytest.mark.parametrize("count", [1, 2, 5, 61])
def test_pairs_are_those_of_all_cosines(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "ROWS", 7)
    monkeypatch.setattr(grouping, "COLUMNS", 10)
    rows = clustered(count, 12, np.random.default_rng(), size=3)
    cosines = rows.astype(np.float64) @ rows.T
    pairs = similar_pairs(rows, 0.5)
    assert {pair[:2] for pair in pairs} == {
        (i, j) for i in range(count) for j in range(i + 1, count) if cosines[i, j] >= 0.5
    }
    assert [cosine for _, _, cosine in pairs] == sorted((cosine for _, _, cosine in pairs), reverse=True)
    monkeypatch.setattr(grouping, "MOST_PAIRS", len(pairs) - 1)
    if pairs:
        with pytest.raises(InputError, match="take a higher one"):
            similar_pairs(rows, 0.5)


def test_groups_are_those_of_complete_linkage() -> None:
    rng = np.random.default_rng()
    for count in (2, 3, 40, 90):
        rows = clustered(count, 6, rng, size=5, noise=0.8)
        cosines = rows.astype(np.float64) @ rows.T
        near = np.argwhere(np.triu(cosines, 1) >= 0.6).tolist()
        pairs = sorted(((i, j, float(cosines[i, j])) for i, j in near), key=lambda pair: -pair[2])
        labels = fcluster(linkage(pdist(rows, "cosine"), "complete"), 1 - 0.6, "distance")
        expected = {frozenset(np.flatnonzero(labels == label).tolist()) for label in set(labels.tolist())}
        assert {frozenset(group) for group in complete_link(count, pairs)} == {g for g in expected if len(g) > 1}


def test_a_chain_of_weak_links_is_no_group(tmp_path: Path) -> None:
    angles = np.deg2rad([0, 20, 45, 65, 180, 180])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    folder = write(tmp_path / "index", rows, ["a", "b", "c", "d", "e", "e"])
    # At 26 degrees a-b-c-d is a chain: single linkage would make one group of it.
    found = find_duplicates(folder, threshold=float(np.cos(np.deg2rad(26))))
    assert sorted(group.tickets for group in found.groups) == [["INC0", "INC1"], ["INC2", "INC3"], ["INC4", "INC5"]]
    groups = {group.tickets[0]: group for group in found.groups}
    assert [pair[:2] for pair in groups["INC0"].pairs] == [("INC0", "INC1")]
    assert (
        [pair[:2] for pair in groups["INC0"].links] == [("INC1", "INC2")] == [pair[:2] for pair in groups["INC2"].links]
    )
    assert groups["INC4"].pairs == [("INC4", "INC5", 1.0)] and found.different_texts == 5
    wider = find_duplicates(folder, threshold=float(np.cos(np.deg2rad(66)))).groups
    assert wider[0].tickets == ["INC0", "INC1", "INC2", "INC3"] and len(wider[0].pairs) == 6


@pytest.mark.slow
def test_a_threshold_is_found_by_alerts(tmp_path: Path) -> None:
    rows = clustered(200, 16, np.random.default_rng(), size=4)
    folder = write(tmp_path / "index", rows)
    found = find_duplicates(folder, alerts_per_ticket=0.5)
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -1)
    assert 0.4 < (cosines >= found.threshold).sum() / 200 <= 0.5
    assert found.alerts_per_ticket == pytest.approx((cosines >= found.threshold).sum() / 200)
    assert all(found.threshold <= pair[2] for group in found.groups for pair in group.pairs)
    for wrong in ({"threshold": 0.0}, {"threshold": 1.5}, {"alerts_per_ticket": -1.0}, {"alerts_per_ticket": 1e9}):
        with pytest.raises(InputError):
            find_duplicates(folder, **wrong)


# ---- what is on disk


def resealed(folder: Path, change: Callable[[dict[str, object]], None], kind: str = "", data: bytes = b"") -> None:
    """Change index.json, and a file that it names, so that all hashes fit: what only a forger does."""
    path = folder / "index.json"
    record = json.loads(path.read_bytes())
    del record["sha256"]
    if kind:
        (folder / record["files"][kind]["name"]).write_bytes(data)
        record["files"][kind] |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change(record)
    record["sha256"] = sha256(json.dumps(record, sort_keys=True))
    path.write_text(json.dumps(record))


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as refusal:
        Index.open(folder, model=None)
    return str(refusal.value)


def test_any_damage_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    folder = write(tmp_path / "index", clustered(9, 5, rng), sentences(9, rng), words=True)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[int(rng.integers(len(whole)))] ^= 4
        for harm in (bytes(flipped), whole[:-3], whole + b"x", b""):
            path.write_bytes(harm)
            assert path.name in refused(folder)
        path.unlink()
        if path.name == "index.json":
            with pytest.raises(InputError, match="no index there"):
                Index.open(folder, model=None)
        else:
            assert path.name in refused(folder)
        path.write_bytes(whole)
        assert len(Index.open(folder, model=None).ids) == 9  # the control: whole again


def npy(array: np.ndarray, path: Path) -> bytes:
    np.save(path, array)
    return path.read_bytes()


@pytest.mark.slow
def test_a_forged_index_is_refused(tmp_path: Path) -> None:
    rows = clustered(4, 5, np.random.default_rng())
    folder, scratch = write(tmp_path / "index", rows, words=True), tmp_path / "scratch.npy"
    originals = {path: path.read_bytes() for path in folder.iterdir()}
    table = originals[next(folder.glob("tickets-*"))].decode().splitlines()
    nan = rows.copy()
    nan[1, 1] = np.nan
    files = [
        ("embeddings", npy(rows[:3], scratch)),
        ("embeddings", npy(rows.astype(np.float64), scratch)),
        ("embeddings", npy(np.asfortranarray(rows), scratch)),
        ("embeddings", npy(rows * 2, scratch)),
        ("embeddings", npy(nan, scratch)),
        ("embeddings", npy(rows, scratch)[:-4]),
        ("embeddings", npy(np.array([object()] * 4), scratch)),
        ("tickets", "\n".join([*table[:-1], table[-2]]).encode()),
        ("tickets", "\n".join([*table[:-1], table[-2].lower()]).encode()),  # an id in another spelling
        ("tickets", "\n".join(table[:-1]).encode()),
        ("tickets", "\n".join([*table[:-1], "a,b"]).encode()),
        ("tickets", "\n".join(["id,text", *table[1:]]).encode()),
        ("tickets", b"\xff" + originals[next(folder.glob("tickets-*"))]),
        ("words", originals[next(folder.glob("words-*"))][:-1]),
        ("words", b"junk"),
    ]
    for kind, data in files:
        resealed(folder, lambda record: None, kind, data)
        assert kind in refused(folder)
        for path, whole in originals.items():
            path.write_bytes(whole)
    secret = tmp_path / "secret.npy"
    secret.write_bytes(npy(rows, scratch))
    seal = {"size": secret.stat().st_size, "sha256": hashlib.sha256(secret.read_bytes()).hexdigest()}
    changes: list[Callable[[dict[str, dict[str, object]]], object]] = [
        lambda record: record["files"].update(embeddings={"name": "../secret.npy", **seal}),
        lambda record: record["files"].update(embeddings={"name": str(secret), **seal}),
        lambda record: record["files"].pop("tickets"),
        lambda record: record.update(dims=5.0),
        lambda record: record.update(prefix=6),
        lambda record: record.update(candidates=0),
        lambda record: record.update(tickets="4"),
        lambda record: record.update(novelty=1),
        lambda record: record.update(model=[]),
        lambda record: record.update(files=[]),
        lambda record: record.update(type="int8"),  # without ranges
        lambda record: record.update(type="int4"),
    ]
    for change in changes:
        resealed(folder, change)
        assert "index.json" in refused(folder)
        (folder / "index.json").write_bytes(originals[folder / "index.json"])
    resealed(folder, lambda record: None)  # the control: it is not the rewriting that is refused
    assert len(Index.open(folder, model=None).ids) == 4
    ranges = np.stack([rows.min(axis=0), rows.max(axis=0)])
    small = write(tmp_path / "small", rows, type="int8")
    for wrong in (ranges[::-1].copy(), ranges * np.float32(np.nan), ranges[:, :4], ranges.astype(np.float64)):
        resealed(small, lambda record: None, "ranges", npy(wrong, scratch))
        assert "ranges" in refused(small)
    resealed(small, lambda record: None, "ranges", npy(ranges, scratch))
    assert len(Index.open(small, model=None).ids) == 4


# ---- updates


@pytest.fixture(scope="module")
def encoder_folder(tiny_model: Callable[[str], Path]) -> Path:
    return tiny_model("mpnet")


class Ledger:
    """A file of tickets, and the texts that were embedded for it."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.file, self.index, self.model, self.embedded = folder / "tickets.csv", folder / "index", model, [""]

    def update(self, tickets: dict[str, str], states: dict[str, str] | None = None, **options: object) -> Update:
        with self.file.open("w", newline="", encoding="utf-8") as file:
            rows = [(name, text, (states or {}).get(name, "open")) for name, text in tickets.items()]
            csv.writer(file).writerows([("number", "description", "state"), *rows])
        self.embedded.clear()
        return update_index(IndexRequest(str(self.model), str(self.file), self.index, **options))

    def rows(self) -> dict[str, np.ndarray]:
        stored = read_index(self.index)
        return {ticket.id: stored.embeddings[row] for row, ticket in enumerate(stored.tickets())}


@pytest.fixture
def ledger(tmp_path: Path, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    made, tokenize = Ledger(tmp_path, encoder_folder), Encoder.tokenize

    def noted(self: Encoder, texts: list[str], *rest: object, **options: object) -> object:
        made.embedded.extend(texts)
        return tokenize(self, texts, *rest, **options)

    monkeypatch.setattr(Encoder, "tokenize", noted)
    monkeypatch.setattr(updating, "PART", 2)
    yield made


TICKETS = {f"INC{row}": f"{text} on machine {row}" for row, text in enumerate(["vpn drops", "disk is full"] * 3)}


@pytest.mark.slow
def test_only_new_and_changed_texts_are_embedded(ledger: Ledger, encoder_folder: Path) -> None:
    first = ledger.update(TICKETS | {"INC6": TICKETS["INC0"]})
    assert sorted(ledger.embedded) == sorted(TICKETS.values())  # the copy once
    assert (first.added, first.embedded, first.contents.tickets) == (7, 6, 7)
    again = ledger.update(TICKETS)
    assert not ledger.embedded and (again.unchanged, again.kept, again.contents) == (6, 1, first.contents)
    changed = TICKETS | {"inc1": "mail bounces", "INC9": TICKETS["INC1"]}  # inc1 is INC1
    del changed["INC1"]
    assert ledger.update(changed)[1:6] == (1, 1, 5, 0, 1) and ledger.embedded == ["mail bounces"]
    # What came of it is what a new index would hold.
    updated, twin = ledger.rows(), Ledger(ledger.file.parent / "twin", encoder_folder)
    twin.file.parent.mkdir()
    twin.update(changed | {"INC6": TICKETS["INC0"]})
    assert updated.keys() == twin.rows().keys()
    for name, row in twin.rows().items():
        assert np.abs(updated[name] - row).max() < 1e-6
    encoder = Index.open(ledger.index).encoder
    assert encoder is not None
    alone = encoder.encode(["mail bounces"], side="document", normalize=True)[0]
    assert np.abs(updated["inc1"] - alone).max() < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("type", TYPES[1:])
def test_an_update_keeps_type_and_ranges(ledger: Ledger, type: str, capsys: pytest.CaptureFixture[str]) -> None:
    first = ledger.update(TICKETS, type=type)
    old = read_index(ledger.index)
    before = {ticket.id: old.embeddings[row].tobytes() for row, ticket in enumerate(old.tickets())}
    second = ledger.update(TICKETS | {"INC9": "nothing like the others, in other words: holiday request"})
    assert ledger.embedded == ["nothing like the others, in other words: holiday request"]
    new = read_index(ledger.index)
    after = {ticket.id: new.embeddings[row].tobytes() for row, ticket in enumerate(new.tickets())}
    assert new.contents.type == type and before.items() <= after.items()  # to the bit
    if type == "int8":
        assert old.type.ranges is not None and (new.type.ranges == old.type.ranges).all()
        print_update(second, ledger.index)
        assert first.clipped == 0 < second.clipped and "calibrate anew" in capsys.readouterr().err.replace("\n", " ")
    with pytest.raises(InputError, match="leave --type out"):
        ledger.update(TICKETS, type="float32")


@pytest.mark.slow
def test_tickets_leave_when_they_are_asked_to(ledger: Ledger) -> None:
    ledger.update(TICKETS)
    assert ledger.update({"INC0": TICKETS["INC0"]}).kept == 5 and len(ledger.rows()) == 6
    closed = ledger.update(TICKETS, {"INC2": "Closed", "INC3": "cancelled"}, remove="state=closed, Cancelled")
    assert closed.removed == 2 and ledger.rows().keys() == TICKETS.keys() - {"INC2", "INC3"}
    blank = {"INC4": "", "inc5": " "}  # in the file, so not missing
    missing = ledger.update({"INC0": TICKETS["INC0"], "INC7": "new one", **blank}, remove_missing=True)
    assert (missing.removed, missing.kept) == (1, 2) and ledger.rows().keys() == {"INC0", "INC7", "INC4", "INC5"}
    missing = ledger.update({"INC0": TICKETS["INC0"], "INC7": "new one"}, remove_missing=True)
    assert missing.removed == 2 and ledger.rows().keys() == {"INC0", "INC7"}
    before = ledger.rows()
    with pytest.raises(InputError, match="no ticket would be left"):
        ledger.update({"INC0": "x y", "INC7": "z"}, {"INC0": "closed", "INC7": "closed"}, remove="state=closed")
    assert ledger.rows().keys() == before.keys()
    for nothing in ("state", "state=", "state= ,"):
        with pytest.raises(InputError, match="COLUMN=VALUE"):
            ledger.update(TICKETS, remove=nothing)
    blank = ledger.update(
        {"INC0": TICKETS["INC0"], "INC7": "z"}, {"INC0": "", "INC7": "closed"}, remove="state=closed,"
    )
    assert blank.removed == 1 and ledger.rows().keys() == {"INC0"}


def test_what_keeps_tickets_out_is_said(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    ledger.file.write_text("number,description\nINC1,vpn down\ninc1,again\nINC2,\n,no id\n")
    update = update_index(IndexRequest(str(ledger.model), str(ledger.file), ledger.index))
    assert update.facts == {"repeated": 1, "without_text": 1, "without_id": 1} and update.contents.tickets == 1
    states = {"INC1": "Open", "INC2": "Closed"}
    ledger.update({"INC1": "vpn down", "INC2": "x"}, states, remove="state=CLOSED,Canceled")
    assert f"{ledger.file}: no row has state = 'Canceled'; it has 'Open', 'Closed'\n" == capsys.readouterr().err
    ledger.file.write_text("description\nvpn down\n")
    with pytest.raises(InputError, match="--number-column"):
        update_index(IndexRequest(str(ledger.model), str(ledger.file), ledger.index))
    capsys.readouterr()
    assert cli(["index", "--model=m", f"--tickets={ledger.file}", "--output=t.CSV"]) == 2
    assert capsys.readouterr().err == (
        "error: --output t.CSV: would be a folder, called as a file is: name a folder, as in tickets.index\n"
    )


@pytest.mark.slow
def test_a_kill_at_any_moment_loses_no_finished_work(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.update({"INC0": "vpn drops", "INC1": "mail bounces"})
    before, replace = ledger.rows(), Path.replace
    changed = TICKETS | {"INC8": "a longer text that comes first of all since it is long"}
    finished: set[str] = set()
    for deaths in range(20):
        calls = 0

        def dies(self: Path, target: Path, deaths: int = deaths) -> Path:
            nonlocal calls
            calls += 1
            if calls > deaths // 2 + 1:  # so many files are finished at this start
                raise Killed
            return replace(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", dies)
            (ledger.index / f".index.json.{deaths}.tmp").write_text("half")  # what a real kill leaves
            try:
                ledger.update(changed)
            except Killed:
                assert ledger.rows().keys() == before.keys()  # the old index is whole
                Index.open(ledger.index, model=None)
            else:
                break
        assert not finished & set(ledger.embedded), "embedded a second time"
        finished = {*finished, *ledger.embedded[: 2 * (deaths // 2 + 1)]}
    else:
        pytest.fail("never finished")
    assert ledger.rows().keys() == changed.keys()
    assert {path.name.split("-")[0] for path in ledger.index.iterdir()} == {
        ".lock", "index.json", "embeddings", "tickets", "words"
    }  # fmt: skip


def test_a_damaged_part_is_embedded_again(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(updating, "measure_reach", lambda rows, **_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            ledger.update(TICKETS)
    parts = sorted((ledger.index / "parts").iterdir())
    assert len(parts) == 3
    with pytest.raises(InputError, match="unfinished"):
        Index.open(ledger.index, model=None)
    data = bytearray(parts[1].read_bytes())
    data[-1] ^= 1
    parts[1].write_bytes(data)
    update = ledger.update(TICKETS)
    assert (update.embedded, update.resumed, len(ledger.embedded)) == (6, 4, 2)
    assert ledger.rows().keys() == TICKETS.keys()


@pytest.mark.slow
def test_a_model_a_width_and_a_preparation_stay_those_of_the_index(
    ledger: Ledger, tiny_model: Callable[[str], Path]
) -> None:
    ledger.update(TICKETS, dims=32)
    other = tiny_model("bert")
    files = {path.name: path.read_bytes() for path in ledger.index.iterdir()}
    for options in ({"dims": 16}, {"dims": 99}, {"clean": False}, {"mask": True}):
        with pytest.raises(InputError, match=r"new folder|at most so many"):
            ledger.update(TICKETS | {"INC9": "x"}, **options)
    ledger.model = other
    with pytest.raises(InputError, match="another model"):
        ledger.update(TICKETS | {"INC9": "x"})
    with pytest.raises(InputError, match="another model"):
        Index.open(ledger.index, model=str(other))
    assert files == {path.name: path.read_bytes() for path in ledger.index.iterdir()}
    assert read_index(ledger.index).contents.dims == 32


def test_a_folder_of_other_things_is_not_written_to(ledger: Ledger) -> None:
    ledger.index.mkdir()
    (ledger.index / "letter.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"letter\.txt"):
        ledger.update(TICKETS)
    assert [path.name for path in ledger.index.iterdir()] == ["letter.txt"]


def test_queries_are_prepared_as_tickets_are(ledger: Ledger) -> None:
    mail = "Dear team,\n\nvpn drops for jo.doe@example.org\n\nBest regards\nJo"
    ledger.update({"INC1": mail, "INC2": "disk is full"}, mask=True)
    index = Index.open(ledger.index)
    assert index.texts[0] == "vpn drops for <email>"
    (hits,) = index.search([mail], top=1, words=False)
    assert hits[0].id == "INC1" and hits[0].cosine == pytest.approx(1, abs=1e-5)
    with pytest.raises(InputError, match="empty"):
        index.search(["vpn", " "])
    with pytest.raises(InputError, match="top = 0"):
        index.search(["  "], top=0)  # said before anything is done to the texts


# ---- the commands


@pytest.mark.slow
def test_the_commands_go_from_tickets_to_answers(
    ledger: Ledger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    others = {"INC1": "the printer on floor 2 is jammed", "INC2": "cannot send mail, it bounces"}
    ledger.update({"INC0": "vpn drops every hour", **others, "INC7": "vpn drops every hour"})
    index = f"--index={ledger.index}"
    assert cli(["search", index, "--text", "vpn drops", "--text", "disk", "--top=2"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["query"] for line in lines] == ["vpn drops", "disk"]
    assert [hit["rank"] for hit in lines[0]["results"]] == [1, 2] and set(lines[0]["results"][0]) == {
        "rank", "id", "cosine", "score", "text"
    }  # fmt: skip
    assert cli(["search", index, f"--tickets={ledger.file}", "--exact", "--without-bm25", "--top=1"]) == 0
    found = {line["ticket"]: line["results"][0] for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert found["INC0"]["id"] == "INC7" and found["INC7"]["id"] == "INC0"  # never itself
    assert found["INC0"]["cosine"] == pytest.approx(1, abs=1e-5)
    asking = ledger.file.with_name("asking.csv")  # without numbers, and a row that says nothing
    asking.write_text('description,group\nvpn drops,net\n"",net\nprinter is jammed,print\n')
    assert cli(["search", index, f"--tickets={asking}", "--top=1"]) == 0
    said = capsys.readouterr()
    assert [json.loads(line)["ticket"] for line in said.out.splitlines()] == ["row 1", "row 3"]
    assert "Rows left out: 1 have no text" in said.err
    assert cli(["search", index, "--text", "[bold]vpn\x1b[31m", "--format=table"]) == 0
    said = capsys.readouterr()
    assert "[bold]vpn" in said.out and "\x1b" not in said.out and "exact" in said.err
    assert cli(["duplicates", index, "--threshold=0.9999"]) == 0
    said = capsys.readouterr()
    (group,) = map(json.loads, said.out.splitlines())
    assert group["tickets"] == ["INC0", "INC7"] and "1 groups hold 2 of 4" in said.err
    assert cli(["duplicates", index, "--alerts-per-ticket=1", "--format=table"]) == 0
    assert "Group 1:" in capsys.readouterr().out
    for arguments in (
        ["search", index],
        ["search", index, "--text=x", "--tickets=y"],
        ["duplicates", index],
        ["search", "--index=nowhere", "--text=x"],
        ["duplicates", f"--index={ledger.file.parent}", "--threshold=0.5"],
        ["index", "--model=x", "--tickets=y", "--output=z", "--dims=0"],
    ):
        assert cli(arguments) == 2, arguments
        assert capsys.readouterr().err.count("\n") == 1
    contents = ledger.index / "index.json"
    contents.write_bytes(contents.read_bytes()[:-9])
    assert cli(["search", index, "--text=x"]) == 4 == cli(["duplicates", index, "--threshold=0.5"])
    assert capsys.readouterr().err.count("\n") == 2
    monkeypatch.setattr(updating, "update_index", lambda request: (_ for _ in ()).throw(Stopped("")))
    assert cli(["index", "--model=x", "--tickets=y", f"--output={ledger.index}"]) == 75
    assert "the same command goes on" in capsys.readouterr().err
