"""Type checkers see what is there: a user's program, and the stubs beside what they stand for."""

import ast
import json
import os
import re
import sys
from pathlib import Path

import pytest

from wheel_commands import run, status_and_output

HERE = Path(__file__).resolve().parent

SIGNATURES = """
import inspect, json
import torch, lamella.torch, lamella.jax as lj
from lamella import describe, rows

def plain(value):
    return list(value) if isinstance(value, tuple) else value

told = {"torch": {}, "jax": {}}
for row in rows.table().values():
    schema = getattr(torch.ops.lamella, row.name).default._schema
    told["torch"][row.name] = {
        "parameters": [
            [a.name, a.default_value] if a.has_default_value() else [a.name]
            for a in schema.arguments
        ],
        "results": len(schema.returns),
    }
    function = getattr(lj, row.name)
    told["jax"][row.name] = [
        [p.name] if p.default is p.empty else [p.name, plain(p.default)]
        for p in inspect.signature(function).parameters.values()
    ]
    assert function.__doc__ and getattr(torch.ops.lamella, row.name).__doc__
    for attribute in row.attributes:
        assert attribute.name in describe.ATTRIBUTES or attribute.name == "acc", attribute
print(json.dumps(told))
"""


def functions(python, stub):
    """{name: its last definition} in a stub of the installed package."""
    [path] = (python.parents[1] / "lib").glob("python*/site-packages/lamella/" + stub)
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.name: node for node in nodes if isinstance(node, ast.FunctionDef)}


def parameters(node):
    """[name] or [name, default] of each, `self` left out."""
    a = node.args
    given = [None] * (len(a.args) - len(a.defaults)) + a.defaults
    pairs = list(zip(a.args, given)) + list(zip(a.kwonlyargs, a.kw_defaults))
    found = [[p.arg] if d is None else [p.arg, plain(d)] for p, d in pairs]
    return [p for p in found if p != ["self"]]


def plain(node):
    value = ast.literal_eval(node)
    return list(value) if isinstance(value, tuple) else value


@pytest.fixture(scope="module")
def told(python, tmp_path_factory):
    """What the hosts themselves say of their operators."""
    env = dict(os.environ, JAX_PLATFORMS="cpu")
    return json.loads(run(python, "-c", SIGNATURES, env=env, cwd=tmp_path_factory.mktemp("told")))


def test_the_stub_of_torchs_operators_is_their_schemas(python, told):
    found = functions(python, "torch/register.pyi")
    assert set(found) == set(told["torch"])
    for name, schema in told["torch"].items():
        assert parameters(found[name]) == schema["parameters"], name
        results = ast.unparse(found[name].returns).count("Tensor")
        assert results == schema["results"], name


def test_the_stub_of_jaxs_functions_is_their_signatures(python, told):
    found = functions(python, "jax/__init__.pyi")
    assert set(found) == set(told["jax"])
    for name, signature in told["jax"].items():
        own = parameters(found[name])
        if own[-1] == ["token"]:  # that overload where one is given
            own[-1] = ["token", None]
        assert own == signature, name


def test_a_type_checker_finds_a_users_mistakes_and_no_others(python, tmp_path):
    expected = [
        (i, word)
        for i, line in enumerate((HERE / "user.py").read_text().splitlines(), 1)
        for word in re.findall(r"# wrong: (\S+)$", line)
    ]
    [site] = (python.parents[1] / "lib").glob("python*/site-packages")
    alone = ["--no-site-packages", "--ignore-missing-imports", "--follow-imports=silent"]
    command = [sys.executable, "-m", "mypy", "--strict", *alone, "--cache-dir", tmp_path]
    env = dict(os.environ, MYPYPATH="%s:%s" % (HERE / "types", site))
    _, output = status_and_output(*command, HERE / "user.py", env=env, cwd=tmp_path)
    found = re.findall(r"user\.py:(\d+): error: .*\[(.*)\]", output)
    assert [(int(line), kind) for line, kind in found] == expected, output
