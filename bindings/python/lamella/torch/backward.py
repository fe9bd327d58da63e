"""A backward in two parts, by autograd: I gives the gradients of a stage's inputs, W those of its
weights, later.

The chain is the nodes of the graph on a way from an output to an input. I runs the chain; where a
way to weights leaves it, what came into that node is kept. W runs each such node again from there,
for its weights alone. So each product is computed once, as in a whole backward.
Invariant: together they add to .grad what a whole backward would have added, in one place: W. A
weight that is reached from several nodes of the chain (a layer used twice) has its gradient
computed with I, since W of the first node would run the chain to the second again.
Leaves which stages are split, and when, to stage.py and the schedule.
"""

from collections import Counter, namedtuple

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge

AccumulateGrad = type(get_gradient_edge(torch.zeros((), requires_grad=True)).node)
Deferred = namedtuple("Deferred", "edges grads weights")


def whole(roots, grads):
    """The whole backward. roots: edges of the outputs; grads: theirs."""
    torch.autograd.backward(roots, grads)


def inputs_part(roots, grads, inputs):
    """I: sets .grad of `inputs`, leaves that the roots need. Gives what weights_part takes; the
    grads must live until then."""
    if not inputs:
        return [Deferred(roots, grads, None)]
    ways = ways_to_weights(roots, inputs)
    count = Counter(weight for weights in ways.values() for weight in weights)
    shared = [weight for weight, n in count.items() if n > 1]
    own = {node: [w for w in weights if count[w] == 1] for node, weights in ways.items()}
    with _Kept(node for node, weights in own.items() if weights) as kept, _Aside(shared) as added:
        torch.autograd.backward(roots, grads, inputs=[*inputs, *shared], retain_graph=True)
    ran = set(kept.grads)
    for root, grad in zip(roots, grads):  # one that leads to weights only never ran
        if root.node not in ran and own.get(root.node):
            kept.take(root.node, {root.output_nr: grad})
    return [*kept.deferred(own), *added.gradients]


def weights_part(deferred):
    """W: adds to the weights' .grad."""
    for part in deferred:
        if isinstance(part, Deferred):
            torch.autograd.backward(part.edges, part.grads, inputs=part.weights)
        else:
            _add(*part)


def ways_to_weights(roots, inputs):
    """{node: weights}: each node of the chain from which a way to weights leaves it, and each root
    beside the chain."""
    chain, weights, found = {get_gradient_edge(x).node for x in inputs}, {}, {}
    for node in children_first([root.node for root in roots]):
        children = [child for child, _ in node.next_functions if child is not None]
        if isinstance(node, AccumulateGrad):
            leaves = {node.variable}
        else:
            leaves = set().union(*[weights[c] for c in children if c not in chain])
        if node in chain or any(child in chain for child in children):
            if node not in chain and leaves:
                found[node] = leaves
            chain.add(node)
        else:
            weights[node] = leaves
    found.update((root.node, weights[root.node]) for root in roots if root.node not in chain)
    return found


def children_first(nodes):
    """Every node of the graph below, each after those it leads to."""
    seen, order, stack = set(), [], [(node, False) for node in nodes]
    while stack:
        node, is_done = stack.pop()
        if is_done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(child, False) for child, _ in node.next_functions if child is not None]
    return order


class _Kept:
    """While open, keeps what comes into nodes."""

    def __init__(self, nodes):
        self.nodes, self.grads, self.handles = list(nodes), {}, []

    def take(self, node, grads):
        self.grads.setdefault(node, {}).update(grads)

    def __enter__(self):
        for node in self.nodes:
            hook = lambda grads, node=node: self.take(node, dict(enumerate(grads)))  # noqa: E731
            self.handles.append(node.register_prehook(hook))
        return self

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()

    def deferred(self, weights):
        for node, grads in self.grads.items():
            given = [(GradientEdge(node, i), g) for i, g in grads.items() if g is not None]
            if given:
                edges, grads = zip(*given)
                yield Deferred(edges, grads, weights[node])


class _Aside:
    """While open, what is added to the .grad of weights goes to `gradients` instead."""

    def __init__(self, weights):
        self.weights, self.gradients = weights, []

    def __enter__(self):
        self.before = [weight.grad for weight in self.weights]
        for weight in self.weights:
            weight.grad = None
        return self

    def __exit__(self, *error):
        for weight, before in zip(self.weights, self.before):
            self.gradients.append((weight, weight.grad))
            weight.grad = before


@torch.no_grad()
def _add(weight, gradient):
    if gradient is None:
        return
    if weight.grad is None:
        weight.grad = gradient
    else:
        weight.grad += gradient
