"""Rows of the operator table, as hosts see them.

Invariant: arguments and results stand in the order of the schemas that the native adapters make
from the same rows. Nothing here knows a host.
Leaves shape rules to shapes.py.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field

from lamella import library, shapes

# Indices, values per token, tokens, scales, biases and gains
NO_LEADER = re.compile("ids|targets|dloss|lse|token|s.*|b.*|g")


@dataclass
class Tensor:
    name: str
    marks: str
    shape: object = None  # outputs: a function of a shapes.Call that gives dimensions, or None
    dtype: object = None  # outputs: a function of a shapes.Call
    decided: bool = False  # outputs: its rule says whether it is there
    rule: str = ""  # outputs: its shape and dtype, as the table says it

    @property
    def optional(self):
        return "?" in self.marks

    @property
    def asked(self):
        """An optional output that the caller asks for, by an argument of its name."""
        return self.optional and not self.decided


@dataclass
class Attribute:
    name: str
    type: str
    default: object


@dataclass
class Row:
    id: int
    name: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    attributes: list[Attribute]
    communicates: bool
    arguments: list[str] = field(init=False)  # names, in the order of the hosts' schemas
    defaults: dict[str, object] = field(init=False)

    def __post_init__(self):
        asked = [o.name for o in self.outputs if o.asked]
        attributes = [a for a in self.attributes if a.name != "acc"]
        inputs = [i.name for i in self.inputs]
        self.arguments = inputs + [a.name for a in attributes] + asked
        self.defaults = {i.name: None for i in self.inputs if i.optional}
        self.defaults.update({a.name: a.default for a in attributes})
        self.defaults.update({name: 1 for name in asked})

    @property
    def leader(self):
        """The input whose dtype is the call's: the first activation or weight, else the first."""
        names = [i.name for i in self.inputs]
        return next((name for name in names if not NO_LEADER.fullmatch(name)), names[0])

    @property
    def scaled(self):
        """It takes scales, and so fp8."""
        return any(i.name.startswith("s") for i in self.inputs)

    def bind(self, args, kwargs):
        """name -> value of every argument, defaults filled in."""
        return {**self.defaults, **dict(zip(self.arguments, args)), **kwargs}


def read(text):
    """A row from lam_op_row's words: id name | inputs | outputs | attributes | shapes | effect."""
    head, inputs, outputs, attributes, rules, effect = (part.strip() for part in text.split("|"))
    number, name = head.split()
    results = [_tensor(word) for word in outputs.split()]
    shapes.compile(rules, results)
    for result, rule in zip(results, rules.split(";")):
        result.rule = rule.partition(":")[2].strip()
    return Row(
        int(number),
        name,
        [_tensor(word) for word in inputs.split()],
        results,
        [_attribute(word) for word in attributes.split()],
        effect == "COMM",
    )


@functools.cache
def table():
    """Every row of the loaded library, by name."""
    rows = [read(text) for text in library.rows()]
    return {row.name: row for row in rows}


def _tensor(word):
    name = re.match(r"\w+", word).group()
    return Tensor(name, word[len(name) :])


def _attribute(word):
    name, type, default = re.match(r"(\w+):(\w)=?(.*)", word).groups()
    number = float if type == "f" else int
    return Attribute(name, type, {"s": "", "I": ()}.get(type, number(default or 0)))
