"""What all commands share: names of models, bars, help, interruptions, wrong surroundings."""

import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from functools import partial

import numpy as np
import pytest

from nvret import assets, cli
from nvret.utils import bars, machine, processes
from nvret.utils.errors import NvretError

HEAVY = {"torch", "transformers", "pandas", "scipy", "pyarrow", "sklearn", "mteb", "matplotlib"}


@pytest.fixture
def own(tmp_path):
    """Options for a small set of one's own."""
    drawn = np.random.default_rng(0).integers(0, 300, (40, 9))
    passages = [" ".join(f"word{number}" for number in row) for row in drawn]
    rows = [{"query": text.partition(" ")[0], "positive": text} for text in passages]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return ["--pairs", str(tmp_path / "pairs.jsonl")]


def mine(own, output, *more):
    options = ["--teacher", "bm25", "--method", "naive", "--num-negatives", "2"]
    return cli.main(["mine", *own, *options, "--output", str(output), *more])


# names of models


def test_a_known_name_is_not_a_folder(tmp_path, monkeypatch, caplog):
    (tmp_path / "potion-base-8m").mkdir()
    monkeypatch.chdir(tmp_path)
    packaged = assets.model_path("potion-base-8m")
    assert assets.model_folder("potion-base-8m") == packaged
    assert "./potion-base-8m would be the folder" in caplog.text
    assert assets.model_folder("./potion-base-8m").absolute() == tmp_path / "potion-base-8m"


def test_a_model_of_the_hub_has_a_revision(tmp_path, monkeypatch):
    asked = []

    def snapshot_download(repository, revision=None, **options):
        asked.append((repository, revision))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert assets.model_folder(f"owner/name@{'a' * 40}") == tmp_path
    assert asked == [("owner/name", "a" * 40)]


@pytest.mark.parametrize("name", ["owner/name", "owner/name@main", "potion-base-9m", "", "nq"])
@pytest.mark.parametrize("option", ["--student", "--model", "--teacher"])
def test_another_name_ends_in_one_line(own, tmp_path, capsys, option, name):
    commands = {
        "--student": ["train", "--negatives", "n", "--output", str(tmp_path / "m")],
        "--model": ["evaluate"],
        "--teacher": ["mine", "--method", "naive", "--output", str(tmp_path / "n.parquet")],
    }
    command, *rest = commands[option]
    assert cli.main([command, *own, *rest, option, name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "owner/name@revision" in line or "needs a profile" in line
    if name == "potion-base-9m":
        assert "did you mean 'potion-base-8m'?" in line


def test_what_is_fetched_is_known(capsys):
    assert cli.main(["fetch", "minilm-16"]) == 2
    assert "did you mean 'minilm-l6'?" in capsys.readouterr().err


# options


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["train", "--learning-rate", "1"], "--learning-rate is not"),
        (["train", "--device", "cpu", "--epochs", "2"], "--device, --epochs are not"),
        (["mine", "--num-negatives", "4"], "--num-negatives, --sampling, --k, --seed are not"),
    ],
)
def test_a_profile_decides_its_options(arguments, names, capsys):
    command, *more = arguments
    assert cli.main([command, "params/quick.yaml", *more]) == 2
    assert f"{names} for a profile: params/quick.yaml" in capsys.readouterr().err


def train(own, tmp_path, *more):
    options = ["--negatives", tmp_path / "n.parquet", "--student", "potion-base-8m"]
    return ["train", *own, *map(str, options), "--output", str(tmp_path / "model"), *more]


@pytest.mark.parametrize("content", [None, b"no Parquet", "cut"])
def test_negatives_that_cannot_be_read(own, tmp_path, capsys, content):
    path = tmp_path / "n.parquet"
    if content == "cut":
        assert mine(own, path) == 0
        content = path.read_bytes()[:-100]
    if content:
        path.write_bytes(content)
    capsys.readouterr()
    assert cli.main(train(own, tmp_path)) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one]
    assert "n.parquet" in line
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--device", "cuda:99"), ("--device", "meta"), ("--batch-size", "0"), ("--seed", "-1"),
        ("--query-max-length", "0"), ("--epochs", "inf"), ("--learning-rate", "nan"),
        ("--output", ""),
    ],
)  # fmt: skip
def test_values_of_training_that_cannot_be(own, tmp_path, capsys, option, value):
    assert cli.main([*train(own, tmp_path), option, value]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("value", ["-1", "0", "1.5", "x", "9" * 30])
def test_a_count_is_a_whole_number(own, tmp_path, capsys, value):
    assert mine(own, tmp_path / "n.parquet", "--max-query-length", value) == 2
    assert "--max-query-length" in capsys.readouterr().err


def test_a_cost_that_would_fill_the_memory_is_refused(own, tmp_path, capsys):
    given = ["--queries", "9", "--teacher", "potion-base-8m", "--data", "squadshifts-nyt"]
    more = ["--passages", "9", "--num-candidates", "1000000000"]
    assert cli.main(["cost", *given, *more]) == 2
    assert "GiB of memory" in capsys.readouterr().err
    assert cli.main(["cost", *given, "--passages", "9" * 400]) == 2
    assert "below 1e+18" in capsys.readouterr().err


def test_the_device_is_checked():
    for name in ("cuda:99", "meta", "tpu"):
        with pytest.raises(NvretError, match=f"device '{name}'"):
            machine.check_device(name)


# surroundings


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "WORLD_SIZE"])
@pytest.mark.parametrize("value", [None, "x", "7"])
def test_the_variables_of_torchrun(monkeypatch, name, value):
    for each, fitting in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(each, fitting)
    if (value is None and name != "RANK") or (name, value) == ("WORLD_SIZE", "7"):
        pytest.skip("is fitting, or not needed")
    monkeypatch.delenv(name)
    if value is not None:
        monkeypatch.setenv(name, value)
    with pytest.raises(NvretError, match=rf"\${name} is '{value or ''}'"), processes.group():
        pass


