"""A profile's results for an archive: read back by the library that defines what a crate is."""

import shutil
import sys
import zipfile
from pathlib import Path

import pytest
from rocrate.rocrate import ROCrate

from nvret import cli
from nvret.study import config, crate
from nvret.utils.errors import NvretError

ROOT = Path(__file__).parents[1]
SETTINGS = config.load(ROOT / "params" / "quick.yaml")
KEPT = ("tables", "scores", "figures", "notebooks")


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Some of the committed results, in a folder of their own."""
    monkeypatch.setenv("NVRET_RESULTS", str(tmp_path / "results"))
    folder = tmp_path / "results" / "quick"
    for kind in KEPT:
        (folder / kind).mkdir(parents=True)
        source = sorted((ROOT / "results" / "quick" / kind).iterdir())[0]
        shutil.copy(source, folder / kind / source.name)
    for name in ("provenance.json", "claims.json"):
        shutil.copy(ROOT / "results" / "quick" / name, folder / name)
    return folder


def test_it_holds_all_results_and_says_what_they_are(results, tmp_path):
    target = tmp_path / "quick.zip"
    files = {path.relative_to(results).as_posix(): path for path in results.rglob("*.*")}
    assert crate.write(SETTINGS, target) == len(files) == 6
    with zipfile.ZipFile(target) as archive:
        assert {*archive.namelist()} == {*files, "ro-crate-metadata.json"}
        for name, path in files.items():
            assert archive.read(name) == path.read_bytes()
        archive.extractall(tmp_path / "read")
    read = ROCrate(tmp_path / "read")
    assert read.name == "nvret, results of the profile quick"
    assert read.license == "https://spdx.org/licenses/Apache-2.0"
    assert len(read.root_dataset["version"]) == 40
    for name, path in files.items():
        entity = read.get(name)
        assert int(entity["contentSize"]) == path.stat().st_size
        assert entity["encodingFormat"]
        assert ("description" in entity.properties()) == ("/" in name)
    assert {Path(name).parts[0] for name in files if "/" in name} == {*crate.PARTS}


def test_what_cannot_be_written_is_said(results, tmp_path, monkeypatch, capsys):
    assert cli.main(["report", str(ROOT / "params" / "quick.yaml"), "--crate", "x.tar"]) == 2
    assert "--crate x.tar: expected .zip" in capsys.readouterr().err
    (results / "provenance.json").unlink()
    with pytest.raises(NvretError, match="no results; nvret run makes them"):
        crate.write(SETTINGS, tmp_path / "quick.zip")
    monkeypatch.setitem(sys.modules, "rocrate.rocrate", None)
    with pytest.raises(NvretError, match=r"--crate needs the extra crate: pip install"):
        crate.write(SETTINGS, tmp_path / "quick.zip")
    assert not (tmp_path / "quick.zip").exists()
