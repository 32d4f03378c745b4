"""A name becomes a checked local folder: the registry, packaged archives, the hub, converters."""

from nvret.assets.registry import datasets, models
from nvret.assets.resolve import (
    check_model,
    cleaning,
    dataset_path,
    fetch,
    hub_files,
    load_dataset,
    load_encoder,
    model_folder,
    model_path,
)

__all__ = [
    "check_model",
    "cleaning",
    "dataset_path",
    "datasets",
    "fetch",
    "hub_files",
    "load_dataset",
    "load_encoder",
    "model_folder",
    "model_path",
    "models",
]
