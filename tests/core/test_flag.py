"""A flag: set within a context or a decorated function, in its own thread, and as before at the end."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from emlib.core.flag import Flag

flag = Flag("some")


@flag()
def decorated() -> bool:
    return flag.is_set


def test_it_is_set_within_a_context_also_one_that_fails_and_in_contexts_of_contexts() -> None:
    assert not flag.is_set
    with flag():
        with pytest.raises(ValueError, match="no"), flag():
            raise ValueError("no")
        assert flag.is_set
    assert not flag.is_set


def test_a_decorated_function_sets_it_at_each_call() -> None:
    assert [decorated(), flag.is_set, decorated()] == [True, False, True]


def test_other_threads_do_not_see_it() -> None:
    with flag(), ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: flag.is_set).result() is False
    assert not flag.is_set
