"""``nvret mine``: hard negatives of a profile, or for queries and a corpus of one's own."""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import docstring_parser
from cyclopts import Parameter, validators

from nvret.cli import options, profile
from nvret.cli.options import Count, Only, OwnData, Profile, Seed, Share, TeacherOptions, spelled
from nvret.methods import BY_NAME, build_method
from nvret.utils.errors import NvretError

if TYPE_CHECKING:
    import pyarrow as pa

    from nvret.data import RetrievalDataset

# The names of nvret.sampling and nvret.io.export, which take long to import; a test compares them
Sampling = Literal["top-k", "sampled", "top-1+sampled"]
Format = Literal[
    "parquet",
    "triplet",
    "n-tuple",
    "labeled-pair",
    "labeled-list",
    "flagembedding",
    "tevatron",
    "automodel",
]


@options.group("filters")
class FilterOptions:
    """What else may not be a negative.

    Attributes:
        ceiling_positive: whose score counts for a query of several: the pair's own, or the lowest
        near_duplicates: similarity from which a passage is a copy of a positive; or none
        distinct: similarity from which a passage is a copy of a negative that the pair has already,
            so that the next one is taken; or none
        skip: further leading ranks that are dropped, of those that the method allows
        min_score: the least that a negative may score
        second_opinion: drop the negatives that this model calls relevant: a cross-encoder, an
            embedding model or a language model; as --teacher. The next ones take their places
        second_threshold: from which they are relevant: a probability (0.5), or of an embedding
            model a share of the positive's score (0.95)
        relabel: a .tsv to write: your labels, and as further positives what it calls relevant
    """

    ceiling_positive: Literal["own", "lowest"] = "own"
    near_duplicates: Share | None = 0.8
    distinct: Share | None = 0.8
    skip: Annotated[int, Parameter(converter=options.whole, validator=validators.Number(gte=0))] = 0
    min_score: float | None = None
    second_opinion: str | None = None
    second_threshold: float | None = None
    relabel: Path | None = None

    def judge(self, device: str) -> Any:
        """The model of ``--second-opinion``, or None."""
        owner = "second_opinion"
        options.check_owners(self, second_threshold=owner, relabel=owner)
        options.check_output("relabel", self.relabel, ".tsv")
        judge = options.load_judge("second_opinion", self.second_opinion, device)
        if judge and self.second_threshold is not None:
            judge.threshold = self.second_threshold
        return judge


@options.group("sampling")
class SamplingOptions:
    """Which of the candidates are taken.

    Attributes:
        num_negatives: of each pair of query and positive
        sampling: the first, drawn, or both
        k: candidates that are drawn from (10)
        seed: of the draws
    """

    num_negatives: Count = 4
    sampling: Sampling = "top-k"
    k: Count | None = None
    seed: Seed = 0

    def build(self) -> Any:
        from nvret.sampling import SampledTopK, Top1PlusSampled, TopK

        if self.sampling == "top-k":
            if self.k is not None:
                raise NvretError(
                    "--k is of --sampling sampled and top-1+sampled; `top-k` takes the first"
                )
            return TopK()
        kind = SampledTopK if self.sampling == "sampled" else Top1PlusSampled
        sampling = kind(10 if self.k is None else self.k)
        sampling.depth(self.num_negatives)
        return sampling


@options.group("output")
class OutputOptions:
    """The file.

    Attributes:
        output: file to write
        overwrite: replace the file if it is there
        format: parquet: ids, ranks and scores; triplet to labeled-list: sentence-transformers'
            (Parquet); flagembedding, tevatron, automodel: JSON Lines
        card: a .md to write beside it: teacher, rule and counts, as the hub shows them
        push_to_hub: owner/name of a data set, private if it is new, that the file and its card are
            uploaded to
    """

    output: Path | None = None
    overwrite: bool = False
    format: Format = "parquet"
    card: Path | None = None
    push_to_hub: str | None = None

    def check(self) -> None:
        """`NvretError` if the file cannot be written, or is there and may not be replaced."""
        from nvret.io import export

        path = self.output
        export.check(self.format, path)
        options.check_output("output", path, overwrite=self.overwrite)
        options.check_output("card", self.card, ".md", overwrite=self.overwrite)
        if self.push_to_hub and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.push_to_hub):
            raise NvretError(f"--push-to-hub {self.push_to_hub}: expected owner/name")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            reason = f"cannot write to {folder}: {error.strerror}"
            raise NvretError(f"--output {path}: {reason}") from error


