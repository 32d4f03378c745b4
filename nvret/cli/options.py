"""Options that several commands share: own data, a teacher, a profile's notebooks, files to write.

A group is a class whose fields are the options; their types are checked, and its docstring is the
help. ``group_of`` makes such a class of parameters that are declared elsewhere in the package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import docstring_parser
from cyclopts import Group, Parameter, Token, validators

from nvret.utils.errors import NvretError

if TYPE_CHECKING:
    from nvret.data import RetrievalDataset

Profile = Annotated[Path, Parameter(help="a YAML file, for example params/quick.yaml")]
Only = Annotated[list[str] | None, Parameter(help="only this notebook's arms; may be repeated")]
Device = Annotated[str, Parameter(help="of models and search: cpu or cuda")]


def whole(kind: type, tokens: Sequence[Token]) -> int:
    """A whole number; cyclopts itself would round 1.5."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"{tokens[0].value!r} is no whole number") from None


# Of models; `prompts` makes them what `Encoder.load` takes
QueryPrompt = Annotated[str | None, Parameter(help=(
    "before each query: a text ('query: ') or the name of one in the model's folder (what the "
    "folder says)"
))]  # fmt: skip
PassagePrompt = Annotated[str | None, Parameter(help="before each passage, likewise")]
# What tokenizers can count, and what numpy takes as a seed
Count = Annotated[int, Parameter(converter=whole, validator=validators.Number(gte=1, lt=2**31))]
Seed = Annotated[int, Parameter(converter=whole, validator=validators.Number(gte=0, lt=2**32))]
Share = Annotated[float, Parameter(validator=validators.Number(gt=0, lte=1))]
Ensemble = Literal["cross-sample", "intra-sample", "intra-sample-no-dedup"]

TITLES = ("your data", "model", "training", "teacher", "method", "filters", "sampling", "output")
SETS = ({"data"}, {"pairs"}, {"pairs", "corpus"}, {"corpus", "queries", "qrels"})


def group(title: str) -> Callable[[type], type]:
    """A class becomes a dataclass and a group of options; its first line stands below the title."""

    def decorate(kind: type) -> type:
        text = docstring_parser.parse(kind.__doc__).short_description
        place = TITLES.index(title) + 2  # after the arguments, and the options without a group
        shown = Group(title, help=text, sort_key=place)
        return Parameter(name="*", group=shown)(dataclass(frozen=True, kw_only=True)(kind))

    return decorate


def group_of(title: str, text: str, options: Mapping[str, tuple[Any, str]]) -> type:
    """A group of options that are declared elsewhere: name -> type and help, None by default."""
    kinds = {name: Annotated[kind | None, Parameter(help=help)]
             for name, (kind, help) in options.items()}  # fmt: skip
    made = {"__doc__": text, "__module__": __name__, "__annotations__": kinds}
    return group(title)(type("Options", (), dict.fromkeys(options) | made))


@group("your data")
class OwnData:
    """--data; or --corpus, --queries and --qrels; or --pairs, and --corpus or not.

    Attributes:
        data: a folder in BEIR's layout, a known set, or one of the hub as owner/name@revision
        split: of --data: which of its qrels (the only one, or test)
        corpus: passages: .jsonl, .parquet, .csv (quoted) or .tsv (unquoted)
        queries: queries, in a file of the same kinds
        qrels: labelled positives: query-id, corpus-id and score, above 0 if relevant
        pairs: a query's text and its positives' in each row of such a file
        id_column: of corpus and queries (_id or id)
        text_column: of corpus and queries (text)
        title_column: of the corpus (title, if there)
        query_column: of --pairs (query, anchor, question; or the first); of --data from the hub,
            whose rows are then pairs
        positive_column: likewise; may be repeated (positive, positive_1, answer, …)
    """

    data: str | None = None
    split: str | None = None
    corpus: Path | None = None
    queries: Path | None = None
    qrels: Path | None = None
    pairs: Path | None = None
    id_column: str | None = None
    text_column: str | None = None
    title_column: str | None = None
    query_column: str | None = None
    positive_column: list[str] | None = None

    def check(self, needs: str) -> None:
        """`NvretError`, which begins with ``needs``, for options that do not make a data set."""
        names = [name for name in ("data", "pairs", "corpus", "queries", "qrels")
                 if getattr(self, name) is not None]  # fmt: skip
        if set(names) not in SETS:
            listed = f"only {', '.join(map(spelled, sorted(names)))}" if names else "none"
            raise NvretError(
                f"{needs} as data --data alone, --pairs with or without --corpus, or --corpus, "
                f"--queries and --qrels together; given: {listed}"
            )
        pairs = "data" if self._from_hub() else "pairs"  # whose rows are pairs
        check_owners(self, split="data", query_column=pairs, positive_column=pairs,
                     id_column="corpus", text_column="corpus", title_column="corpus")  # fmt: skip

    def _from_hub(self) -> bool:
        return self.data is not None and "@" in self.data and not Path(self.data).exists()

    def load(self, *, keep_unjudged: bool = False) -> RetrievalDataset:
        """The data set, on request with the queries without labels, so that rows stay in place."""
        from nvret import data
        from nvret.io import inputs

        columns = inputs.Columns(self.id_column, self.text_column or "text", self.title_column)
        from_hub, pairs = self._from_hub(), self.pairs
        if from_hub and (self.query_column or self.positive_column):
            from nvret import assets

            pairs = assets.hub_files(self.data, self.split)
        if pairs is not None:
            names = {"query_column": self.query_column,
                     "positive_columns": self.positive_column or ()}  # fmt: skip
            return inputs.load_pairs(pairs, corpus=self.corpus, columns=columns, **names)
        if self.data is not None:
            source = "hub" if from_hub else None
            dataset = data.load(
                self.data, split=self.split, source=source, keep_unjudged=keep_unjudged
            )
        else:
            files = self.corpus, self.queries, self.qrels
            dataset = inputs.load_files(*files, columns=columns, keep_unjudged=keep_unjudged)
        inputs.check_positives(dataset.qrels, self.data or str(self.qrels))
        return dataset


