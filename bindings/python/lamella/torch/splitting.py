"""Replaces the modules that a family's row names by split ones.

First all new modules are made without data, so that everything that cannot be split is known, and
named in one error, before anything is changed; then each takes its part of the old one's weights.
Invariant: the model computes what it computed before; a shared weight stays shared.
Leaves the rows to families.py, stages to cutting.py, the split modules to modules.py.
"""

import zlib

import torch

from lamella import errors
from lamella.torch import families, modules
from lamella.torch.attention import ParallelAttention
from lamella.torch.heads import Heads
from lamella.torch.modules import ColumnParallelLinear, RowParallelLinear

# Activation modules by the name of their class -> what the ffn operator calls them
ACTIVATIONS = {
    "SiLU": "silu",
    "SiLUActivation": "silu",
    "GELUActivation": "gelu",
    "NewGELUActivation": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh",
    "GELUTanh": "gelu_tanh",
    "ReLU": "relu",
}
DTYPES = torch.float32, torch.bfloat16, torch.float16


class Refused(Exception):
    """Why a module cannot be split."""


def resolve(root, path):
    """The object at a dotted path; AttributeError where there is none."""
    for name in path.split(".") if path else ():
        root = getattr(root, name)
    return root


def replace(root, path, module):
    """Puts a module at a path."""
    parent, _, name = path.rpartition(".")
    setattr(resolve(root, parent), name, module)


def embedding_of(model, family):
    try:
        return resolve(model, family.embedding)
    except AttributeError:
        raise errors.InvalidArgument(
            "parallelize: the family's row looks for an embedding at %s: %s has none"
            % (family.embedding, type(model).__name__)
        ) from None


def shared_names(model):
    """name -> all names of the same parameter, for those that have several."""
    names = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: several for several in names.values() if len(several) > 1 for name in several}


# Inside of a backward, forwards are those that a checkpoint runs again. Private, so not certain.
backward_at_hand = getattr(torch._C, "_current_graph_task_id", lambda: -1)


class SharedDropout(torch.nn.Dropout):
    """Dropout of what every rank holds whole: the n-th forward's mask is made of `seed` and n, so
    all ranks draw the same one.

    torch.utils.checkpoint runs a forward again, with torch's random numbers set back: a number
    drawn from those at each forward is the ticket by which its n is found again.
    """

    REMEMBERED = 4096  # forwards whose backward may still be to come

    def __init__(self, p, seed):
        super().__init__(p)
        self.seed, self.count, self.tickets = seed, 0, {}

    def forward(self, x):
        if not self.training or self.p == 0:
            return x
        seed = zlib.crc32(b"%d %d" % (self.seed, self.number()))  # torch looks at 32 bits
        generator = torch.Generator(x.device).manual_seed(seed)
        keep = torch.empty_like(x, requires_grad=False)
        keep.bernoulli_(1 - self.p, generator=generator)
        return x * keep / (1 - self.p) if self.p < 1 else x * 0

    def number(self):
        """How many forwards there were before this one, or before it ran for the first time."""
        ticket = int(torch.randint(2**62, ()))
        if backward_at_hand() != -1:
            try:
                return self.tickets[ticket]
            except KeyError:
                raise errors.FailedPrecondition(
                    "dropout: a forward inside of a backward, which no forward before it began "
                    "like: torch.utils.checkpoint needs preserve_rng_state=True"
                ) from None
        self.tickets[ticket], self.count = self.count, self.count + 1
        if len(self.tickets) > self.REMEMBERED:
            del self.tickets[next(iter(self.tickets))]
        return self.count - 1


