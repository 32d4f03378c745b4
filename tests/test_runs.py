"""What a study holds fixed, and what it keeps."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.models import write_static
from nvret import mining, negatives, sampling
from nvret.analysis import audit
from nvret.methods import RandomNegatives
from nvret.study import config, runs, splits, tables, workspace
from nvret.study.arms import BASE
from nvret.study.scores import Results
from nvret.utils import recipes
from nvret.utils.errors import NvretError

SMOKE = Path(__file__).parents[1] / "params" / "smoke.yaml"
STUDY = "06_rq3_methods"


@pytest.fixture(scope="module")
def shared():
    """The smoke profile, its study of methods cut to what a minute can train."""
    settings = config.load(SMOKE)
    values = settings.model_dump()
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
    assert not kept & set(lost["passages"])


def test_every_method_is_mined_for_the_same_pairs(study):
    tables = {a.label: study.negatives(a, 0) for a in study.arms if a.method and len(a.train) == 1}
    pairs = {negatives.provenance(table)["pairs"] for table in tables.values()}
    assert pairs == {len(study.workspace.train().pairs[0])}
    mined = study.mined(0)
    assert set(mined.index) == set(tables)
    assert (mined["share found"] <= 1).all()


def test_only_a_draw_depends_on_the_seed(study):
    for one in study.arms:
        drawn = dataclasses.replace(one, sampling=sampling.SampledTopK(8))
        if one.method is None:
            assert study.negatives(one, 0).num_rows == 0
            continue
        same = study.negatives(one, 0).equals(study.negatives(one, 1))
        assert same == (not isinstance(one.method, RandomNegatives))
        assert not study.negatives(drawn, 0).equals(study.negatives(drawn, 1))


def test_one_search_for_all_methods_gives_what_one_for_each_gives(study):
    chosen = study.settings.mining
    one = arm(study, "TopK-PercPos 95%")
    alone = mining.mine(
        study.workspace.train(), study.workspace.scorer(), one.method, one.num_negatives,
        ceiling_positive=chosen.ceiling_positive,
        near_duplicates=chosen.near_duplicates, progress=False,
    )  # fmt: skip
    assert study.negatives(one, 0).equals(alone)


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
    assert set(plain["query_id"].to_pylist()) <= set(study.dataset(naive).queries["id"].to_pylist())
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
    dataset = study.dataset(mixed)
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
    tests = [*study.tests, tables.AVERAGE]
    assert set(means["dataset"]) == set(tests)
    for row in means[means["dataset"] != tables.AVERAGE].itertuples():
        values = results.values(row.arm)[row.dataset]
        assert values.shape[0] == (1 if row.arm.endswith(BASE) else len(study.settings.seeds))
        assert row.mean == pytest.approx(values.mean())
        assert row.low <= row.mean <= row.high
    average = means[means["dataset"] == tables.AVERAGE].set_index("arm")["mean"]
    differences = tables.differences(results, "Naive Top-K")
    for row in differences[differences["dataset"] == tables.AVERAGE].itertuples():
        reference = average["static: Naive Top-K"]
        assert row.difference == pytest.approx(average[row.arm] - reference)
    orders = tables.orders(results, [("perc-pos", "naive"), ("naive", "random")])
    assert len(orders) == 2
    assert tables.wins(means).sum() == len(study.tests)
    twins = tables.by_twins(results, study.workspace.tests[study.tests[0]], [("naive", "random")])
    assert twins["number"].sum() == len(results.scores.loc[study.tests[0]])


def test_every_model_takes_the_same_number_of_steps(results):
    plain = ["static: Random", "static: Naive Top-K", "static: TopK-PercPos 95%"]
    logs = results.logs[results.logs["arm"].isin(plain)]
    assert logs.groupby(["arm", "seed"])["step"].max().nunique() == 1


def test_arms_that_differ_are_different_models(study):
    trained = [a for a in study.arms if a.trained]
    folders = {study.model(a, seed).name for a in trained for seed in (0, 1)}
    assert len(folders) == 2 * len(trained)


def test_a_base_model_that_is_replaced_is_evaluated_again(study, tmp_path):
    """A folder that somebody names may hold other weights the next time."""
    base = next(arm for arm in study.arms if not arm.trained)
    write_static(tmp_path)
    first = study._evaluated(base, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    noise = torch.randn(weights["embedding.weight"].shape, generator=torch.manual_seed(0))
    save_file({"embedding.weight": noise}, tmp_path / "model.safetensors")
    workspace.model_fingerprint.cache_clear()  # as in another process
    assert study._evaluated(base, tmp_path)["ndcg_at_10"].mean() < first["ndcg_at_10"].mean() / 2


def test_scores_survive_the_file(results, tmp_path):
    results.save(tmp_path / "scores.parquet")
    back = Results.load(tmp_path / "scores.parquet")
    pd.testing.assert_frame_equal(tables.means(back), tables.means(results))
    pd.testing.assert_frame_equal(
        tables.differences(back, "Naive Top-K"), tables.differences(results, "Naive Top-K")
    )
    assert back.find(family="perc-pos", teacher="potion-base-8m") == ["static: TopK-PercPos 95%"]


def test_a_teacher_is_scored_as_a_retriever(shared):
    table = tables.teacher_table(
        {name: shared.teacher_scores(name) for name in ("bm25", "potion-base-8m")},
        list(shared.tests),
        shared.dev.name,
    )
    assert set(table["teacher"]) == {"bm25", "potion-base-8m"}
    assert table["mean"].between(0.2, 0.95).all()
    for name in shared.tests:
        assert np.shape(shared.teacher_scores("bm25")[name]) == (
            1,
            shared.tests[name].queries.num_rows,
        )


def test_prefixed_ids_are_arrow_strings(study):
    mixed = study.negatives(arm(study, "Naive Top-K, trained on nq+squad-dev"), 0)
    assert mixed.schema.field("query_id").type == pa.string()