@group("teacher")
class TeacherOptions:
    """What scores the passages of each query.

    Attributes:
        teacher: bm25, vectors, or a model: a name (minilm-l6), a folder (./mine), or of the hub
            owner/name@revision; repeated with --ensemble
        ensemble: how several teachers are joined
        candidates: scored candidates instead of a teacher: a file or folder of `nvret rank`, lists
            with scores of sentence-transformers or FlagEmbedding, or a TREC run (.run, .txt, .gz)
        query_vectors: of --teacher vectors: a .npy, a row for each query in its file's order
        corpus_vectors: likewise, of the passages
        normalise: bring given vectors to length 1
        max_query_length: tokens of a query that a model reads
        max_passage_length: tokens of a passage, likewise
        dtype: of a model's weights; auto: bfloat16 on a GPU, float32 elsewhere; int8: of passages,
            on a CPU. Where it is not float32, provenance says how far scores are from float32's
        index: screen: search exactly, but most of it in bfloat16 where a CPU has AMX, and on a GPU;
            or approximately: faiss's name of an index (HNSW32)
        probes: lists or candidates that the index looks at
    """

    teacher: list[str] | None = None
    ensemble: Ensemble | None = None
    candidates: Path | None = None
    query_vectors: Path | None = None
    corpus_vectors: Path | None = None
    normalise: bool = True
    max_query_length: Count = 64
    max_passage_length: Count = 128
    query_prompt: QueryPrompt = None
    passage_prompt: PassagePrompt = None
    device: Device = "cpu"
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    index: str | None = None
    probes: Count = 64

    def check(self) -> None:
        """`NvretError` for options that are not for each other."""
        names = self.teacher or []
        if self.candidates is not None:
            if others := [spelled(one) for one in given(self) if one != "candidates"]:
                raise NvretError(f"--candidates stands for a teacher, and {others[0]} is of one")
            return
        if len(names) > 1 and not self.ensemble:
            ensembles = "|".join(get_args(Ensemble))
            raise NvretError(f"{len(names)} teachers need --ensemble {ensembles}")
        if len(names) == 1 and self.ensemble:
            raise NvretError("--ensemble needs --teacher several times")
        if twice := [name for name in names if names.count(name) > 1]:
            raise NvretError(f"--teacher {twice[0]} is given more than once")
        for option in ("query_vectors", "corpus_vectors"):
            if ("vectors" in names) != (getattr(self, option) is not None):
                raise NvretError(f"{spelled(option)} and --teacher vectors need each other")
        for option in ("query_prompt", "passage_prompt"):
            if getattr(self, option) is not None and not set(names) - {"bm25", "vectors"}:
                raise NvretError(f"{spelled(option)} is of an embedding model, which is not given")
        if not self.normalise and "vectors" not in names:
            raise NvretError("--no-normalise is of --teacher vectors, which is not given")

    def only(self, command: str) -> str:
        """The name of the one teacher, which the command needs; checked."""
        self.check()
        if len(names := self.teacher or []) != 1:
            raise NvretError(f"{command} needs one --teacher, {len(names)} are given")
        return names[0]

    def build(self, name: str) -> Any:
        """One of the teachers."""
        from nvret import assets, teachers
        from nvret.io import vectors
        from nvret.scale import faiss_index
        from nvret.utils import machine

        machine.check_device(self.device)
        if name == "bm25":
            if self.index:
                raise NvretError("--index is for embedding models, teacher bm25 searches exactly")
            return teachers.BM25Teacher()
        index = faiss_index.named(self.index, self.probes)
        where = {"device": self.device, "index": index}
        if name == "vectors":
            files = self.query_vectors, self.corpus_vectors
            return vectors.VectorTeacher(*files, self.normalise, **where)
        assets.check_model(name, others=("bm25", "vectors"))
        lengths = self.max_query_length, self.max_passage_length
        fast = "bfloat16" if self.device == "cuda" else "float32"
        dtype = fast if self.dtype == "auto" else self.dtype
        before = prompts(self.query_prompt, self.passage_prompt)
        return teachers.DenseTeacher(name, *lengths, dtype=dtype, prompts=before, **where)