class Splitter:
    """The changes that make a model's modules this rank's part of them. Making one is collective.

    `new`: path -> split module, without data until `apply`; `problems`: (path, type, reason).
    """

    def __init__(self, model, family, group, gather_logits=True):
        self.model, self.family, self.group = model, family, group
        self.gather_logits = gather_logits
        self.new, self.problems, self.known, self.attributes = {}, [], set(), {}
        self.heads = self.counts()
        self.survey()
        self.check_sharing()
        self.refuse()
        self.sharing = self.share_heads()

    # what there is

    def counts(self):
        q = self.count(self.family.heads)
        return q and Heads(q, self.count(self.family.kv_heads) or q, self.group.size)

    def count(self, where):
        """A count of heads, which stands in the model at a path, or is one already."""
        try:
            return resolve(self.model, where) if isinstance(where, str) else where
        except AttributeError:
            raise errors.InvalidArgument(
                "parallelize: the family's row looks for a count of heads at %s: there is none"
                % where
            ) from None

    def survey(self):
        row = self.family
        self.build(row.embedding, self.embedding)
        if row.head:
            self.build(row.head, self.head)
        self.known.update([*row.first, *row.last, *row.whole])
        try:
            layers = resolve(self.model, row.layers)
        except AttributeError:
            raise errors.InvalidArgument(
                "parallelize: the family's row looks for layers at %s: %s has none"
                % (row.layers, type(self.model).__name__)
            ) from None
        for i, layer in enumerate(layers):
            self.survey_layer("%s.%d." % (row.layers, i), layer)
        for path, module in self.model.named_modules():
            own = any(p is not None for p in module._parameters.values())
            if own and not self.is_known(path):
                self.problem(path, module, "the family's row does not name it")

    def survey_layer(self, prefix, layer):
        block = self.family.block or families.block_of(layer)
        if block is None:
            self.problem(prefix[:-1], layer, "no row says how such a layer is split")
            self.known.add(prefix[:-1])
            return
        for path, words in block.column.items():
            self.build(prefix + path, self.column, words)
        for path, word in block.row.items():
            self.build(prefix + path, self.row, word)
        for path, ffn in block.ffn.items():
            self.build_ffn(prefix + path, ffn)
        for path in block.heads:
            self.build(prefix + path, self.attention)
        scaled = block.scaled if isinstance(block.scaled, dict) else dict.fromkeys(block.scaled)
        for path, word in scaled.items():
            self.scale(prefix + path, word)
        self.known.update(prefix + path for path in block.whole)
        inside = {prefix + path for path in block.inside}
        for path, module in layer.named_modules(prefix=prefix[:-1]):
            if isinstance(module, torch.nn.Dropout) and path in inside:
                self.known.add(path)

    def is_known(self, path):
        parts = path.split(".")
        return any(".".join(parts[:n]) in self.known for n in range(1, len(parts) + 1))

    # one new module each

    def build(self, path, make, *spec):
        self.known.add(path)
        try:
            old = resolve(self.model, path)
        except AttributeError:
            self.problems.append((path, "none", "there is no such module"))
            return
        try:
            if old._forward_hooks or old._forward_pre_hooks:
                raise Refused("it has forward hooks, which would be lost")
            self.new[path] = make(old, *spec)
        except Refused as reason:
            self.problem(path, old, reason)

    def problem(self, path, module, reason):
        self.problems.append((path, type(module).__name__, str(reason)))

    def common(self, parameter, bias=None):
        if parameter.dtype not in DTYPES:
            raise Refused("the operators do not take %s" % parameter.dtype)
        more = {} if bias is None else dict(bias=bias)
        return dict(group=self.group, device="meta", dtype=parameter.dtype, **more)

    def features(self, old):
        """(in, out, transposed) of a linear layer."""
        kind = type(old)
        if kind is torch.nn.Linear:
            return old.in_features, old.out_features, False
        if kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils":
            return (*old.weight.shape, True)
        raise Refused("only torch.nn.Linear and transformers' Conv1D can be split")

    def blocks(self, words, features):
        """(features, unit) of each part of a fused layer's features. Key and value heads stay
        together with the query heads that use them: as many units as there are key heads."""
        words, heads = words.split(), self.heads
        if "width" not in words and not (heads and heads.q % heads.kv == 0):
            raise Refused("%s heads over %s key heads" % (heads and heads.q, heads and heads.kv))
        counts = {"width": 1, **(dict(q=heads.q, kv=heads.kv) if heads else {})}
        each, rest = divmod(features, sum(counts[word] for word in words))
        if rest:
            raise Refused("%d features are not %s of equal size" % (features, " + ".join(words)))
        return [self.block(word, each * counts[word], each) for word in words]

    def block(self, word, total, each):
        """(total, unit) of one word's features, `each` of them for a head."""
        if word == "width":
            self.enough(total, "features")
            return total, 1
        if not self.heads.are_shared:
            return total, total // self.heads.kv
        if self.group.size > self.heads.most:
            raise Refused(
                "%d query heads on %d key heads for %d ranks: each needs at least one"
                % (self.heads.q, self.heads.kv, self.group.size)
            )
        return total, self.heads.ranges(word, each)

    def enough(self, units, what):
        if units < self.group.size:
            raise Refused(
                "%d %s for %d ranks: each needs at least one" % (units, what, self.group.size)
            )

    def column(self, old, words):
        n_in, n_out, transposed = self.features(old)
        more = dict(blocks=self.blocks(words, n_out), transposed=transposed)
        common = self.common(old.weight, old.bias is not None)
        return ColumnParallelLinear(n_in, n_out, **more, **common)

    def row(self, old, word):
        n_in, n_out, transposed = self.features(old)
        [(_, unit)] = self.blocks(word, n_in)
        common = self.common(old.weight, old.bias is not None)
        return RowParallelLinear(n_in, n_out, unit=unit, transposed=transposed, **common)

    def embedding(self, old):
        if type(old) is not torch.nn.Embedding:
            raise Refused("only torch.nn.Embedding can be split")
        for option in ("max_norm", "scale_grad_by_freq", "sparse"):
            if getattr(old, option):
                raise Refused("%s=%s is not kept" % (option, getattr(old, option)))
        self.enough(old.num_embeddings, "words")
        more = dict(padding_idx=old.padding_idx, **self.common(old.weight))
        return modules.VocabParallelEmbedding(old.num_embeddings, old.embedding_dim, **more)

    def head(self, old):
        n_in, n_out, transposed = self.features(old)
        self.enough(n_out, "words")
        more = dict(gather_output=self.gather_logits, transposed=transposed)
        common = self.common(old.weight, old.bias is not None)
        return ColumnParallelLinear(n_in, n_out, **more, **common)

    def build_ffn(self, path, ffn):
        """One operator; for an activation that it lacks, split layers around the model's own."""
        *into, out = ffn.names
        try:
            old = resolve(self.model, path)
            act = activation(resolve(old, ffn.act))
            layers = [resolve(old, name) for name in ffn.names]
        except AttributeError:
            act, layers = None, []
        if act is None or not self.alike(layers):
            for name in into:
                self.build("%s.%s" % (path, name), self.column, "width")
            self.build("%s.%s" % (path, out), self.row, "width")
        else:
            self.build(path, self.ffn, ffn.names, act)

    def alike(self, layers):
        """Linear layers as the operator wants them: all with a bias, or none."""
        plain = all(type(layer) is torch.nn.Linear for layer in layers)
        return plain and len({layer.bias is None for layer in layers}) == 1

    def ffn(self, old, names, act):
        first = resolve(old, names[0])
        self.enough(first.out_features, "features")
        more = dict(names=names, gated=len(names) == 3)
        common = self.common(first.weight, first.bias is not None)
        return modules.ParallelFFN(first.in_features, first.out_features, act, **more, **common)

    def attention(self, old):
        if type(old) is not torch.nn.MultiheadAttention:
            raise Refused("only torch.nn.MultiheadAttention can be split")
        if old.in_proj_weight is None or old.bias_k is not None or old.add_zero_attn:
            raise Refused("kdim, vdim, add_bias_kv and add_zero_attn are not kept")
        self.enough(old.num_heads, "heads")
        more = dict(dropout=old.dropout, batch_first=old.batch_first)
        common = self.common(old.in_proj_weight, old.in_proj_bias is not None)
        return ParallelAttention(old.embed_dim, old.num_heads, **more, **common)

    def scale(self, path, word):
        if word == "group" and not self.heads.are_shared:
            return  # as it is
        try:
            value = resolve(self.model, path)
        except AttributeError:
            self.problems.append((path, "none", "there is no such attribute"))
            return
        if word is None and self.heads.are_shared:
            reason = "%d ranks for %d key heads: the row's `scaled` must say of which heads it is"
            reason = Refused(reason % (self.group.size, self.heads.kv))
            self.problems.append((path, type(value).__name__, str(reason)))
            return
        self.attributes[path] = self.heads.share(word or "kv", value, self.group.rank)

    def share_heads(self):
        """The group of the ranks that hold this one's key head, told to the modules; None where
        each rank has its own. Collective."""
        if not (self.heads and self.heads.are_shared):
            return None
        group, rank = self.group, self.group.rank
        sharing = group.split(self.heads.key_of(rank)[0], rank)
        for module in self.new.values():
            module.share(sharing.handle)
        return sharing

    # what was found

    def check_sharing(self):
        """Modules that share a weight must be split alike."""
        for name, names in shared_names(self.model).items():
            if name == names[-1] and len({self.cut_of(other) for other in names}) > 1:
                path = name.rpartition(".")[0]
                reason = "its weight is also %s, which is split in another way" % names[0]
                self.problem(path, resolve(self.model, path), reason)

    def cut_of(self, name):
        path, _, own = name.rpartition(".")
        for prefix in (path, path.rpartition(".")[0]):
            if prefix in self.new:
                return self.new[prefix].splits.get(own, name if prefix != path else None)
        return None

    def refuse(self):
        """One error that names all that cannot be split; a layer's trouble is told once."""
        if not self.problems:
            return
        told = {}
        for path, kind, reason in self.problems:
            layers = self.family.layers + "."
            if path.startswith(layers):
                path = layers + "*." + path[len(layers) :].partition(".")[2]
            told[path.rstrip("."), kind, reason] = told.get((path.rstrip("."), kind, reason), 0) + 1
        lines = [
            "  %s (%s%s): %s" % (path, kind, ", %d layers" % n if n > 1 else "", reason)
            for (path, kind, reason), n in told.items()
        ]
        head = "parallelize: %s cannot be split over %d ranks:" % (
            type(self.model).__name__,
            self.group.size,
        )
        raise errors.Unimplemented("\n".join([head, *lines]))

    # changing the model

    def apply(self, root, seed=0, taken=None):
        """Puts the new modules into `root`, which has all of the model's modules, or a stage's.
        `taken`: id of an unsplit parameter -> (itself, this rank's part of it)."""
        taken = {} if taken is None else taken
        for path, new in self.new.items():
            old = resolve(self.model, path)
            if not same(root, path, old):
                continue  # another stage's
            fill(new, old, taken)
            new.train(old.training)
            replace(root, path, new)
        for path, value in self.attributes.items():
            parent, _, name = path.rpartition(".")
            try:
                setattr(resolve(root, parent), name, value)
            except AttributeError:
                continue
        self.share_dropouts(root, seed)

    def share_dropouts(self, root, seed):
        for path, module in list(root.named_modules()):
            if type(module) is torch.nn.Dropout and not self.is_known(path):
                shared = SharedDropout(module.p, seed ^ zlib.crc32(path.encode()))
                replace(root, path, shared.train(module.training))


