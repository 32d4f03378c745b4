"""Verdicts on scores whose truth is known, and the ledger over what has been run."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from helpers import examples, hostile
from helpers.results import SETTINGS, synthetic
from nvret import cli
from nvret.analysis import statistics
from nvret.study import arms, claims, config, forest, ledger, paths, selection, tables, verdicts
from nvret.study.scores import Results
from nvret.utils.errors import NvretError

ROOT = Path(__file__).parents[1]
RUN = sorted(path.parent.name for path in (ROOT / "results").glob("*/scores"))
SMOKE_RUN = [name for name in RUN if (ROOT / "params" / f"{name}.yaml").is_file()]
NAIVE, SHIFTED = "static: Naive Top-K", "static: Top-K shifted by 10"
ABS, MARGIN_POS, PERC = (
    f"static: {name}" for name in ("TopK-Abs 0.7", "TopK-MarginPos 0.05", "TopK-PercPos 95%")
)


def claim(**values):
    """One claim, as the file would give it."""
    common = {"id": "x", "claim": "x", "table": "paper", "section": "x"}
    return claims.Claims(margin=MARGIN, claims=[common | values]).claims[0]


def decide(one, results, **options):
    return verdicts.decide(one, "static", results, SETTINGS, MARGIN, **options)


MARGIN = 0.005
RANDOM = "static: Random"
METHODS = "06_rq3_methods"
PERC_NAIVE = {
    "study": METHODS,
    "better": {"family": "perc-pos"},
    "worse": {"family": "naive"},
}
PUBLISHED = {"paper": {"table": "rq3_methods", "better": "TopK-PercPos 95%",
                       "worse": "Naive Top-K"}}  # 4.49 points  # fmt: skip
FAMILIES = ["naive", "shifted", "abs", "margin-pos", "perc-pos"]
GROUP = {"study": METHODS, "arms": {"family": FAMILIES}, "by": "family"}


def hard(effects=None, **options):
    """Results in which naive and random negatives differ by ten points, so that arms have bite."""
    effects = {RANDOM: -0.1} | (effects or {})
    return synthetic(METHODS, effects, **options)


@pytest.mark.parametrize(
    ("kind", "effect", "noise", "verdict"),
    [
        ("difference", 0.03, 0.05, "confirmed"),
        ("difference", 0.0, 0.02, "no effect"),
        ("difference", -0.03, 0.05, "reversed"),
        ("difference", 0.002, 0.2, "undecided"),
        ("not-worse", 0.03, 0.05, "confirmed"),
        ("not-worse", -0.001, 0.01, "confirmed"),
        ("not-worse", -0.03, 0.05, "reversed"),
        ("not-worse", -0.005, 0.2, "undecided"),
        ("no-gain", -0.03, 0.05, "confirmed"),
        ("no-gain", 0.001, 0.01, "confirmed"),
        ("no-gain", 0.03, 0.05, "reversed"),
        ("no-gain", 0.005, 0.2, "undecided"),
    ],
)
def test_pairs(kind, effect, noise, verdict):
    results = hard({PERC: effect}, noise=noise, of_seed=noise / 50)
    found = decide(claim(kind=kind, **PERC_NAIVE), results)
    assert found.verdict == verdict
    assert found.low < effect < found.high
    assert (found.seeds, found.queries) == (3, 200)
    assert found.detectable > (found.high - found.low) / 2
    assert found.arms == (PERC, NAIVE)


def test_the_papers_difference_is_what_counts():
    one = claim(kind="difference", **PERC_NAIVE, **PUBLISHED)
    assert decide(one, hard({PERC: 0.03})).verdict == "confirmed"
    found = decide(one, hard({PERC: 0.015}))
    assert (found.verdict, found.paper) == ("same sign, smaller", pytest.approx(0.0449))
    wide = decide(one, hard({PERC: 0.03}, noise=0.8, lift=0.5))
    assert wide.verdict == "not a test"
    assert re.match(r"half-width of \d+\.\d\d points, the paper's effect is 4.49", wide.note)


def test_without_a_positive_control_it_is_no_test():
    results = hard({PERC: 0.03}, lift=-0.04, noise=0.02)
    found = decide(claim(kind="difference", **PERC_NAIVE), results)
    assert found.verdict == "not a test"
    near = "no positive control: no trained arm lies surely above the base model; "
    assert found.note.startswith(near + "TopK-PercPos 95%")
    assert found.low > 0
    some = hard({PERC: 0.03, "static: No mined negatives": 0.2}, lift=-0.04, noise=0.02)
    assert decide(claim(kind="difference", **PERC_NAIVE), some).verdict == "confirmed"


def test_an_arm_above_the_base_model_by_chance_is_no_positive_control():
    by_chance, taken, base = 0, 0, "static: Base model"
    for draw in range(40):
        results = synthetic(METHODS, lift=0.0, queries=60, draw=draw)
        case = verdicts.Case(selection.Selection(results, "static", SETTINGS), MARGIN)
        arms = [row for row in results.arms.index if row.startswith("static") and row != base]
        each = [statistics.mean_interval(case.contrast({row: 1, base: -1})) for row in arms]
        by_chance += any(interval.low > 0 for interval in each)
        taken += case.control == ""
    assert by_chance >= 3
    assert taken < by_chance / 2


def test_each_arm_is_compared_in_its_own_setting():
    table = tables.differences(synthetic(METHODS), "Random").drop_duplicates("arm")
    against = table.set_index("arm")["reference"]
    assert against["static: TopK-PercPos 95%, in-batch"] == "Random, in-batch"
    assert against["static: Random, in-batch"] == against[NAIVE] == "Random"
    assert RANDOM not in against


def test_without_bite_it_is_no_test():
    one = claim(kind="difference", **PERC_NAIVE)
    small = hard({PERC: 0.03}, differing=0.04)  # 4 % of ten points
    found = decide(one, small)
    assert found.verdict == "not a test"
    assert found.note.startswith("no bite: 4.0 % of the negatives differ, and naive and random ")
    assert decide(one, hard({PERC: 0.03}, differing=0.06)).verdict == "confirmed"
    # Hardness that does nothing: naive and random ones are as good
    assert "no bite" in decide(one, synthetic(METHODS, {PERC: 0.03})).note
    # One of the shares is enough: an arm may have all that the other has, and more
    share = small.differing.copy()
    share.loc[NAIVE, PERC] = 0.5
    assert decide(one, replace(small, differing=share)).verdict == "confirmed"
    # Arms that differ in more than their negatives, and those of an unknown share, are not judged
    more = claim(kind="difference", study=METHODS, better={"family": "perc-pos"},
                 worse={"family": "perc-pos", "num_negatives": 1})  # fmt: skip
    assert decide(more, small).verdict == "confirmed"
    unknown = decide(one, replace(small, differing=pd.DataFrame()))
    assert (unknown.verdict, unknown.note.split(":")[0]) == ("confirmed", "bite not known")


def test_the_primary_sets_decide_and_the_others_stand_beside():
    far = {(PERC, "reddit"): -0.5}
    results = hard({PERC: 0.03} | far, sets=("nq-test", "reddit"))
    found = decide(claim(kind="difference", **PERC_NAIVE), results)
    assert (found.verdict, found.difference) == ("confirmed", pytest.approx(0.03, abs=0.01))
    assert found.queries == 200
    assert "mean of all 2 test sets -2" in found.note
    both = replace(results, primary=["nq-test", "reddit"])
    found = decide(claim(kind="difference", **PERC_NAIVE), both)
    assert (found.verdict, found.queries) == ("reversed", 400)
    with pytest.raises(selection.NotRun, match="no scores on elsewhere"):
        decide(claim(kind="difference", **PERC_NAIVE), replace(results, primary=["elsewhere"]))


def test_worst():
    one = claim(kind="worst", worst="naive", **GROUP)
    worst = dict.fromkeys((SHIFTED, ABS, MARGIN_POS, PERC), 0.06)
    assert decide(one, hard(worst)).verdict == "confirmed"
    assert decide(one, hard(worst | {ABS: -0.03})).verdict == "reversed"
    assert decide(one, hard(worst | {ABS: 0.002}, noise=0.2)).verdict == "undecided"
    found = decide(one, hard(worst | {ABS: 0.001}, noise=0.01, of_seed=0.0))
    assert (found.verdict, found.arms[-1]) == ("no effect", PERC)
    smaller = decide(one, hard(worst | {ABS: 0.003}, noise=0.01, of_seed=0.0))
    assert (smaller.verdict, smaller.note.count(" less ")) == ("same sign, smaller", 4)


def test_a_chain_is_no_test_where_a_link_is_none_unless_another_refutes_it():
    one = claim(kind="worst", worst="naive", **GROUP)
    results = hard(dict.fromkeys((SHIFTED, ABS, MARGIN_POS, PERC), 0.06))
    share = results.differing.copy()
    share.loc[ABS, NAIVE] = share.loc[NAIVE, ABS] = 0.04
    found = decide(one, replace(results, differing=share))
    assert found.verdict == "not a test"
    assert "no bite: 4.0 %" in found.note
    refuted = hard({SHIFTED: -0.06, ABS: 0.06, MARGIN_POS: 0.06, PERC: 0.06})
    found = decide(one, replace(refuted, differing=share))
    assert (found.verdict, found.difference) == ("reversed", pytest.approx(-0.06, abs=0.01))


def test_order_shows_every_link_and_decides_by_the_weakest():
    chain = ["perc-pos", "margin-pos", "abs", "shifted", "naive"]
    rows = {family: tables.PLAIN[family] for family in chain}
    one = claim(kind="order", order=chain, **GROUP)
    steps = {PERC: 0.12, MARGIN_POS: 0.09, ABS: 0.06, SHIFTED: 0.02}
    found = decide(one, hard(steps))
    assert found.verdict == "confirmed"
    assert found.note.count(" less ") == 4
    assert found.difference == pytest.approx(0.02, abs=0.01)
    swapped = steps | {ABS: 0.03, SHIFTED: 0.06}
    found = decide(one, hard(swapped))
    assert (found.verdict, found.difference) == ("reversed", pytest.approx(-0.03, abs=0.01))
    # With the paper's rows each link has a size of its own: 0.21 points for the first
    published = claim(
        kind="order", order=chain, paper={"table": "rq3_methods", "rows": rows}, **GROUP
    )
    found = decide(published, hard(steps))
    assert (found.verdict, found.paper) == ("not a test", pytest.approx(0.0021))
    with pytest.raises(selection.NotRun, match="no arm of margin-pos, abs"):
        decide(claim(**{**GROUP, "kind": "order", "study": "08_rq3b_scale", "order": chain,
                        "arms": {"family": ["naive", "perc-pos"], "train": "*+*"}}),
               synthetic("08_rq3b_scale"))  # fmt: skip


def test_an_inner_optimum_is_chosen_on_dev_and_beats_both_ends():
    study = "04_rq3_thresholds"
    one = claim(kind="inner-optimum", study=study, arms={"family": "abs", "parameter": "any"})
    low, middle, high = (f"static: TopK-Abs {t}" for t in (0.3, 0.5, 0.7))
    assert decide(one, synthetic(study, {middle: 0.03})).verdict == "confirmed"
    found = decide(one, synthetic(study, {middle: 0.03, high: 0.06}))
    assert found.verdict == "reversed"
    assert found.difference == pytest.approx(-0.03, abs=0.01)
    assert (
        decide(one, synthetic(study, {middle: 0.03, low: 0.025}, noise=0.2)).verdict == "undecided"
    )
    two = claim(kind="inner-optimum", study=study, arms={"family": "shifted", "parameter": "any"})
    with pytest.raises(selection.NotRun, match="2 values"):
        decide(two, synthetic(study))


def test_several_arms_of_a_side_are_chosen_between_on_dev():
    study = "04_rq3_thresholds"
    one = claim(kind="difference", study=study, better={"family": "perc-pos", "parameter": "any"},
                worse={"family": "naive"})  # fmt: skip
    found = decide(one, synthetic(study, {"static: TopK-PercPos 70%": 0.03}))
    assert found.note.startswith("chosen on dev: TopK-PercPos 70%; bite not known")
    assert found.verdict == "confirmed"
    no_dev = claim(kind="difference", **(PERC_NAIVE | {"better": {
        "family": "perc-pos", "in_batch_negatives": "any"}}))  # fmt: skip
    with pytest.raises(selection.NotRun, match=r"2 arms .* no development split"):
        decide(no_dev, synthetic(METHODS))


# Teachers

TEACHERS = "02_rq1_teachers"
OWN = {"bm25": 0.4, "potion-base-8m": 0.5, "third": 0.55, "fourth": 0.7}
SLOPE = {"kind": "slope", "study": TEACHERS, "arms": {"family": "perc-pos", "teacher": "any"}}


def own_scores(own=OWN, dev=None):
    """The teachers' own NDCG@10 on the primary set, and in another order on dev and on average."""
    rows = [(name, "nq-test", mean) for name, mean in own.items()]
    rows += [(name, "nq-dev", mean) for name, mean in (dev or own).items()]
    rows += [(name, "average", 1 - mean) for name, mean in own.items()]
    return pd.DataFrame(rows, columns=["teacher", "dataset", "mean"])


