"""One call of one row, as a JAX operation: result types from the row's rules, then the FFI call.

Tensors are JAX's own: weights are [in, out], where the rows say [N, K]; the handler reads the same
memory, nothing is transposed. A communicating call takes a token, an f32 array of shape [1], and
gives one: the chain of tokens is the order of the calls, which XLA then cannot change; a side
effect keeps it from dropping or merging them.
Invariant: every call of a group with other ranks has a token.
Leaves gradients to grads.py.
"""

import jax
import jax.numpy as jnp
import numpy

from lamella import errors, library
from lamella.jax import chains, native, rows

PREFIX = "lamella_"
CALL_TF32 = 1  # lamella.h's LAM_CALL_TF32
# Of jax.default_matmul_precision: those that ask for no more than tf32 has. Unset is not among them:
# where nothing was asked for, f32 stays f32.
TF32 = frozenset(
    ["default", "high", "bfloat16", "tensorfloat32"]
    + ["BF16_BF16_BF16", "BF16_BF16_F32", "TF32_TF32_F32"]
)
AS_NUMPY = {
    "i": numpy.int64,
    "f": numpy.float64,
    "s": str,
    "I": lambda ints: numpy.array(ints, numpy.int64),
}


def new_token() -> jax.Array:
    """The first token of a chain."""
    return chains.made(zero())


def call(row, inputs, attrs, group=None, token=None, dtypes=None, skip=()):
    """Gives ({output: array or None}, token).

    inputs: {name: array or None}; attrs: {name: value}, those not named have their defaults;
    dtypes: {output: dtype} where it is not the row's; skip: optional outputs not wanted.
    """
    tensors = [token if t.name == "token" else inputs.get(t.name) for t in row.inputs]
    attrs = dict(attrs, **({"group": group.handle} if group else {}))
    if row.name == "pack_weight" and not attrs.get("cols"):
        attrs["cols"] = packed_cols(inputs["w"], attrs.get("side", 0))
    transposed = [rows.is_weight(row, t) and is_plain(x) for t, x in zip(row.inputs, tensors)]
    shapes = infer(row, tensors, transposed, attrs, group)
    turned = [rows.is_weight(row, t) for t in row.outputs]
    there = [s is not None and t.name not in skip for t, s in zip(row.outputs, shapes)]
    results = [
        result_type(shape, (dtypes or {}).get(t.name), turn)
        for t, shape, turn, wanted in zip(row.outputs, shapes, turned, there)
        if wanted
    ]
    extra = row.communicates and not rows.own_token(row) and token is not None
    given = [x is not None for x in tensors]
    arguments = [x for x in tensors if x is not None]
    if extra:
        results.append(jax.ShapeDtypeStruct((1,), jnp.float32))
        arguments.append(token)
    if holds_several(group):
        arguments.append(rank_of(group))
    named = {a.name: AS_NUMPY[a.type](attrs[a.name]) for a in row.attributes if a.name in attrs}
    named.update(transposed=mask(transposed + turned))
    named.update(absent=mask([not x for x in [*given, *there, extra]]))
    if jax.config.jax_default_matmul_precision in TF32:
        named.update(flags=numpy.int64(CALL_TF32))
    names = [t.name for t, x in zip(row.inputs, given) if x]
    found = iter(bind(row, names, results, named, group, attrs)(*arguments))
    outputs = {t.name: next(found) if x else None for t, x in zip(row.outputs, there)}
    return outputs, next(found) if extra else outputs.pop("token", None)


def mask(bits):
    return numpy.int64(sum(1 << i for i, bit in enumerate(bits) if bit))


def is_plain(x):
    return x is not None and x.dtype != jnp.uint8  # packed weights are bytes


def packed_cols(w, side):
    """Columns of w [in, out] once it is packed for this machine."""
    inner, outer = w.shape[-2:]
    return library.packed_cols(native.dtype_number(w.dtype), outer, inner, side)


def zero():
    return jnp.zeros((1,), jnp.float32)


def result_type(shape, dtype, turned):
    return jax.ShapeDtypeStruct(shape[0][::-1] if turned else shape[0], dtype or shape[1])


def infer(row, tensors, transposed, attrs, group):
    """One program serves all ranks of this process, so they must agree on its shapes."""
    given = [
        None if x is None else (x.shape, x.dtype, bit) for x, bit in zip(tensors, transposed)
    ]
    if not holds_several(group):
        return native.infer(row, given, attrs)
    found = []
    for rank in range(group.size):
        native.use_rank(group, rank)
        found.append(native.infer(row, given, attrs))
    for rank, shapes in enumerate(found):
        if shapes != found[0]:
            raise errors.InvalidArgument(
                "%s: rank 0 gets %s, rank %d %s: under shard_map all ranks have the same shapes, "
                "so the split dimension must divide evenly" % (row.name, found[0], rank, shapes),
                status=3,
            )
    return found[0]


# -- ranks --


def holds_several(group):
    return hasattr(group, "axis")  # a LocalGroup


def rank_of(group):
    return jax.lax.axis_index(group.axis).astype(jnp.int32).reshape(1)


# -- the operation --


def bind(row, names, results, attrs, group, given):
    """The FFI call as a function of arrays alone, of the inputs `names`, with its own answer to vmap."""
    effect = row.communicates and group is not None
    operation = jax.ffi.ffi_call(PREFIX + row.name, results, has_side_effect=effect)
    function = jax.custom_batching.custom_vmap(lambda *arrays: tuple(operation(*arrays, **attrs)))

    @function.def_vmap
    def batch(axis_size, in_batched, *arrays):
        tensors = [t for t in row.inputs if t.name in names]
        check_vmap(row, [t for t, batched in zip(tensors, in_batched) if batched])
        inputs = {}
        for t, x, batched in zip(tensors, arrays, in_batched):
            whole = rows.is_activation(row, t) and not batched
            inputs[t.name] = jnp.broadcast_to(x, (axis_size, *x.shape)) if whole else x
        outputs, _ = call(row, inputs, given)
        found = tuple(x for x in outputs.values() if x is not None)
        return found, (True,) * len(found)

    return function


def check_vmap(row, mapped):
    """A batch is one more leading dimension of the activations; weights have none to give."""
    if row.communicates:
        raise NotImplementedError(
            "lamella.jax.%s: vmap is refused: a call meets the group's other ranks once; "
            "it takes any number of leading dimensions, [..., K], itself" % row.name
        )
    fixed = [t.name for t in mapped if not rows.is_activation(row, t)]
    summed = [t.name for t in row.outputs if not rows.is_activation(row, t)]
    if fixed or summed:
        raise NotImplementedError(
            "lamella.jax.%s: vmap is refused: %s is shared by all of a batch"
            % (row.name, (fixed or summed)[0])
        )
