"""`training.deterministic`: which kernels compute. That weights are the same again takes a GPU."""

import pytest
import torch

from inheritune import UserError
from inheritune.config import Training
from inheritune.runtime.repeatable import repeatable

FIXED = Training(deterministic=True)


def state() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory


def test_kernels_are_deterministic_for_as_long_as_a_run_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = state()
    with repeatable(FIXED):
        assert state() == (True, False)
        with repeatable(FIXED):
            pass
        assert state() == (True, False)
    assert state() == before == (False, True)
    with repeatable(Training()):
        assert state() == before


def test_on_a_cpu_nothing_changes() -> None:
    with repeatable(FIXED):
        assert state() == (False, True)


def test_a_kernel_that_has_no_such_form_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with (
        pytest.raises(UserError, match=r"`training.deterministic` is set, but put_, which"),
        repeatable(FIXED),
    ):
        torch.zeros(2).put_(torch.tensor([0]), torch.tensor([1.0]))
    assert state() == (False, True)
    with pytest.raises(RuntimeError, match="another"), repeatable(FIXED):
        raise RuntimeError("another")
