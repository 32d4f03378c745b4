"""What a study holds fixed, and what it keeps."""

import dataclasses
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.models import write_static
from nvret import assets, data, mining, negatives, sampling
from nvret.analysis import audit
from nvret.methods import RandomNegatives
from nvret.study import config, figures, runs, splits, tables, workspace
from nvret.study.arms import BASE
from nvret.study.scores import COLLAPSED, METRIC, Results
from nvret.utils import recipes, store
from nvret.utils.errors import NvretError

SMOKE = Path(__file__).parents[1] / "params" / "smoke.yaml"
STUDY = "06_rq3_methods"


@pytest.fixture(scope="module")
def shared():
    """The smoke profile, its study of methods cut to what a minute can train."""
    settings = config.load(SMOKE)
    values = settings.model_dump()
    values["data"]["corpora"]["small"] = {"base": "full", "others": ["quoref"], "passages": 600}
    values["studies"][STUDY]["corpora"] = ["pool", "own", "small"]
    values["studies"][STUDY]["runs"] = [
        {"student": "static", "method": ["random", "naive", "perc-pos"]},
        {"student": "static", "method": "none", "mask_margin": 0.0},
        {"student": "static", "method": "none", "memory_bank": 64},
        {"student": "static", "method": "naive", "train": "nq+squad-dev"},
        {"student": "static", "method": "naive", "num_negatives": 1, "stage_two": 2},
    ]
    return workspace.Workspace(config.check(values, "test"), progress=False)


@pytest.fixture(scope="module")
def study(shared):
    return runs.Study(shared, STUDY)


