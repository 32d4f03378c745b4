"""Work on torch's threads: order, settings, errors."""

import threading

import pytest
import torch

from nvret.models import threads


@pytest.fixture(params=[1, 2, 5])
def count(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order_and_the_setting_is_restored(count):
    names, inside = set(), set()

    def work(n):
        names.add(threading.get_ident())
        inside.add(torch.get_num_threads())
        return n, torch.ones(300, 300).mm(torch.ones(300, 300)).sum().item()

    found = list(threads.each(work, iter(range(100))))
    assert [task for task, _ in found] == list(range(100))
    assert [result for _, result in found] == [(n, 27e6) for n in range(100)]
    assert torch.get_num_threads() == count
    assert inside == {1}
    assert len(names) <= count


def test_tasks_are_taken_as_they_are_needed(count):
    taken = []

    def tasks():
        for n in range(1000):
            taken.append(n)
            yield n

    results = threads.each(lambda n: n, tasks())
    next(results)
    assert len(taken) <= 2 * count + 1
    results.close()
    assert torch.get_num_threads() == count


def test_an_error_reaches_the_caller(count):
    def work(n):
        if n == 3:
            raise ValueError("three")
        return n

    with pytest.raises(ValueError, match="three"):
        list(threads.each(work, range(50)))
    assert torch.get_num_threads() == count
