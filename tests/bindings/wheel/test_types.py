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
from lamella import describe, operators, pipeline, rows, schedule

def plain(value):
    return list(value) if isinstance(value, tuple) else value

def public(value):
    # (name, text) of a class or function, and of a class's own methods
    if inspect.isclass(value) or inspect.isfunction(value):
        yield value.__qualname__, value.__doc__ or ""
    for name, method in vars(value).items() if inspect.isclass(value) else ():
        method = getattr(method, "__func__", method)
        if name[0] != "_" and inspect.isfunction(method):
            yield value.__qualname__ + "." + name, method.__doc__ or ""

told = {"torch": {}, "jax": {}, "docs": {}, "tensors": {}, "own": {}}
of_jax = {name: getattr(lj, name) for name in set(lj.__all__) - set(rows.table())}
for module in (lamella, lamella.torch, pipeline, schedule, operators):
    names = getattr(module, "__all__", ["Schedule", "choose", "draw", "run", "infer"])
    values = {name: getattr(module, name) for name in names if hasattr(module, name)}
    told["own"][module.__name__] = dict(p for v in values.values() for p in public(v))
told["own"]["lamella.jax"] = dict(p for v in of_jax.values() for p in public(v))
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
    told["docs"][row.name] = [function.__doc__, getattr(torch.ops.lamella, row.name).__doc__]
    told["tensors"][row.name] = [t.name for t in [*row.inputs, *row.outputs]]
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


def test_help_says_of_each_tensor_its_shape_and_dtype_and_what_a_call_raises(told):
    for name, texts in told["docs"].items():
        for text in texts:
            lines = re.findall(r"^(?:returns )?(\w+)\??: (.*)$", text, re.M)
            for tensor in told["tensors"][name]:
                said = [line for key, line in lines if key == tensor]
                assert said or tensor == "token", (name, tensor)
                for line in said:
                    assert re.search(r"^as |^\[.*\], .*(as |f32|int|any|u8)", line), (name, line)
            assert "Raises lamella.Error: InvalidArgument" in text


# What a pipeline calls, or what others of the same class describe
CALLBACKS = re.compile(r"PipelineStage\.|Stage\.|View\.|ParallelFFN\.origin|Pipelined\.\w+$")
FAIL = {
    "lamella": "Group Group.create Group.from_env",
    "lamella.torch": "ColumnParallelLinear.forward RowParallelLinear.forward ParallelFFN.forward "
    "VocabParallelEmbedding.forward vocab_parallel_cross_entropy whole_state_dict Pipeline "
    "PipelineStage Pipelined parallelize load save group pack pack_weight accumulate_grads",
    "lamella.jax": "LocalGroup distributed_group Pipeline PipelineStage",
    "lamella.pipeline": "Pipeline Pipeline.run",
    "lamella.schedule": "Schedule.build Schedule.parse",
    "lamella.operators": "run",
}
ERRORS = r"InvalidArgument|Mismatch|`create`|Group|Unimplemented|lamella\.Error|ColumnParallelLinear's|what that"


def test_what_users_call_says_what_it_does_and_raises(told):
    for module, texts in told["own"].items():
        bare = [name for name, text in texts.items() if not text and not CALLBACKS.match(name)]
        assert not bare, (module, bare)
        for name in FAIL[module].split():
            assert re.search(ERRORS, texts[name]), (module, name)


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