def taught(gains, **options):
    """Students of one teacher each under the paper's percentage; ``gains``: teacher -> gain."""
    results = synthetic(TEACHERS, **options)
    rows = results.arms[results.arms["method"] == "TopK-PercPos 95%"]
    pattern, table, scores = rows.iloc[[0]], results.arms, results.scores.copy()
    table = table.drop(index=[label for label in table.index if "PercPos" in label])
    rng = np.random.default_rng(1)
    for name, gain in gains.items():
        label = f"static: TopK-PercPos 95%, teacher {name}"
        table = pd.concat([table, pattern.assign(teacher=name).set_axis([label])])
        for seed in range(3):
            base = results.scores["ndcg_at_10", rows.index[0], seed]
            for metric in ("ndcg_at_10", "recall_at_100"):
                scores[metric, label, seed] = base + gain + rng.normal(0, 0.01, len(base))
    return Results(table, scores, pd.DataFrame(), "nq-dev", ["nq-test"])


def test_slope_is_the_gain_for_ten_points_and_its_unit_is_the_teacher():
    one, rest = claim(**SLOPE), {"fifth": 0.6, "sixth": 0.45}
    own = OWN | rest
    steps = {name: 0.3 * mean for name, mean in own.items()}
    found = decide(one, taught(steps), teachers=own_scores(own))
    assert found.verdict == "confirmed"
    assert found.difference == pytest.approx(0.03, abs=0.005)
    assert found.note.startswith("5 teachers, the units of the interval")
    # The student's own base model, which is far off the line, is not among them
    off = steps | {"potion-base-8m": -5.0}
    assert decide(one, taught(off), teachers=own_scores(own)).difference == found.difference
    falling = {name: -gain for name, gain in steps.items()}
    results = taught(falling, lift=0.5)
    assert decide(one, results, teachers=own_scores(own)).verdict == "reversed"
    # Three teachers on a crooked line leave one degree of freedom, whatever the seeds say
    crooked = {"bm25": 0.1, "third": 0.1, "fourth": 0.16}
    few = decide(one, taught(crooked), teachers=own_scores())
    assert (few.verdict, few.low < 0 < few.high) == ("undecided", True)
    for teachers in (None, own_scores({"bm25": 0.4, "third": 0.5})):
        with pytest.raises(selection.NotRun, match="teachers"):
            decide(one, taught(steps), teachers=teachers)