def method_options() -> type:
    """``--method``, and the parameters of all methods that are registered when it is called."""
    found = {"method": (Literal[tuple(BY_NAME)], "below which score, and after which rank")}
    for name, method in BY_NAME.items():
        described = docstring_parser.parse(method.__doc__).params
        texts = {one.arg_name: one.description for one in described}
        kinds = typing.get_type_hints(method)
        for field in dataclasses.fields(method):
            kind, text = kinds[field.name], f"of `{name}`: {texts.get(field.name, '')}"
            if field.default is not dataclasses.MISSING:
                text = f"{text.rstrip('.')} ({field.default})"
            if field.name in found:
                kind, text = kind | found[field.name][0], f"{found[field.name][1]}; {text}"
            found[field.name] = kind, text
    return options.group_of("method", "Which candidates may be negatives.", found)


def mine(
    params: Profile | None = None,
    /,
    *,
    only: Only = None,
    data: OwnData = OwnData(),
    teacher: TeacherOptions = TeacherOptions(),
    rule: method_options() | None = None,
    filters: FilterOptions = FilterOptions(),
    sampling: SamplingOptions = SamplingOptions(),
    output: OutputOptions = OutputOptions(),
) -> None:
    """Mine hard negatives: of a profile, or for your own queries and corpus.

    A profile takes --only and no other option, and may run under torchrun.
    """
    if params is not None:
        options.refuse(params, mine, data, teacher, rule, filters, sampling, output)
        profile.stage("mine", params, only)
        return
    rule = rule or method_options()()
    scorers = teacher.teacher or teacher.candidates
    needed = {"teacher": scorers, "method": rule.method, "output": output.output}
    if missing := [spelled(name) for name, value in needed.items() if not value]:
        raise NvretError(f"mine needs a profile, or your data and {', '.join(missing)}")
    from nvret import mining

    # All that can be checked is checked before the data are read
    if not teacher.candidates or options.given(data):
        data.check("mine needs a profile, or")
    teacher.check()
    output.check()
    parameters = vars(rule).copy()
    method = build_method(parameters.pop("method"), **parameters)
    draws = sampling.build()
    teachers = [teacher.build(name) for name in teacher.teacher or []]
    judge = filters.judge(teacher.device)
    if teacher.candidates:
        dataset, exclude, teachers = _ranked(data, teacher.candidates, rule.method, filters)
    else:  # rows of given vectors are those of the file of queries
        dataset = data.load(keep_unjudged="vectors" in teacher.teacher)
    number = sampling.num_negatives
    options.check_depths(
        dataset, num_negatives=number, k=draws.depth(number), n=method.skip, skip=filters.skip
    )
    if not teacher.candidates:  # with one teacher: looked for while it reads the texts
        shared = len(teachers) > 1 or judge is not None
        exclude = mining.exclusions(dataset, filters.near_duplicates) if shared else None

    def mined(banned: list[Any] | None) -> pa.Table:
        tables = [
            _with_precision(dataset, one, mining.mine(
                dataset, one, method, number, draws, sampling.seed, exclude=banned,
                ceiling_positive=filters.ceiling_positive, near_duplicates=filters.near_duplicates,
                distinct=filters.distinct, skip=filters.skip, min_score=filters.min_score,
            ))
            for one in teachers
        ]  # fmt: skip
        alone = len(tables) == 1
        return tables[0] if alone else _joined(dataset, tables, teacher.ensemble, sampling)

    table = mined(exclude) if judge is None else _judged(dataset, mined, exclude, judge, filters)
    _write(dataset, table, output)


def _ranked(
    data: OwnData, path: Path, method: str, filters: FilterOptions
) -> tuple[RetrievalDataset, Any, list[Any]]:
    """The data set of scored candidates, what may be no negative, and their scorer."""
    from nvret import mining
    from nvret.io import candidates

    if method == "random":
        raise NvretError(f"--method random: passages of the corpus have no score in {path}")
    dataset, scorer = options.ranked(data, path)
    exclude = mining.exclusions(dataset, filters.near_duplicates)
    return candidates.scored(dataset, scorer), exclude, [scorer]


