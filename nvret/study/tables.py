"""Tables of a study, from its scores: means, paired differences, and one table a question."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from nvret import methods
from nvret.analysis import overlap, statistics
from nvret.analysis.statistics import Interval
from nvret.data import RetrievalDataset
from nvret.sampling import draw_rows, pair_keys
from nvret.study.scores import COLLAPSED, METRIC, Results
from nvret.teachers import Scorer

AVERAGE = "average"  # the mean over the test sets, each with the same weight
PLAIN = {family: str(kind()) for family, kind in methods.BY_NAME.items()}  # the paper's settings
OWN_SETTING = "as the profile says"
IDS = ["query_id", "positive_id", "negative_id"]
Sets = Mapping[str, np.ndarray]  # test set -> (seeds, queries)


def points(interval: Interval) -> dict[str, float]:
    """Value, low and high in points of NDCG@10."""
    return {key: 100 * number for key, number in interval._asdict().items()}


# Every arm of a study


def means(results: Results, metric: str = METRIC) -> pd.DataFrame:
    """Mean and 95 % interval over seeds and queries, for each arm and test set.

    The average is over the sets that all arms of a student are tested on; the development split
    and other corpora than the primary one are not in it.
    """
    rows = []
    for _, own in results.arms.groupby("student", sort=False):
        scores = {label: results.values(label, metric) for label in own.index}
        shared = [name for name in results.datasets if all(name in s for s in scores.values())]
        for label, sets in scores.items():
            others = results.values(label, metric, results.apart)
            seeds = len(next(iter(sets.values()), []))
            rows += [(label, *row, seeds) for row in _mean_rows(sets, shared, others, metric)]
    columns = ["arm", "dataset", "metric", "mean", "low", "high", "seeds"]
    return _with_arms(results, pd.DataFrame(rows, columns=columns))


def teacher_table(own: Mapping[str, Sets], tests: Sequence[str], dev: str) -> pd.DataFrame:
    """NDCG@10 of each teacher as a retriever, with its interval over the queries.

    ``own`` has ``Workspace.teacher_scores`` by teacher; ``tests`` count in the average.
    """
    rows = []
    for teacher, scores in own.items():
        sets, others = {name: scores[name] for name in tests}, {dev: scores[dev]}
        rows += [(teacher, *row) for row in _mean_rows(sets, tests, others, METRIC)]
    return pd.DataFrame(rows, columns=["teacher", "dataset", "metric", "mean", "low", "high"])


def _mean_rows(sets: Sets, shared: Sequence[str], others: Sets, metric: str) -> Iterator[tuple]:
    """(data set, metric, mean, low, high) of each set, the shared ones' average, and the others."""
    average = [sets[name] for name in shared]
    for dataset, values in {**sets, AVERAGE: average, **others}.items():
        if len(values):
            yield dataset, metric, *statistics.mean_interval(values)


def differences(results: Results, reference: str) -> pd.DataFrame:
    """Each arm less its student's ``reference``, paired by seed and query.

    ``p`` is Holm-adjusted over the arms of a student that are compared on one test set.

    Args:
        reference: a label without the student, such as "Naive Top-K". An arm in another setting is
            compared with the reference's method in that setting, if the study has it ("Naive
            Top-K, in-batch"); the column ``reference`` says with which.
    """
    rows, labels = [], set(results.arms.index)
    for label, (student, method) in results.arms[["student", "method"]].T.items():
        setting = label.removeprefix(f"{student}: {method}")
        own, plain = f"{reference.split(', ')[0]}{setting}", reference
        names = [name for name in (own, plain) if f"{student}: {name}" in labels - {label}]
        if not names:
            continue
        sets = results.contrast({label: 1, f"{student}: {names[0]}": -1})
        # Without a set that both are tested on there is no average
        average = {AVERAGE: list(sets.values())} if sets else {}
        for dataset, values in {**sets, **average}.items():
            found = statistics.estimate(values)
            rows.append((label, dataset, METRIC, names[0], *found.interval, found.p))
    columns = ["arm", "dataset", "metric", "reference", "difference", "low", "high", "p"]
    table = _with_arms(results, pd.DataFrame(rows, columns=columns))
    table["p"] = table.groupby(["student", "dataset"])["p"].transform(statistics.holm)
    return table


