"""One value per training pair, such as alpha, from a file through open_clip's loaders to the loss.

The loaders give images and texts and nothing else. So the place of a pair's value in the file travels behind the tokens of its
text, through shuffling, workers, processes and accumulation. A hook of the model takes it off again and puts the value into the
output. open_clip's loop hands all of the output to the loss.
"""

from collections.abc import Iterator, Sequence
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from otter_losses.losses.otter import OTTERLoss

__all__ = ["PairValues", "add_pair_values"]

Sample = dict[str, Any]


class PairValues:
    """The contents of a file: one value per pair.

    Args:
        name: name of the loss's argument, ``"alpha"`` or ``"groups"``.
        file: a ``.npy`` of an array (N,), in the order of the data set; or a ``.npz`` with such an array under the argument's
            name, in any order, and in addition the pairs' ``keys`` (N,), which are strings.

    Raises:
        ValueError, TypeError: a file of another kind; values that the loss refuses; keys that are not one per value.

    Example:
        >>> import numpy, tempfile
        >>> file = tempfile.mkdtemp() + "/alpha.npz"
        >>> numpy.savez(file, keys=numpy.array(["00001", "00000"]), alpha=numpy.array([0.05, 0.5]))
        >>> alpha = PairValues("alpha", file)
        >>> float(alpha.values[alpha.place("00001")])
        0.05
    """

    def __init__(self, name: str, file: str) -> None:
        if not file.endswith((".npy", ".npz")):
            raise ValueError(
                f"{name} is {file!r}; need a number, or a file of one value a pair: a .npy in the order of the data set, or a "
                f".npz with keys. Write it with numpy.save or numpy.savez(file, keys=keys, {name}={name})."
            )
        self.name, self.file = name, file
        read = _read(file)
        self.keys: np.ndarray[Any, Any] | None = None
        if file.endswith(".npz"):
            if sorted(read) != sorted(("keys", name)):
                raise ValueError(
                    f"{file} holds {', '.join(read) or 'nothing'}; need keys and {name}. "
                    f"Write it with numpy.savez(file, keys=keys, {name}={name})."
                )
            self.keys, read = read["keys"], read[name]
        if read.ndim != 1 or not len(read):
            raise ValueError(f"{file} holds {name} of shape {read.shape}; need (N,), one value a pair.")
        try:
            self.values = torch.from_numpy(read)
            OTTERLoss.per_pair[name](self.values, len(read), self.values.device)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{file}: {error}") from None
        if self.keys is not None:
            self._sort(self.keys)

    def _sort(self, keys: np.ndarray[Any, Any]) -> None:
        """By key, so that one is found without a look at all."""
        if keys.dtype.kind != "U" or keys.shape != tuple(self.values.shape):
            raise ValueError(
                f"{self.file} holds keys of shape {keys.shape} and {keys.dtype}; need {len(self.values)} strings, one for each "
                f"{self.name}: numpy.array(list_of_str)."
            )
        order = keys.argsort()
        self.keys, self.values = keys[order], self.values[torch.from_numpy(order)]
        again = np.flatnonzero(self.keys[1:] == self.keys[:-1])
        if len(again):
            raise ValueError(
                f"{self.file} holds the key {str(self.keys[again[0]])!r} more than once; need each once. Name the pairs apart."
            )

    def place(self, key: str) -> int:
        """The place of a key's value."""
        assert self.keys is not None
        place = int(np.searchsorted(self.keys, key))
        if place == len(self.keys) or self.keys[place] != key:
            raise ValueError(
                f"{self.file} has no {self.name} for the pair {key!r}, but for pairs like {str(self.keys[0])!r}; need one for "
                "every __key__ of the shards. Audit the shards that you train on, and write their keys as they are there."
            )
        return place

    def __repr__(self) -> str:
        return f"{self.name} of {len(self.values)} pairs from {self.file}"


