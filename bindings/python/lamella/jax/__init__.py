"""Lamella's operators in JAX: one function for each row of the operator table.

    import lamella.jax as lj

    group = lj.LocalGroup(2, axis="tp")             # or a lamella.Group: one rank per process
    token = lj.new_token()
    h, token = lj.linear_col(x, w1, b1, act="gelu", group=group, token=token)
    y, token = lj.linear_row(h, w2, b2, group=group, token=token)
    loss = lj.after(loss_of(y), token)              # where it is differentiated

Weights are JAX's [in, out]; embedding tables [vocabulary, hidden]. They work under jit and grad, in
shard_map (check_vma=False) and in several processes. A call with a group takes and gives a token,
which orders it: thread one chain through all of a rank's calls; a second one for the same group is
refused where one traced function shows it. Where activations travel between
ranks (send_activation, recv_activation), differentiate for the token too: it carries the edge.
The outputs aux and lse are for the backward rows and carry no gradient.
PipelineStage makes a function a stage of a Pipeline, whose other stages may be other hosts', on the
GPU on which its parameters lie, else on the CPU.
Failures are lamella.Error while tracing and JaxRuntimeError while running, with Lamella's line.
"""

import inspect

import jax

from lamella import describe as _describe
from lamella import interrupt as _interrupt
from lamella.jax import call as _call
from lamella.jax import chains as _chains
from lamella.jax import grads as _grads
from lamella.jax import native as _native
from lamella.jax import rows as _rows
from lamella.jax.call import new_token
from lamella.jax.grads import after
from lamella.jax.group import LocalGroup, distributed_group
from lamella.jax.pipeline import Pipeline, PipelineStage

# JAX's arrays are not written to, so nothing is added into one.
_HIDDEN = ("group", "acc")


def _register():
    """Every row as an FFI target. JAX's backends are not touched: jax.distributed comes first."""
    adapter = _native.adapter()
    for prefix, platform in (("lam_xla_", "cpu"), ("lam_xla_cuda_", "CUDA")):
        for name in _rows.table():
            handler = jax.ffi.pycapsule(getattr(adapter, prefix + name))
            target = _call.PREFIX + name
            jax.ffi.register_ffi_target(target, handler, platform=platform, api_version=1)


def _attr(row, attr, value):
    if attr.name == "dtype" and not isinstance(value, int):
        return _native.dtype_number(value)
    return tuple(value) if attr.type == "I" else value


def _signature(row):
    kinds, parameters, optional = inspect.Parameter, [], False
    for t in row.inputs:
        optional |= t.optional  # Python wants what follows to be so too; the library refuses it
        default = None if optional else kinds.empty
        if t.name != "token":
            parameters.append(kinds(t.name, kinds.POSITIONAL_OR_KEYWORD, default=default))
    parameters += [
        kinds(a.name, kinds.KEYWORD_ONLY, default=a.default)
        for a in row.attributes
        if a.name not in _HIDDEN
    ]
    if row.communicates:
        parameters += [kinds(n, kinds.KEYWORD_ONLY, default=None) for n in ("group", "token")]
    return inspect.Signature(parameters)


def _make(row):
    signature = _signature(row)
    inputs = [t.name for t in row.inputs if t.name != "token"]
    defaults = {name: p.default for name, p in signature.parameters.items()}

    def function(*args, **kwargs):
        bound = signature.bind(*args, **kwargs).arguments
        group, token = bound.pop("group", None), bound.pop("token", None)
        if token is None and (_rows.own_token(row) or group is not None and group.size > 1):
            raise TypeError(
                "lamella.jax.%s: token: found None, expected the token that the call before gave, "
                "or lamella.jax.new_token() for the first: it orders the group's calls" % row.name
            )
        arrays = {name: bound.get(name) for name in inputs}
        if group is not None and group.size > 1:
            _chains.check(row.name, group, token, arrays.values())
        arrays = {k: None if x is None else jax.numpy.asarray(x) for k, x in arrays.items()}
        attrs = tuple(
            (a.name, _attr(row, a, bound[a.name]))
            for a in row.attributes
            if a.name in bound and bound[a.name] != defaults[a.name]
        )
        return _result(row, _run(_grads.Site(row.name, attrs, group), arrays, token), token)

    function.__name__ = function.__qualname__ = row.name
    function.__signature__, function.__doc__ = signature, _describe.row(row, "[in, out]", _HIDDEN)
    return function


def _run(site, arrays, token):
    if site.name in _grads.GRADS:
        return _grads.apply(site, arrays, token)
    return _call.call(site.row, arrays, dict(site.attrs), site.group, token)


def _result(row, found, token):
    outputs, after = found
    for name in _grads.CONSTANT:
        if outputs.get(name) is not None:
            outputs[name] = jax.lax.stop_gradient(outputs[name])
    given = [outputs[t.name] for t in row.outputs if outputs.get(t.name) is not None]
    given += [] if token is None else [after]
    return given[0] if len(given) == 1 else tuple(given)


_register()
_interrupt.end_first()
for _name, _row in _rows.table().items():
    globals()[_name] = _make(_row)

_OWN = ["LocalGroup", "Pipeline", "PipelineStage", "after", "distributed_group", "new_token"]
__all__ = [*_OWN, *_rows.table()]