@pytest.fixture(scope="module")
def results(study, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NVRET_RESULTS", str(tmp_path_factory.mktemp("results")))
        return study.run()


def arm(study, label):
    return next(arm for arm in study.arms if arm.label == f"static: {label}")


def test_train_and_test_do_not_touch(shared):
    assert shared.training_sets == ["nq", "squad-dev", "quoref"]
    assert list(shared.tests) == [
        "nq-test", "squad-dev-test", "quoref-test", "squadshifts-reddit",
    ]  # fmt: skip
    for name in shared.training_sets:
        train = shared.train(name)
        for test in (*shared.tests.values(), shared.dev):
            asked = set(test.queries["id"].to_pylist())
            assert not asked & set(train.queries["id"].to_pylist())
            splits.check_leaks(train, test)


def test_what_leaks_is_taken_out_and_counted(shared):
    """SQuAD's development part and the questions of NQ share passages."""
    lost = shared.leaks("squad-dev")
    assert lost["passages"]
    kept = set(shared.train("squad-dev").corpus["id"].to_pylist())
    assert kept < set(shared.parts("squad-dev").train.corpus["id"].to_pylist())
    assert not kept & set(lost["passages"])


def test_questions_do_not_change_with_their_corpus(shared):
    own, pool, small = (shared.held_out("nq", name) for name in ("own", "pool", "small"))
    assert [test.name for test in (own, pool, small)] == [
        "nq-test", "nq-test in pool", "nq-test in small",
    ]  # fmt: skip
    assert shared.held_out() is own
    assert shared.dev.name == "nq-dev"
    for test in (pool, small):
        assert test.queries.equals(own.queries)
        assert test.qrels.equals(own.qrels)
    ids = [set(test.corpus["id"].to_pylist()) for test in (own, pool, small)]
    assert ids[0] < ids[1]
    assert ids[0] < ids[2]
    assert [len(kept) for kept in ids[1:]] == [1000, 600]
    trained = set(shared.whole("nq").corpus["id"].to_pylist())
    assert ids[1] & trained
    assert any(name.startswith("squadshifts-reddit/") for name in ids[1])
    own_set = {name for name in ids[1] if "/" not in name}
    assert own_set <= set(data.load("nq").corpus["id"].to_pylist())
    # A set is not added to itself, where its passages would be copies without a label
    quoref = shared.held_out("quoref", "small").corpus["id"].to_pylist()
    assert not any(name.startswith("quoref/") for name in quoref)


def test_smaller_corpora_are_parts_of_larger_ones_and_clusters_stay(shared):
    part, whole = shared.parts("nq").test, data.load("nq")
    others = {name: data.load(name) for name in ("squadshifts-nyt", "squadshifts-reddit")}
    sizes = [600, 2000, 5000, None]
    found = [splits.with_corpus(part, whole, others, passages=n).corpus for n in sizes]
    ids = [set(corpus["id"].to_pylist()) for corpus in found]
    assert [len(one) for one in ids[:3]] == sizes[:3]
    assert set(part.corpus["id"].to_pylist()) < ids[0] < ids[1] < ids[2] < ids[3]
    total = sum(d.corpus.num_rows for d in (whole, *others.values()))
    assert len(ids[3]) == total
    everything = found[3].to_pandas()
    cluster = everything["cluster"][: whole.corpus.num_rows]
    assert cluster.tolist() == whole.corpus["cluster"].to_pylist()
    added = everything["cluster"][whole.corpus.num_rows :]
    assert added.is_unique
    assert added.min() > cluster.max()
    texts = [text for other in others.values() for text in other.corpus["text"].to_pylist()]
    assert everything["text"][whole.corpus.num_rows :].tolist() == texts
    assert splits.with_corpus(part, passages=3).corpus.equals(part.corpus)


def test_an_arm_is_tested_on_the_held_out_part_of_its_own_sets(study):
    nq = ["nq-test", "nq-test in pool", "nq-test in small"]
    squad = [name.replace("nq", "squad-dev") for name in nq]
    apart = ["squadshifts-reddit"]
    base = next(a for a in study.arms if not a.trained)
    mixed = arm(study, "Naive Top-K, trained on nq+squad-dev")
    assert sorted(study.tests_of(arm(study, "Naive Top-K"))) == sorted(nq + apart)
    for one in (base, mixed):  # a base model is compared with all of them
        assert sorted(study.tests_of(one)) == sorted(nq + squad + apart)
    assert study.primary == ["nq-test", "squad-dev-test"]


def test_each_seed_draws_its_questions_the_same_for_all_arms(study):
    plain = [a for a in study.arms if a.trained and len(a.train) == 1]
    drawn = []
    for seed in (0, 1):
        sets = [set(study.dataset(a, seed).queries["id"].to_pylist()) for a in plain]
        assert all(one == sets[0] for one in sets)
        drawn.append(sets[0])
        smaller = study.dataset(dataclasses.replace(plain[0], queries=50), seed)
        assert set(smaller.queries["id"].to_pylist()) < sets[0]
        for one in plain:
            if one.method is not None:
                asked = study.negatives(one, seed)["query_id"].to_pylist()
                assert set(asked) <= sets[0]
    assert [len(one) for one in drawn] == [200, 200]
    assert len(drawn[0] & drawn[1]) < 50
    mined = set(study.workspace.train().queries["id"].to_pylist())
    assert mined == drawn[0] | drawn[1]


def test_every_method_is_mined_for_the_same_pairs(study):
    tables = {a.label: study.negatives(a, 0) for a in study.arms if a.method and len(a.train) == 1}
    pairs = {negatives.provenance(table)["pairs"] for table in tables.values()}
    assert pairs == {len(study.workspace.train().pairs[0])}  # of all seeds
    mined = study.mined(0)
    assert set(mined.index) == set(tables)
    assert (mined["share found"] <= 1).all()


def test_only_a_draw_depends_on_the_seed(study):
    for one in study.arms:
        drawn = dataclasses.replace(one, sampling=sampling.SampledTopK(8))
        if one.method is None:
            assert study.negatives(one, 0).num_rows == 0
            continue
        for choice in (one, drawn):  # before the seed's own questions are taken out of it
            by_seed = [study._of_set(choice, one.train[0], seed) for seed in (0, 1)]
            fixed = choice is one and not isinstance(one.method, RandomNegatives)
            assert by_seed[0].equals(by_seed[1]) == fixed


def test_one_search_for_all_methods_gives_what_one_for_each_gives(study):
    chosen = study.settings.mining
    one = arm(study, "TopK-PercPos 95%")
    alone = mining.mine(
        study.workspace.train(), study.workspace.scorer(), one.method, one.num_negatives,
        ceiling_positive=chosen.ceiling_positive,
        near_duplicates=chosen.near_duplicates, progress=False,
    )  # fmt: skip
    asked = study.dataset(one, 1).queries["id"].combine_chunks()
    assert study.negatives(one, 1).equals(alone.filter(pc.is_in(alone["query_id"], asked)))


def test_what_is_mined_is_kept_until_a_recipe_changes(study, monkeypatch):
    one = arm(study, "TopK-PercPos 95%")
    before = study.negatives(one, 0)

    def fail(*_, **__):
        raise AssertionError("mined again")

    monkeypatch.setattr(mining, "sweep", fail)
    assert study.negatives(one, 0).equals(before)
    monkeypatch.setitem(recipes.VERSIONS, "near-duplicates", 0)
    with pytest.raises(AssertionError, match="mined again"):
        study.negatives(one, 0)


def test_hidden_positives_are_mined_and_treated(study):
    shared = study.workspace
    naive = dataclasses.replace(arm(study, "Naive Top-K"), train=("nq:clusters",), queries=50)
    hidden = shared.hidden("nq:clusters")
    assert set(hidden.dataset.queries["id"].to_pylist()) < set(
        shared.whole("nq").queries["id"].to_pylist()
    )
    plain = study.negatives(naive, 0)
    assert negatives.provenance(plain)["near_duplicates"] is None
    assert set(plain["query_id"].to_pylist()) <= set(
        study.dataset(naive, 0).queries["id"].to_pylist()
    )
    tables = {"naive": plain} | {
        name: study.negatives(dataclasses.replace(naive, treatment=name), 0)
        for name in ("oracle", "placebo", "dose-50")
    }
    assert {table.num_rows for table in tables.values()} == {plain.num_rows}
    known = {name: int(audit.known(table, hidden).sum()) for name, table in tables.items()}
    assert known["oracle"] == 0
    assert known["placebo"] == known["naive"] > 10
    assert known["dose-50"] == round(known["naive"] / 2)
    facts = negatives.provenance(tables["placebo"])
    assert facts["num_negatives"] == naive.num_negatives
    assert facts["treatment"]["hidden"] == facts["treatment"]["replaced"] == known["naive"]
    with pytest.raises(NvretError, match=r"train nq:other: labels to hide is 'other', expected"):
        shared.train("nq:other")


def test_a_mixture_is_mined_set_by_set(study):
    mixed = arm(study, "Naive Top-K, trained on nq+squad-dev")
    table = study.negatives(mixed, 0).to_pandas()
    home = table["query_id"].str.split("/").str[0]
    assert set(home) == {"nq", "squad-dev"}
    assert (table["negative_id"].str.split("/").str[0] == home).all()
    dataset = study.dataset(mixed, 0)
    assert dataset.queries.num_rows == mixed.queries
    assert set(table["query_id"]) <= set(dataset.queries["id"].to_pylist())
    composition = study.composition()
    assert composition["questions"].sum() == mixed.queries
    whole = [study.workspace.whole(name).queries.num_rows for name in ("nq", "squad-dev")]
    share = whole[0] / sum(whole)  # of the sets as they are, not of what is sampled from them
    assert composition["questions"].iloc[0] == pytest.approx(share * mixed.queries, abs=1)


def test_tables_of_a_study(results, study):
    assert list(results.arms.index) == [a.label for a in study.arms]
    means = tables.means(results)
    assert results.primary == ["nq-test", "squad-dev-test"]
    assert results.datasets == study.tests == [*results.primary, "squadshifts-reddit"]
    assert set(means["dataset"]) == {*study.tests, tables.AVERAGE, *results.corpora["dataset"]}
    for row in means[means["dataset"] != tables.AVERAGE].itertuples():
        values = results.values(row.arm, datasets=[row.dataset])[row.dataset]
        assert values.shape[0] == (1 if row.arm.endswith(BASE) else len(study.settings.seeds))
        assert row.mean == pytest.approx(values.mean())
        assert row.low <= row.mean <= row.high
    # Of the sets that all arms share, though one arm is tested on more
    average = means[means["dataset"] == tables.AVERAGE].set_index("arm")["mean"]
    each = means.pivot(index="arm", columns="dataset", values="mean")
    assert each["squad-dev-test"].notna().sum() == 2
    shared = each[["nq-test", "squadshifts-reddit"]].mean(axis=1)
    pd.testing.assert_series_equal(average, shared[average.index], check_names=False)
    differences = tables.differences(results, "Naive Top-K")
    for row in differences[differences["dataset"] == tables.AVERAGE].itertuples():
        assert row.difference == pytest.approx(average[row.arm] - average["static: Naive Top-K"])
    orders = tables.orders(results, [("perc-pos", "naive"), ("naive", "random")])
    assert len(orders) == 2
    assert tables.wins(means).sum() == means["dataset"].nunique() - 1
    twins = tables.by_twins(results, study.workspace.held_out(), [("naive", "random")])
    assert twins["number"].sum() == len(results.scores.loc[study.tests[0]])


def test_a_table_and_a_figure_of_the_corpora(results, study):
    pairs = [("naive", "random"), ("perc-pos", "naive")]
    table = tables.by_corpus(results, pairs)
    assert len(table) == 3 * len(pairs) * 2  # corpora, plain and collapsed
    sizes = table.set_index("corpus")["passages"]
    own = study.workspace.held_out().corpus.num_rows
    assert sizes.to_dict() == {"own": own, "pool": 1000, "small": 600}
    for row in table.itertuples():
        name = "nq-test" + (f" in {row.corpus}" if row.corpus != "own" else "")
        first, second = row.difference.split(" − ")
        labels = tables.plain(results, "static")
        scores = [results.values(labels[f], row.metric, [name])[name] for f in (first, second)]
        assert row.value == pytest.approx(100 * (scores[0] - scores[1]).mean())
        assert row.low <= row.value <= row.high
    figure = figures.by_corpus(table)
    assert [axis.get_title() for axis in figure.axes] == ["naive − random", "perc-pos − naive"]
    ticks = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert ticks == [f"own\n{own}", "small\n600", "pool\n1,000"]
    plt.close(figure)


def test_twins_as_one_score_no_less(results):
    """An unlabelled copy of the answer above it no longer counts as an error."""
    for name in ("nq-test", "nq-test in pool"):
        plain, twins = (
            results.values("static: Naive Top-K", metric, [name])[name]
            for metric in (METRIC, COLLAPSED)
        )
        assert (twins >= plain - 1e-6).all()
        assert twins.mean() > plain.mean()
    collapsed = tables.means(results, COLLAPSED)
    assert set(collapsed["dataset"]) == set(tables.means(results)["dataset"])


def test_the_share_of_negatives_that_differ_is_kept(study, results):
    mined = {one.label: study.negatives(one, 0) for one in study.arms if one.method is not None}
    triples = {
        label: set(map(tuple, table.select(tables.IDS).to_pandas().to_numpy()))
        for label, table in mined.items()
    }
    share = results.differing
    assert set(share) == set(share.index) == set(mined)
    for a, own in triples.items():
        for b, other in triples.items():
            assert share.at[a, b] == pytest.approx(len(own - other) / len(own)), (a, b)
    assert 0 < share.at["static: TopK-PercPos 95%", "static: Naive Top-K"] < 1
    assert results.primary == ["nq-test", "squad-dev-test"]


def test_every_model_takes_the_same_number_of_steps(results):
    plain = ["static: Random", "static: Naive Top-K", "static: TopK-PercPos 95%"]
    logs = results.logs[results.logs["arm"].isin(plain)]
    assert logs.groupby(["arm", "seed"])["step"].max().nunique() == 1


def test_arms_that_differ_are_different_models(study):
    trained = [a for a in study.arms if a.trained]
    folders = {study._place(a, seed).name for a in trained for seed in (0, 1)}
    assert len(folders) == 2 * len(trained)


def test_a_helper_from_the_other_end_changes_nothing(results, study, tmp_path, monkeypatch):
    """Each model is trained once, by one of two processes; what was done is not done again."""
    for kind in ("models", "datasets"):
        (tmp_path / kind).symlink_to(store.cache_dir() / kind)
    monkeypatch.setenv("NVRET_CACHE", str(tmp_path))
    monkeypatch.setenv("NVRET_RESULTS", str(tmp_path / "results"))
    trained = []
    train = runs.Study._train
    monkeypatch.setattr(runs.Study, "_train", lambda *a: trained.append(a[-1].name) or train(*a))
    settings = study.settings
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, runs.join, (settings,)) as helper:
        helper.submit(os.getpid).result()  # it is there
        both = runs.Study(workspace.Workspace(settings, progress=False), STUDY)
        found = both.run(helper)
        here = len(trained)
        again = runs.Study(workspace.Workspace(settings, progress=False), STUDY).run(helper)
    # A second stage begins with a model of its own
    models = sum(1 + (arm.stage_two is not None) for arm in study.arms if arm.trained)
    models *= len(settings.seeds_of("static", STUDY))
    assert 0 < here < models
    assert len(trained) == here == len(set(trained))
    for one in (found, again):
        pd.testing.assert_frame_equal(one.scores, results.scores)
        pd.testing.assert_frame_equal(one.logs, results.logs)