def test_the_best_teacher_is_best_by_its_own_score_on_dev():
    one = claim(kind="difference", study=TEACHERS, better={"family": "perc-pos", "teacher": "best"},
                worse={"family": "random"})  # fmt: skip
    # "third" makes the best student, "fourth" is the best retriever on the test set, "potion" the
    # best on dev but the student's own base model, and then "bm25"
    results = taught({"bm25": 0.03, "potion-base-8m": 0.2, "third": 0.3, "fourth": 0.1})
    dev = {"bm25": 0.6, "potion-base-8m": 0.9, "third": 0.3, "fourth": 0.5}
    found = decide(one, results, teachers=own_scores(dev=dev))
    assert found.arms[0] == "static: TopK-PercPos 95%, teacher bm25"
    assert "best teacher by its own NDCG@10 on dev: bm25, 0.600" in found.note
    with pytest.raises(selection.NotRun, match="no table"):
        decide(one, results)
    with pytest.raises(selection.NotRun, match="own scores on nq-dev lack third"):
        decide(one, results, teachers=own_scores(dev={"bm25": 0.6, "fourth": 0.5}))


def test_the_students_own_base_is_no_teacher_of_a_group():
    one = claim(kind="worst", study=TEACHERS, arms={"family": "perc-pos", "teacher": "any"},
                by="teacher", worst="bm25")  # fmt: skip
    found = decide(one, taught({"bm25": 0.0, "potion-base-8m": -0.3, "third": 0.1}))
    assert (found.verdict, len(found.arms)) == ("confirmed", 2)


