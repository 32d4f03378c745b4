"""A profile's results as one file for an archive: an RO-Crate, which says what each part is.

Source: RO-Crate 1.1, https://w3id.org/ro/crate.
"""

from __future__ import annotations

import json
import mimetypes
from pathlib import Path

from nvret.study import paths
from nvret.study.config import Settings
from nvret.utils import store
from nvret.utils.errors import NvretError

PARTS = {
    "figures": "a figure of a notebook",
    "notebooks": "a notebook with what it printed and drew",
    "scores": "NDCG@10 of each student, seed and query of a study",
    "tables": "a table of a notebook",
}
TYPES = {".ipynb": "application/x-ipynb+json", ".parquet": "application/vnd.apache.parquet"}


def write(settings: Settings, path: Path) -> int:
    """Write a zip of a profile's results with their metadata; returns how many files it has.

    Needs the extra ``crate``. `NvretError` where it is not installed, or nothing was run.
    """
    try:
        from rocrate.rocrate import ROCrate
    except ImportError as error:
        message = f"--crate needs the extra crate: pip install 'nvret[crate]' ({error})"
        raise NvretError(message) from None
    folder, source = paths.results_folder(settings), paths.provenance_path(settings)
    if not source.is_file():
        raise NvretError(f"{folder}: no results; nvret run makes them")
    last = json.loads(source.read_bytes())["runs"][-1]
    crate = ROCrate(gen_preview=False)
    crate.name = f"nvret, results of the profile {settings.profile}"
    crate.description = (
        "Positive-aware hard-negative mining for text-embedding models, reproduced: tables, "
        "figures, scores and executed notebooks, with what produced them in provenance.json."
    )
    crate.license = "https://spdx.org/licenses/Apache-2.0"
    crate.root_dataset["citation"] = {"@id": "https://arxiv.org/abs/2407.15831"}
    crate.root_dataset["version"] = last["commit"]
    files = sorted(one for one in folder.rglob("*") if one.is_file())
    for file in files:
        name = file.relative_to(folder)
        about = {"encodingFormat": TYPES.get(file.suffix) or mimetypes.guess_type(file)[0]}
        about |= {"contentSize": str(file.stat().st_size)}
        if described := PARTS.get(name.parts[0]):
            about["description"] = described
        crate.add_file(file, dest_path=name.as_posix(), properties=about)
    with store.atomic_file(path) as partial:
        crate.write_zip(partial)
    return len(files)
