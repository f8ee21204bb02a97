"""What is there for ablation alone folds exactly too: at once, in pieces and event by event."""

import pytest
import torch
from folds import assert_same_state, initial, some_events, step_through
from torch import nn

from model.nets import EventBatch, Longwave, ModelConfig
from model.nets.cells import CELLS, Decayed

HOUR_MS = 3_600_000
SMALL = {"width": 16, "heads": 2, "ring": 8, "ring_width": 8, "accumulator_width": 8, "repeats": 0, "dropout": 0.0}


@pytest.fixture(params=sorted(CELLS))
def net(request):
    torch.manual_seed(0)
    net = Longwave(ModelConfig(items=30, event_types=2, cell=request.param, attribute_sizes=(2,), **SMALL)).double().eval()
    for block in net.recurrence.blocks:
        if isinstance(block.cell, Decayed):
            nn.init.uniform_(block.cell.rate, -2.0, 1.0)
    return net


def test_every_cell_folds_pieces_of_a_sequence_to_the_state_of_the_steps(net):
    matrix, _ = net.item(None, None)
    events = some_events(net.float(), 3, 40, matrix.float(), grain=True)
    net.double()
    events = EventBatch(*(part.double() if part is not None and part.is_floating_point() else part for part in events))
    lengths = torch.tensor([40, 23, 7])
    start = initial(net, 3, torch.float64)
    state = start
    for begin in range(0, 40, 11):
        part = events.along(torch.arange(begin, begin + 11).clamp(max=39))
        state = net.encode(part, torch.arange(begin, begin + 11) < lengths[:, None], state)
    states = step_through(net, events, start)
    for row, length in enumerate(lengths.tolist()):
        expected = {name: tensor[row : row + 1] for name, tensor in states[length].items()}
        assert_same_state({name: tensor[row : row + 1] for name, tensor in state.items()}, expected, 1e-9)
    whole = torch.ones(3, 40, dtype=torch.bool)
    _, after = net(events, whole, start, torch.full((3, 1), -1), *(torch.zeros(0, dtype=torch.int64),) * 2)
    assert_same_state(after, {name: states[-1][name] for name in after}, 1e-9)


def test_without_gaps_the_memory_that_fades_is_the_lstm():
    cell = Decayed(6)
    x, h, c = torch.randn(2, 9, 6), torch.randn(1, 2, 6), torch.randn(1, 2, 6)
    y, h1, c1 = cell(x, h, c, None, torch.zeros(2, 9, dtype=torch.int64))
    expected, (eh, ec) = cell.lstm(x, (h, c))
    assert max(float((a - b).abs().max()) for a, b in ((y, expected), (h1, eh), (c1, ec))) < 1e-6


def test_a_memory_that_nothing_is_written_to_fades_by_the_gaps_alone():
    cell, bias = Decayed(3), torch.zeros(12)
    with torch.no_grad():
        for parameter in cell.lstm.parameters():
            parameter.zero_()
        bias[:3], bias[3:6] = -50.0, 50.0  # the input gate is shut, the forget gate open
        cell.lstm.bias_ih_l0.copy_(bias)
        cell.rate.copy_(torch.tensor([1.0, 2.0, 0.5]).expm1().log())  # the inverse of softplus
    gaps = torch.tensor([[0, 3 * HOUR_MS, 24 * HOUR_MS]])
    c = torch.ones(1, 1, 3)
    _, _, left = cell(torch.zeros(1, 3, 3), torch.zeros(1, 1, 3), c, None, gaps)
    expected = (4.0 * 25.0) ** -torch.tensor([1.0, 2.0, 0.5])
    assert torch.allclose(left.flatten(), expected, rtol=1e-4)