def test_shares_and_overlaps():
    one = claim(kind="share-halved", study="09", method="M", at_least=0.5)
    table = pd.DataFrame(
        {"dataset": list("abcdef"), "method": "M", "reduction": [0.6, 0.3, 0.5, np.nan, -0.4, 0.1],
         "low": [0.55, 0.2, -np.inf, np.nan, -0.5, -0.1],
         "high": [0.7, 0.4, 0.8, np.nan, -0.3, 0.3]}
    ).assign(**{"near-duplicates": "kept"})  # fmt: skip
    other = table.assign(**{"near-duplicates": "excluded", "low": 0.9, "high": 1.0})
    found = verdicts.from_reductions(one, pd.concat([other, table]))
    assert [d.verdict for d in found.values()] == [
        "confirmed", "same sign, smaller", "undecided", "undecided", "reversed", "undecided",
    ]  # fmt: skip
    with pytest.raises(selection.NotRun):
        verdicts.from_reductions(one, table.assign(method="other"))
    overlap = claim(kind="low-jaccard", study="03", below=0.5)
    table = pd.DataFrame({"teacher_a": list("aab"), "teacher_b": list("bcc"),
                          "dataset": "nq", "jaccard": [0.1, 0.2, 0.6]})  # fmt: skip
    (found,) = verdicts.from_overlaps(overlap, table).values()
    assert (found.verdict, found.difference) == ("confirmed", pytest.approx(0.3))
    assert "from 0.10 to 0.60 over 3 pairs" in found.note
    (found,) = verdicts.from_overlaps(overlap, table.assign(jaccard=0.6)).values()
    assert found.verdict == "reversed"


