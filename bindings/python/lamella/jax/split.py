"""A backward in two parts: what the gradients of the inputs need, and what is left for later.

The whole backward is traced once. The first part is every operation that those gradients depend
on; the second, the weights' gradients, starts from the values that the first hands on. An
operation with an inner program (a scan, an inner jit) is not cut.
Invariant: each operation is run by one part, so both together compute what the whole one does.
Leaves keeping an operator's own two gradients apart to grads.py.
"""

import jax
from jax.extend import core

from lamella.jax import grads


class Split:
    """first(lasting, passing) -> (inputs' gradients, made); of `lasting`, the second part reads
    what `of_lasting` picks: second(picked, made) -> weights' gradients.

    backward(lasting, passing), of trees of arrays -> the gradients, two trees. What passes is not
    there any more for the second part: what that needs of it is copied by the first.
    """

    def __init__(self, backward, lasting, passing):
        with grads.apart():
            trace = jax.make_jaxpr(backward, return_shape=True)
            closed, (inputs, _) = trace(lasting, passing)
        whole, n = closed.jaxpr, len(jax.tree.leaves(lasting))
        early, late = _at(whole.outvars, len(jax.tree.leaves(inputs)))
        now, later = _cut(whole.eqns, early)
        read = _variables(late).union(*(_variables(eqn.invars) for eqn in later))
        made = [v for eqn in now for v in eqn.outvars]
        made = [v for v in [*whole.invars[n:], *made] if v in read]
        self.numbers = [i for i, v in enumerate(whole.invars[:n]) if v in read]
        picked = [whole.invars[i] for i in self.numbers]
        self.n_early, self.consts = len(early), closed.consts
        self.parts = (
            whole.replace(eqns=now, outvars=[*early, *made]),
            whole.replace(eqns=later, invars=[*picked, *made], outvars=late),
        )

    def of_lasting(self, lasting):
        leaves = jax.tree.leaves(lasting)
        return [leaves[i] for i in self.numbers]

    def first(self, lasting, passing):
        arrays = jax.tree.leaves((lasting, passing))
        return _at(jax.core.eval_jaxpr(self.parts[0], self.consts, *arrays), self.n_early)

    def second(self, picked, made):
        return jax.core.eval_jaxpr(self.parts[1], self.consts, *picked, *made)


def _at(items, n):
    return items[:n], items[n:]


def _cut(eqns, wanted):
    """(those that `wanted` depends on, the others), each in order."""
    wanted, parts = _variables(wanted), ([], [])
    for eqn in reversed(eqns):
        needed = not wanted.isdisjoint(eqn.outvars)
        if needed:
            wanted |= _variables(eqn.invars)
        parts[0 if needed else 1].append(eqn)
    return parts[0][::-1], parts[1][::-1]


def _variables(atoms):
    return {a for a in atoms if not isinstance(a, core.Literal)}
