"""A folder that is watched: what comes into it serves by itself, if it is new, whole and sound."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from bundle_edit import edit_manifest
from conftest import Worker, event


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, seconds in (("_LOOK_S", 0.02), ("_SETTLED_S", 0.1), ("_BACK_OFF_S", 0.1)):
        monkeypatch.setattr(f"app.models.watch.{name}", seconds)


@pytest.fixture
def bundles(two_models, tmp_path) -> tuple[Path, Path, str, str]:
    """A folder with the old model, another place with the new one, which was made later, and their ids."""
    folder, old, new = two_models
    there, elsewhere = tmp_path / "bundles", tmp_path / "elsewhere"
    shutil.copytree(folder / old, there / old)
    shutil.copytree(folder / new, elsewhere / new)
    edit_manifest(there / old, created_at="2026-01-01T00:00:00+00:00")
    edit_manifest(elsewhere / new, created_at="2026-01-01T00:00:01+00:00")
    return there, elsewhere / new, old, new


async def until(holds: Callable[[], object], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not await holds():  # noqa: ASYNC110 - polls
            await asyncio.sleep(0.02)


async def active(worker: Worker) -> str:
    return (await worker.models())["active"]


async def counted(worker: Worker, result: str) -> int:
    lines = (await worker.get("/metrics")).text.splitlines()
    return sum(
        int(float(line.split()[1])) for line in lines if line.startswith(f'longwave_activations_total{{result="{result}"}}')
    )


async def reached(worker: Worker, model_id: str) -> bool:
    """Whether every worker follows a model by now."""
    return (
        await active(worker) == model_id
        and all(said.generation >= worker.hall.generation for said in (await worker.hall.board.beat_of_all()).values())
        and worker.hall.service.runtime.bundle.manifest.model_id == model_id
    )


async def test_a_new_bundle_serves_by_itself_on_every_worker(start, bundles):
    there, bundle, old, new = bundles
    async with start(there, old, auto_activate=True) as one, start(there, old, auto_activate=True) as other:
        workers = [one, other]
        await one.tell(event("u", 1))
        assert (await one.ask("u"))["model_id"] == old
        shutil.copytree(bundle, there / new)
        await until(lambda: reached(one, new))
        assert {(await worker.ask("u"))["model_id"] for worker in workers} == {new}

        async def activated() -> int:
            return sum([await counted(worker, "active") for worker in workers])

        await until(activated)  # whoever did it counts when it has heard from all
        await asyncio.sleep(0.2)
        assert await activated() == 1  # one of them did it
        assert (await one.models())["generation"] == 2


async def test_without_the_setting_a_new_bundle_is_only_listed(start, bundles):
    there, bundle, old, new = bundles
    async with start(there, old) as one:
        shutil.copytree(bundle, there / new)
        await asyncio.sleep(0.5)
        assert await active(one) == old
        assert {model["model_id"] for model in (await one.models())["models"]} == {old, new}


async def test_a_damaged_bundle_is_refused_once_until_its_files_change(start, bundles, capsys):
    there, bundle, old, new = bundles
    async with start(there, old, auto_activate=True) as one, start(there, old, auto_activate=True) as other:
        workers = [one, other]

        async def refused() -> int:
            return sum([await counted(worker, "refused") for worker in workers])

        await one.tell(event("u", 1))
        whole = (bundle / "step.onnx").read_bytes()
        (bundle / "step.onnx").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        shutil.copytree(bundle, there / new)
        await until(refused)
        await asyncio.sleep(0.5)
        assert await refused() == 1
        assert capsys.readouterr().err.count("a bundle is refused") == 1
        last = (await other.models())["last_activation"]
        assert (last["model_id"], last["result"]) == (new, "refused")
        assert "step.onnx: damaged" in last["reason"]
        assert {(await worker.ask("u"))["model_id"] for worker in workers} == {old}

        (there / new / "step.onnx").write_bytes(whole)
        await until(lambda: reached(one, new))
        assert {(await worker.ask("u"))["model_id"] for worker in workers} == {new}


async def test_a_manifest_that_cannot_be_read_is_refused_once(start, bundles, capsys):
    there, bundle, old, _ = bundles
    async with start(there, old, auto_activate=True) as one:
        (bundle / "manifest.json").write_text("{}")
        shutil.copytree(bundle, there / "mine: a bundle")
        await until(lambda: counted(one, "refused"))
        await asyncio.sleep(0.3)
        assert await counted(one, "refused") == 1
        assert capsys.readouterr().err.count("a bundle is refused") == 1
        assert await active(one) == old


async def test_a_way_back_by_hand_is_not_undone(start, bundles):
    there, bundle, old, new = bundles
    async with start(there, old, auto_activate=True) as one:
        shutil.copytree(bundle, there / new)
        await until(lambda: reached(one, new))
        assert (await one.activate(old)).status_code == 200
        await asyncio.sleep(0.5)
        assert await active(one) == old
        # nor by a bundle that was made before the one that serves
        edit_manifest(there / new, created_at="2025-12-31T23:59:59+00:00")
        await asyncio.sleep(0.3)
        assert await active(one) == old
    async with start(there, old, auto_activate=True) as restarted:  # nor by a start
        await asyncio.sleep(0.4)
        assert await active(restarted) == old


async def test_what_was_there_at_the_start_or_was_made_earlier_is_not_new(start, bundles):
    there, bundle, old, new = bundles
    shutil.copytree(bundle, there / new)
    async with start(there, old, auto_activate=True) as one:
        await asyncio.sleep(0.4)
        assert await active(one) == old
    shutil.rmtree(there / new)
    async with start(there, old, auto_activate=True, redis_url=one.app.state.hook.settings.redis_url) as one:
        edit_manifest(bundle, created_at="2026-01-01T00:00:00Z")  # the same moment: not later
        shutil.copytree(bundle, there / new)
        await asyncio.sleep(0.4)
        assert await active(one) == old


async def test_a_folder_that_is_half_written_is_not_touched(start, bundles):
    there, bundle, old, new = bundles
    async with start(there, old, auto_activate=True) as one:
        (there / new).mkdir()
        shutil.copytree(bundle, there / ".writing-1")  # as the exporter does
        for name in ("manifest.json", "golden.npz"):  # as `cp` does, in any order
            shutil.copy(bundle / name, there / new)
        await asyncio.sleep(0.4)
        listed = await one.models()
        assert (listed["active"], listed["last_activation"]) == (old, None)
        shutil.copytree(bundle, there / new, dirs_exist_ok=True)
        # whole, but one file is still growing
        body = (bundle / "step.onnx").read_bytes()
        for end in range(0, len(body), len(body) // 8 + 1):
            (there / new / "step.onnx").write_bytes(body[:end])
            await asyncio.sleep(0.05)
        assert (await one.models())["last_activation"] is None
        (there / new / "step.onnx").write_bytes(body)
        await until(lambda: reached(one, new))


async def test_of_several_new_bundles_the_latest_serves(start, bundles):
    there, bundle, old, _ = bundles
    async with start(there, old, auto_activate=True) as one:
        later = bundle.parent / "later"
        shutil.copytree(bundle, later)
        types = json.loads((bundle / "manifest.json").read_bytes())["event_types"]
        edit_manifest(later, created_at="2026-02-01T00:00:00", event_types=[types[0] | {"weight": 2.0}, *types[1:]])
        for name, source in (("a", later), ("b", bundle)):
            shutil.copytree(source, there / name)
        latest = json.loads((later / "manifest.json").read_bytes())["model_id"]
        await until(lambda: reached(one, latest))
        await asyncio.sleep(0.3)
        assert await active(one) == latest


async def test_a_bundle_that_another_host_does_not_have_yet_is_waited_for(start, bundles):
    there, bundle, old, new = bundles
    host = there.parent / "other-host"
    shutil.copytree(there, host)
    async with start(there, old, auto_activate=True) as one, start(host, old, auto_activate=True) as other:
        shutil.copytree(bundle, there / new)
        await asyncio.sleep(0.5)
        assert (await one.models())["last_activation"] is None
        shutil.copytree(bundle, host / new)
        await until(lambda: reached(other, new))
        assert {await counted(one, "refused"), await counted(other, "refused")} == {0}
