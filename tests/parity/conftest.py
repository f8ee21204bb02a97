"""The trained model in its three forms: the net, its graphs in the service's sessions, and the stored state."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from tiny_run import TinyRun
from torch import Tensor

from app.catalogue.catalogue import Catalogue
from app.runtime.bundle import read_bundle
from app.runtime.session import Runtime, open_runtime
from app.state.codec import StateCodec
from model.assess import load_run
from model.nets import Longwave


class Trained(NamedTuple):
    """A net, and the vectors and biases of its items."""

    net: Longwave
    matrix: Tensor
    bias: Tensor

    def double(self) -> Trained:
        return Trained(copy.deepcopy(self.net).double(), self.matrix.double(), self.bias.double())


@pytest.fixture(scope="session")
def trained(tiny_run: TinyRun) -> Trained:
    checkpoint, task = load_run(tiny_run.run, tiny_run.data)
    net = checkpoint.net.requires_grad_(False)
    matrix, bias = net.item(task.inputs.item_text, task.inputs.item_features)
    assert task.labels is not None
    net.leaning.learn(matrix, torch.as_tensor(task.labels.share))  # as of a bundle
    return Trained(net, matrix, bias)


@pytest.fixture(scope="session")
def runtime(trained_bundle: Path) -> Runtime:
    return open_runtime(read_bundle(trained_bundle), "cpu", 1)


@pytest.fixture(scope="session")
def catalogue(runtime: Runtime) -> Catalogue:
    items = runtime.bundle.items
    titles, categories = [i.title for i in items], [i.categories for i in items]
    return Catalogue([i.id for i in items], titles, categories, runtime.bundle.vectors, runtime.bundle.bias)


@pytest.fixture(scope="session")
def codec(runtime: Runtime) -> StateCodec:
    return StateCodec(runtime.bundle.manifest.state)


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield
