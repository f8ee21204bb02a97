"""What the demo prints: the story, the table, the addresses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final
from urllib.parse import quote

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from app.demo.score import Score
from app.demo.story import Story, shown_ranks
from app.demo.trainer import Offline

_FIRST: Final = 8  # places of a list that the story shows in any case
_MOST_BOUGHT: Final = 20

Titles = Mapping[str, str | None]


def show_story(console: Console, story: Story, titles: Titles) -> None:
    """One customer, before and after one purchase; what they then took is marked."""
    about = ", ".join(f"{name} {value}" for name, value in story.attributes.items())
    who = f"customer {story.user_id}{f' ({about})' if about else ''}, {story.baskets} earlier baskets"
    past = Table.grid(padding=(0, 2))
    for time, item in story.last_bought:
        past.add_row(Text(_day(time), style="dim"), Text(_title(item, titles)))
    hits, next_hits = set(story.before) & set(story.bought), set(story.after) & set(story.next_bought)
    lists = Table(expand=True, show_edge=False, pad_edge=False, header_style="bold", padding=(0, 1))
    for head in ("recommended just before", "then bought", "recommended right after"):
        lists.add_column(head, ratio=1, no_wrap=True, overflow="ellipsis")
    bought = [
        _line("✓" if item in hits else " ", _title(item, titles), "green" if item in hits else "")
        for item in sorted(story.bought, key=lambda item: item not in hits)[:_MOST_BOUGHT]
    ]
    if len(story.bought) > _MOST_BOUGHT:
        bought.append(Text(f"  and {len(story.bought) - _MOST_BOUGHT} more", style="dim"))
    lists.add_row(_ranked(story.before, titles, hits, set()), Group(*bought), _ranked(story.after, titles, next_hits, story.new))
    next_before = set(story.before) & set(story.next_bought)
    said = Text.assemble(
        (f"✓ {len(hits)} of {len(set(story.bought))}", "green"),
        " bought items were recommended before, ",
        (f"+ {len(story.new)} of {len(story.after)}", "cyan"),
        " entered the list with the purchase.\n",
        f"Of the next basket, {_minute(story.next_time)}, with {_counted(len(set(story.next_bought)), 'item')}, ",
        "the new list has ",
        (f"✓ {len(next_hits)}", "green"),
        f" and the old one had {len(next_before)}.",
    )
    asked = Text(f"a purchase on {_minute(story.asked)}", style="bold")
    body: list[RenderableType] = [Text("bought last", style="bold"), past, Text(), asked, lists, Text(), said]
    console.print(Panel(Group(*body), title=escape(f"One customer's story: {who}"), title_align="left", padding=(1, 2)))


def show_results(console: Console, live: Score, offline: Offline, k: int) -> None:
    """The live service beside the offline evaluation and the baselines, and in words what follows."""
    table = Table(title=f"{offline.queries:,} held-out baskets, each asked for before it was known", title_justify="left")
    for head in ("", f"recall@{k}", f"ndcg@{k}", "live service is", ""):
        table.add_column(head, justify="left" if not head else "right")
    table.add_row("live service", _figure(live.recall), _figure(live.ndcg), "", "", style="bold")
    table.add_row("offline, torch forward()", _figure(offline.ours.recall), _figure(offline.ours.ndcg), "", "", end_section=True)
    best_recall, best_ndcg = _best(offline)
    for name, score in sorted(offline.baselines.items(), key=lambda entry: -entry[1].ndcg):
        marks = [word for word, best in (("recall", best_recall), ("ndcg", best_ndcg)) if name == best]
        table.add_row(
            name.replace("_", " "),
            _figure(score.recall),
            _figure(score.ndcg),
            f"{_times(live.recall, score.recall)}  {_times(live.ndcg, score.ndcg)}",
            f"best baseline ({', '.join(marks)})" if marks else "",
            style="yellow" if marks else "",
        )
    console.print(table)
    for line in verdict(live, offline, k):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def verdict(live: Score, offline: Offline, k: int) -> list[str]:
    """Plain sentences: how the live service stands to the best baseline of each metric, and whether live equals offline."""
    lines = []
    best_recall, best_ndcg = _best(offline)
    for metric, name, ours, theirs in (
        ("recall", best_recall, live.recall, offline.baselines[best_recall].recall),
        ("ndcg", best_ndcg, live.ndcg, offline.baselines[best_ndcg].ndcg),
    ):
        figures = f"{_figure(ours)} against {_figure(theirs)}, {_times(ours, theirs)}"
        words = name.replace("_", " ")
        lines.append(
            f"{metric}@{k}: the live service is ahead of the best baseline, {words}: {figures}."
            if ours > theirs
            else f"{metric}@{k}: A BASELINE WINS, {words}: the live service has {figures}."
            if ours < theirs
            else f"{metric}@{k}: the live service and the best baseline, {words}, are level: {figures}."
        )
    if live.agrees_with(offline.ours):
        lines.append("Live equals offline to 3 digits: the service computes what the trainer's torch forward() computes.")
    else:
        lines.append(
            f"LIVE DIFFERS FROM OFFLINE: recall@{k} {live.recall - offline.ours.recall:+.4f}, "
            f"ndcg@{k} {live.ndcg - offline.ours.ndcg:+.4f}; they should be the same to 3 digits."
        )
    return lines


def show_addresses(console: Console, url: str, user_id: str, as_of_ms: int) -> None:
    """Where the service is and how to ask it for a real customer."""
    table = Table.grid(padding=(0, 2))
    for name, address in (("service", url), ("API", f"{url}/docs"), ("metrics", f"{url}/metrics")):
        table.add_row(name, address)
    console.print(table)
    path = f"/v1/users/{quote(user_id, safe='')}/recommendations?k=5&as_of={as_of_ms}"
    console.print(f"\n  curl '{url}{path}'\n", highlight=False, markup=False, soft_wrap=True)


def _best(offline: Offline) -> tuple[str, str]:
    """Names of the best baseline by recall and by ndcg."""
    by_name = offline.baselines
    return max(by_name, key=lambda name: by_name[name].recall), max(by_name, key=lambda name: by_name[name].ndcg)


def _ranked(items: Sequence[str], titles: Titles, marked: set[str], new: set[str]) -> Group:
    lines = []
    previous = -1
    for rank in shown_ranks(items, marked | new, _FIRST):
        if rank != previous + 1:
            lines.append(Text("   ...", style="dim"))
        previous, item = rank, items[rank]
        sign = ("✓" if item in marked else " ") + ("+" if item in new else " ")
        style = "green" if item in marked else "cyan" if item in new else ""
        lines.append(_line(f"{rank + 1:2} {sign}", _title(item, titles), style))
    return Group(*lines)


def _line(head: str, title: str, style: str) -> Text:
    return Text(f"{head} {title}", style=style, no_wrap=True, overflow="ellipsis")


def _title(item: str, titles: Titles) -> str:
    return titles.get(item) or item


def _counted(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _day(time: datetime) -> str:
    return time.strftime("%Y-%m-%d")


def _minute(time: datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M")


def _figure(value: float) -> str:
    return f"{value:.4f}"


def _times(ours: float, theirs: float) -> str:
    return f"{ours / theirs:.2f}x" if theirs else "-"