def _with_arms(results: Results, table: pd.DataFrame) -> pd.DataFrame:
    """The table with what its arms are; columns that are the same for all arms are left out."""
    arms = results.arms
    varied = [c for c in arms if c in ("student", "method") or arms[c].nunique(dropna=False) > 1]
    return table.merge(arms[varied], left_on="arm", right_index=True, how="left")


def cells(table: pd.DataFrame, value: str, form: str = ".3f") -> pd.Series:
    """``value [low, high]`` of each row, for reading."""
    return table.apply(
        lambda row: f"{row[value]:{form}} [{row['low']:{form}}, {row['high']:{form}}]", axis=1
    )


def wins(means: pd.DataFrame) -> pd.Series:
    """On how many test sets each arm has the highest mean."""
    rows = means[means["dataset"] != AVERAGE]
    best = rows.loc[rows.groupby("dataset")["mean"].idxmax(), "arm"]
    return best.value_counts().reindex(dict.fromkeys(means["arm"]), fill_value=0).rename("wins")


def compare(results: Results, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Each first arm less the second."""
    return pd.DataFrame(
        {"arm": a, "less": b, **results.difference(a, b)._asdict()} for a, b in pairs
    )


def between(results: Results, labels: Sequence[str]) -> pd.DataFrame:
    """Every two arms; ``p`` is Holm-adjusted over all of them."""
    pairs = list(itertools.combinations(labels, 2))
    p = statistics.holm([results.estimate({a: 1, b: -1}).p for a, b in pairs])
    return compare(results, pairs).assign(p=p)


def teachers_and_students(results: Results, teachers: pd.DataFrame, reference: str) -> pd.DataFrame:
    """A row a teacher and rule: its own NDCG@10, and its student's less the reference arm's.

    The rules are the paper's percentage, and the one that is best for this teacher on the
    development split. ``teachers`` is the ``teacher_table``.
    """
    own = teachers[teachers["dataset"] == AVERAGE].set_index("teacher")[["mean", "low", "high"]]
    rows = []
    for name, scores in own.add_prefix("teacher_").iterrows():
        labels = results.find(teacher=name, family="perc-pos", ensemble=None)
        at_95 = results.find(teacher=name, method=PLAIN["perc-pos"], ensemble=None)
        chosen = [("paper's 95 %", label) for label in at_95]
        if labels:
            chosen.append(("chosen on dev", results.best_on_dev(labels)))
        for rule, label in chosen:
            value, low, high = results.difference(label, reference)
            average = np.mean([values.mean() for values in results.values(label).values()])
            method = results.arms.at[label, "method"]
            rows.append(
                {"rule": rule, "teacher": name, "method": method, **scores.to_dict()}
                | {"student": float(average), "difference": value, "low": low, "high": high}
            )
    return pd.DataFrame(rows)


def sweep(results: Results, mined: pd.DataFrame, reference: str) -> pd.DataFrame:
    """A row a swept arm: points over the reference, negatives found, hardness, known positives.

    ``mined`` is that of ``Study.mined``; the reference is as in ``differences``.
    """
    rows = differences(results, reference)
    rows = rows[(rows["dataset"] == AVERAGE) & rows["parameter"].notna()].set_index("arm")
    rows = rows[["student", "method", "family", "parameter", "difference", "low", "high"]]
    rows[["difference", "low", "high"]] *= 100
    rows["filled"], rows["hardness"] = mined["share found"], hardness(mined)
    rows["false"] = mined["in the positive's cluster"]
    return rows.reset_index()


def hardness(mined: pd.DataFrame) -> pd.Series:
    """Each arm's mean negative score ÷ mean positive score; ``mined`` is that of ``Study.mined``.

    NaN where nothing was found.
    """
    return (mined["mean score"] / mined["mean positive score"]).rename("hardness")


def best_of_families(results: Results) -> pd.DataFrame:
    """For each family of methods the value that is best on the development split."""
    rows = []
    arms = results.arms[results.arms["parameter"].notna()]
    for (student, family), group in arms.groupby(["student", "family"], sort=False):
        if len(group) < 2:
            continue
        label = results.best_on_dev(list(group.index))
        value, sweep = group.at[label, "parameter"], group["parameter"]
        optimum = "an end" if value in (sweep.min(), sweep.max()) else "inner"
        interval = results.estimate({label: 1}).interval
        rows.append((student, family, label, value, optimum, *interval))
    columns = ["student", "family", "arm", "value", "optimum", "mean", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def learning_rates(results: Results) -> pd.DataFrame:
    """Each trained arm less its student's base model, on the development split, in points.

    The column ``chosen`` marks the arm of each student that is best there.
    """
    rows = []
    for student, group in results.arms.groupby("student", sort=False):
        (base,) = group.index[group["family"] == "base"]
        labels = [label for label in group.index if label != base]
        best = results.best_on_dev(labels)
        for label in labels:
            row = {"arm": label, "student": student, "chosen": label == best}
            row |= group.loc[label, ["temperature", "learning_rate"]].to_dict()
            rows.append(row | points(results.difference(label, base, [results.dev])))
    return pd.DataFrame(rows)


def families(results: Results) -> dict[tuple[str, str], dict[str, str]]:
    """(student, setting) -> family -> label of the arm with the paper's parameters.

    A setting is what the label says beside student and method. A family that the profile sweeps
    without the paper's value is there with its first one.
    """
    arms: dict[tuple[str, str], dict[str, str]] = {}
    for student in dict.fromkeys(results.arms["student"]):
        for label in results.find(student=student, family=list(methods.BY_NAME)):
            family, method = results.arms.loc[label, ["family", "method"]]
            rest = label.removeprefix(f"{student}: {method}").removeprefix(", ")
            labels = arms.setdefault((student, rest or OWN_SETTING), {})
            if family not in labels or method == PLAIN[family]:
                labels[family] = label
    return arms


def plain(results: Results, student: str) -> dict[str, str]:
    """Family -> label of the student's arm in its own setting; see ``families``."""
    return families(results).get((student, OWN_SETTING), {})


def orders(results: Results, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Each first family less the second, in points, for each student and setting with both."""
    return pd.DataFrame(
        row | points(results.difference(*arms)) for row, arms in _arm_pairs(results, pairs)
    )


def _arm_pairs(
    results: Results, pairs: Sequence[tuple[str, str]]
) -> Iterator[tuple[dict[str, str], tuple[str, str]]]:
    """Student, setting and name of each difference of two families, and the labels of its arms."""
    for (student, setting), arms in families(results).items():
        for a, b in pairs:
            if a in arms and b in arms:
                row = {"student": student, "setting": setting, "difference": f"{a} − {b}"}
                yield row, (arms[a], arms[b])


def by_twins(
    results: Results, test: RetrievalDataset, pairs: Sequence[tuple[str, str]]
) -> pd.DataFrame:
    """As ``orders`` in each student's own setting, on questions whose positive has a
    near-duplicate among the test passages, and on the others.

    The corpus of ``test``, the in-domain test set, has the column ``cluster``.
    """
    twin = test.corpus["cluster"].to_pandas().duplicated(keep=False).to_numpy()
    query_rows, positive_rows = test.pairs
    names = test.queries["id"].to_pandas().iloc[np.asarray(query_rows)[twin[positive_rows]]]
    inside = results.scores.loc[test.name].index.isin(names)
    rows = []
    for row, (a, b) in _arm_pairs(results, pairs):
        if row.pop("setting") != OWN_SETTING:
            continue
        values = results.contrast({a: 1, b: -1}, [test.name])[test.name]
        if values.shape[1] != len(inside):
            continue  # a student that is tested on fewer questions
        for kind, mask in {"with a twin": inside, "without": ~inside}.items():
            if mask.sum() > 1:
                number = {"questions": kind, "number": int(mask.sum())}
                rows.append(row | number | points(statistics.mean_interval(values[:, mask])))
    return pd.DataFrame(rows)


def by_corpus(results: Results, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """As ``orders``, in each corpus that the in-domain questions search.

    Returns:
        student, setting, test, corpus, passages (in it), difference, metric (NDCG@10, plain or
        with near-duplicates as one passage), and value, low, high in points.
    """
    rows = []
    for (student, setting), arms in families(results).items():
        own = results.corpora[results.corpora["student"] == student]
        places = own.set_index("dataset").to_dict("index")
        chosen = [pair for pair in pairs if set(pair) <= set(arms)]
        for dataset, (a, b), metric in itertools.product(places, chosen, (METRIC, COLLAPSED)):
            row = {**places[dataset], "setting": setting, "difference": f"{a} − {b}"}
            sets = results.contrast({arms[a]: 1, arms[b]: -1}, [dataset], metric)
            rows += [
                row | {"metric": metric, **points(statistics.mean_interval(values))}
                for values in sets.values()
            ]
    return pd.DataFrame(rows)


# Data, negatives, and the teachers' scales of scores


def sizes(dataset: RetrievalDataset) -> dict[str, float]:
    """Questions, passages, positives a question, and words of the texts."""
    words = [len(text.split()) for text in dataset.passages]
    return {
        "questions": dataset.queries.num_rows,
        "passages": dataset.corpus.num_rows,
        "positives a question": len(dataset.pairs[0]) / dataset.queries.num_rows,
        "words a question": float(np.mean([len(text.split()) for text in dataset.query_texts])),
        "words a passage": float(np.mean(words)),
        "words a passage, 95th percentile": float(np.percentile(words, 95)),
    }


def mined(
    dataset: RetrievalDataset, negatives: Mapping[str, pa.Table], num_negatives: int
) -> pd.DataFrame:
    """What was mined: how much of what was asked for, how near to the positive, how often above it.

    Args:
        dataset: what was mined from. Where its corpus has the column ``cluster``, negatives in the
            near-duplicate cluster of their positive are counted: derived false negatives.
        negatives: by method or arm.
        num_negatives: that were asked for, for each pair.
    """
    pairs, rows = len(dataset.pairs[0]), {}
    for method, table in negatives.items():
        frame = table.select([*IDS, "score", "positive_score"]).to_pandas()
        full = (frame.groupby(["query_id", "positive_id"]).size() >= num_negatives).sum()
        rows[method] = {
            "pairs": pairs,
            "pairs short": pairs - int(full),
            "negatives": len(frame),
            "share found": len(frame) / (pairs * num_negatives),
            "mean score": frame["score"].mean(),
            "mean positive score": frame["positive_score"].mean(),
            "above the positive": (frame["score"] > frame["positive_score"]).mean(),
        }
        if "cluster" in dataset.corpus.column_names:
            rows[method]["in the positive's cluster"] = _twins(dataset, frame).mean()
    return pd.DataFrame(rows.values(), index=pd.Index(rows, name="method"))


def _twins(dataset: RetrievalDataset, rows: pd.DataFrame) -> pd.Series:
    """Which negatives are in the near-duplicate cluster of their positive."""
    clusters = dataset.corpus["cluster"].to_pandas().set_axis(dataset.corpus["id"].to_pylist())
    return rows["negative_id"].map(clusters) == rows["positive_id"].map(clusters)


def differing(negatives: Iterable[tuple[str, pa.Table]]) -> pd.DataFrame:
    """Arms x arms: the share of the row's negatives that the column's arm does not have.

    A negative is a triple of query, positive and negative, kept as a hash of 64 bits.

    Args:
        negatives: (arm, table) one after the other, so that no two tables need to be in memory;
            without a negative, an arm is left out.

    >>> one, two = (pa.table({key: list(ids) for key, ids in zip(IDS, rows)})
    ...             for rows in (("qq", "pp", "ab"), ("qqq", "ppp", "bcd")))
    >>> differing({"one": one, "two": two}.items()).round(2).to_numpy().tolist()
    [[0.0, 0.5], [0.67, 0.0]]
    """
    from scipy.sparse import csr_array

    hashes = {}
    for arm, table in negatives:
        if table.num_rows:
            frame = table.select(IDS).to_pandas()
            hashes[arm] = np.unique(pd.util.hash_pandas_object(frame, index=False).to_numpy())
    if not hashes:
        return pd.DataFrame()
    columns = np.unique(np.concatenate(list(hashes.values())), return_inverse=True)[1]
    sizes = np.array([len(own) for own in hashes.values()])
    rows = np.repeat(np.arange(len(sizes)), sizes)
    member = csr_array((np.ones(len(rows), np.int64), (rows, columns)))
    shared = (member @ member.T).toarray()
    return pd.DataFrame(1 - shared / sizes[:, None], index=[*hashes], columns=[*hashes])


def jaccard_table(negatives: Mapping[str, Mapping[str, pa.Table]]) -> pd.DataFrame:
    """Jaccard similarity of every two teachers' first four negatives, in each training set."""
    rows = []
    for dataset, by_teacher in negatives.items():
        matrix = overlap.jaccard(list(by_teacher.values()))
        for (i, a), (j, b) in itertools.combinations(enumerate(by_teacher), 2):
            rows.append((a, b, dataset, matrix[i, j]))
    return pd.DataFrame(rows, columns=["teacher_a", "teacher_b", "dataset", "jaccard"])


def score_scale(
    dataset: RetrievalDataset, scorer: Scorer, exclude: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """A teacher's scores of each pair's positive, of its best candidates and of a random passage.

    A threshold or a margin is a number on this scale, so that one that fits a teacher says nothing
    about another; a percentage at least follows a stretched scale, though not a shifted one.

    Args:
        exclude: for each query the passages that are no negatives; of ``Workspace.exclusions``.
    Returns:
        "positive" (P,), "candidates" (P, 4) by falling score, "random passage" (P,).
    """
    query_rows, positive_rows = dataset.pairs
    ids = dataset.queries["id"].take(query_rows), dataset.corpus["id"].take(positive_rows)
    excluded = [exclude[row] for row in query_rows]
    random_rows = draw_rows(pair_keys(*ids, 0), dataset.corpus.num_rows, 1, excluded)[:, 0]
    return {
        "positive": scorer.pair_scores(query_rows, positive_rows),
        "candidates": scorer.top_k(query_rows, 4, exclude=excluded).scores.numpy(),
        "random passage": scorer.pair_scores(query_rows, random_rows),
    }


def rules_on_scale(
    scores: Mapping[str, np.ndarray], rules: Sequence[methods.Method]
) -> pd.DataFrame:
    """What each rule, a method with a ceiling, does on a teacher's scale, of ``score_scale``.

    That is the share of the best candidates that it lets pass, the share of pairs whose first
    candidate it drops, and the margin and percentage that its ceiling amounts to at the median
    positive.

    >>> toy = {"positive": np.array([0.8]), "candidates": np.array([[0.9, 0.5]])}
    >>> float(rules_on_scale(toy, [methods.TopKAbs(0.7)])["candidates below"].iloc[0])
    0.5
    """
    positive, candidates = scores["positive"], scores["candidates"]
    middle, rows = np.median(positive), {}
    for rule in rules:
        ceiling = rule.ceiling(positive)[:, None]
        at_middle = float(rule.ceiling(np.array([middle]))[0])
        rows[str(rule)] = {
            "candidates below": (candidates < ceiling).mean(),
            "pairs whose first is dropped": (candidates[:, 0] >= ceiling[:, 0]).mean(),
            "as a margin": middle - at_middle,
            "as a percentage": at_middle / middle,
        }
    return pd.DataFrame(rows.values(), index=pd.Index(rows, name="rule"))


def by_agreement(dataset: RetrievalDataset, negatives: Mapping[str, pa.Table]) -> pd.DataFrame:
    """The share of known positives among negatives that one, two, … teachers agree on.

    Args:
        dataset: as in ``mined``; its corpus has the column ``cluster``.
        negatives: by teacher; the first four of each pair are taken.
    Returns:
        teachers (how many list the negative), negatives, rate, low, high; shares, with intervals
        over the queries.
    """
    heads = [
        table.filter(pc.less_equal(table["rank"], 4)).select(IDS).to_pandas()
        for table in negatives.values()
    ]
    votes = pd.concat(heads).groupby(IDS, sort=False).size().rename("teachers").reset_index()
    votes = votes.assign(mined=1, false=_twins(dataset, votes).astype(int))
    rows = []
    for number, group in votes.groupby("teachers"):
        interval = statistics.rate(group[["query_id", "mined", "false"]])
        rows.append((number, len(group), *interval))
    return pd.DataFrame(rows, columns=["teachers", "negatives", "rate", "low", "high"])