def ranked(data: OwnData, path: Path) -> tuple[RetrievalDataset, Any]:
    """The data set of scored candidates, which may make one themselves, and their scorer."""
    from nvret.io import adopted, candidates

    dataset = data.load() if given(data) else adopted.load_dataset(path)
    return dataset, candidates.load(path, dataset)


def prompts(query: str | None, passage: str | None) -> dict[str, str | None]:
    r"""Of queries and passages, in which a shell's ``\n`` is a line break."""
    both = {"query": query, "passage": passage}
    return {kind: text and text.replace("\\n", "\n") for kind, text in both.items()}


def check_owners(group: Any, **owners: str) -> None:
    """`NvretError` for an option that is given without the other one that it belongs to."""
    for option, owner in owners.items():
        if getattr(group, option) is not None and getattr(group, owner) is None:
            raise NvretError(f"{spelled(option)} is of {spelled(owner)}, which is not given")


def check_output(
    option: str, path: Path | None, *suffixes: str, overwrite: bool | None = None
) -> None:
    """`NvretError` for a file of another kind, a folder, or what is there and may not be replaced.

    ``overwrite`` is None of a command that has no such option.
    """
    if path is None:
        return
    where = f"{spelled(option)} {path}"
    if suffixes and path.suffix not in suffixes:
        raise NvretError(f"{where}: expected {' or '.join(suffixes)}")
    if path.is_dir():
        raise NvretError(f"{where} is a folder, expected a file")
    if path.exists() and not overwrite:
        hint = "expected a new file" if overwrite is None else "--overwrite replaces it"
        raise NvretError(f"{where} is there already; {hint}")


def write_text(path: Path | None, text: str) -> None:
    """Write a file in one step, where one is asked for."""
    from nvret.utils import store

    if path is not None:
        with store.atomic_file(path) as partial:
            partial.write_text(text, encoding="utf-8")


def check_depths(dataset: RetrievalDataset, **depths: int) -> None:
    """`NvretError` for an option that asks for as many passages as there are, or more."""
    size = dataset.corpus.num_rows
    for name, value in depths.items():
        if value >= size:
            raise NvretError(
                f"{spelled(name)} is {value}, the corpus has only {size} passages, positives among "
                "them"
            )


def load_judge(option: str, name: str | None, device: str) -> Any:
    """The model that reads queries with passages, or None."""
    if name is None:
        return None
    from nvret.analysis import judges

    try:
        return judges.load(name, device=device)
    except NvretError:
        raise
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise NvretError(f"{spelled(option)} {name} cannot be loaded: {reason}") from error


def given(*groups: Any) -> dict[str, Any]:
    """The options of some groups that differ from their defaults."""
    return {
        field.name: getattr(one, field.name)
        for one in groups
        for field in fields(one)
        if getattr(one, field.name) != field.default
    }


def refuse(params: Path, command: Callable[..., None], *groups: Any) -> None:
    """`NvretError` if options of own data stand beside a profile, which would not heed them.

    A group that was not typed is the default of the command's parameter itself.
    """
    defaults = {id(parameter.default) for parameter in signature(command).parameters.values()}
    typed = [one for one in groups if id(one) not in defaults]  # None is one of them
    names = [spelled(f"no_{name}" if value is False else name)
             for name, value in given(*typed).items()]  # fmt: skip
    # Typed with the value that it has anyway: which of the group's options it was, nobody knows
    names = names or [spelled(field.name) for one in typed for field in fields(one)]
    if names:
        verb = "is" if len(names) == 1 else "are"
        raise NvretError(f"{', '.join(names)} {verb} not for a profile: {params} says it")


def spelled(name: str) -> str:
    """An option as it is typed.

    >>> spelled("second_opinion")
    '--second-opinion'
    """
    return f"--{name.replace('_', '-')}"
