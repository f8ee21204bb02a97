"""How commands of the trainer end."""

import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

from model.console import one_line_errors
from model.errors import TrainerError

TOO_MUCH = 1 << 50  # bytes that no machine addresses


def test_bad_input_ends_in_one_line(capsys):
    with pytest.raises(typer.Exit) as ended, one_line_errors():
        raise TrainerError("train.lanes: 0 is none")
    assert ended.value.exit_code == 2
    assert capsys.readouterr().err == "error: train.lanes: 0 is none\n"


@pytest.mark.parametrize("allocate", [lambda: torch.empty(TOO_MUCH), lambda: np.empty(TOO_MUCH)])
def test_too_little_memory_says_what_to_make_smaller(allocate, capsys):
    with pytest.raises(typer.Exit) as ended, one_line_errors():
        allocate()
    assert ended.value.exit_code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: not enough memory (")
    assert "model.width, train.lanes" in said
    assert said.count("\n") == 1


def test_a_full_disk_is_one_line_and_names_what_did_not_fit(capsys):
    with pytest.raises(typer.Exit) as ended, one_line_errors(), open("/dev/full", "w", buffering=1) as file:
        file.write("more than there is room for\n")
    assert ended.value.exit_code == 2
    assert capsys.readouterr().err == "error: a file: cannot be written: No space left on device\n"


def test_a_thread_for_which_the_disk_is_full_prints_no_traceback(capsys):
    def fill():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = threading.excepthook
    with one_line_errors():
        thread = threading.Thread(target=fill)
        thread.start()
        thread.join()
    assert capsys.readouterr().err == ""
    assert threading.excepthook is before


def test_a_file_that_a_bug_looks_for_keeps_its_traceback():
    with pytest.raises(FileNotFoundError), one_line_errors():
        Path("nowhere/at all").read_text()


def test_a_bug_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="shapes"), one_line_errors():
        raise RuntimeError("shapes do not fit")
