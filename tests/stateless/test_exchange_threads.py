"""Exchanges in several threads and processes take turns."""

import _thread
import os
import threading
import time

import pytest
import torch

from metatoolkit.hypergradients import Unrolled
from metatoolkit.hypergradients.attention_kernels import double_backward_kernels
from metatoolkit.stateless.exchange import turn
from tests.stateless.checkpointed import net_case, plainly


def test_threads_take_turns():
    case = net_case(plainly)
    first = [(batch[0].clone(), batch[1]) for batch in case.train_batches]
    right = case.call(Unrolled(2))
    results, errors = [], []

    def work():
        try:
            for _ in range(5):
                results.append(case.call(Unrolled(2)))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(results) == 15
    for result in results:
        torch.testing.assert_close(result.gradient, right.gradient, rtol=0, atol=0)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, case.train_batches, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_wait_for_a_thread_of_its_parent():
    holds, ends = threading.Event(), threading.Event()

    def hold():
        with turn():
            holds.set()
            ends.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    assert holds.wait(20)
    child = os.fork()
    if child == 0:
        with turn():
            os._exit(7)
    ends.set()
    thread.join()
    for _ in range(200):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child waits")
    assert os.waitstatus_to_exitcode(status) == 7


@pytest.mark.parametrize("kind", ["parameters", "buffers"])
def test_an_exchange_that_cannot_begin_leaves_everything_and_holds_up_nobody(kind):
    case = net_case(plainly)
    problem, state = case.problem, case.state
    live = list(problem.model.parameters())
    parameters, buffers = dict(state.parameters), dict(state.buffers)
    (parameters if kind == "parameters" else buffers)["model.unknown"] = torch.zeros(())
    with pytest.raises(KeyError, match="unknown"):
        problem.evaluate_train(parameters, {}, buffers, case.train_batches[0], 0)
    assert all(a is b for a, b in zip(problem.model.parameters(), live, strict=True))
    thread = threading.Thread(target=lambda: case.call(Unrolled(1)), daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()


def test_a_thread_that_works_for_one_that_waits_is_let_in():
    # As the threads of the autograd engine are, which Python has not started.
    entered, done = threading.Event(), threading.Event()

    def work():
        with turn():
            entered.set()
        done.set()

    with turn():
        _thread.start_new_thread(work, ())
        assert done.wait(20) and entered.is_set()
        # One that Python has started waits.
        thread = threading.Thread(target=work)
        entered.clear()
        thread.start()
        assert not entered.wait(0.05)
    thread.join(20)
    assert entered.is_set()


def test_kernels_are_put_back_also_where_threads_overlap():
    entered, done = threading.Event(), threading.Event()

    def work():
        with double_backward_kernels():
            entered.set()
            done.wait(20)

    thread = threading.Thread(target=work)
    with double_backward_kernels():
        thread.start()
        assert not entered.wait(0.05)
    assert entered.wait(20)
    done.set()
    thread.join(20)
    assert torch.backends.cuda.flash_sdp_enabled()
