"""Recurrences of one cost per event, for ablation (`model.cell`): all but the LSTM are trained and compared, not exported.

A cell folds inputs (B, T, D) that its block has normalised: `cell(x, h, c, lengths)` -> outputs (B, T, D) and the state after
each row's last valid event. h (1, B, D) begins with what is known of a user; c (1, B, `memory`) begins with zeros. A cell of
`TIMED` is told the gaps before the events as well, `cell(x, h, c, lengths, elapsed)`, (B, T) ms, 0 before a user's first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

HEADS = 4
KERNEL = 4
"""Events that the short convolution sees."""


class Lstm(nn.Module):
    """Hochreiter & Schmidhuber 1997."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.memory = width
        self.lstm = nn.LSTM(width, width, batch_first=True)

    def forward(self, x: Tensor, h: Tensor, c: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        if lengths is None:
            y, (h1, c1) = self.lstm(x, (h, c))
            return y, h1, c1
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y, (h1, c1) = self.lstm(packed, (h, c))
        y, _ = pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])
        return y, h1, c1


class Gru(nn.Module):
    """Cho et al. 2014, arXiv:1406.1078."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.memory = 1
        self.gru = nn.GRU(width, width, batch_first=True)

    def forward(self, x: Tensor, h: Tensor, c: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        if lengths is None:
            y, h1 = self.gru(x, h)
            return y, h1, c
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y, h1 = self.gru(packed, h)
        y, _ = pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])
        return y, h1, c


class MinGru(nn.Module):
    """h = (1 - z) h + z W x, where the gate does not see h: Feng et al. 2024, arXiv:2410.01201."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.memory = 1
        self.input = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, h: Tensor, c: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        gate, candidate = self.input(x).chunk(2, -1)
        z = _valid(torch.sigmoid(gate), lengths)
        hs = _decayed_sums(h[0], 1 - z, z * candidate)
        return self.out(hs), hs[None, :, -1], c


