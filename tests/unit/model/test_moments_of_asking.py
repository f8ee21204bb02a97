import torch

from model.nets.calendar import CYCLES_MS, CalendarEmbedding
from model.nets.repeats import seconds, since_2000

MOMENTS_MS = torch.tensor([[0], [999], [1_000], [946_684_799_999], [946_684_800_000], [1_300_000_000_123], [3_094_168_447_999]])


def test_a_moment_of_asking_is_counted_in_the_seconds_of_what_is_stored():
    assert torch.equal(since_2000(MOMENTS_MS), seconds(MOMENTS_MS))  # from 1970 until what is stored ends, in 2068


def test_the_calendar_knows_how_far_each_cycle_has_come():
    calendar = CalendarEmbedding(2 * len(CYCLES_MS))
    with torch.no_grad():
        calendar.mix.weight.copy_(torch.eye(2 * len(CYCLES_MS)))
    phase = (MOMENTS_MS % torch.tensor([int(cycle) for cycle in CYCLES_MS])) / torch.tensor(CYCLES_MS, dtype=torch.float64)
    expected = torch.cat([torch.sin(phase * 2 * torch.pi), torch.cos(phase * 2 * torch.pi)], 1)
    torch.testing.assert_close(calendar(MOMENTS_MS), expected.float(), atol=1e-4, rtol=0)
