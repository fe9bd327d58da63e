"""Groups that are closed while JAX still runs their calls, on its own threads."""

import threading

import jax
import jax.numpy as jnp
import lamella
import lamella.jax as lj
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from lamella import errors

PATIENT = {"deadline_ms": 120000, "first_deadline_ms": 120000}  # would outlast a test
TIMES = 4


def sharded(group, f):
    mesh = Mesh(np.array(jax.devices()[: group.size]), ("tp",))
    return jax.jit(jax.shard_map(f, mesh=mesh, check_vma=False, in_specs=P(), out_specs=P()))


def late_sum(group):
    """All ranks' x, summed once each of them has been busy for a while."""

    def f(x):
        busy = jax.lax.fori_loop(0, 400, lambda _, m: jnp.tanh(m @ m), jnp.ones((60, 60)))
        return lj.all_reduce(x + 0 * busy[0, 0], group=group, token=lj.new_token())[0]

    return sharded(group, f)


def lonely_sum(group):
    """Rank 0 calls, and no other."""

    def call(x):
        return lj.all_reduce(x, group=group, token=lj.new_token())[0]

    return sharded(
        group, lambda x: jax.lax.cond(jax.lax.axis_index("tp") == 0, call, lambda x: x, x)
    )


def sleeps(group):
    """How often rank 0 has slept so far, waiting for its peer."""
    return group._ranks[0]._info().sleeps


def error_of(y):
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        y.block_until_ready()
    return errors.of(caught.value)


def check_cancelled(y):
    error = error_of(y)
    assert type(error) is lamella.Error and error.status == 1, error
    assert "rank 0 of 2 destroyed its group while a call used it" in str(error)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("by_hand", [True, False])
def test_calls_that_jax_was_given_come_to_their_end_first(ranks, by_hand):
    x = jnp.arange(3.0)
    for _ in range(TIMES):
        group = lj.LocalGroup(ranks, "tp", **PATIENT)
        if by_hand:
            y = late_sum(group)(x)
            group.close()
        else:
            with group:
                y = late_sum(group)(x)
        assert (np.asarray(y) == ranks * np.asarray(x)).all()


def test_a_wait_for_a_peer_that_never_comes_ends_at_the_deadline():
    with lj.LocalGroup(2, "tp", deadline_ms=200, first_deadline_ms=200) as group:
        y = lonely_sum(group)(jnp.ones(3))
    assert isinstance(error_of(y), errors.PeerStalled)


def test_an_exception_waits_for_no_call_and_ends_those_that_wait():
    for _ in range(TIMES):
        with pytest.raises(KeyError), lj.LocalGroup(2, "tp", **PATIENT) as group:
            before = sleeps(group)
            y = lonely_sum(group)(jnp.ones(3))
            while sleeps(group) == before:
                pass
            raise KeyError
        check_cancelled(y)


def test_another_threads_calls_are_ended():
    for _ in range(TIMES):
        with lj.LocalGroup(2, "tp", **PATIENT) as group:
            found, run, before = [], lonely_sum(group), sleeps(group)
            thread = threading.Thread(target=lambda: found.append(run(jnp.ones(3))))
            thread.start()
            while sleeps(group) == before:
                pass
        thread.join()
        check_cancelled(found[0])


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_call_that_begins_later_finds_no_group(ranks):
    x = jnp.ones(3)
    with lj.LocalGroup(ranks, "tp", **PATIENT) as group:
        run = late_sum(group)
        run(x).block_until_ready()
    error = error_of(run(x))
    assert isinstance(error, errors.NotFound)
    assert "no open group has the handle %d" % group.handle in str(error)
