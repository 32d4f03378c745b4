"""A BERT exported to ONNX with sentence-transformers' modules around it -> ``BertModel`` weights.

The exporter kept the names of biases, norms and embeddings, and renamed each weight matrix, which
it stored transposed: a linear layer is ``Add(MatMul(x, W), b)``, so a matrix takes its name from
the bias that is added to its product.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nvret.assets.converters.model_files import BERT_TOKENS, save_bert, save_tokenizer
from nvret.assets.registry import Model
from nvret.utils.errors import NvretError

_WORDS = "embeddings.word_embeddings.weight"


def named_weights(path: Path) -> dict[str, np.ndarray]:
    """Arrays of the ONNX file under the names that ``BertModel`` has for them."""
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
    weights = named_weights(source / "model.onnx")
    layers = 1 + max(int(name.split(".")[2]) for name in weights if ".layer." in name)
    save_bert(target, weights, layers=layers)
    tokenizer = (source / "tokenizer.json").read_text(encoding="utf-8")
    save_tokenizer(target, tokenizer, max_length=512, **BERT_TOKENS)
