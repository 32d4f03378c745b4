"""Layers that stay as they are: without a gradient, or run once for each text and kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nvret.encode import Encoder
from nvret.models import batching
from nvret.models.batching import Ragged
from nvret.training.batches import Collator
from nvret.utils import store
from nvret.utils.bars import progress_bar
from nvret.utils.errors import NvretError


def freeze(encoder: Encoder, number: int) -> None:
    """No gradient and no dropout for what comes before layer ``number``: embeddings and the layers
    below, which then give the same for a text each time."""
    first = next(_layers(encoder, number)[number].parameters())
    for weight in encoder.backbone.parameters():
        if weight is first:
            break
        weight.requires_grad_(False)
    for part in encoder.backbone.modules():
        if list(part.parameters()) and not _is_trained(part):
            part.train = partial(_train, part)
            part.eval()


def _is_trained(part: nn.Module) -> bool:
    return any(weight.requires_grad for weight in part.parameters())


def _train(part: nn.Module, mode: bool = True) -> nn.Module:
    """``nn.Module.train`` of a part that may be frozen; not if adapters were put into it."""
    return nn.Module.train(part, mode and _is_trained(part))


def _layers(encoder: Encoder, number: int) -> nn.ModuleList:
    lists = (part for part in encoder.backbone.modules() if isinstance(part, nn.ModuleList))
    layers = next(lists, nn.ModuleList())
    if number >= len(layers):
        raise NvretError(
            f"freeze_layers is {number}, expected fewer than the model's layers, {len(layers)}"
        )
    return layers


@contextmanager
def kept(
    encoder: Encoder, batches: Collator, number: int, folder: Path, progress: bool
) -> Iterator[Collator]:
    """Within it, the backbone is what lies above ``number`` frozen layers.

    What these give for each token, without dropout, is computed once into a file in ``folder``. A
    token's id in the batches that are yielded is its place there, and what looked up word vectors
    looks it up.

    Raises:
        NvretError: the layers above cannot be run by themselves, as where they take more from those
            below than one vector a token.
    """
    tokens, backbone = (batches.queries, batches.passages), encoder.backbone
    ends = np.cumsum([0, *(len(some.ids) for some in tokens)])
    with store.new_array(folder / "states.npy", (int(ends[-1]), encoder.dimension)) as out:
        for some, start in zip(tokens, ends, strict=False):
            tuples = _run(encoder, some, number, out[start : start + len(some.ids)], progress)
    states = np.load(folder / "states.npy", mmap_mode="r", allow_pickle=False)
    places = [replace(some, ids=np.arange(len(some.ids)) + start)
              for some, start in zip(tokens, ends, strict=False)]  # fmt: skip
    layers = _layers(encoder, number)
    below, embeddings = list(layers[:number]), getattr(backbone, "embeddings", None)
    words, whole = backbone.get_input_embeddings(), _first(encoder, tokens[1])
    for place, layer in enumerate(below):
        layers[place] = _Passed(layer, tuples)
    if embeddings is None:  # a decoder's layers take word vectors as they are
        backbone.set_input_embeddings(_States(states))
    else:  # an encoder's after positions were added, which the states have
        backbone.embeddings = _Above(states)
    try:
        if not torch.allclose(_first(encoder, places[1]), whole, atol=1e-4):
            raise NvretError(
                f"keep_frozen: the layers of {type(backbone).__name__} cannot be run by themselves"
            )
        yield replace(batches, queries=places[0], passages=places[1])
    finally:
        (folder / "states.npy").unlink()  # what is mapped of it stays readable
        for place, layer in enumerate(below):
            layers[place] = layer
        if embeddings is None:
            backbone.set_input_embeddings(words)
        else:
            backbone.embeddings = embeddings


def _first(encoder: Encoder, tokens: Ragged) -> Tensor:
    """The vector of the first text."""
    training = encoder.training
    batch = {k: v.to(encoder.device) for k, v in encoder.eval().collate(tokens, [0]).items()}
    with torch.no_grad():
        vectors = encoder.forward_all([batch], [0])[0]
    encoder.train(training)
    return vectors


class _Passed(nn.Module):
    """In the place of a layer that has been run: gives what it is given."""

    def __init__(self, layer: nn.Module, in_tuple: bool) -> None:
        super().__init__()
        self.__dict__["layer"] = layer  # no part of this module, but asked for its attributes
        self.in_tuple = in_tuple

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"], name)

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor | tuple[Tensor]:
        return (hidden_states,) if self.in_tuple else hidden_states


class _States(nn.Module):
    """Rows of a file, where a table of word vectors was; on the device of the ids."""

    def __init__(self, states: np.ndarray) -> None:
        super().__init__()
        self.states = states

    def forward(self, places: Tensor) -> Tensor:
        return torch.from_numpy(self.states[places.cpu().numpy()]).to(places.device)


class _Above(nn.Module):
    """An encoder's embeddings, which pass on what they are given."""

    def __init__(self, states: np.ndarray) -> None:
        super().__init__()
        self.word_embeddings = _States(states)

    def forward(self, *, inputs_embeds: Tensor, **_: Any) -> Tensor:
        return inputs_embeds


class _Reached(Exception):
    """The layer up to which a text was to be read; its input."""


def _run(encoder: Encoder, tokens: Ragged, number: int, out: np.ndarray, progress: bool) -> bool:
    """Fill (tokens, H) ``out`` with the input of layer ``number``; whether a layer's output is a
    tuple."""
    tuples = []

    def look(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        tuples.append(isinstance(output, tuple))

    def stop(_: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        raise _Reached(arguments[0] if arguments else named["hidden_states"])

    def read(rows: np.ndarray) -> Tensor:
        batch = {k: v.to(encoder.device) for k, v in encoder.collate(tokens, rows).items()}
        with torch.inference_mode():
            try:
                encoder(**batch)
            except _Reached as reached:
                return reached.args[0].float().cpu()
        raise AssertionError("no layer was run")

    training, layers = encoder.training, _layers(encoder, number)
    encoder.eval()
    hooks = [
        layers[number - 1].register_forward_hook(look),
        layers[number].register_forward_pre_hook(stop, with_kwargs=True),
    ]
    groups = batching.token_budget_batches(tokens.lengths, 2048, slack=64)
    cpu = encoder.device.type == "cpu"
    found = batching.in_threads(read, groups) if cpu else ((g, read(g)) for g in groups)
    bar = progress_bar(total=len(tokens), desc="frozen layers", unit="text", show=progress)
    try:
        with bar:
            for rows, states in found:
                for row, state in zip(rows, states.numpy(), strict=True):
                    start, end = tokens.offsets[row : row + 2]
                    out[start:end] = state[: end - start]
                bar.update(len(rows))
    finally:
        for hook in hooks:
            hook.remove()
        encoder.train(training)
    return tuples[-1]
