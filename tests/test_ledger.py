"""Verdicts on scores whose truth is known, and the ledger over what has been run."""

import json
import math
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from helpers import hostile
from nvret import cli
from nvret.study import arms, claims, config, figures, ledger, paths, verdicts
from nvret.study.scores import Results
from nvret.utils.errors import NvretError

ROOT = Path(__file__).parents[1]
SETTINGS = config.load(ROOT / "params" / "smoke.yaml")
RUN = sorted(path.parent.name for path in (ROOT / "results").glob("*/scores"))
SMOKE_RUN = [name for name in RUN if (ROOT / "params" / f"{name}.yaml").is_file()]
NAIVE, SHIFTED = "static: Naive Top-K", "static: Top-K shifted by 10"
ABS, MARGIN, PERC = (
    f"static: {name}" for name in ("TopK-Abs 0.7", "TopK-MarginPos 0.05", "TopK-PercPos 95%")
)


def synthetic(
    study, effects=None, *, queries=200, seeds=3, noise=0.05, of_seed=0.002, draw=0, only=None
):
    """Results of a study of the smoke profile; ``effects``: label -> what its arm adds."""
    rng = np.random.default_rng(draw)
    rows = [arm for arm in arms.arms(SETTINGS, study) if only is None or arm.label in only]
    sets = ["nq-test", "nq-dev"] if SETTINGS.studies[study].dev else ["nq-test"]
    frames = []
    for name in sets:
        of_query = rng.normal(0.6, 0.2, queries)
        for arm in rows:
            for seed in range(seeds if arm.trained else 1):
                value = of_query + (effects or {}).get(arm.label, 0.0)
                value = value + rng.normal(0, of_seed) + rng.normal(0, noise, queries)
                ids = [f"q{i}" for i in range(queries)]
                cells = {"dataset": name, "query_id": ids, "arm": arm.label, "seed": seed}
                frames.append(pd.DataFrame(cells | dict.fromkeys(
                    ("ndcg_at_10", "recall_at_100"), value)))  # fmt: skip
    table = pd.DataFrame([{"arm": arm.label, **arm.row} for arm in rows]).set_index("arm")
    return Results.of(
        table, pd.concat(frames, ignore_index=True), pd.DataFrame(), "nq-dev", ["nq-test"]
    )


def claim(**values):
    """One claim, as the file would give it."""
    common = {"id": "x", "claim": "x", "section": "x"}
    return claims.Claims(margin=0.002, claims=[common | values]).claims[0]


def decide(one, results, **options):
    return verdicts.decide(one, "static", results, SETTINGS, 0.002, **options)


METHODS = "06_rq3_methods"
PERC_NAIVE = {
    "study": METHODS,
    "better": {"family": "perc-pos"},
    "worse": {"family": "naive"},
}
FAMILIES = ["naive", "shifted", "abs", "margin-pos", "perc-pos"]
GROUP = {"study": METHODS, "arms": {"family": FAMILIES}, "by": "family"}


@pytest.mark.parametrize(
    ("kind", "effect", "verdict"),
    [
        ("difference", 0.03, "reproduced"),
        ("difference", -0.03, "not reproduced"),
        ("difference", 0.002, "undecided"),
        ("not-worse", 0.03, "reproduced"),
        ("not-worse", -0.03, "not reproduced"),
        ("not-worse", -0.002, "undecided"),
        ("no-gain", -0.03, "reproduced"),
        ("no-gain", 0.03, "not reproduced"),
        ("no-gain", 0.002, "undecided"),
    ],
)
def test_pairs(kind, effect, verdict):
    noise = 0.2 if verdict == "undecided" else 0.05
    results = synthetic(METHODS, {PERC: effect}, noise=noise)
    found = decide(claim(kind=kind, **PERC_NAIVE), results)
    assert found.verdict == verdict
    assert found.low < effect < found.high
    assert (found.seeds, found.queries) == (3, 200)
    assert (found.p < 0.05) == (verdict != "undecided")


