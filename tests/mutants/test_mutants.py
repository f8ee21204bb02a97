"""Each invariant of the design has tests that fail when it is broken: here it is broken, and they must.

`mutants` lists the ways to break `app/`: a text of one file, what it is replaced with, and the test that notices. For each of
them the checkout is copied, the copy changed, and that one test run on it in a process of its own; it has to fail, and by an
assertion: a mutant that does not even start proves nothing. A `witness` in the copy writes down which `app` every process had.

To add one, append it to the list of its kind, with the fastest test that says what went wrong: less than a second, two if it
needs a bundle. It must not leave the kill to chance, as one that races or draws examples would. Where there is no such test, the
invariant has a hole: write the test, in the ordinary suite.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
COPIED = ("app", "model", "tests", "pyproject.toml")
INVARIANTS = {"I1", "I2", "I3", "I4", "I6", "I7", "I8", "I9", "I10"}  # I5 is import-linter's
LIMIT_S = 60

# In the copies bundles are not made but taken from here: that would be most of the time. `app/` has no part in making them.
TINY_BUNDLE = """
import shutil
from pathlib import Path

def write_tiny_bundle(folder: Path, seed: int = 0) -> Path:
    return Path(shutil.copytree(Path({bundles!r}) / str(seed), folder))
"""

# How pytest sums up a failure that is one of the test's own, and not of what it is made of.
DIED = re.compile(r"^FAILED \S+?(\[.*\])? - (AssertionError|assert |Failed: )", re.MULTILINE)
OF_FAILURES_ALONE = re.compile(r"^=* ?[1-9]\d* failed(, \d+ passed)? in ", re.MULTILINE)


@dataclass(frozen=True)
class Ran:
    code: int
    output: str


class Copy:
    """A copy of the checkout, outside of it."""

    def __init__(self, folder: Path, bundles: Path) -> None:
        self.folder = folder
        self._witness = folder / "witness"
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
            copy(ROOT / name, folder / name)
        shutil.copy2(Path(__file__).with_name("witness.py"), folder / "sitecustomize.py")
        (folder / "tests" / "tiny_bundle.py").write_text(TINY_BUNDLE.format(bundles=str(bundles)), encoding="utf-8")

    def change(self, mutant: Mutant) -> Path:
        """The changed file. Fails, naming the mutant, if the code has moved on."""
        file = self.folder / mutant.file
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        times = text.count(mutant.original)
        assert times == 1, (
            f"mutant {mutant.name!r}: its original text is {times} times in {mutant.file} instead of once, so it breaks nothing "
            f"any more: write it anew for the code as it is\n{mutant.original}"
        )
        changed = text.replace(mutant.original, mutant.replacement)
        assert changed != text, f"mutant {mutant.name!r} changes nothing"
        if file.suffix == ".py":
            compile(changed, mutant.file, "exec")
            for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
                compiled.unlink()  # it goes by size and second of the source
        file.write_text(changed, encoding="utf-8")
        return file

    def run(self, *arguments: str | Path, file: Path | None = None, cwd: Path | None = None) -> Ran:
        """Run a command that takes its `app` from here."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        environment |= {"PYTHONPATH": str(self.folder), "MUTANT_WITNESS": str(self._witness), "MUTANT_FILE": str(file)}
        environment |= {"COLUMNS": "200", "PY_COLORS": "0", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # starts in half the time
        done = subprocess.run(
            arguments,
            cwd=cwd or self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=LIMIT_S,
            check=False,
        )
        return Ran(done.returncode, done.stdout.decode(errors="replace"))

    def test(self, *nodes: str, file: Path | None = None) -> Ran:
        """Run some tests of the copy."""
        options = (
            "-o",
            "addopts=",
            "-p",
            "no:cacheprovider",
            "-p",
            "pytest_asyncio.plugin",
            "-p",
            "pytest_timeout",
            "--tb=short",
            "--no-header",
            "-rfE",
        )
        return self.run(sys.executable, "-m", "pytest", *options, f"--basetemp={self.folder / 'tmp'}", *nodes, file=file)

    def seen(self) -> list[str]:
        """What the witness has seen."""
        return self._witness.read_text().splitlines() if self._witness.exists() else []


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny bundles of two models, each in a folder that is named by its seed."""
    folder = tmp_path_factory.mktemp("bundles")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of the exporter that we use on purpose
        from tiny_bundle import write_tiny_bundle

        for seed in (0, 1):
            write_tiny_bundle(folder / str(seed), seed)
    return folder


@pytest.fixture
def copy(bundles: Path) -> Iterator[Copy]:
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        yield Copy(Path(folder).resolve(), bundles)


def folder_of(mutant: Mutant) -> str:
    return mutant.killed_by.partition("::")[0].rpartition("/")[0]


FOLDERS = sorted({folder_of(mutant) for mutant in MUTANTS})


def test_every_invariant_has_a_mutant_and_no_two_have_one_name():
    assert {mutant.invariant for mutant in MUTANTS} == INVARIANTS
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_no_kill_is_left_to_drawn_examples():
    for mutant in MUTANTS:
        file, _, test = mutant.killed_by.partition("::")
        text = (ROOT / file).read_text(encoding="utf-8")
        before = text[: text.index(f"def {test.partition('[')[0].rpartition('::')[2]}(")]
        assert "@given" not in before.rpartition("\n\n\n")[2], f"mutant {mutant.name!r}: {test} may draw only what passes"


@pytest.mark.parametrize("folder", FOLDERS)  # one by one: each has a conftest of that name
def test_unchanged_the_copy_passes_the_tests_that_kill_mutants(copy: Copy, folder: str):
    # A test that is gone, or that fails in a copy whatever is in it, would otherwise pass for a kill.
    ran = copy.test(*sorted({mutant.killed_by for mutant in MUTANTS if folder_of(mutant) == folder}))
    assert ran.code == 0, ran.output
    assert re.search(r"^=* ?\d+ passed in ", ran.output, re.MULTILINE), ran.output  # and none is skipped


@pytest.mark.parametrize("way", ["console script", "module", "elsewhere"])
def test_whatever_is_started_has_the_app_of_the_copy(copy: Copy, tmp_path: Path, way: str):
    mutant = Mutant("", "I5", "", "app/settings.py", 'PREFIX = "LONGWAVE_"', 'PREFIX = "MUTANT_"', "")
    file = copy.change(mutant)
    commands: dict[str, tuple[tuple[str | Path, ...], Path]] = {
        "console script": ((Path(sys.executable).parent / "longwave", "serve", "--port", "-1"), tmp_path),
        "module": ((sys.executable, "-m", "app.settings"), copy.folder),
        "elsewhere": ((sys.executable, "-c", "from app.settings import variable; print(variable('port'))"), ROOT.parent),
    }
    command, cwd = commands[way]
    ran = copy.run(*command, file=file, cwd=cwd)
    told = (copy.folder / "docs" / "settings.md").read_text(encoding="utf-8") if way == "module" else ran.output
    assert "MUTANT_PORT" in told, ran.output
    assert set(copy.seen()) == {f"app {copy.folder / 'app' / '__init__.py'}", f"opened {file}"}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.invariant} {mutant.name}")
def test_a_mutant_is_killed_by_its_test(copy: Copy, mutant: Mutant):
    file = copy.change(mutant)
    ran = copy.test("-x", mutant.killed_by, file=file)
    if ran.code == 0:
        pytest.fail(f"{mutant.killed_by} does not notice: {mutant.broken} {mutant.invariant} is unguarded\n{ran.output}")
    assert ran.code == 1, ran.output  # 2 to 5: there was nothing to run
    assert OF_FAILURES_ALONE.search(ran.output), ran.output
    assert DIED.search(ran.output), ran.output
    assert set(copy.seen()) == {f"app {copy.folder / 'app' / '__init__.py'}", f"opened {file}"}
