"""A name becomes a checked local folder: the registry, packaged archives, the hub, converters."""

from nvret.assets.load import cleaning, load_dataset
from nvret.assets.registry import datasets, models
from nvret.assets.resolve import dataset_path, fetch, hub_dataset_path, model_folder, model_path

__all__ = [
    "cleaning",
    "dataset_path",
    "datasets",
    "fetch",
    "hub_dataset_path",
    "load_dataset",
    "model_folder",
    "model_path",
    "models",
]