# Which arms a filter means


def select(results, wanted):
    return selection.Selection(results, "static", SETTINGS).select(claims.ArmFilter(**wanted))


@pytest.mark.parametrize(
    ("wanted", "labels"),
    [
        ({"family": "perc-pos"}, ["TopK-PercPos 95%"]),
        ({"family": "perc-pos", "in_batch_negatives": True}, ["TopK-PercPos 95%, in-batch"]),
        ({"family": "perc-pos", "num_negatives": 1}, ["TopK-PercPos 95%, 1 negative"]),
        ({"family": "perc-pos", "teacher": "bm25"}, ["TopK-PercPos 95%, teacher bm25"]),
        ({"family": "perc-pos", "parameter": 0.9}, []),
        ({"family": "none"}, ["No mined negatives"]),
        ({"family": "none", "memory_bank": "other"}, ["No mined negatives, memory bank of 64"]),
        ({"family": "none", "mask_margin": "largest"},
         ["No mined negatives, masked above the positive + 0.1"]),
        ({"family": "base"}, ["Base model"]),
        ({"family": ["random", "naive"]}, ["Random", "Naive Top-K"]),
    ],
)  # fmt: skip
def test_what_is_not_said_is_the_default(wanted, labels):
    found = select(synthetic(METHODS, queries=2), wanted)
    assert [label.removeprefix("static: ") for label in found] == labels