class RgLru(nn.Module):
    """A gated linear recurrence beside a gated branch: De et al. 2024 (Griffin), arXiv:2402.19427, without its convolution."""

    RATE = 8.0

    def __init__(self, width: int) -> None:
        super().__init__()
        self.memory = 1
        self.input = nn.Linear(width, 4 * width)
        self.out = nn.Linear(width, width)
        share = torch.empty(width).uniform_(0.9, 0.999)  # what is left after an event where the gate is open
        self.decay = nn.Parameter(torch.log(torch.expm1(-torch.log(share) / self.RATE)))

    def forward(self, x: Tensor, h: Tensor, c: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        value, of_input, of_decay, branch = self.input(x).chunk(4, -1)
        passed = _valid(torch.sigmoid(of_decay) * nn.functional.softplus(self.decay) * self.RATE, lengths)
        added = torch.sqrt(-torch.expm1(-2 * passed) + 1e-8) * torch.sigmoid(of_input) * value
        hs = _decayed_sums(h[0], torch.exp(-passed), _valid(added, lengths))
        return self.out(hs * nn.functional.gelu(branch)), hs[None, :, -1], c


class Matrices(nn.Module):
    """One matrix of keys and values for each head.

    Without `delta` the mLSTM with sigmoid gates (Beck et al. 2025, arXiv:2503.14376): S = f S + i v k'. With it the gated delta
    rule (Yang et al. 2024, arXiv:2412.06464): what the key had is taken out first. What is known of a user is added to every
    input.
    """

    def __init__(self, width: int, *, delta: bool) -> None:
        super().__init__()
        self.delta = delta
        self.size = width // HEADS
        self.memory = HEADS * self.size**2
        self.input = nn.Linear(width, 4 * HEADS * self.size + 2 * HEADS)
        self.norm = nn.GroupNorm(HEADS, HEADS * self.size)
        self.out = nn.Linear(HEADS * self.size, width)
        with torch.no_grad():
            self.input.bias[-HEADS:] = torch.linspace(1.0, 6.0, HEADS)  # what is kept: from .73 to .998

    def forward(self, x: Tensor, h: Tensor, c: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        users, events, _ = x.shape
        parts = self.input(x + h.transpose(0, 1)).split([HEADS * self.size] * 4 + [HEADS] * 2, -1)
        q, k, v = (part.view(users, events, HEADS, self.size) for part in parts[:3])
        k = nn.functional.normalize(k, dim=-1) if self.delta else k / self.size**0.5
        q = nn.functional.normalize(q, dim=-1) if self.delta else q
        write = _valid(torch.sigmoid(parts[4]), lengths)[..., None, None]
        keep = (1 - _valid(1 - torch.sigmoid(parts[5]), lengths))[..., None, None]
        s = c[0].view(users, HEADS, self.size, self.size)
        outputs = []
        for q1, k1, v1, w1, f1 in zip(*(part.unbind(1) for part in (q, k, v, write, keep)), strict=True):
            s = s * f1
            new = v1[..., None]
            if self.delta:
                new = new - torch.matmul(s, k1[..., None])
            s = s + (w1 * new) * k1[..., None, :]
            outputs.append(torch.matmul(s, q1[..., None])[..., 0].flatten(1))
        y = torch.stack(outputs, 1)
        y = self.norm(y.flatten(0, 1)).view_as(y) * nn.functional.silu(parts[3])
        return self.out(y), h, s.flatten(1)[None]


class Convolved(nn.Module):
    """A short causal convolution, channel by channel, before the LSTM, as linear recurrences have it (Griffin, Mamba)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.memory = KERNEL * width
        self.kernel = nn.Parameter(torch.zeros(KERNEL, width))
        with torch.no_grad():
            self.kernel[-1] = 1.0
        self.lstm = Lstm(width)

    def forward(self, x: Tensor, h: Tensor, c: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        users, events, _ = x.shape
        own, before = c.split([self.width, self.memory - self.width], -1)
        whole = torch.cat([before[0].view(users, KERNEL - 1, self.width), x], 1)
        inputs = sum((whole[:, lag : lag + events] * self.kernel[lag] for lag in range(KERNEL)), torch.zeros_like(x))
        y, h1, own1 = self.lstm(inputs, h, own.contiguous(), lengths)
        end = torch.full((users,), events) if lengths is None else lengths
        place = (end[:, None] + torch.arange(KERNEL - 1))[..., None].expand(-1, -1, self.width)
        return y, h1, torch.cat([own1, whole.gather(1, place).flatten(1)[None]], -1)


class Decayed(nn.Module):
    """The LSTM whose memory fades while nothing happens: before each event c <- c * (1 + gap in hours) ** -softplus(rate).

    `rate` (D) is learned, channel by channel. A gap of 0 leaves the plain LSTM.

    Source: memories that fade between events as in the neural Hawkes process (Mei & Eisner 2017, arXiv:1612.09328), GRU-D (Che et
    al. 2016, arXiv:1606.01865) and T-LSTM (Baytas et al. 2017), which fades by the logarithm of the gap as well.
    """

    def __init__(self, width: int, fastest: float = -4.0) -> None:
        """`fastest`: the rates begin from -4 (a day without an event leaves 94%) to this (0: a tenth)."""
        super().__init__()
        self.memory = width
        self.lstm = nn.LSTM(width, width, batch_first=True)  # its weights alone: it cannot be told of gaps
        self.rate = nn.Parameter(torch.linspace(-4.0, fastest, width))

    def left(self, elapsed: Tensor) -> Tensor:
        """elapsed (B, T) ms -> what is left of the memory at each event (B, T, D)."""
        hours = elapsed.to(self.rate.dtype) / 3.6e6
        return torch.exp(-nn.functional.softplus(self.rate) * torch.log1p(hours)[..., None])

    def forward(self, x: Tensor, h: Tensor, c: Tensor, lengths: Tensor | None, elapsed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        into, back, *biases = (self.lstm.get_parameter(f"{of}_l0") for of in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        inputs = nn.functional.linear(x, into, sum(biases[1:], biases[0]))
        h1, c1, hs, cs = h[0], c[0], [], []
        for of_input, left in zip(inputs.unbind(1), self.left(elapsed).unbind(1), strict=True):
            i, f, g, o = torch.addmm(of_input, h1, back.t()).chunk(4, 1)
            c1 = torch.sigmoid(f) * (c1 * left) + torch.sigmoid(i) * torch.tanh(g)
            h1 = torch.sigmoid(o) * torch.tanh(c1)
            hs.append(h1)
            cs.append(c1)
        y = torch.stack(hs, 1)
        if lengths is None:
            return y, h1[None], c1[None]
        end = (torch.arange(len(x)), lengths - 1)
        return y, y[end][None], torch.stack(cs, 1)[end][None]


CELLS: dict[str, Callable[[int], nn.Module]] = {
    "lstm": Lstm,
    "gru": Gru,
    "mingru": MinGru,
    "rg-lru": RgLru,
    "mlstm": lambda width: Matrices(width, delta=False),
    "delta": lambda width: Matrices(width, delta=True),
    "conv": Convolved,
    "decay": Decayed,
    "decay-spread": lambda width: Decayed(width, 0.0),
}
TIMED = (Decayed,)
"""Those that are told the gaps."""


def memory_of(cell: str, width: int) -> int:
    """Numbers of c for each block."""
    return int(CELLS[cell](width).memory)  # type: ignore[arg-type]


def _valid(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Zeros behind each row's last valid event."""
    if lengths is None:
        return x
    return x * (torch.arange(x.shape[1]) < lengths[:, None])[..., None]


def _decayed_sums(h: Tensor, left: Tensor, added: Tensor) -> Tensor:
    """h (B, D), left and added (B, T, D) -> h = left * h + added after each event (B, T, D)."""
    hs = []
    for a, b in zip(left.unbind(1), added.unbind(1), strict=True):
        h = torch.addcmul(b, a, h)
        hs.append(h)
    return torch.stack(hs, 1)
