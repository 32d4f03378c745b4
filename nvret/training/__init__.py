"""Fine-tuning on mined negatives: settings, batches and loss, the loop, adapters; a linear head.

Read `config`, `batches`, `trainer`, `finetuning`, `lora`, `head`, in this order. ``finetune``,
which is heavy, is imported when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nvret.training.config import TrainingConfig

if TYPE_CHECKING:
    from nvret.training.finetuning import finetune

__all__ = ["TrainingConfig", "finetune"]


def __getattr__(name: str) -> Any:
    if name != "finetune":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nvret.training.finetuning import finetune

    return finetune
