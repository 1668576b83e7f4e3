"""Neighbours found block by block, beside the whole product."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize

from trainer.errors import InputError
from trainer.mining import neighbours as similarity
from trainer.mining.neighbours import Candidates, Similarity, similar_pairs
from trainer.text.cleaning import STOP_WORDS
from trainer.text.tfidf import as_columns, cosines_with, pair_cosines, tfidf_matrix


def random_rows(seed: int, rows: int = 700, terms: int = 300) -> csr_matrix:
    """Rows of length 1 over terms of very different frequency, as words have."""
    random = np.random.default_rng(seed)
    chosen = random.random((rows, terms)) < 1 / (1 + np.arange(terms))
    return csr_matrix(
        normalize(chosen * random.random((rows, terms)) * np.sqrt(1 + np.arange(terms))), dtype=np.float32
    )


def as_set(found: Candidates) -> set[tuple[int, int]]:
    return set(zip(found.first.tolist(), found.second.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("floor", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("dense", [False, True])
def test_all_pairs_from_the_floor_up_are_found(seed: int, floor: float, dense: bool, monkeypatch) -> None:
    monkeypatch.setattr(similarity, "SPARSE_ROWS", 64)  # many blocks, and edges of others within them
    monkeypatch.setattr(similarity, "SPARSE_OTHERS", 100)
    monkeypatch.setattr(similarity, "DENSE_ROWS", 64)
    matrix = random_rows(seed)
    whole = (matrix @ matrix.T).toarray()
    first, second = np.nonzero(np.triu(whole, 1) >= floor)
    found = similar_pairs(matrix.toarray() if dense else matrix, floor)
    # Sums in another order differ in the last bit: right at the floor either answer is right.
    edge = {pair for pair in zip(first.tolist(), second.tolist(), strict=True) if abs(whole[pair] - floor) < 1e-6}
    expected = set(zip(first.tolist(), second.tolist(), strict=True))
    assert as_set(found) - edge == expected - edge and len(expected) > 20
    np.testing.assert_allclose(found.cosine, whole[found.first, found.second], atol=1e-6)
    assert len(as_set(found)) == len(found) and sorted(as_set(found)) == list(
        zip(found.first, found.second, strict=True)
    )


def test_the_index_leaves_out_the_commonest_terms_and_as_much_as_it_may() -> None:
    matrix = random_rows(0)
    kept = similarity.without_common_terms(matrix, 0.3)
    dropped = matrix - kept
    lengths = np.sqrt(np.asarray(dropped.multiply(dropped).sum(axis=1))).ravel()
    assert lengths.max() <= 0.3 + 1e-6 and kept.nnz < 0.9 * matrix.nnz
    frequency = np.bincount(matrix.indices, minlength=matrix.shape[1])
    for row in range(50):
        gone, stays = dropped[row].indices[dropped[row].data > 0], kept[row].indices
        assert not len(gone) or frequency[gone].min() >= frequency[stays].max()


def test_choose_sees_each_row_whole() -> None:
    def best(found: Candidates) -> Candidates:
        order = np.lexsort((-found.cosine, found.first))
        starts = np.unique(found.first[order], return_index=True)[1]
        return found.take(order[starts])

    matrix = random_rows(1)
    every, top = similar_pairs(matrix, 0.3), similar_pairs(matrix, 0.3, best)
    expected = {row: every.cosine[every.first == row].max() for row in np.unique(every.first)}
    assert dict(zip(top.first.tolist(), top.cosine.tolist(), strict=True)) == pytest.approx(expected)


def test_tfidf_is_scikit_learns_on_the_words_that_count() -> None:
    texts = [f"the {word} printer {word}s and hums" for word in ("jam", "stop", "burn", "jam")] * 30 + [
        "打印机坏了"
    ] * 6
    matrix = tfidf_matrix(texts)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix.multiply(matrix).sum(axis=1), 1, atol=1e-6)
    peer = TfidfVectorizer(
        stop_words=sorted(STOP_WORDS), sublinear_tf=True, min_df=2, token_pattern=r"\b[a-z]{2,}\b|[一-鿿]"
    )
    expected = peer.fit_transform(texts)
    np.testing.assert_allclose((matrix @ matrix.T).toarray(), (expected @ expected.T).toarray(), atol=1e-6)
    assert (matrix @ matrix.T)[0, 1] < 1  # "the" and "and" tell nothing, the rest does


def test_texts_without_a_common_word_are_an_input_error() -> None:
    with pytest.raises(InputError, match="share no words"):
        tfidf_matrix(["and the", "is", ""])


def test_without_scikit_learn_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(InputError, match=r"\[mine\]"):
        tfidf_matrix(["a b", "a b"])


@pytest.mark.parametrize("dense", [False, True])
def test_cosines_of_pairs_and_of_blocks_are_the_product(dense: bool) -> None:
    sparse = random_rows(2, rows=50)
    matrix = sparse.toarray() if dense else sparse
    whole = (sparse @ sparse.T).toarray()
    first, second = np.random.default_rng(0).integers(0, 50, (2, 200))
    np.testing.assert_allclose(pair_cosines(matrix, first, second), whole[first, second], atol=1e-6)
    rows, others = np.array([3, 1, 7]), np.arange(10, 40)
    np.testing.assert_allclose(
        cosines_with(matrix, rows, as_columns(matrix, others)), whole[np.ix_(rows, others)], atol=1e-6
    )
    assert len(pair_cosines(matrix, first[:0], second[:0])) == 0


def test_where_both_judge_positives_take_the_lower_and_negatives_the_higher() -> None:
    one, two = random_rows(3, rows=120), random_rows(4, rows=120).toarray()
    both = Similarity({"tfidf": one, "encoder": two})
    low = np.minimum((one @ one.T).toarray(), two @ two.T)
    high = np.maximum((one @ one.T).toarray(), two @ two.T)
    found = both.pairs(0.15, lambda candidates: candidates)
    assert as_set(found) == set(zip(*map(np.ndarray.tolist, np.nonzero(np.triu(low, 1) >= 0.15)), strict=True))
    assert len(found) > 5
    np.testing.assert_allclose(both.alike(found.first, found.second), found.cosine, atol=1e-6)
    np.testing.assert_allclose(both.closest(np.arange(5), both.as_columns(np.arange(120))), high[:5], atol=1e-6)