def add_pair_values(model: nn.Module, data: Any, values: Sequence[PairValues], dist_model: nn.Module | None = None) -> None:
    """Let the model's output carry values of the pairs, in training only, so that open_clip's loop hands them to the loss.

    Args:
        model: the module that the loop calls, wrapped or not. Its output is open_clip's dict.
        data: ``data["train"]``, before its first epoch. Its loader is changed: each text carries more, which this model takes
            off.
        values: values in the order of the data set for a CSV file, or for any other data set with an order; values with keys
            for webdataset.
        dist_model: the loop's teacher, if there is one.

    Raises:
        ValueError: values by key for a data set with an order, or the other way round; not one value for each of its pairs. In
            training: a pair whose key the file does not have.
        TypeError: a loader of neither kind; in training, an output that is not a dict.

    Example:
        >>> def train(train_one_epoch, model, data, loss, *rest):
        ...     add_pair_values(model, data["train"], [PairValues("alpha", "alpha.npy")])
        ...     train_one_epoch(model, data, loss, *rest)
    """
    _load(data.dataloader, values)
    device = next(model.parameters()).device
    tensors = {each.name: each.values.to(device) for each in values}
    count = len(tensors)
    texts: list[Tensor] = []  # of the batch that is in the model

    def take_off(module: nn.Module, inputs: tuple[Any, ...]) -> Any:
        if module.training:
            texts[:] = inputs[1:]
        return strip(module, inputs)

    def strip(module: nn.Module, inputs: tuple[Any, ...]) -> Any:
        return (inputs[0], inputs[1][:, :-count].contiguous()) if texts and inputs[1] is texts[0] else inputs

    def hand_over(module: nn.Module, inputs: Any, output: Any) -> Any:
        if not module.training:
            return output
        if not isinstance(output, dict):
            raise TypeError(f"the model's output is a {type(output).__name__}; need a dict. Build it with output_dict=True.")
        places = texts[0][:, -count:].unbind(1)
        return {**output, **{name: tensor[place] for (name, tensor), place in zip(tensors.items(), places, strict=True)}}

    model.register_forward_pre_hook(take_off)
    model.register_forward_hook(hand_over)
    if dist_model is not None:
        dist_model.register_forward_pre_hook(strip)


def _read(file: str) -> Any:
    """An array, or several by name."""
    try:
        read = np.load(file, allow_pickle=False)
        return read if isinstance(read, np.ndarray) else {name: read[name] for name in read.files}
    except (ValueError, EOFError, BadZipFile):  # numpy advises to load it unsafely
        raise ValueError(f"{file} cannot be read; need numbers that numpy.save or numpy.savez wrote. Save it anew.") from None


def _load(loader: Any, values: Sequence[PairValues]) -> None:
    """Put the places into the loader's texts."""
    shards = isinstance(getattr(loader, "pipeline", None), list)
    if not shards and (not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset)):
        raise TypeError(
            f"the loader is a {type(loader).__name__}; need open_clip's of a CSV file or of webdataset, or a DataLoader over "
            "a data set with an order. In a loop of your own give the values to the loss: loss(..., alpha=alpha[rows])."
        )
    for each in values:
        if shards != (each.keys is not None):
            came, kind = ("no keys", "webdataset") if shards else ("keys", "a data set with an order")
            need = f"a .npz with the keys and {each.name}" if shards else f"a .npy of {each.name} in that order"
            raise ValueError(f"{each.file} has {came}, and the pairs come from {kind}; need {need}. Save it anew.")
        if not shards and len(each.values) != len(loader.dataset):
            raise ValueError(
                f"{each.file} holds {each.name} of {len(each.values)} pairs, and the data set has {len(loader.dataset)}; need "
                "one a pair, in its order. Audit the file that you train on."
            )
    if shards:
        stages = loader.pipeline[0].dataset.pipeline
        stages.insert(len(stages) - 2, _WithKeys(values))  # before a sample becomes a tuple, and tuples a batch
    else:
        vars(loader)["dataset"] = _WithRows(loader.dataset, len(values))  # its sampler stays


class _WithRows(Dataset[Any]):
    def __init__(self, pairs: Any, count: int) -> None:
        self.pairs = pairs
        self.count = count

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, row: int) -> tuple[Any, Tensor]:
        image, text = self.pairs[row]
        return image, _behind(text, [row] * self.count)


class _WithKeys:
    """A stage of webdataset's pipeline."""

    def __init__(self, values: Sequence[PairValues]) -> None:
        self.values = values

    def __call__(self, samples: Iterator[Sample]) -> Iterator[Sample]:
        for sample in samples:
            yield {**sample, "text": _behind(sample["text"], [each.place(sample["__key__"]) for each in self.values])}


def _behind(text: Tensor, places: list[int]) -> Tensor:
    return torch.cat([text, text.new_tensor(places)])
