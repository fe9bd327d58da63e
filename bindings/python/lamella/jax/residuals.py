"""What a jitted forward leaves for its backward: a jax.vjp without second copies of its arguments.

A vjp holds arrays of three kinds: arguments of the forward (parameters, activations that came in),
constants, and values made on the way. Returned from a jitted function, all of them would be
written again, the parameters once for each micro-batch in flight. Only the last kind is; where
the others come from is part of the tree's structure, and so is compiled in.
Invariant: rebuilt from the same arguments, a vjp is the one that was taken apart.
Leaves what is differentiated to pipeline.py.
"""

from dataclasses import dataclass

import jax


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True)
class Residuals:
    """made: values of the forward; sources: for each leaf of the vjp a number, first of the
    arguments, then of those values, or a Constant."""

    made: list
    sources: tuple
    structure: object

    def tree_flatten(self):
        return self.made, (self.sources, self.structure)

    @classmethod
    def tree_unflatten(cls, static, made):
        return cls(list(made), *static)


class Constant:
    """Equal only to itself: an array has no one truth value to be compared by."""

    def __init__(self, value):
        self.value = value


def take(pull, arguments):
    """Residuals of a vjp, inside the trace that made it; arguments: the leaves it was given."""
    leaves, structure = jax.tree.flatten(pull)
    numbers = {id(x): i for i, x in enumerate(arguments)}
    made, sources = [], []
    for leaf in leaves:
        if not isinstance(leaf, jax.core.Tracer):
            sources.append(Constant(leaf))
            continue
        if id(leaf) not in numbers:
            numbers[id(leaf)] = len(arguments) + len(made)
            made.append(leaf)
        sources.append(numbers[id(leaf)])
    return Residuals(made, tuple(sources), structure)


def give(residuals, arguments):
    """The vjp again."""
    values = [*arguments, *residuals.made]
    leaves = [s.value if isinstance(s, Constant) else values[s] for s in residuals.sources]
    return jax.tree.unflatten(residuals.structure, leaves)
