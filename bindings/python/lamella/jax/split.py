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

    backward(lasting, passing), trees of arrays -> the gradients, two lists. What passes is not
    there any more for the second part: what that needs of it is copied by the first.
    """

    def __init__(self, backward, lasting, passing):
        with grads.apart():
            trace = jax.make_jaxpr(backward, return_shape=True)
            self.closed, (early, _) = trace(lasting, passing)
        jaxpr, n = self.closed.jaxpr, len(jax.tree.leaves(lasting))
        self.early, self.late = jaxpr.outvars[: len(early)], jaxpr.outvars[len(early) :]
        self.parts = _cut(jaxpr.eqns, self.early)
        read = _variables(self.late).union(*(_variables(e.invars) for e in self.parts[1]))
        made = [v for eqn in self.parts[0] for v in eqn.outvars]
        self.numbers = [i for i, v in enumerate(jaxpr.invars[:n]) if v in read]
        self.picked = [jaxpr.invars[i] for i in self.numbers]
        self.made = [v for v in [*jaxpr.invars[n:], *made] if v in read]

    def of_lasting(self, lasting):
        leaves = jax.tree.leaves(lasting)
        return [leaves[i] for i in self.numbers]

    def first(self, lasting, passing):
        values = self._constants()
        values.update(zip(self.closed.jaxpr.invars, jax.tree.leaves((lasting, passing))))
        _run(self.parts[0], values)
        return _read(values, self.early), _read(values, self.made)

    def second(self, picked, made):
        values = self._constants()
        values.update(zip([*self.picked, *self.made], [*picked, *made]))
        _run(self.parts[1], values)
        return _read(values, self.late)

    def _constants(self):
        return dict(zip(self.closed.jaxpr.constvars, self.closed.consts))


def _cut(eqns, wanted):
    """(those that `wanted` depends on, the others), each in order."""
    wanted, parts = _variables(wanted), ([], [])
    for eqn in reversed(eqns):
        now = not wanted.isdisjoint(eqn.outvars)
        if now:
            wanted |= _variables(eqn.invars)
        parts[not now].append(eqn)
    return [part[::-1] for part in parts]


def _variables(atoms):
    return {a for a in atoms if not isinstance(a, core.Literal)}


def _read(values, atoms):
    return [a.val if isinstance(a, core.Literal) else values[a] for a in atoms]


def _run(eqns, values):
    for eqn in eqns:
        functions, parameters = eqn.primitive.get_bind_params(eqn.params)
        found = eqn.primitive.bind(*functions, *_read(values, eqn.invars), **parameters)
        values.update(zip(eqn.outvars, found if eqn.primitive.multiple_results else [found]))