def test_worst():
    one = claim(kind="worst", worst="naive", **GROUP)
    worst = dict.fromkeys((SHIFTED, ABS, MARGIN, PERC), 0.06)
    assert decide(one, synthetic(METHODS, worst)).verdict == "reproduced"
    assert decide(one, synthetic(METHODS, worst | {ABS: -0.03})).verdict == "not reproduced"
    assert decide(one, synthetic(METHODS, worst | {ABS: 0.002}, noise=0.2)).verdict == "undecided"


def test_order_shows_every_link_and_decides_by_the_weakest():
    chain = ["perc-pos", "margin-pos", "abs", "shifted", "naive"]
    one = claim(kind="order", order=chain, **GROUP)
    steps = {PERC: 0.12, MARGIN: 0.09, ABS: 0.06, SHIFTED: 0.03}
    found = decide(one, synthetic(METHODS, steps))
    assert found.verdict == "reproduced"
    assert found.note.count(" less ") == 4
    assert found.difference == pytest.approx(0.03, abs=0.01)
    swapped = steps | {ABS: 0.03, SHIFTED: 0.06}
    found = decide(one, synthetic(METHODS, swapped))
    assert (found.verdict, found.difference) == ("not reproduced", pytest.approx(-0.03, abs=0.01))
    with pytest.raises(verdicts.NotRun, match="no arm of margin-pos, abs"):
        decide(claim(**{**GROUP, "kind": "order", "study": "08_rq3b_scale", "order": chain,
                        "arms": {"family": ["naive", "perc-pos"], "train": "*+*"}}),
               synthetic("08_rq3b_scale"))  # fmt: skip


def test_an_inner_optimum_is_chosen_on_dev_and_beats_both_ends():
    study = "04_rq3_thresholds"
    one = claim(kind="inner-optimum", study=study, arms={"family": "abs", "parameter": "any"})
    low, middle, high = (f"static: TopK-Abs {t}" for t in (0.3, 0.5, 0.7))
    assert decide(one, synthetic(study, {middle: 0.03})).verdict == "reproduced"
    found = decide(one, synthetic(study, {middle: 0.03, high: 0.06}))
    assert found.verdict == "not reproduced"
    assert found.difference == pytest.approx(-0.03, abs=0.01)
    assert decide(one, synthetic(study, {middle: 0.03, low: 0.028})).verdict == "undecided"
    two = claim(kind="inner-optimum", study=study, arms={"family": "shifted", "parameter": "any"})
    with pytest.raises(verdicts.NotRun, match="2 values"):
        decide(two, synthetic(study))


def test_several_arms_of_a_side_are_chosen_between_on_dev():
    study = "04_rq3_thresholds"
    one = claim(kind="difference", study=study, better={"family": "perc-pos", "parameter": "any"},
                worse={"family": "naive"})  # fmt: skip
    found = decide(one, synthetic(study, {"static: TopK-PercPos 70%": 0.03}))
    assert found.note == "chosen on dev: TopK-PercPos 70%"
    assert found.verdict == "reproduced"
    no_dev = claim(kind="difference", **(PERC_NAIVE | {"better": {
        "family": "perc-pos", "in_batch_negatives": "any"}}))  # fmt: skip
    with pytest.raises(verdicts.NotRun, match=r"2 arms .* no development split"):
        decide(no_dev, synthetic(METHODS))


def test_slope_is_the_gain_for_ten_points_of_the_teacher():
    study = "02_rq1_teachers"
    names = ["bm25", "potion-base-8m", "third"]
    own = pd.DataFrame({"teacher": names, "dataset": "average", "mean": [0.4, 0.5, 0.7]})
    results = synthetic(study)
    rows = results.arms[results.arms["method"] == "TopK-PercPos 95%"]
    third = rows.iloc[[1]].assign(teacher="third").rename(index=lambda label: f"{label}, third")
    table = pd.concat([results.arms, third])
    labels = dict(zip(names, [*rows.index, third.index[0]], strict=True))
    scores = results.scores.copy()
    rng = np.random.default_rng(1)
    for name, label in labels.items():
        for seed in range(3):
            base = results.scores["ndcg_at_10", rows.index[0], seed]
            better = 0.3 * own.set_index("teacher")["mean"][name]
            noise = rng.normal(0, 0.03, len(base))
            for metric in ("ndcg_at_10", "recall_at_100"):
                scores[metric, label, seed] = base + better + noise
    one = claim(kind="slope", study=study, arms={"family": "perc-pos", "teacher": "any"})
    results = Results(table, scores, pd.DataFrame(), "nq-dev", ["nq-test"])
    found = decide(one, results, teachers=own)
    assert found.verdict == "reproduced"
    assert found.difference == pytest.approx(0.03, abs=0.005)
    falling = own.assign(mean=[0.7, 0.5, 0.4])
    assert decide(one, results, teachers=falling).verdict == "not reproduced"
    for teachers in (None, own.iloc[:2]):
        with pytest.raises(verdicts.NotRun, match="teachers"):
            decide(one, results, teachers=teachers)


