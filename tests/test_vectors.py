"""Given vectors as a teacher: the same negatives as the model that made them, and every fault."""

import numpy as np
import pytest

from nvret import data, mining, negatives, teachers
from nvret.io import vectors
from nvret.io.vectors import VectorTeacher
from nvret.scale.faiss_index import Index
from nvret.utils.errors import NvretError


@pytest.fixture(scope="module")
def dataset():
    whole = data.load("squadshifts-nyt", progress=False)
    return whole.select(whole.queries["id"].to_pylist()[:50])


@pytest.fixture(scope="module")
def made(dataset):
    return teachers.prepare("potion-base-8m", dataset, progress=False)


@pytest.fixture
def files(made, tmp_path):
    np.save(tmp_path / "q.npy", made.queries)
    np.save(tmp_path / "c.npy", made.corpus)
    return tmp_path / "q.npy", tmp_path / "c.npy"


COLUMNS = ["query_id", "positive_id", "negative_id", "rank", "score", "positive_score"]


def mined(dataset, teacher):
    method = mining.TopKPercPos(0.9)
    found = mining.mine(dataset, teacher, method, near_duplicates=None, progress=False)
    return found.select(COLUMNS)


@pytest.mark.parametrize("kind", ["<f4", "<f8", "f2"])
def test_the_models_vectors_mine_the_models_negatives(dataset, made, files, kind):
    lengths = np.random.default_rng(0).uniform(0.5, 2.0, (2, 1, 1))
    for path, array, length in zip(files, (made.queries, made.corpus), lengths, strict=True):
        np.save(path, (array * length).astype(kind))
    given, wanted = mined(dataset, VectorTeacher(*files)), mined(dataset, made)
    scores = given["score"].to_numpy(), wanted["score"].to_numpy()
    if kind != "f2":  # where rounding may change ranks
        assert given.drop(["score", "positive_score"]).equals(
            wanted.drop(["score", "positive_score"])
        )
        np.testing.assert_allclose(*scores, atol=2e-6)
    else:
        np.testing.assert_allclose(np.sort(scores[0])[-50:], np.sort(scores[1])[-50:], atol=2e-3)


def test_unit_vectors_are_not_copied(dataset, made, files):
    scorer = VectorTeacher(*files).prepare(dataset)
    assert isinstance(scorer.corpus, np.memmap)
    assert mined(dataset, VectorTeacher(*files)).equals(mined(dataset, made))


def test_without_normalising_scores_are_dot_products(dataset, made, files):
    np.save(files[1], 3 * made.corpus)
    scorer = VectorTeacher(*files, normalise=False).prepare(dataset)
    rows = np.arange(5)
    wanted = 3 * np.einsum("pd,pd->p", made.queries[:5], made.corpus[:5])
    np.testing.assert_allclose(scorer.pair_scores(rows, rows), wanted, rtol=1e-5)
    assert scorer.fingerprint != VectorTeacher(*files).prepare(dataset).fingerprint


def test_an_approximate_index(dataset, files):
    pytest.importorskip("faiss")
    found = mining.mine(
        dataset, VectorTeacher(*files, index=Index("HNSW32")), mining.NaiveTopK(), progress=False
    )
    assert negatives.provenance(found)["search"]["recall"] > 0.9


def test_the_fingerprint_is_of_the_content(dataset, made, files, tmp_path):
    first = VectorTeacher(*files).prepare(dataset).fingerprint
    np.save(tmp_path / "other.npy", made.corpus)
    assert VectorTeacher(files[0], tmp_path / "other.npy").prepare(dataset).fingerprint == first
    changed = made.corpus.copy()
    changed[7] = changed[8]
    np.save(files[1], changed)
    assert VectorTeacher(*files).prepare(dataset).fingerprint != first


def spoilt(array, row, value):
    array = array.copy()
    array[row] = value
    return array


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a: a[:-1], r"c\.npy has \d+ rows, expected \d+: one for each of passages"),
        (lambda a: a[:, :-1], r"vectors of 256 numbers and .*c\.npy of 255, expected as many"),
        (lambda a: spoilt(a, (20000 % len(a), 3), np.nan), r"c\.npy: row {nan} is not finite"),
        (lambda a: spoilt(a, 4, np.inf), r"c\.npy: row 5 is not finite"),
        (lambda a: spoilt(a.astype(np.float64), 4, 1e300), r"c\.npy: row 5 is not finite"),
        (lambda a: spoilt(a, 0, 0.0), r"c\.npy: row 1 is zero"),
        (lambda a: spoilt(a.astype(np.float64), 0, 1e-300), r"c\.npy: row 1 is zero"),
        (lambda a: (a * 100).astype(np.int8), r"c\.npy holds int8, expected floats"),
        (lambda a: a.astype(np.complex64), r"c\.npy holds complex64, expected floats"),
        (lambda a: a[0], r"c\.npy has the shape \(256,\), expected a row for each vector"),
        (lambda a: a[:, :0], r"c\.npy has the shape"),
    ],
)
def test_faults(dataset, made, files, spoil, message):
    np.save(files[1], spoil(made.corpus))
    message = message.replace("{nan}", str(20000 % len(made.corpus) + 1))
    with pytest.raises(NvretError, match=message):
        VectorTeacher(*files).prepare(dataset)


HEAD = b"\x93NUMPY\x01\x00"


@pytest.mark.parametrize("content", [b"", b"no array", HEAD, HEAD + b"\x02\0{\n", b"PK\x03\x04"])
def test_files_that_are_no_array(tmp_path, content):
    (tmp_path / "c.npy").write_bytes(content)
    with pytest.raises(NvretError, match=r"c\.npy: no array of NumPy"):
        vectors.read(tmp_path / "c.npy", 3, "passages")


def test_pickles_and_archives_are_refused(tmp_path):
    np.save(tmp_path / "c.npy", np.array([{}, None], object), allow_pickle=True)
    with pytest.raises(NvretError, match="no array of NumPy"):
        vectors.read(tmp_path / "c.npy", 2, "passages")
    np.savez(tmp_path / "c.npz", np.ones((2, 2)))
    with pytest.raises(NvretError, match="an archive of arrays"):
        vectors.read(tmp_path / "c.npz", 2, "passages")
    with pytest.raises(NvretError, match="no such file, expected an array of NumPy"):
        vectors.read(tmp_path / "none.npy", 2, "passages")
