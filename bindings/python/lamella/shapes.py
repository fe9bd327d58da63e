"""Shape rules of the operator table, compiled to Python functions.

The grammar stands at the top of abi/lamella_ops.def; the library has its own reader of it. Here
sizes are whatever the host has, plain ints or symbols: rules add, multiply and divide them, and
ask of them only whether an attribute is 0.
Invariant: a rule that compiles gives, for plain ints, what lam_infer gives (tested row by row).
Leaves refusing what does not fit to the library.
"""

import operator
import re
from dataclasses import dataclass, field

WORD = re.compile(r"[A-Za-z_]\w*")
NUMBER = re.compile(r"-?\d+")


@dataclass
class Call:
    """What a rule may ask. `shapes` and `dtypes` hold the inputs that are there, by name."""

    shapes: dict
    dtypes: dict
    values: dict  # attributes
    first: str  # the first input's name
    rank: int = 0
    size: int = 1
    packed: frozenset = frozenset()  # weights that are packed
    wide: dict = field(default_factory=dict)  # operands' dtype -> that of results, where not equal

    def dtype(self):
        """The call's dtype; where operands are fp8, attribute dtype, or bf16."""
        own = self.dtypes[self.first]
        if own not in self.wide:
            return own
        return self.values.get("dtype") or self.wide[own]


def compile(rules, outputs):
    """Sets `shape`, `dtype` and `decided` of each output from the row's rules."""
    parser = Parser(rules)
    for i, output in enumerate(outputs):
        if i:
            parser.expect(";")
        parser.blanks()
        parser.rule(output)
        parser.blanks()
    if parser.at != len(rules):
        raise parser.wrong("the end")


def share(total, unit, rank, size):
    """This rank's part of `total` elements in units, larger shares first."""
    unit = unit or 1
    return (total // unit + size - 1 - rank) // size * unit


class Parser:
    """Recursive descent; every method gives a function of a Call."""

    def __init__(self, text):
        self.text, self.at, self.none = text, 0, False

    # letters and words

    def wrong(self, expected):
        return ValueError(
            "shape rule %r: at %d: expected %s" % (self.text, self.at, expected)
        )

    def blanks(self):
        while self.text[self.at : self.at + 1] == " ":
            self.at += 1

    def accept(self, text):
        found = self.text.startswith(text, self.at)
        self.at += len(text) if found else 0
        return found

    def expect(self, text):
        if not self.accept(text):
            raise self.wrong(repr(text))

    def match(self, pattern, expected):
        found = pattern.match(self.text, self.at)
        if not found:
            raise self.wrong(expected)
        self.at = found.end()
        return found.group()

    # rules

    def rule(self, output):
        self.none = False
        if self.match(WORD, "an output") != output.name:
            raise self.wrong(output.name)
        self.expect(":")
        self.blanks()
        output.dtype = Call.dtype
        if self.accept("as "):
            name = self.match(WORD, "an input")
            output.shape = lambda call: list(call.shapes[name])
            output.dtype = lambda call: call.dtypes[name]
        else:
            output.shape = self.shape()
        self.blanks()
        if self.accept("@"):
            output.dtype = self.dtype(output.dtype)
        output.decided = self.none

    def dtype(self, default):
        """A name, f32 or u8; a number code | bits << 8; or the first input's own."""
        if self.accept("$"):
            name = self.match(WORD, "an attribute")
            return lambda call: call.values[name] or default(call)
        name = self.match(WORD, "f32, u8 or $dtype")
        return lambda call: name

    def shape(self):
        pieces = []
        self.blanks()
        while self.at < len(self.text) and self.text[self.at] not in ";@:}":
            pieces.append(self.piece())
            self.blanks()

        def join(call):
            dims = []
            for piece in pieces:
                part = piece(call)
                if part is None:
                    return None
                dims += part
            return dims

        return join

    def piece(self):
        if self.accept("{"):
            return self.choice()
        if self.accept("none"):
            self.none = True
            return lambda call: None
        if self.accept("$shape"):
            return lambda call: list(call.values["shape"])
        if re.compile(r"\w+\[[^\]:]*:").match(self.text, self.at):
            return self.slice()
        value = self.expr()
        return lambda call: [value(call)]

    def choice(self):
        condition = self.expr()
        self.expect("?")
        first = self.shape()
        self.expect(":")
        second = self.shape()
        self.expect("}")
        return lambda call: first(call) if condition(call) != 0 else second(call)

    def slice(self):
        name = self.match(WORD, "an input")
        self.expect("[")
        begin = (lambda call: None) if self.text[self.at] == ":" else self.expr()
        self.expect(":")
        end = (lambda call: None) if self.text[self.at] == "]" else self.expr()
        self.expect("]")
        return lambda call: list(call.shapes[name][begin(call) : end(call)])

    # expressions

    def expr(self):
        return self.chain(self.term, {"+": operator.add, "-": operator.sub})

    def term(self):
        return self.chain(self.factor, {"*": operator.mul, "/": operator.floordiv})

    def chain(self, operand, operators):
        left = operand()
        while self.text[self.at : self.at + 1] in operators:
            apply = operators[self.text[self.at]]
            self.at += 1
            left = self.pair(apply, left, operand())
        return left

    @staticmethod
    def pair(apply, left, right):
        return lambda call: apply(left(call), right(call))

    def factor(self):
        if self.accept("("):
            inner = self.expr()
            self.expect(")")
            return inner
        if self.accept("$"):
            name = self.match(WORD, "an attribute")
            return lambda call: call.values[name]
        if NUMBER.match(self.text, self.at):
            number = int(self.match(NUMBER, "a number"))
            return lambda call: number
        name = self.match(WORD, "a number or a name")
        return self.indexed(name) if self.accept("[") else self.function(name)

    def indexed(self, name):
        index = self.expr()
        self.expect("]")
        return lambda call: call.shapes[name][index(call)]

    def function(self, name):
        self.expect("(")
        if name in ("N", "K"):
            weight = self.match(WORD, "a weight")
            self.expect(")")
            if name == "N":
                return lambda call: call.shapes[weight][0]
            return lambda call: call.shapes[weight][0 if weight in call.packed else 1]
        if name == "size":
            self.expect(")")
            return lambda call: call.size
        first = self.expr()
        self.expect(",")
        second = self.expr()
        self.expect(")")
        if name == "share":
            return lambda call: share(first(call), second(call), call.rank, call.size)
        if name == "pieces":
            return lambda call: -(-first(call) // second(call))
        raise self.wrong("N, K, size, share or pieces")