def test_patterns_and_ends():
    results = synthetic("05_rq3_sampling", queries=2)
    far = {"family": "perc-pos", "sampling": "sampled", "k": "largest"}
    assert select(results, far) == ["static: TopK-PercPos 95%, sampled from 8"]
    results = synthetic("03_rq2_ensembles", queries=2)
    mixed = {"family": "perc-pos", "teacher": "*+*", "ensemble": "any"}
    assert len(select(results, mixed)) == 3
    assert len(select(results, {"family": "perc-pos", "teacher": "any"})) == 2


def test_what_a_claim_cannot_ask_for_has_to_be_as_usual(monkeypatch):
    results = synthetic(METHODS, queries=2)
    odd = results.arms.assign(loss="usual")
    odd.loc[PERC, "loss"] = "odd"
    usual = arms.defaults
    monkeypatch.setattr(selection, "defaults", lambda *given: usual(*given) | {"loss": "usual"})
    results = replace(results, arms=odd)
    assert select(results, {"family": "naive"}) == [NAIVE]
    assert select(results, {"family": "perc-pos"}) == []


def error_rate(one, effects, wrong, rounds):
    """How often a verdict that the truth does not allow comes out."""
    small = {"queries": 30, "noise": 0.1, "of_seed": 0.01, "lift": 0.5}
    small["only"] = [BASE, NAIVE, PERC, *effects]
    found = [
        decide(one, synthetic(one.study, effects, draw=draw, **small)).verdict
        for draw in range(rounds)
    ]
    assert "not a test" not in found
    return found.count(wrong) / rounds


BASE = "static: Base model"


@pytest.mark.parametrize(
    ("values", "effects", "wrong"),
    [
        ({"kind": "difference", **PERC_NAIVE}, {}, "confirmed"),
        ({"kind": "difference", **PERC_NAIVE}, {}, "reversed"),
        ({"kind": "difference", **PERC_NAIVE}, {PERC: 0.005}, "no effect"),
        ({"kind": "not-worse", **PERC_NAIVE}, {PERC: -0.005}, "confirmed"),
        ({"kind": "no-gain", **PERC_NAIVE}, {PERC: 0.005}, "confirmed"),
        # One arm is no better, the others are far ahead: the hardest case for "naive is worst"
        ({"kind": "worst", "worst": "naive", **GROUP},
         {SHIFTED: 0.2, ABS: 0.2, MARGIN_POS: 0.2}, "confirmed"),
        # None is worse: several chances to refute
        ({"kind": "worst", "worst": "naive", **GROUP},
         dict.fromkeys((SHIFTED, ABS, MARGIN_POS, PERC), 0.0), "reversed"),
    ],
)  # fmt: skip
def test_wrong_verdicts_are_rare(values, effects, wrong):
    """Its rate is that of a one-sided error, give or take three standard errors."""
    rounds = max(50, examples(150).max_examples)
    most = 0.025 + 3 * (0.025 * 0.975 / rounds) ** 0.5
    assert error_rate(claim(**values), effects, wrong, rounds) <= most


# The ledger


@pytest.fixture(scope="module")
def built():
    """The registered claims on synthetic results of every study of the smoke profile."""
    results = {name: synthetic(name, queries=20) for name in SETTINGS.studies}
    return ledger.build(SETTINGS, claims.load(), results, {})


def test_the_ledger_names_what_is_missing_and_never_fails(built):
    registered = claims.load()
    table = ledger.build(SETTINGS, registered, {}, {})
    assert set(table["verdict"]) == {"not run", "not testable here"}
    assert set(table["id"]) == {one.id for one in registered.claims}
    assert (table["note"] != "").all()
    rows = built.set_index("id")
    assert rows.at["perc-beats-naive-others", "verdict"] in verdicts.VERDICTS[:6]
    assert rows.at["perc-beats-naive-others", "paper"] == pytest.approx(0.0449)
    assert rows.at["perc-beats-naive", "paper"] == pytest.approx(0.0449)
    assert rows.at["perc-beats-naive", "verdict"] == "not run"  # smoke has no transformer
    assert rows.at["decoder-perc-beats-naive", "student"] == "decoder"
    assert rows.at["better-teachers", "note"] == "no table of the teachers' own scores"
    assert set(built["table"]) == set(claims.TABLES)
    assert not ledger.shown(built).isna().any().any()
    assert (ledger.more(built, MARGIN)["times"] > 1).all()


