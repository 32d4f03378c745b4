"""The gradient of a batch's loss, with the activations of one chunk of the batch at a time.

The loss needs the vectors of the whole batch, but not the activations behind them: once the loss is
differentiated by the vectors, the gradient goes on to the weights text by text. So the batch is
encoded without a graph, and then again, chunk by chunk, with one. It costs a second forward pass.

Source: GradCache, arXiv 2101.06983, section 3.2. The losses of sentence-transformers whose names
begin with "Cached" do the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nvret.encode import Encoder


def chunks(batches: Sequence[dict[str, Tensor]], most: int) -> list[slice]:
    """Neighbouring batches that have at most ``most`` tokens together, or a single one.

    >>> [(part.start, part.stop) for part in chunks([{"input_ids": torch.ones(2, 3)}] * 3, 12)]
    [(0, 2), (2, 3)]
    """
    parts, start, held = [], 0, 0
    for place, batch in enumerate(batches):
        size = batch["input_ids"].numel()
        if held and held + size > most:
            parts.append(slice(start, place))
            start, held = place, 0
        held += size
    return [*parts, slice(start, len(batches))]


def chunked_loss(
    encoder: Encoder,
    batches: Sequence[dict[str, Tensor]],
    prompt_tokens: Sequence[int],
    most: int,
    loss_of: Callable[[list[Tensor]], Tensor],
) -> Tensor:
    """Loss of the batches' vectors, whose ``backward`` encodes each chunk of them again.

    ``torch.autograd.grad`` by the weights does not work. One process only: the hooks of
    ``DistributedDataParallel`` would fire once a chunk.

    Args:
        encoder: a static one is not chunked, since it keeps token ids and nothing else.
        batches, prompt_tokens: as `Encoder.forward_all` takes them.
        most: tokens, padding included, whose activations may be held at once. Word vectors and
            their gradients are held for the whole batch, as `word_vectors` says.
        loss_of: scalar loss of the vectors, one (B, D) tensor a batch.
    """
    parts = chunks(batches, most)
    if encoder.layout.static or len(parts) == 1 or not torch.is_grad_enabled():
        return loss_of(encoder.forward_all(batches, prompt_tokens))

    kind = encoder.device.type
    devices = [encoder.device] if kind == "cuda" else []
    autocast = torch.autocast(
        kind,
        dtype=torch.get_autocast_dtype(kind),
        enabled=torch.is_autocast_enabled(kind),
        cache_enabled=torch.is_autocast_cache_enabled(),
    )
    leaves, states = [], []
    with torch.no_grad():
        for part in parts:
            states.append((torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)))
            leaves += encoder.forward_all(batches[part], prompt_tokens[part])
    # autocast keeps copies of the weights; older torch would take those without a graph again
    torch.clear_autocast_cache()
    with torch.enable_grad():
        loss = loss_of([leaf.requires_grad_() for leaf in leaves])
    with torch.autocast(kind, enabled=False):  # it would round the gradient's matrix products
        gradients = torch.autograd.grad(loss, leaves)

    def encode_again(scale: Tensor) -> None:
        # the thread of ``backward`` has its own modes; the dropout is that of the first pass
        with torch.enable_grad(), torch.random.fork_rng(devices):
            words = encoder.word_vectors(batches)
            ends = [word.detach().requires_grad_(word.requires_grad) for word in words]
            for part, (state, *others) in zip(parts, states, strict=True):
                torch.set_rng_state(state)
                for device, other in zip(devices, others, strict=True):
                    torch.cuda.set_rng_state(other, device)
                with autocast:
                    vectors = encoder.forward_all(batches[part], prompt_tokens[part], ends[part])
                torch.autograd.backward(vectors, [scale * g for g in gradients[part]])
                del vectors
            if words[0].requires_grad:
                torch.autograd.backward(words, [end.grad for end in ends])

    loss = loss.detach().requires_grad_()
    loss.register_hook(encode_again)
    return loss