def test_those_that_train_long_are_at_both_ends(results, study, monkeypatch):
    """Each process begins with some of them, so that neither ends with one alone."""
    todo = study._todo("static")
    assert study._parted() == [("static", todo)]  # of seconds
    monkeypatch.setattr(runs.Study, "_trains_long", lambda *_: True)
    (_, first), (_, last) = study._parted()
    assert first + last == todo
    assert len(first) == len(todo) // 2 > 0
    found = study.run()  # in the usual order
    pd.testing.assert_frame_equal(found.scores, results.scores)
    pd.testing.assert_frame_equal(found.logs, results.logs)


def test_a_model_of_several_arms_is_trained_once(study, monkeypatch):
    """Else the helper, which finds it trained, would take it that the two had met."""
    todo = study._todo("static")
    monkeypatch.setattr(study, "_todo", lambda _: [*todo, todo[-1]])
    monkeypatch.setattr(
        study, "_missing", lambda arm, _: {"test": ("scores", {})} if arm.trained else {}
    )
    left = study._left()
    assert left[-1] == todo[-1]
    assert len({study._name(*pair) for pair in left}) == len(left)


def test_the_helper_says_what_went_wrong(study):
    broken = dataclasses.replace(study.arms[-1], teachers=("nobody",))
    with (
        ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), runs.join, (study.settings,)
        ) as helper,
        pytest.raises(NvretError, match="nobody"),
    ):
        helper.submit(runs.help_with, STUDY, [(broken, 0)]).result()


