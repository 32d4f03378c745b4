"""The slider: what the table shows is what mining takes."""

import pandas as pd
import pytest

from helpers import hostile
from nvret import data, mining, teachers
from nvret.analysis import slider
from nvret.utils.errors import NvretError


@pytest.fixture(scope="module")
def ranked():
    """A real question, its ranked candidates and the positive's score."""
    dataset = data.load("squadshifts-nyt")
    scorer = teachers.prepare("bm25", dataset, progress=False)
    positive = int(dataset.positives[0][0])
    found = scorer.top_k([0], 500, exclude=[dataset.positives[0]])
    score = float(scorer.pair_scores([0], [positive])[0])
    rows = [row for row in found.ids[0].tolist() if row >= 0]
    table = pd.DataFrame({"score": found.scores[0][: len(rows)].tolist(), "row": rows})
    table["passage"] = [dataset.passages[row] for row in rows]
    table.index += 1
    return dataset, scorer, table, score


@pytest.mark.parametrize("perc", [0.3, 0.5, 0.95, 1.2])
def test_the_verdicts_are_those_of_mining(ranked, perc):
    dataset, scorer, table, score = ranked
    found = slider.verdicts(table["score"], score, perc)
    mined = mining.mine(
        dataset, scorer, mining.TopKPercPos(perc), 4, near_duplicates=None,
        exclude=dataset.positives, progress=False,
    ).to_pandas()  # fmt: skip
    first = mined[mined["query_id"] == dataset.queries["id"][0].as_py()]
    ids = dataset.corpus["id"].to_pylist()
    assert [ids[row] for row in table.loc[found == "negative", "row"]] == (
        first["negative_id"].tolist()
    )


def test_moving_the_slider_changes_the_table(ranked):
    _, _, table, score = ranked
    view = slider.slider(table, score)
    chosen, shown = view.children
    before = shown.value
    chosen.value = 0.6
    assert shown.value != before
    assert shown.value == slider.page(table, score, 0.6)
    assert f"{score * 0.6:.3f}" in shown.value


def test_texts_are_escaped():
    table = pd.DataFrame({"score": [0.5], "passage": ["<script>alert(1)</script> & more"]})
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in slider.page(table, 1.0, 0.9)


def test_no_text_id_or_column_is_live():
    rows = {"score": [0.5] * len(hostile.TEXTS), hostile.ALL: hostile.TEXTS}
    page = slider.page(pd.DataFrame(rows, index=hostile.TEXTS), 1.0, 0.9)
    hostile.check(page)
    assert page.count("window.hostile = 1") == 3 * 4  # of the column, the index, and the cells


def test_scores_must_fall():
    with pytest.raises(NvretError, match="best candidate first"):
        slider.verdicts(pd.Series([0.1, 0.2]), 1.0, 0.9)
