"""A profile is checked key by key, from a file and from a notebook's variables."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest

from nvret import methods
from nvret.study import arms, config, notebooks, paths
from nvret.utils.errors import NvretError

ROOT = Path(__file__).parents[1]
PROFILES = sorted(p for p in (ROOT / "params").glob("*.yaml") if p.stem != "claims")


@pytest.fixture
def values():
    return config.read(ROOT / "params" / "smoke.yaml")


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_shipped_profiles_are_valid(path):
    settings = config.load(path)
    assert settings.profile == path.stem
    for name in settings.notebooks:
        assert (ROOT / "notebooks" / "study" / f"{name}.ipynb").is_file()
    assert isinstance(settings.methods[-1].build()[0], methods.TopKPercPos)


def edited(values, path, value):
    *parents, last = path
    for part in parents:
        values = values[part]
    if value is ...:
        del values[last]
    else:
        values[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("seed",), [1], "seed: unknown key, did you mean 'seeds'?"),
        (
            ("mining", "ceiling_positiv"),
            "own",
            "mining.ceiling_positiv: unknown key, did you mean 'ceiling_positive'?",
        ),
        (("students", "static", "training", "learning_rat"), 0.1, "did you mean 'learning_rate'"),
        (("students", "static", "training", "learning_rate"), "1e-5", "rate: .*number.*'1e-5'"),
        (("students", "static", "num_negatives"), ..., "students.static.num_negatives: missing"),
        (("students", "static", "num_negatives"), 0, "num_negatives: .*greater than 0, found 0"),
        (("studies", "06_rq3_methods", "refrence"), "x", "did you mean 'reference'"),
        (("studies", "06_rq3_methods", "runs", 0, "querys"), 1, "did you mean 'queries'"),
        (("teacher",), "bm52", "teacher: 'bm52' is not among teachers: bm25, potion"),
        (("audit", "teacher"), "bm52", "audit.teacher: 'bm52' is not among teachers"),
        (("teacher",), ..., "teacher: missing"),
        (("device",), "tpu", "device: .*'cpu' or 'cuda'"),
        (("methods", 0, "name"), "randum", "methods.0: no mining method 'randum'"),
        (("methods", 5, "perc"), "0.95", "methods.5.perc"),
        (("methods", 1, "margin"), 0.1, "method 'naive' does not take margin"),
        (("seeds",), [1, 1], "seeds names 1 more than once"),
        (("seeds",), [], "seeds: .*at least 1"),
        (("data", "corpora"), {}, "data.corpora: .*at least 1"),
        (("data", "corpora", "own", "base"), "all", "data.corpora.own.base: .*'own' or 'full'"),
        (("data", "corpora", "own", "other"), ["nq"], "other: unknown key, did you mean 'others'"),
        (("data", "corpora", "own", "passages"), 0, "corpora.own.passages: .*greater than 0"),
        (
            ("studies", "06_rq3_methods", "corpora"),
            ["own", "full"],
            "studies.06_rq3_methods.corpora: 'full' is not among own, pool",
        ),
        (("studies", "06_rq3_methods", "corpora"), ["pool"], "once, 'own' among them"),
        (("studies", "06_rq3_methods", "corpora"), ["own", "own"], "expected each name once"),
    ],
)
def test_an_error_names_the_key(values, path, value, message):
    edited(values, path, value)
    with pytest.raises(NvretError, match=message) as error:
        config.check(values, "file.yaml")
    assert str(error.value).startswith("file.yaml: ")
    assert len(str(error.value).splitlines()) < 10


@pytest.fixture
def registered():
    """A method with a parameter of its own, as another module would add it."""

    @dataclass(frozen=True)
    class BelowBoth(methods.Method):
        name: ClassVar[str] = "below-both"
        slack: float = 0.1
        places: int = 2

        def __str__(self):
            return f"Below both {self.slack:g}, {self.places}"

    yield BelowBoth
    del methods.BY_NAME["below-both"]


def test_a_registered_method_is_known_to_profiles_and_arms(values, registered):
    edited(values, ("methods", 0), {"name": "below-both", "slack": [0, 0.5], "places": 3})
    runs = [{"student": "static", "method": "below-both", "places": [1, 4], "num_negatives": 2}]
    edited(values, ("studies", "06_rq3_methods", "runs"), runs)
    settings = config.check(values, "file.yaml")
    assert settings.methods[0].build() == [registered(0.0, 3), registered(0.5, 3)]
    assert isinstance(settings.methods[0].parameters["slack"][0], float)
    again = config.check(settings.model_dump(), "dump")
    assert again == settings
    _, one, four = arms.arms(settings, "06_rq3_methods")
    assert (one.method, four.method) == (registered(places=1), registered(places=4))
    assert four.label == "static: Below both 0.1, 4"
    assert (four.row["family"], four.row["parameter"]) == ("below-both", 0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slak": 0.5}, "methods.0.slak: unknown key, did you mean 'slack'?"),
        ({"places": 1.5}, "methods.0.places.*: .*integer, found 1.5"),
        ({"perc": 0.5}, "methods.0: method 'below-both' does not take perc"),
    ],
)
def test_parameters_of_a_registered_method_are_checked(values, registered, changes, message):
    edited(values, ("methods", 0), {"name": "below-both", **changes})
    with pytest.raises(NvretError, match=message):
        config.check(values, "file.yaml")


def test_parameters_are_unknown_without_their_method(values):
    edited(values, ("methods", 0, "slack"), 0.5)
    with pytest.raises(NvretError, match=r"0\.slack: unknown key, expected one of name, n,"):
        config.check(values, "file.yaml")


def test_every_error_is_listed(values):
    edited(values, ("teacher",), ...)
    edited(values, ("seed",), 1)
    with pytest.raises(NvretError) as error:
        config.check(values, "file.yaml")
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", ".hidden", "a/b", "a\\b", "", "a\0"])
def test_a_name_that_leads_elsewhere_is_refused(values, name, monkeypatch, tmp_path):
    study = values["studies"]["06_rq3_methods"]
    student = next(iter(values["students"].values()))
    data = values["data"] | {"corpora": {name: {"base": "own"}}}
    for key, value in {
        "profile": name, "notebooks": [name], "studies": {name: study}, "students": {name: student},
        "data": data,
    }.items():  # fmt: skip
        with pytest.raises(NvretError, match=f"file.yaml: {key}.*: .* is no plain name") as error:
            config.check(values | {key: value}, "file.yaml")
        assert len([line for line in str(error.value).splitlines() if key in line]) == 1
    monkeypatch.chdir(ROOT / "notebooks" / "study")
    with pytest.raises(NvretError, match="is no plain name"):
        config.notebook({"profile": name})
    settings = config.check(values, "file.yaml")
    monkeypatch.setenv("NVRET_RESULTS", str(tmp_path))
    with pytest.raises(NvretError, match="is no plain name"):
        paths.save_table(settings, name, pd.DataFrame({"a": [1]}))
    with pytest.raises(NvretError, match="is no plain name"):
        paths.save_figure(settings, name, None)
    with pytest.raises(NvretError, match=r"notebook is .*, expected one of"):
        notebooks.run(settings, values, [name])
    assert list(tmp_path.rglob("*")) == []


def test_plain_names_stay(values):
    for name in ("quick", "top-10_v1.2", "_a", "größer"):
        assert config.check(values | {"profile": name}, "file.yaml").profile == name


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(NvretError, match="no such file"):
        config.load(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(NvretError, match="holds list"):
        config.load(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(NvretError, match="is not YAML"):
        config.load(tmp_path / "broken.yaml")


def test_a_notebook_takes_the_profile_and_what_was_injected(monkeypatch):
    monkeypatch.chdir(ROOT / "notebooks" / "study")
    namespace = {"profile": "smoke", "seeds": [5], "_hidden": 1, "In": [], "Out": {}}
    settings = config.notebook(namespace)
    assert settings.seeds == [5]
    assert settings.teacher == config.load(ROOT / "params" / "smoke.yaml").teacher


def test_a_misspelt_parameter_stops_a_notebook(monkeypatch):
    monkeypatch.chdir(ROOT / "notebooks" / "study")
    with pytest.raises(NvretError, match="sedes: unknown key, did you mean 'seeds'"):
        config.notebook({"profile": "smoke", "sedes": [5]})
    with pytest.raises(NvretError, match="sets no profile"):
        config.notebook({})


def test_outside_of_the_repository(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NvretError, match="not inside the repository"):
        config.notebook({"profile": "smoke"})
