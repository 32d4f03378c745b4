"""The ceiling for a target: what each parameter takes, how near each source comes to the truth."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from helpers.mining import MatrixTeacher
from nvret import cli, mining
from nvret.analysis import audit, calibrate
from nvret.analysis import ladder as rungs
from nvret.data import from_texts
from nvret.utils.errors import NvretError


def world(queries=400, passages=300, relevant=3, seed=0):
    """Queries with several relevant passages, scored by noise around .8, others around .45.

    The data set knows one of them, the first; the labels know all.
    """
    rng = np.random.default_rng(seed)
    scores = rng.normal(0.45, 0.1, (queries, passages)).astype(np.float32)
    positives = []
    for query in range(queries):
        rows = rng.choice(passages, relevant, replace=False)
        scores[query, rows] = rng.normal(0.75, 0.08, relevant)
        positives.append(sorted(rows.tolist()))
    texts = [f"passage number {n} of {passages}" for n in range(passages)]
    whole = from_texts("world", texts, [f"question {n}" for n in range(queries)], positives)
    return whole, MatrixTeacher(scores)


def ladder(whole, teacher, family, num=4):
    hidden = audit.hide(whole)
    exclude = mining.exclusions(hidden.dataset, None)
    steps = rungs.build(hidden.dataset, teacher, family, num, exclude, pairs=10**6, progress=False)
    return hidden, exclude, steps


def truth(hidden, teacher, exclude, method, num=4):
    """The rate of hidden positives among what is mined with this method."""
    options = {"exclude": exclude, "near_duplicates": None, "negative_positives": "safe"}
    table = mining.mine(hidden.dataset, teacher, method, num, progress=False, **options)
    return table, audit.known(table, hidden).mean()


@pytest.mark.parametrize("family", list(rungs.FAMILIES))
def test_a_parameter_takes_what_mining_takes(family):
    whole, teacher = world(queries=60, passages=80)
    hidden, exclude, steps = ladder(whole, teacher, family)
    for place in (0, 5, 20, len(steps.parameters) - 1):
        method = rungs.method_of(family, steps.parameters[place])
        table, rate = truth(hidden, teacher, exclude, method)
        columns = steps.taken[place].indices
        names = rungs.names_of(steps)[columns]
        mined = pd.MultiIndex.from_frame(table.select(["query_id", "negative_id"]).to_pandas())
        assert sorted(names) == sorted(mined)
        known = rungs.is_one_of(steps, hidden.pairs)
        assert steps.rates(known.astype(float))[place] == pytest.approx(rate)


@pytest.mark.parametrize("family", list(rungs.FAMILIES))
def test_counted_rates_meet_the_target(family):
    whole, teacher = world()
    hidden, exclude, steps = ladder(whole, teacher, family)
    found = calibrate.by_hidden(steps, hidden, 0.05)
    _, rate = truth(hidden, teacher, exclude, found.method)
    assert rate == pytest.approx(found.rate.value)
    assert rate <= 0.05
    place = int(np.flatnonzero(steps.parameters == next(iter(vars(found.method).values())))[0])
    looser = rungs.method_of(family, steps.parameters[place - 1])
    assert truth(hidden, teacher, exclude, looser)[1] > 0.05
    assert found.rate.low <= found.rate.value <= found.rate.high
    assert found.curve["hardness"].is_monotonic_decreasing


def labels_of(pairs, hidden):
    known = audit.known(
        pa.table({"query_id": pairs["query_id"], "negative_id": pairs["corpus_id"]}), hidden
    )
    return pa.table({
        "query_id": pairs["query_id"].tolist(), "corpus_id": pairs["corpus_id"].tolist(),
        "score": known.astype(np.int32),
    })  # fmt: skip


@pytest.mark.parametrize("target", [0.03, 0.08])
@pytest.mark.parametrize("family", ["perc-pos", "margin-pos", "abs"])
def test_two_hundred_labels_come_near_the_target(family, target):
    misses = []
    for seed in range(4):
        whole, teacher = world(seed=seed)
        hidden, exclude, steps = ladder(whole, teacher, family)
        first = calibrate.sample(steps, target, 80, seed)
        labels = labels_of(first, hidden)
        second = calibrate.sample(steps, target, 120, seed, labels=labels)
        assert (len(first), first["query_id"].nunique(), len(second)) == (80, 80, 120)
        assert not set(first["candidate"]) & set(second["candidate"])
        labels = pa.concat_tables([labels, labels_of(second, hidden)])
        found = calibrate.by_labels(steps, labels, target, resamples=1)
        misses.append(truth(hidden, teacher, exclude, found.method)[1] - target)
        assert found.labelled[0] == 200
    assert np.abs(misses).mean() <= 0.02
    assert np.abs(misses).max() <= 0.035


def test_scores_alone_come_near_the_rate():
    """By symmetry, which holds over all pairs together, not for those of one score."""
    whole, teacher = world(queries=800)
    for family in ("perc-pos", "margin-pos"):
        hidden, _, steps = ladder(whole, teacher, family)
        counted = calibrate.by_hidden(steps, hidden, 0.05).curve
        rough = calibrate.by_scores(steps, 0.05).curve
        away = (rough["rate"] - counted["rate"])[5:]
        assert away.abs().max() <= 0.06


def test_a_target_that_nothing_meets_is_said():
    whole, teacher = world(queries=60, passages=40)
    hidden, _, steps = ladder(whole, teacher, "shifted")
    labels = hidden.pairs.append_column("score", pa.array([1] * len(hidden.pairs), pa.int32()))
    found = calibrate.by_labels(steps, labels, 0.0001)
    assert found.method is None
    assert "meets 0.0%" in calibrate.describe(found, "shifted")
    assert calibrate.record(found)["method"] is None


def test_labels_of_other_pairs_are_no_labels():
    whole, teacher = world(queries=40, passages=40)
    _, _, steps = ladder(whole, teacher, "perc-pos")
    labels = pa.table({"query_id": ["q0"], "corpus_id": ["p0"], "score": pa.array([1], pa.int32())})
    with pytest.raises(NvretError, match="of 1 labelled pairs are candidates"):
        calibrate.by_labels(steps, labels, 0.02)


@pytest.fixture
def own(tmp_path):
    """A set whose queries have one to three positives that share their words, as files."""
    rng = np.random.default_rng(0)
    words = [f"w{n}" for n in range(300)]
    passages, queries, positives = [], [], []
    for query in range(120):
        topic = rng.choice(words, 12, replace=False)
        rows = []
        for _ in range(1 + query % 3):
            rows.append(len(passages))
            passages.append(" ".join([*rng.permutation(topic)[:9], *rng.choice(words, 4)]))
        queries.append(" ".join(topic[:4]) + f" q{query}")
        positives.append(rows)
    whole = from_texts("own", passages, queries, positives)
    folder = tmp_path / "set"
    (folder / "qrels").mkdir(parents=True)
    for name, table in (("corpus", whole.corpus), ("queries", whole.queries)):
        rows = table.rename_columns({"id": "_id"}).to_pylist()
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lines = [f"{r['query_id']}\t{r['corpus_id']}\t{r['score']}" for r in whole.qrels.to_pylist()]
    header = "query-id\tcorpus-id\tscore"
    (folder / "qrels" / "test.tsv").write_text("\n".join([header, *lines]) + "\n")
    return folder, whole


def test_the_command_counts_hidden_positives(own, tmp_path, capsys):
    output = tmp_path / "answer.json"
    command = ["calibrate", "--data", str(own[0]), "--teacher", "bm25", "--target", "5%"]
    assert cli.main([*command, "--output", str(output)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("--method perc-pos --perc 0.")
    assert "hidden positives among" in out
    answer = json.loads(output.read_text())
    assert answer["rate"]["value"] <= 0.05
    assert answer["source"] == "hidden positives"
    assert len(answer["curve"]) == 51
    mine = ["mine", "--data", str(own[0]), "--teacher", "bm25", *out.split()[:4]]
    assert cli.main([*mine, "--output", str(tmp_path / "n.parquet")]) == 0


@pytest.mark.parametrize("name", ["ranked.parquet", "ranked.run"])
def test_scored_lists_give_their_teachers_answer(own, tmp_path, capsys, name):
    data, ranked = ["--data", str(own[0])], str(tmp_path / name)
    kind = ["--format", "trec"] if name.endswith(".run") else []
    assert cli.main(["rank", *data, "--teacher", "bm25", "--output", ranked, *kind]) == 0
    answers = []
    for number, scores in enumerate((["--teacher", "bm25"], ["--candidates", ranked])):
        output = tmp_path / f"{number}.json"
        command = ["calibrate", *data, *scores, "--target", "5%", "--output", str(output)]
        assert cli.main([*command, "--near-duplicates", "none"]) == 0
        answers.append(json.loads(output.read_text()))
    one, other = answers
    assert one["method"] == other["method"]
    assert one["rate"]["value"] > 0
    # A passage that scores as its positive does, but for rounding, may fall on either side of it
    curves = [[row["rate"] for row in each["curve"]] for each in answers]
    np.testing.assert_allclose(*curves, atol=0.005)
    capsys.readouterr()
    command = ["calibrate", *data, "--teacher", "bm25", "--candidates", ranked]
    assert cli.main(command) == 2
    assert "--candidates stands for a teacher" in capsys.readouterr().err


def test_the_command_takes_labels_or_a_judge(own, tmp_path, capsys):
    folder, whole = own
    first = whole.qrels.to_pandas().drop_duplicates("query_id")
    lines = "".join(f"{r.query_id}\t{r.corpus_id}\t1\n" for r in first.itertuples())
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines)
    command = ["calibrate", "--data", str(folder), "--teacher", "bm25", "--target", "0.1"]
    page = tmp_path / "label.html"
    assert cli.main([*command, "--sample", str(page), "--labelled", "100"]) == 0
    text = page.read_text()
    rows = json.loads(text.partition('id="pairs">')[2].partition("</script>")[0])
    assert len(rows) == 100
    assert set(rows[0]) == {"query_id", "corpus_id", "query", "positive", "passage"}
    true = {(r["query_id"], r["corpus_id"]) for r in whole.qrels.to_pylist()}
    judged = [(r["query_id"], r["corpus_id"]) for r in rows]
    labels = "".join(f"{q}\t{p}\t{int((q, p) in true)}\n" for q, p in judged)
    (tmp_path / "labels.tsv").write_text("query-id\tcorpus-id\tscore\n" + labels)
    capsys.readouterr()
    assert cli.main([*command, "--labels", str(tmp_path / "labels.tsv")]) == 0
    assert "by a model of 100 labelled pairs" in capsys.readouterr().out
    assert cli.main([*command, "--judge", "potion-base-8m", "--labelled", "60"]) == 0
    assert "by a model of 60 pairs that a judge has read" in capsys.readouterr().out
    assert cli.main(command) == 0
    assert "a rough estimate, by the scores alone" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "120%"], "not between 0% and 100%"),
        (["--target", "few"], "no share, expected 2% or 0.02"),
        (["--sample", "x.txt"], "expected .html"),
        (["--output", "x.csv"], "expected .json"),
        (["--labels", "none.tsv"], "none.tsv"),
        (["--labels", "none.tsv", "--judge", "minilm-l6"], "two sources"),
        (["--teacher", "potion-base-8m"], "need --ensemble"),
    ],
)
def test_bad_options_are_named(own, capsys, arguments, message):
    command = ["calibrate", "--data", str(own[0]), "--teacher", "bm25"]
    assert cli.main([*command, *arguments]) == 2
    assert message in capsys.readouterr().err
