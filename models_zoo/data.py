"""Data sets in memory or in files, and batches whose order a resumed run repeats."""

from __future__ import annotations

__all__ = [
    "Augment",
    "Batches",
    "EpochBatches",
    "FileBatches",
    "Files",
    "ImageData",
    "Split",
    "cifar",
    "compose",
    "crop_flip",
    "cutout",
    "digits",
    "flip",
    "image_files",
    "image_folder",
    "random_shift",
    "resized_crop",
]

import torch

from autorep_fx.models_zoo._augment import Augment, compose, crop_flip, cutout, flip, random_shift, resized_crop
from autorep_fx.models_zoo._batches import Batches, EpochBatches
from autorep_fx.models_zoo._cifar import cifar
from autorep_fx.models_zoo._folders import image_files, image_folder
from autorep_fx.models_zoo._images import ImageData, Split, channel_statistics, normalise, stratified_parts
from autorep_fx.models_zoo._stream import FileBatches, Files


def digits(seed: int = 0) -> ImageData[Split]:
    """Return scikit-learn's embedded handwritten digits, float32 (N, 1, 8, 8), ten classes.

    Of the 1,797 images about 60 % are for training, 20 % for validation and 20 % for testing, with every
    class in proportion. They have zero mean and unit variance over the training part.

    Args:
        seed: Decides, alone, which image goes where; zero or more.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    fifth = round(0.2 * len(labels))
    validation, test, train = stratified_parts(labels, (fifth, fifth), seed)
    mean, deviation = channel_statistics(images[train])

    def part(indices: torch.Tensor) -> Split:
        return Split(normalise(images[indices], mean, deviation), labels[indices])

    return ImageData(part(train), part(validation), part(test), tuple(str(name) for name in bunch.target_names))