def test_a_file_error_without_a_message_of_ours_is_one_line(monkeypatch, capsys):
    def broken(path):
        raise FileNotFoundError(2, "No such file or directory", "/somewhere/else")

    monkeypatch.setattr("nvret.study.config.load", broken)
    assert cli.main(["run", "params/smoke.yaml"]) == 2
    assert capsys.readouterr().err == "nvret: /somewhere/else: No such file or directory\n"


def test_a_cache_below_a_file(own, tmp_path):
    (tmp_path / "file").touch()
    options = ["--teacher", "potion-base-8m", "--method", "naive", "--output"]
    done = subprocess.run(
        [sys.executable, "-m", "nvret", "mine", *own, *options, str(tmp_path / "n.parquet")],
        env=os.environ | {"NVRET_CACHE": str(tmp_path / "file" / "x")},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


# help and bars


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["mine", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    code = (
        f"import sys, nvret.cli; nvret.cli.main({arguments}); print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    light = {"pydantic", "numpy"} if arguments != ["mine", "--help"] else {"pydantic"}
    assert not (HEAVY | light) & set(done.stderr.split())


def watched(arguments, **environment):
    """What a command writes to a terminal."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    process = subprocess.Popen(
        [sys.executable, "-m", "nvret", *arguments], stderr=slave, stdout=subprocess.DEVNULL,
        env=os.environ | environment,
    )  # fmt: skip
    os.close(slave)
    parts = []
    try:
        while part := os.read(master, 4096):
            parts.append(part)
    except OSError:  # the other end is closed
        pass
    os.close(master)
    assert process.wait() == 0
    return b"".join(parts).decode()


def test_bars_are_silenced(own, tmp_path):
    given = ["mine", *own, "--teacher", "bm25", "--method", "naive", "--overwrite"]
    given += ["--output", str(tmp_path / "n.parquet")]
    assert "search" in watched(given)
    assert watched(["--quiet", *given]) == ""
    assert watched([*given, "--quiet"]) == ""
    assert watched(given, TQDM_DISABLE="1") == ""


def test_no_bar_without_a_terminal(own, tmp_path, capsys, monkeypatch):
    assert mine(own, tmp_path / "n.parquet") == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(bars, "are_shown", lambda: True)
    assert list(bars.progress_bar([], desc="nothing")) == []
    assert capsys.readouterr().err == ""
    assert list(bars.progress_bar([1], desc="one")) == [1]
    assert "one" in capsys.readouterr().err


def test_quiet_is_over_with_its_command(monkeypatch, capsys):
    monkeypatch.delenv(bars.SILENCE, raising=False)
    assert cli.main(["--quiet", "cache", "show", "--remove"]) == 2
    assert bars.SILENCE not in os.environ


# interruptions


def interrupted(arguments, ready, **environment):
    """The last line of a command that gets SIGINT as soon as ``ready``.

    A shell lets what it starts in the background ignore SIGINT, these tests and all that they start
    among them: the command gets it back.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "nvret", *map(str, arguments)],
        stderr=subprocess.PIPE, text=True, env=os.environ | environment,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        while not ready() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=60)[1]
    finally:
        process.kill()  # one that did not end would run beside all other tests
    assert process.returncode == 130, error
    assert "Traceback" not in error
    return error.splitlines()[-1]


@pytest.mark.xdist_group("processes")
def test_an_interrupted_run_says_what_is_left(own, tmp_path):
    assert mine(own, tmp_path / "n.parquet") == 0
    more = ["--epochs", "5000", "--checkpoint-steps", "2", "--batch-size", "4"]
    partial = tmp_path / ".model.partial"
    arguments = train(own, tmp_path, *more)
    line = interrupted(arguments, lambda: list(partial.glob("checkpoints/*/complete")))
    assert line == "nvret: interrupted; the same command continues where this stopped"