def _with_precision(dataset: RetrievalDataset, teacher: Any, table: pa.Table) -> pa.Table:
    """The table; where the teacher was not exact, its provenance says how far from float32."""
    if getattr(teacher, "dtype", "float32") == "float32" or not table.num_rows:
        return table
    from nvret import negatives
    from nvret.analysis import precision
    from nvret.utils import processes

    found = precision.agreement(dataset, teacher, table)
    if processes.is_main_process():
        print(
            f"{teacher.name} in {teacher.dtype}: the scores of {found['negatives']} negatives are "
            f"at most {found['largest_difference']:.4f} from float32's, which places "
            f"{found['above_ceiling']} of them at their ceiling or above"
        )
    return _with_facts(table, negatives.provenance(table) | {"precision": found})


def _joined(
    dataset: RetrievalDataset, tables: list[pa.Table], ensemble: str, chosen: SamplingOptions
) -> pa.Table:
    """One table of the teachers' tables; its provenance names all of them."""
    from nvret import ensembles, negatives

    number = chosen.num_negatives
    if ensemble == "cross-sample":
        table = ensembles.cross_sample(dataset, tables, number, chosen.seed)
    else:
        dedup = ensemble == "intra-sample"
        table = ensembles.intra_sample(dataset, tables, number, dedup=dedup)
    facts = [negatives.provenance(table) for table in tables]
    own = ("teacher", "teacher_fingerprint", "positives_below_zero", "search", "precision")
    shared = {key: value for key, value in facts[0].items() if key not in own}
    each = [{key: fact[key] for key in own if key in fact} for fact in facts]
    return _with_facts(table, shared | {"ensemble": ensemble, "teachers": each})


def _judged(
    dataset: RetrievalDataset, mined: Any, exclude: Any, judge: Any, filters: FilterOptions
) -> pa.Table:
    """Negatives that a judge does not call relevant; what it does is written for --relabel."""
    from nvret import negatives
    from nvret.analysis import judge_quality
    from nvret.io import inputs
    from nvret.utils import processes

    found = judge_quality.second_opinion(dataset, mined, exclude, judge)
    if filters.relabel and processes.is_main_process():
        inputs.write_qrels([dataset.qrels, found.relevant], filters.relabel)
    opinion = {"judge": judge.name, "threshold": judge.threshold, "read": found.read,
               "dropped": found.relevant.num_rows}  # fmt: skip
    facts = negatives.provenance(found.table) | {"second_opinion": opinion}
    return _with_facts(found.table, facts)


def _with_facts(table: pa.Table, facts: dict[str, Any]) -> pa.Table:
    """The table with its provenance, whose counts are of the rows that it has now."""
    pairs = table.group_by(["query_id", "positive_id"]).aggregate([([], "count_all")])
    counts, wanted = pairs["count_all"].to_numpy(), facts["num_negatives"]
    facts = facts | {
        "pairs_empty": facts["pairs"] - len(counts),
        "pairs_short": facts["pairs"] - int((counts >= wanted).sum()),
        "negatives_missing": facts["pairs"] * wanted - int(counts.sum()),
    }
    return table.replace_schema_metadata({"nvret": json.dumps(facts, sort_keys=True)})


def _write(dataset: RetrievalDataset, table: pa.Table, output: OutputOptions) -> None:
    """Write the file and say what is in it."""
    from nvret import negatives
    from nvret.io import export
    from nvret.utils import processes

    if not processes.is_main_process():
        return
    records, without = export.write(dataset, table, output.output, output.format)
    facts = negatives.provenance(table)
    parts = [
        f"{output.output}: {table.num_rows} negatives for {facts['pairs']} pairs of query and "
        f"positive; {facts['pairs_short']} pairs have fewer than {facts['num_negatives']}"
    ]
    if opinion := facts.get("second_opinion"):
        parts.append(
            f"{opinion['judge']} has read {opinion['read']} and calls {opinion['dropped']} of them "
            "relevant, which are none of these"
        )
    if facts.get("search", {}).get("candidates") and facts["pairs_short"]:
        parts.append("their lists end before the rule is content: rank deeper")
    if output.format != "parquet":
        parts.append(f"{records} records, {without} pairs in none of them")
    print("; ".join(parts))
    if output.card or output.push_to_hub:
        from nvret.io import card

        text = card.card(dataset.name, facts, records, output.format)
        options.write_text(output.card, text)
        if output.push_to_hub:
            print(card.push(output.output, output.push_to_hub, text, facts))
