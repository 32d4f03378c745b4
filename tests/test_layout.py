"""Model folders: what is refused, and what sentence-transformers reads from ours."""

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from helpers.models import write_static
from nvret import assets
from nvret.encode import Encoder
from nvret.models import layout
from nvret.utils.errors import NvretError

TEXTS = ["What causes the tides?", "moon", "The stock market fell sharply on Monday."]


@pytest.fixture
def copied(tmp_path):
    folder = assets.model_path("paraphrase-minilm-l3")
    shutil.copytree(folder, tmp_path / "model", copy_function=shutil.copyfile)
    return tmp_path / "model"


@pytest.mark.parametrize("include", [True, False])
def test_sentence_transformers_reads_our_prompts(copied, tmp_path, include):
    prompts = {"query": "find a passage about this: ", "passage": "passage: "}
    encoder = Encoder.load(copied, prompts=prompts, include_prompt=include)
    encoder.save(tmp_path / "saved")
    theirs = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    for kind, encode in (("query", theirs.encode_query), ("passage", theirs.encode_document)):
        expected = encode(TEXTS, show_progress_bar=False)
        np.testing.assert_allclose(encoder.encode(TEXTS, kind, progress=False), expected, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_sentence_transformers_reads_our_pooling(copied, tmp_path, pooling):
    encoder = Encoder.load(copied, pooling=pooling)
    encoder.save(tmp_path / "saved")
    assert layout.read(tmp_path / "saved") == encoder.layout
    theirs = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    expected = theirs.encode(TEXTS, show_progress_bar=False)
    np.testing.assert_allclose(encoder.encode(TEXTS, progress=False), expected, atol=1e-5)


def test_missing_weights_are_not_made_up(copied):
    weights = load_file(copied / "model.safetensors")
    del weights[next(name for name in weights if name.endswith("layer.1.output.dense.weight"))]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        NvretError, match=r"1 weights are missing: .*layer\.1\.output\.dense\.weight"
    ):
        Encoder.load(copied)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pooling .* not supported"),
        ("modules.json", [{"type": "x.Dense", "path": "2_Dense"}], r"\['Dense'\] not supported"),
    ],
)
def test_what_is_not_supported_is_refused(copied, file, content, message):
    (copied / file).write_text(json.dumps(content))
    with pytest.raises(NvretError, match=message):
        Encoder.load(copied)


def test_a_file_that_is_not_json_is_named(copied):
    (copied / "modules.json").write_text("{")
    with pytest.raises(NvretError, match=r"modules\.json is not JSON"):
        Encoder.load(copied)


def test_no_token_is_left_to_the_pooling(copied):
    with pytest.raises(NvretError, match="leaves no token to pooling 'cls'"):
        Encoder.load(copied, pooling="cls", include_prompt=False)
    static = Encoder.load(assets.model_path("potion-base-8m"))
    with pytest.raises(NvretError, match=r"texts\[1\] = ' ' has no token"):
        static.encode(["moon", " "], progress=False)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"\0" * 40),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"\xff"),
        ("modules.json", b'[{"type": null, "path": ""}]'),
        ("modules.json", b'[{"type": "a.StaticEmbedding"}]'),
        ("modules.json", b"[" * 100_000),
        ("config_sentence_transformers.json", b'{"prompts": {"query": 0.5}}'),
        ("config_sentence_transformers.json", None),  # a folder
    ],
)
def test_a_damaged_model_is_named_in_one_line(tmp_path, name, content):
    write_static(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    if content is None:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(NvretError, match=re.escape(str(tmp_path))) as raised:
        Encoder.load(tmp_path)
    assert "\n" not in str(raised.value)