PARENT = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from nvret.utils import processes

if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), processes.serve)
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 60)
    time.sleep(60)
"""


def test_a_process_of_a_pool_ends_with_its_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        parent.kill()
    child.wait(timeout=20)


def test_sums_do_not_depend_on_a_helper(study, monkeypatch):
    """A model is trained with half of the threads, whoever does it."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    for one, expected in ((study.arms[-1], [2, 4]), (study.arms[0], [])):
        with study._threads(one):
            pass
        assert asked == expected
        asked.clear()


def test_a_base_model_that_is_replaced_is_evaluated_again(study, tmp_path, monkeypatch):
    """A folder that somebody names may hold other weights the next time."""
    base = next(arm for arm in study.arms if not arm.trained)
    write_static(tmp_path)
    monkeypatch.setattr(assets, "model_path", lambda _: tmp_path)
    first, _ = study._evaluated(base, 0)
    weights = load_file(tmp_path / "model.safetensors")
    noise = torch.randn(weights["embedding.weight"].shape, generator=torch.manual_seed(0))
    save_file({"embedding.weight": noise}, tmp_path / "model.safetensors")
    workspace.model_fingerprint.cache_clear()  # as in another process
    assert study._evaluated(base, 0)[0]["ndcg_at_10"].mean() < first["ndcg_at_10"].mean() / 2


