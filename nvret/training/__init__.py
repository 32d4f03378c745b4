"""Fine-tuning on mined negatives: settings, batches and loss, the loop, adapters.

Read `config`, `batches`, `trainer`, `finetuning`, `lora`, in this order. ``finetune`` and
``TrainingConfig`` can be imported from here; what is heavy is imported when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nvret.training.config import TrainingConfig
    from nvret.training.finetuning import finetune

__all__ = ["TrainingConfig", "finetune"]


def __getattr__(name: str) -> Any:
    if name == "TrainingConfig":
        from nvret.training.config import TrainingConfig

        return TrainingConfig
    if name == "finetune":
        from nvret.training.finetuning import finetune

        return finetune
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
