"""The paper's tables, and the claims that are registered against them."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nvret.study import claims, config, paper, tables
from nvret.utils.errors import NvretError

ROOT = Path(__file__).parents[1]
TABLES = ["rq1_teachers", "rq2_ensembles", "rq3_methods", "rq3b_beir"]


@pytest.mark.parametrize("name", TABLES)
def test_averages_are_those_of_the_sets(name):
    table = paper.table(name)
    keys = [c for c in ("student", "teacher", "method") if c in table]
    assert not table.duplicated([*keys, "dataset"]).any()
    assert table["mean"].between(0, 1).all()
    for key, rows in table.groupby(keys):
        average = rows[rows["dataset"] == tables.AVERAGE].iloc[0]
        sets = rows.loc[rows["dataset"] != tables.AVERAGE, "mean"]
        agrees = abs(average["mean"] - sets.mean()) < 1.01e-4
        assert agrees == pd.isna(average.get("note", np.nan)), key


def test_sets_of_the_papers_tables():
    assert paper.table("rq3b_beir").groupby("method")["dataset"].nunique().eq(16).all()
    jaccard = paper.table("rq2_jaccard")
    assert jaccard.groupby(["teacher_a", "teacher_b"])["dataset"].nunique().eq(3).all()
    assert len(jaccard) == 18


def test_every_claim_finds_the_papers_rows():
    registered = claims.load()
    known = config.load(ROOT / "params" / "smoke.yaml")
    for claim in registered.claims:
        value = paper.value(claim.paper)
        assert value is None or -1 < value < 1, claim.id
        if claim.kind == "difference":  # the paper's figure says what the sentence says
            assert value is None or value > 0, claim.id
        if isinstance(claim.paper, paper.PaperRows):
            names = claim.order if claim.kind == "order" else claim.arms.family
            pairs = itertools.pairwise(names)
            if claim.kind == "worst":
                pairs = [(name, claim.worst) for name in names if name != claim.worst]
            assert all(paper.value(claim.paper, *pair) > 0 for pair in pairs), claim.id
        if isinstance(claim, claims.Trained):
            assert claim.study in known.studies, claim.id


def test_six_claims_are_primary_and_each_has_the_papers_figure():
    primary = [claim for claim in claims.load().claims if claim.primary]
    assert len(primary) == 6
    assert [claim.kind for claim in primary].count("difference") == 5
    for claim in primary:
        assert (claim.table, len(claim.students)) == ("paper", 1)
        assert paper.value(claim.paper) > 0


def bad(tmp_path, text):
    (tmp_path / "claims.yaml").write_text("margin: 0.005\nclaims:\n" + text)
    with pytest.raises(NvretError) as error:
        claims.load(tmp_path / "claims.yaml")
    return str(error.value)


GOOD = "- {id: a, claim: b, table: design, section: c, study: s, kind: difference, "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "better: {familie: naive}, worse: {family: naive}}",
         "claims.0.better.familie: unknown key, did you mean 'family'?"),
        (GOOD + "better: {family: naiv}, worse: {family: naive}}", "no family 'naiv'"),
        (GOOD + "better: {family: naive}, worse: {family: naive}, studnet: [static]}",
         "claims.0.studnet: unknown key, did you mean 'students'?"),
        (GOOD + "better: {family: naive}}", "claims.0.worse: missing"),
        (GOOD.replace("difference", "diff") + "better: {family: naive}}",
         "kind must be one of difference, not-worse"),
        (GOOD + "better: {family: naive, k: ten}, worse: {family: naive}}", "found 'ten'"),
        (GOOD + "better: {family: naive}, worse: {family: random}, primary: true}",
         "a: a primary claim names one student"),
        (GOOD + "better: {family: naive}, worse: {family: random}, paper: {table: rq3_methods, "
         "better: Naive Top-K, worse: Random}}", "a: a figure of the paper in the table 'design'"),
        (GOOD.replace("design", "papre") + "better: {family: naive}, worse: {family: random}}",
         "found 'papre'"),
        ("- {id: a, claim: b, table: paper, section: c, kind: not-testable, reason: d}\n" * 2,
         "claims name a more than once"),
    ],
)  # fmt: skip
def test_a_bad_claim_is_named(tmp_path, text, message):
    assert message in bad(tmp_path, text)


def test_an_unknown_row_of_the_paper_is_named():
    reference = paper.PaperDifference(table="rq3_methods", better="Best", worse="Naive Top-K")
    with pytest.raises(NvretError, match="has no 'Best'"):
        paper.value(reference)