def test_primary_claims_are_adjusted_among_themselves():
    registered = claims.load()
    chosen = {"perc-beats-naive-others", "perc-beats-shifted-others"}
    own = [one.model_copy(update={"primary": one.id in chosen}) for one in registered.claims]
    registered = registered.model_copy(update={"claims": own})
    results = {name: synthetic(name, queries=20) for name in SETTINGS.studies}
    table = ledger.build(SETTINGS, registered, results, {})
    tested = table[table["p"].notna()]
    assert (table["p_adjusted"].notna() == table["p"].notna()).all()
    primary, others = tested[tested["primary"]], tested[~tested["primary"]]
    assert set(primary["id"]) == chosen
    p = primary["p"].to_numpy()
    assert primary["p_adjusted"].tolist() == pytest.approx(statistics.holm(p))
    expected = multipletests(others["p"].tolist())
    assert others["p_adjusted"].tolist() == pytest.approx(expected)


def multipletests(values):
    """Benjamini and Hochberg's step-up procedure, written down from the paper."""
    order, number = np.argsort(values), len(values)
    adjusted, smallest = np.empty(number), 1.0
    for rank, place in reversed(list(enumerate(order, start=1))):
        smallest = min(smallest, values[place] * number / rank)
        adjusted[place] = smallest
    return adjusted


def test_the_figure_tells_the_verdicts_apart(built):
    rows = built[built["low"].notna() & (built["unit"] == "points")].head(6)
    figure = forest.ledger(rows.assign(verdict=list(forest.VERDICTS)))
    names = [tick.get_text().replace("\n", " ") for tick in figure.axes[0].get_yticklabels()]
    assert all(any(claim in name for name in names) for claim in rows["claim"])
    assert set(forest.VERDICTS) == set(statistics.Verdict.__args__)
    for key in ("color", "marker"):
        assert len({style[key] for style in forest.VERDICTS.values()}) == 6
    plt.close(figure)


def test_no_text_of_the_ledger_is_live():
    table = ledger.build(SETTINGS, claims.load(), {}, {}).head(len(hostile.TEXTS))
    table = table.assign(claim=hostile.TEXTS, student=hostile.ALL, note=hostile.ALL)
    hostile.check(ledger.styled(table).to_html())
    hostile.check(ledger.styled(table).format(precision=2).to_html())


def row(**cells):
    """A row of the ledger."""
    cells = {"kind": "difference", "unit": "points", "student": "static"} | cells
    return pd.DataFrame([cells], columns=ledger.COLUMNS)


def test_how_much_more_would_decide():
    kinds = ["not-worse", "difference", "difference", "no-gain", "slope"]
    rows = pd.DataFrame(
        {"kind": kinds, "verdict": "undecided", "unit": "points",
         "difference": [0.0, 0.001, 0.008, 0.005, 0.0],
         "low": [-0.010, -0.007, -0.008, 0.001, -0.1],
         "high": [0.010, 0.009, 0.024, 0.009, 0.1]}, columns=ledger.COLUMNS,
    )  # fmt: skip
    assert ledger.more(rows, MARGIN)["times"].tolist() == pytest.approx([4, 4, 4, math.inf])


@pytest.mark.parametrize("paper", [0.0449, np.nan])
@pytest.mark.parametrize("middle", [-0.02, 0.001, 0.008, 0.03])
@pytest.mark.parametrize("half", [0.003, 0.012, 0.05])
def test_what_would_have_changed_a_verdict(middle, half, paper):
    """The sentence of each verdict names the nearest bounds, and moving beyond them does it."""
    published = None if np.isnan(paper) else paper
    interval = statistics.Interval(middle, middle - half, middle + half)
    word = statistics.verdict(interval, MARGIN, published)
    cells = {"difference": middle, "low": interval.low, "high": interval.high, "paper": paper}
    (text,) = ledger.turning(row(verdict=word, **cells), MARGIN)
    goal = 2.245 if published else 0.5
    if word in ("confirmed", "same sign, smaller", "undecided"):
        assert f"{goal:.2f} points" in text
        moved = statistics.Interval(goal / 100 + 1e-6, 1e-6, 2 * goal / 100)
        assert statistics.verdict(moved, MARGIN, published) == "confirmed"
    if word == "no effect":
        assert "beyond ± 0.50 points" in text
    if word in ("reversed", "confirmed", "same sign, smaller"):
        assert "reaches 0" in text
    if word == "not a test":
        assert text == f"A half-width of at most 4.49 points: it is {100 * half:.2f}."


