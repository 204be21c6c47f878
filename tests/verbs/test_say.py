"""What a command says beside its results."""

import time

import pytest

from kanoclip.verbs.say import unless_quick


def test_what_takes_long_is_said_and_what_is_quick_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    with unless_quick("counting sheep", 60):
        pass
    with unless_quick("listing", 0):
        time.sleep(0.2)
    assert capsys.readouterr().err == "kanoclip: listing ...\n"