def test_scores_survive_the_file(results, tmp_path):
    results.save(tmp_path / "scores.parquet")
    back = Results.load(tmp_path / "scores.parquet")
    pd.testing.assert_frame_equal(tables.means(back), tables.means(results))
    pd.testing.assert_frame_equal(
        tables.differences(back, "Naive Top-K"), tables.differences(results, "Naive Top-K")
    )
    assert back.find(family="perc-pos", teacher="potion-base-8m") == ["static: TopK-PercPos 95%"]
    assert back.primary == results.primary
    pairs = [("naive", "random")]
    pd.testing.assert_frame_equal(tables.by_corpus(back, pairs), tables.by_corpus(results, pairs))


def test_a_file_of_an_earlier_version_is_refused(results, tmp_path):
    results.save(tmp_path / "scores.parquet")
    table = pd.read_parquet(tmp_path / "scores.parquet")
    del table.attrs["primary"]
    table.to_parquet(tmp_path / "scores.parquet")
    with pytest.raises(NvretError, match="has no primary; run the profile again"):
        Results.load(tmp_path / "scores.parquet")


def test_a_set_without_clusters_has_no_collapsed_scores(results, study):
    scores = results.scores.drop(columns=COLLAPSED, level=0).stack([1, 2], future_stack=True)
    plain = Results.of(results.arms, scores.reset_index(), results.logs, "nq-dev", ["nq-test"])
    assert plain.values("static: Random", COLLAPSED) == {}
    assert tables.means(plain, COLLAPSED).empty
    table = tables.means(plain)
    assert "nq-test in pool" in set(table["dataset"])  # nothing says that it is another corpus


def test_a_teacher_is_scored_as_a_retriever(shared):
    table = tables.teacher_table(
        {name: shared.teacher_scores(name) for name in ("bm25", "potion-base-8m")},
        list(shared.tests),
        shared.dev.name,
    )
    some = shared.teacher_scores("bm25", ["nq-test"])
    assert list(some) == ["nq-test", "nq-dev"]
    assert set(table["teacher"]) == {"bm25", "potion-base-8m"}
    assert table["mean"].between(0.2, 0.99).all()
    for name in shared.tests:
        assert np.shape(shared.teacher_scores("bm25")[name]) == (
            1,
            shared.tests[name].queries.num_rows,
        )


def test_prefixed_ids_are_arrow_strings(study):
    mixed = study.negatives(arm(study, "Naive Top-K, trained on nq+squad-dev"), 0)
    assert mixed.schema.field("query_id").type == pa.string()
