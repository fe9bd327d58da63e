"""Stubs for what the package makes from the operator table when it is imported: the operators in
PyTorch and the functions in JAX, for type checkers and editors.

Invariant: names, order and defaults are those at run time (tested on the installed wheel).
Leaves words to lamella.describe, and what modules import by hand to the modules themselves.
"""

import ast
import textwrap

from bindings.cli.common import PACKAGE
from lamella import describe, rows

TYPES = {"i": "int", "f": "float", "s": "str", "I": "Sequence[int]"}
HIDDEN = ("group", "acc")  # in JAX: a group is given as itself, and nothing is added into
TORCH = '''"""torch.ops.lamella: see Operators."""

from collections.abc import Sequence

from torch import Tensor

class Operators:
    """What `lamella.torch.ops`, which is torch.ops.lamella, holds."""

%s

ops: Operators
'''
JAX = '''"""Lamella's operators in JAX; see the module."""

from collections.abc import Sequence
from typing import overload

from jax import Array
from jax.typing import ArrayLike, DTypeLike

from lamella import Group
%s

%s
'''


def files():
    """{path in the package: bytes}."""
    table = rows.table().values()
    methods = "\n\n".join(textwrap.indent(torch_method(row), "    ") for row in table)
    functions = "\n\n".join(jax_function(row) for row in table)
    return {
        "torch/register.pyi": (TORCH % methods).encode(),
        "jax/__init__.pyi": (JAX % (imported("jax/__init__.py"), functions)).encode(),
    }


def define(name, parameters, result, text=None):
    """One function; a body of text makes it the last of its overloads."""
    body = '\n    """' + textwrap.indent(text, "    ").lstrip() + '"""' if text else " ..."
    head = "def %s(" % name
    return "%s\n    %s,\n) -> %s:%s" % (head, ",\n    ".join(parameters), result, body)


def parameter(name, type, default=None):
    return "%s: %s" % (name, type) if default is None else "%s: %s = %s" % (name, type, default)


# -- PyTorch --


def torch_method(row):
    """Python wants what follows an optional argument to be optional too; torch does not."""
    inputs = {t.name: t for t in row.inputs}
    kinds = {a.name: TYPES[a.type] for a in row.attributes}
    parameters, optional = ["self"], False
    for name in row.arguments:
        if name not in inputs:
            default = repr(row.defaults[name])
            parameters.append(parameter(name, kinds.get(name, "int"), default))
            continue
        optional |= inputs[name].optional and needs_no_more(row, name)
        type = "Tensor | None" if inputs[name].optional else "Tensor"
        parameters.append(parameter(name, type, "None" if optional else None))
    result = "Tensor" if len(row.outputs) == 1 else "tuple[%s]" % listed("Tensor", row.outputs)
    return define(row.name, parameters, result, describe.row(row, hidden=("acc",)))


def needs_no_more(row, name):
    """No required input follows."""
    names = [t.name for t in row.inputs]
    return all(t.optional for t in row.inputs[names.index(name) :])


def listed(type, items):
    return ", ".join([type] * len(items))


# -- JAX --


def jax_function(row):
    """Two overloads where the row communicates: with a token given, the result ends with one."""
    parameters, optional = [], False
    for t in row.inputs:
        optional |= t.optional
        if t.name != "token":
            type = "ArrayLike | None" if optional else "ArrayLike"
            parameters.append(parameter(t.name, type, "None" if optional else None))
    attributes = [a for a in row.attributes if a.name not in HIDDEN]
    if attributes or row.communicates:
        parameters.append("*")
    for a in attributes:
        type = "DTypeLike | int" if a.name == "dtype" else TYPES[a.type]
        parameters.append(parameter(a.name, type, repr(a.default)))
    return "\n".join(overloads(row, parameters))


def overloads(row, parameters):
    text = describe.row(row, "[in, out]", HIDDEN)
    outputs = [t for t in row.outputs if t.name != "token"]
    if not row.communicates:
        return [define(row.name, parameters, result_of(outputs, 0), text)]
    group = parameter("group", "Group | LocalGroup | None", "None")
    given = define(row.name, [*parameters, group, "token: Array"], result_of(outputs, 1), text)
    if len(outputs) < len(row.outputs):  # it has a token of its own
        return [given]
    alone = [*parameters, "group: Group | None = None", "token: None = None"]
    return ["@overload", define(row.name, alone, result_of(outputs, 0)), "@overload", given]


def result_of(outputs, tokens):
    """An output that an attribute decides over may be there or not."""
    fixed = [t for t in outputs if not t.decided]
    if len(fixed) < len(outputs):
        return "tuple[Array, ...]" if tokens else "Array | tuple[Array, ...]"
    n = len(fixed) + tokens
    return "Array" if n == 1 else "tuple[%s]" % ", ".join(["Array"] * n)


def imported(path):
    """The lines that bring a module's public names from the package's other modules."""
    tree = ast.parse(open("%s/lamella/%s" % (PACKAGE, path)).read())
    lines = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lamella."):
            names = [a.name for a in node.names if not a.asname]
            lines += ["from %s import %s as %s" % (node.module, n, n) for n in names]
    return "\n".join(lines)
