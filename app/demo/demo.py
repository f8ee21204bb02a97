"""The demo, top to bottom: data -> train -> export -> rehearse -> serve -> replay -> compare -> tell."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from app.demo.children import Child, Children
from app.demo.errors import DemoError
from app.demo.folder import DemoFolder, open_folder
from app.demo.histories import Past, import_histories
from app.demo.rehearsal import Meta, Step, read_histories, read_meta, read_steps, read_titles
from app.demo.replay import Answer, replay
from app.demo.score import Score, score
from app.demo.service import ServiceClient, await_ready, choose_port, start_service, url_of
from app.demo.show import show_addresses, show_results, show_story
from app.demo.signals import Interrupted, Signals
from app.demo.story import choose, tell, watch
from app.demo.trainer import SYNTHETIC, Dataset, Offline, Trainer, read_report
from app.runtime.bundle import read_bundle
from app.settings import load_settings
from app.state.embedded import EmbeddedRedis, find_redis_server

CONFIG: Final = "demo"
PREFERRED_PORT: Final = 8000
_WATCH_S: Final = 0.5


@dataclass(frozen=True)
class Options:
    """What the command was called with; `limit` 0 replays every question, `port` None takes 8000 or a free one."""

    once: bool
    folder: Path
    data: Path | None
    dataset: Dataset
    host: str
    port: int | None
    limit: int
    keep: bool


@dataclass(frozen=True)
class Result:
    """What `--once` prints at its end."""

    dataset: str
    seconds_to_first_recommendation: float
    live: Score
    offline: Offline

    def line(self, k: int) -> str:
        """One JSON object on one line."""
        return json.dumps(
            {
                "dataset": self.dataset,
                "seconds_to_first_recommendation": round(self.seconds_to_first_recommendation, 2),
                "live": self.live.as_json(k),
                "offline": self.offline.ours.as_json(k),
                "baselines": {name: each.as_json(k) for name, each in self.offline.baselines.items()},
            }
        )


def run_demo(options: Options, console: Console, began_s: float) -> None:
    """Run it all. Whatever ends it, nothing of it runs afterwards.

    Args:
        began_s: `time.monotonic()` at the start of the command.

    Raises:
        LongwaveError: a step failed; the message says which and why.
        Interrupted: a signal came before everything was shown. After that it is how the demo is meant to end.
    """
    with Signals() as signals, ExitStack() as stack:
        find_redis_server()  # what is missing or taken is better said now than after the training
        choose_port(options.host, options.port, PREFERRED_PORT)
        folder = stack.enter_context(open_folder(options.folder))
        redis = EmbeddedRedis(folder.redis)
        stack.callback(_stop_redis, signals, redis)
        children = stack.enter_context(Children(signals))
        trainer = Trainer(children, folder)

        _make_bundle(console, trainer, folder, options)
        meta, steps = read_meta(folder.rehearsal), read_steps(folder.rehearsal, options.limit)
        positive = _positive_types(folder)
        _title(console, "Serve")
        with signals.deferred():
            redis.start()
        pasts = _import(console, folder, redis.url, meta, positive)
        port = choose_port(options.host, options.port, PREFERRED_PORT)  # others may have come to 8000 while it trained
        url = url_of(options.host, port)
        client = ServiceClient(url)
        stack.callback(client.close)
        service = start_service(children, folder.bundle, redis.url, options.host, port, folder.log("service"))
        await_ready(service, client)
        first_s = _first_recommendation(console, client, steps, pasts, meta.k, began_s)

        _title(console, "Replay")
        evaluation = trainer.start_evaluation(options.limit)
        answers = _replay(console, client, steps, pasts, meta, service)
        live = score(((answer.items, answer.question.targets) for answer in answers), meta.k)
        _tell(console, folder, answers, positive)
        _await(console, evaluation)
        offline = read_report(folder.report, meta.k)
        if offline.queries != len(answers):
            raise DemoError(f"{len(answers)} questions were replayed and {offline.queries} evaluated: they cannot be compared")
        _title(console, "Result")
        show_results(console, live, offline, meta.k)
        console.print(f"\n{first_s:.0f} s from the start of the demo to the first recommendation.", highlight=False)
        if not options.once:
            last = answers[-1].question
            _stay(console, service, url, last.user_id, last.as_of)
    if options.once:
        # Only now: nothing runs any more that could write after it.
        print(Result(meta.dataset, first_s, live, offline).line(meta.k), flush=True)


def _make_bundle(console: Console, trainer: Trainer, folder: DemoFolder, options: Options) -> None:
    _title(console, "Data")
    if trainer.prepare(options.dataset, options.data):
        console.print(f"Online Retail cannot be had here, so the demo takes its synthetic world, {SYNTHETIC}.", highlight=False)
    _title(console, "Train")
    if options.keep and folder.is_trained(CONFIG):
        console.print("the run of an earlier demo fits these data and is kept")
    else:
        folder.forget_training()
        trainer.train(CONFIG)
        folder.note_training(CONFIG)
    _title(console, "Export")
    trainer.export()
    trainer.rehearse()


def _positive_types(folder: DemoFolder) -> set[str]:
    types = read_bundle(folder.bundle).manifest.event_types
    return {kind.name for kind in types if kind.polarity == "positive"}


def _import(console: Console, folder: DemoFolder, redis_url: str, meta: Meta, positive: set[str]) -> dict[str, Past]:
    with _bar(console, "histories of customers", meta.users) as advance:
        return import_histories(
            redis_url, read_histories(folder.rehearsal), positive, load_settings().max_sequence, on_done=advance
        )


def _first_recommendation(
    console: Console, client: ServiceClient, steps: list[Step], pasts: dict[str, Past], k: int, began_s: float
) -> float:
    questions = [step.query for step in steps if step.query is not None]
    # Somebody with a past: a new customer's first list is the fallback's, not the model's.
    question = next((q for q in questions if q.user_id in pasts and pasts[q.user_id].events), questions[0])
    answer = client.recommend(question.user_id, k, question.as_of, question.platform)
    seconds = time.monotonic() - began_s
    console.print(
        f"after {seconds:.1f} s the first live recommendation: {len(answer.items)} items for customer {question.user_id}, "
        f"from {answer.applied_events} events",
        highlight=False,
        markup=False,
    )
    return seconds


def _replay(
    console: Console, client: ServiceClient, steps: list[Step], pasts: dict[str, Past], meta: Meta, service: Child
) -> list[Answer]:
    questions = sum(step.query is not None for step in steps)
    events_before = {user_id: past.events for user_id, past in pasts.items()}
    try:
        with _bar(console, "baskets asked for over HTTP", questions) as advance:
            return replay(client, steps, events_before, meta.k, watch(steps, pasts), lambda: advance(1))
    except DemoError as error:
        if service.running:
            raise
        raise service.failure(f"{error.detail}; the service has ended") from None


def _tell(console: Console, folder: DemoFolder, answers: list[Answer], positive: set[str]) -> None:
    chosen = choose(answers)
    if chosen is None:
        console.print("No customer with 5 earlier baskets or more was replayed with 2 to 4: there is no story to tell.")
    else:
        show_story(console, tell(chosen, read_histories(folder.rehearsal), positive), read_titles(folder.rehearsal))


def _await(console: Console, evaluation: Child) -> None:
    with console.status("the same questions offline: the trainer's torch forward() and the baselines"):
        code = evaluation.process.wait()
    if code:
        raise evaluation.failure(f"{evaluation.name} failed with exit code {code}")


def _stay(console: Console, service: Child, url: str, user_id: str, as_of_ms: int) -> None:
    _title(console, "The service goes on")
    show_addresses(console, url, user_id, as_of_ms)
    console.print("Ctrl-C stops it.")
    try:
        while service.running:
            time.sleep(_WATCH_S)
    except Interrupted:
        console.print("\nstopping")
        return
    raise service.failure(f"the service ended by itself, with exit code {service.process.returncode}")


def _stop_redis(signals: Signals, redis: EmbeddedRedis) -> None:
    with signals.deferred():
        redis.stop()


def _title(console: Console, text: str) -> None:
    console.rule(f"[bold]{text}", align="left")


@contextmanager
def _bar(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar; what it yields takes how much was done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)