def test_power(built):
    table = ledger.power(built)
    assert len(table) == built["detectable"].notna().sum() > 10
    assert (table["detectable"] > 0).all()
    known = table[table["paper"].notna()]
    expected = known["detectable"] <= known["paper"]
    assert (known["detects the paper's"] == expected).all()
    assert (table.loc[table["paper"].isna(), "detects the paper's"] == "").all()


def test_report_writes_everything_from_the_scores(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NVRET_RESULTS", str(tmp_path))
    path = str(ROOT / "params" / "smoke.yaml")
    assert cli.main(["report", path]) == 2
    assert "holds no scores; run the profile first" in capsys.readouterr().err
    for study in (METHODS, "05_rq3_sampling"):
        synthetic(study, queries=20).save(paths.scores_path(SETTINGS, study))
    before = (ROOT / "README.md").read_text()
    assert cli.main(["report", path]) == 0
    assert "not run: " in capsys.readouterr().out
    assert (ROOT / "README.md").read_text() == before
    made = tmp_path / "smoke"
    names = ("05_means", "05_differences", "06_means", "06_differences", "10_claims", "10_power")
    for name in names:
        assert (made / "tables" / f"{name}.csv").is_file()
    assert (made / "figures" / "10_ledger.png").is_file()
    kept = json.loads((made / "claims.json").read_text())
    table = pd.read_csv(made / "tables" / "10_claims.csv")
    assert [row["verdict"] for row in kept["claims"]] == table["verdict"].tolist()
    read, margin = ledger.read(made)
    assert (list(read), margin) == (ledger.COLUMNS, MARGIN)
    one = ledger.load(SETTINGS, METHODS)
    assert set(one["id"]) < set(table["id"])
    assert one["p_adjusted"].isna().all()  # which takes the whole ledger
    assert ledger.load(SETTINGS, "00_the_method").empty  # decides no claim


def test_what_is_saved_is_read_back(tmp_path):
    results = synthetic(METHODS, queries=3)
    results.save(tmp_path / "scores.parquet")
    back = Results.load(tmp_path / "scores.parquet")
    assert back.primary == results.primary
    pd.testing.assert_frame_equal(back.differing, results.differing.round(4))
    results.scores.droplevel(0, axis=1).iloc[:, :1].to_parquet(tmp_path / "old.parquet")
    with pytest.raises(NvretError, match="run the profile again"):
        Results.load(tmp_path / "old.parquet")


@pytest.mark.parametrize("profile", SMOKE_RUN)
def test_committed_tables_are_what_the_committed_scores_give(profile, tmp_path, monkeypatch):
    committed = ROOT / "results" / profile
    copy = tmp_path / profile
    for name in ("scores", "tables"):
        shutil.copytree(committed / name, copy / name)
    monkeypatch.setenv("NVRET_RESULTS", str(tmp_path))
    ledger.write(config.load(ROOT / "params" / f"{profile}.yaml"))
    names = [path.name for path in (copy / "tables").glob("*.csv")]
    wanted = ("10_claims", "10_power", "_means", "_differences")
    for name in [name for name in names if any(part in name for part in wanted)]:
        ours, theirs = (pd.read_csv(f / "tables" / name) for f in (copy, committed))
        pd.testing.assert_frame_equal(ours, theirs, rtol=0, atol=2e-6, obj=name)


def test_an_unknown_column_to_group_by_is_named():
    with pytest.raises((NvretError, ValueError), match="no column 'familie'"):
        claim(kind="worst", worst="naive", **(GROUP | {"by": "familie"}))
