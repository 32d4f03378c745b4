"""A BERT exported to ONNX with sentence-transformers' modules around it -> ``BertModel`` weights.

The exporter kept the names of biases, norms and embeddings, and renamed each weight matrix, which
it stored transposed: a linear layer is ``Add(MatMul(x, W), b)``, so a matrix takes its name from
the bias that is added to its product.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nvret.assets.converters import layout
from nvret.utils.errors import NvretError


def named_weights(path: Path) -> dict[str, Any]:
    """Arrays of the ONNX file under the names that ``BertModel`` has for them."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    prefix = next(
        (
            name.split("embeddings.")[0]
            for name in arrays
            if name.endswith("embeddings.word_embeddings.weight")
        ),
        None,
    )
    if prefix is None:
        raise NvretError(f"{path.name}: no tensor named …embeddings.word_embeddings.weight")
    weights = {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
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


def convert(source: Path, target: Path, recipe: dict[str, Any]) -> None:
    weights = named_weights(source / "model.onnx")
    layers = 1 + max(int(name.split(".")[2]) for name in weights if ".layer." in name)
    names = 5 + 16 * layers  # embeddings: 3 tables and a norm; a layer: 6 linears and 2 norms
    if len(weights) != names:
        raise NvretError(f"model.onnx gave {len(weights)} tensors of a BERT; expected {names}")
    vocabulary, width = weights["embeddings.word_embeddings.weight"].shape
    layout.save_weights(target, weights | layout.unused_pooler(width))
    layout.write_json(
        target / "config.json", layout.bert_config(layers=layers, vocab_size=vocabulary)
    )
    layout.save_tokenizer(
        target, layout.read_tokenizer(source), max_length=512, **layout.BERT_TOKENS
    )