def same(root, path, module):
    try:
        return resolve(root, path) is module
    except AttributeError:
        return False


def activation(module):
    if isinstance(module, torch.nn.GELU):
        return "gelu_tanh" if module.approximate == "tanh" else "gelu"
    return ACTIVATIONS.get(type(module).__name__)


def assemble(split, name, read, like):
    """This rank's part of a parameter, read piece by piece: read(name there, dim, begin, end)."""
    pieces = split.sources(name)
    if len(pieces) == 1:
        return read(*pieces[0])
    dim, at = pieces[0][1], 0
    part = torch.empty(getattr(split, name).shape, dtype=like.dtype, device=like.device)
    for key, dim, begin, end in pieces:
        part.narrow(dim, at, end - begin).copy_(read(key, dim, begin, end))
        at += end - begin
    return part


def fill(new, old, taken):
    """Gives a split module its part of an unsplit one's weights."""

    def read(key, dim, begin, end):
        part = old.get_parameter(key).detach().narrow(dim, begin, end - begin)
        return part.clone(memory_format=torch.contiguous_format)

    for name, parameter in new._parameters.items():
        if parameter is None:
            continue
        whole = old.get_parameter(new.origin(name)[0])
        if id(whole) not in taken:
            part = assemble(new, name, read, whole)
            taken[id(whole)] = whole, torch.nn.Parameter(part, whole.requires_grad)
        setattr(new, name, taken[id(whole)][1])