def test_shares_and_overlaps():
    one = claim(kind="share-halved", study="09", method="M", at_least=0.5)
    table = pd.DataFrame(
        {"dataset": list("abcd"), "method": "M", "reduction": [0.6, 0.3, 0.5, np.nan],
         "low": [0.55, 0.2, -np.inf, np.nan], "high": [0.7, 0.4, 0.8, np.nan]}
    )  # fmt: skip
    found = verdicts.from_reductions(one, table)
    assert [d.verdict for d in found.values()] == [
        "reproduced", "not reproduced", "undecided", "undecided"]  # fmt: skip
    with pytest.raises(verdicts.NotRun):
        verdicts.from_reductions(one, table.assign(method="other"))
    overlap = claim(kind="low-jaccard", study="03", below=0.5)
    table = pd.DataFrame({"teacher_a": list("aab"), "teacher_b": list("bcc"),
                          "dataset": "nq", "jaccard": [0.1, 0.2, 0.6]})  # fmt: skip
    (found,) = verdicts.from_overlaps(overlap, table).values()
    assert (found.verdict, found.difference) == ("reproduced", pytest.approx(0.3))
    assert "from 0.10 to 0.60 over 3 pairs" in found.note


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
    found = verdicts.select(
        synthetic(METHODS, queries=2), claims.ArmFilter(**wanted), "static", SETTINGS
    )
    assert [label.removeprefix("static: ") for label in found] == labels


def test_patterns_and_ends():
    results = synthetic("05_rq3_sampling", queries=2)
    far = claims.ArmFilter(family="perc-pos", sampling="sampled", k="largest")
    assert verdicts.select(results, far, "static", SETTINGS) == [
        "static: TopK-PercPos 95%, sampled from 8"
    ]
    results = synthetic("03_rq2_ensembles", queries=2)
    mixed = claims.ArmFilter(family="perc-pos", teacher="*+*", ensemble="any")
    assert len(verdicts.select(results, mixed, "static", SETTINGS)) == 3
    single = claims.ArmFilter(family="perc-pos", teacher="any")
    assert len(verdicts.select(results, single, "static", SETTINGS)) == 2


def error_rate(one, effects, wrong, rounds=150):
    """How often a verdict that the truth does not allow comes out."""
    small = {"queries": 30, "noise": 0.1, "of_seed": 0.01, "only": [NAIVE, PERC, *effects]}
    found = [
        decide(one, synthetic(one.study, effects, draw=draw, **small)).verdict
        for draw in range(rounds)
    ]
    return found.count(wrong) / rounds


@pytest.mark.parametrize(
    ("values", "effects", "wrong"),
    [
        ({"kind": "difference", **PERC_NAIVE}, {}, "reproduced"),
        ({"kind": "difference", **PERC_NAIVE}, {PERC: 0.002}, "not reproduced"),
        ({"kind": "not-worse", **PERC_NAIVE}, {PERC: -0.002}, "reproduced"),
        ({"kind": "no-gain", **PERC_NAIVE}, {PERC: 0.002}, "reproduced"),
        # One arm is no better, the others are far ahead: the hardest case for "naive is worst"
        ({"kind": "worst", "worst": "naive", **GROUP},
         {SHIFTED: 0.2, ABS: 0.2, MARGIN: 0.2}, "reproduced"),
        # All are better by just what matters: several chances to refute
        ({"kind": "worst", "worst": "naive", **GROUP},
         dict.fromkeys((SHIFTED, ABS, MARGIN, PERC), 0.002), "not reproduced"),
    ],
)  # fmt: skip
def test_wrong_verdicts_are_rare(values, effects, wrong):
    # A one-sided error of 2.5 %; three standard errors of 150 rounds above it
    assert error_rate(claim(**values), effects, wrong) <= 0.065


