"""What comes out of nurseries: one error as itself, several of one code as the first of them."""

import pytest

from consensus.ledger.errors import LocalError, StorageError
from services.client.tasks import single_errors


def test_one_error_comes_out_of_all_its_groups_with_its_cause() -> None:
    cause = OSError("disk")
    error = StorageError("disk_failed")
    error.__cause__ = cause
    with pytest.raises(StorageError) as caught, single_errors():
        raise ExceptionGroup("outer", [ExceptionGroup("inner", [error])])
    assert caught.value is error
    assert caught.value.__cause__ is cause


def test_what_several_tasks_met_is_one_error() -> None:
    first = StorageError("redis_failed", "first")
    with pytest.raises(StorageError) as caught, single_errors():
        raise ExceptionGroup("outer", [first, ExceptionGroup("inner", [StorageError("redis_failed", "second")])])
    assert caught.value is first


@pytest.mark.parametrize(
    "other", [StorageError("disk_full"), LocalError("redis_failed"), ValueError("redis_failed"), KeyError()]
)
def test_different_errors_stay_together(other: Exception) -> None:
    group = ExceptionGroup("outer", [StorageError("redis_failed"), other])
    with pytest.raises(ExceptionGroup) as caught, single_errors():
        raise group
    assert caught.value is group
    group = ExceptionGroup("outer", [other, StorageError("redis_failed")])
    with pytest.raises(ExceptionGroup), single_errors():
        raise group


def test_two_bugs_are_never_one() -> None:
    with pytest.raises(ExceptionGroup), single_errors():
        raise ExceptionGroup("outer", [ValueError("a"), ValueError("a")])
