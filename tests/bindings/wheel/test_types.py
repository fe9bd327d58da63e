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
from lamella import describe, group, operators, pipeline, rows, schedule
from lamella.torch import modules

def plain(value):
    return list(value) if isinstance(value, tuple) else value

def public(value):
    # (name, itself) of a class or function, and of a class's own methods
    if inspect.isclass(value) or inspect.isfunction(value):
        yield value.__qualname__, value
    for name, method in vars(value).items() if inspect.isclass(value) else ():
        method = getattr(method, "__func__", method)
        if name[0] != "_" and inspect.isfunction(method):
            yield value.__qualname__ + "." + name, method

def hints(value):
    # {parameter, or "return": its annotation, "" where there is none}
    signature = inspect.signature(value)
    given = {p.name: p.annotation for p in signature.parameters.values() if p.name not in SELF}
    if not inspect.isclass(value):
        given["return"] = signature.return_annotation
    return {name: "" if a is signature.empty else str(a) for name, a in given.items()}

SELF = ("self", "cls")
told = {"torch": {}, "jax": {}, "docs": {}, "tensors": {}, "own": {}, "hints": {}}
of_jax = {name: getattr(lj, name) for name in set(lj.__all__) - set(rows.table())}
names = ["Schedule", "choose", "draw", "run", "infer", "grid"]
values = {"lamella.jax": of_jax.values()}
for module in (lamella, lamella.torch, pipeline, schedule, operators, group):
    there = [name for name in getattr(module, "__all__", names) if hasattr(module, name)]
    values[module.__name__] = [getattr(module, name) for name in there]
values["lamella.torch"].append(modules.Split)
for name, those in values.items():
    found = dict(p for v in those for p in public(v))
    told["own"][name] = {name: value.__doc__ or "" for name, value in found.items()}
    told["hints"][name] = {name: hints(value) for name, value in found.items()}
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
CALLBACKS = re.compile(
    r"PipelineStage\.|Stage\.|View\.|ParallelFFN\.origin|"
    r"Pipelined\.(?!step|generate)|Split\.(?!pack|unpack)"
)
# What a parameter's "name: hint" matches -> what the docstring then says
UNITS = {r"\w+_ms:": r"\bms\b", r"\w*bytes\w*:": r"\b[Bb]ytes\b", r"\w+: .*Costs": r"\bunit\b"}
FAIL = {
    "lamella": "Group Group.create Group.from_env",
    "lamella.torch": "ColumnParallelLinear.forward RowParallelLinear.forward ParallelFFN.forward "
    "VocabParallelEmbedding.forward vocab_parallel_cross_entropy whole_state_dict Pipeline "
    "PipelineStage Pipelined parallelize load save group pack pack_weight accumulate_grads",
    "lamella.jax": "LocalGroup distributed_group Pipeline PipelineStage",
    "lamella.pipeline": "Pipeline Pipeline.run",
    "lamella.schedule": "Schedule.build Schedule.parse",
    "lamella.operators": "run",
    "lamella.group": "grid",
}
ERRORS = r"InvalidArgument|Mismatch|`create`|Group|Unimplemented|lamella\.Error|ColumnParallelLinear's|what that"


def test_what_users_call_says_what_it_does_and_raises(told):
    for module, texts in told["own"].items():
        bare = [name for name, text in texts.items() if not text and not CALLBACKS.match(name)]
        assert not bare, (module, bare)
        for name in FAIL[module].split():
            assert re.search(ERRORS, texts[name]), (module, name)


def test_all_that_is_public_has_hints_and_units(told):
    bare, without_unit = [], []
    for module, functions in told["hints"].items():
        for name, given in functions.items():
            if not (all(given.values()) or CALLBACKS.match(name)):
                bare.append((module, name, given))
            for mark, unit in UNITS.items():
                has = any(re.match(mark, "%s: %s" % part) for part in given.items())
                if has and not re.search(unit, told["own"][module][name]):
                    without_unit.append((module, name, unit))
    assert not bare and not without_unit


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