def test_the_ledger_names_what_is_missing_and_never_fails():
    registered = claims.load()
    table = ledger.build(SETTINGS, registered, {}, {})
    assert set(table["verdict"]) == {"not run", "not testable here"}
    assert set(table["id"]) == {one.id for one in registered.claims}
    assert (table["note"] != "").all()
    results = {name: synthetic(name, queries=20) for name in SETTINGS.studies}
    table = ledger.build(SETTINGS, registered, results, {})
    rows = table.set_index("id")
    assert rows.at["perc-beats-naive", "verdict"] in verdicts.VERDICTS[:3]
    assert rows.at["perc-beats-naive", "paper"] == pytest.approx(0.0449)
    assert rows.at["decoder-perc-beats-naive", "student"] == "decoder"
    assert rows.at["better-teachers", "note"] == "no table of the teachers' own scores"
    tested = table["p"].notna()
    assert (table["p_holm"].notna() == tested).all()
    assert (table.loc[tested, "p_holm"] >= table.loc[tested, "p"]).all()
    assert not ledger.shown(table).isna().any().any()
    assert (ledger.more(table, 0.002)["times"] > 1).all()
    figure = figures.ledger(table)
    assert figure.get_size_inches()[0] == pytest.approx(6.4)
    plt.close(figure)


def test_no_text_of_the_ledger_is_live():
    table = ledger.build(SETTINGS, claims.load(), {}, {}).head(len(hostile.TEXTS))
    table = table.assign(claim=hostile.TEXTS, student=hostile.ALL, note=hostile.ALL)
    hostile.check(ledger.styled(table).to_html())
    hostile.check(ledger.styled(table).format(precision=2).to_html())


def test_how_much_more_would_decide():
    rows = pd.DataFrame(
        {"kind": ["not-worse", "difference", "difference", "no-gain"], "verdict": "undecided",
         "difference": [0.0, 0.001, 0.004, 0.002], "low": [-0.004, -0.004, -0.004, 0.001],
         "high": [0.004, 0.004, 0.012, 0.003]}, columns=ledger.COLUMNS,
    )  # fmt: skip
    assert ledger.more(rows, 0.002)["times"].tolist() == pytest.approx([4, 16, 4, math.inf])


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
    for name in ("05_means", "05_differences", "06_means", "06_differences", "10_claims"):
        assert (made / "tables" / f"{name}.csv").is_file()
    assert (made / "figures" / "10_ledger.png").is_file()
    kept = json.loads((made / "claims.json").read_text())
    table = pd.read_csv(made / "tables" / "10_claims.csv")
    assert [row["verdict"] for row in kept["claims"]] == table["verdict"].tolist()
    one = ledger.load(SETTINGS, METHODS)
    assert set(one["id"]) < set(table["id"])
    assert ledger.load(SETTINGS, "00_the_method").empty  # decides no claim


@pytest.mark.parametrize("profile", SMOKE_RUN)
def test_committed_tables_are_what_the_committed_scores_give(profile, tmp_path, monkeypatch):
    committed = ROOT / "results" / profile
    copy = tmp_path / profile
    for name in ("scores", "tables"):
        shutil.copytree(committed / name, copy / name)
    monkeypatch.setenv("NVRET_RESULTS", str(tmp_path))
    ledger.write(config.load(ROOT / "params" / f"{profile}.yaml"))
    names = [path.name for path in (copy / "tables").glob("*.csv")]
    names = [n for n in names if n == "10_claims.csv" or "_means" in n or "_differences" in n]
    for name in names:
        ours, theirs = (pd.read_csv(f / "tables" / name) for f in (copy, committed))
        pd.testing.assert_frame_equal(ours, theirs, rtol=0, atol=2e-6, obj=name)


def test_an_unknown_column_to_group_by_is_named():
    with pytest.raises((NvretError, ValueError), match="no column 'familie'"):
        claim(kind="worst", worst="naive", **(GROUP | {"by": "familie"}))
