"""Which heads of attention each rank holds.

Up to as many ranks as there are key heads, whole key heads are shared out, each with the query
heads that use it. Over more ranks every one holds one key head, as neighbours do, and some of that
head's query heads.
Invariant: a rank's query heads are consecutive, use the key heads that it holds, and each of those
as often.
Leaves the modules to splitting.py, what ranks share to modules.py.
"""

from dataclasses import dataclass

from lamella import library
from lamella.torch.modules import Ranges


@dataclass(frozen=True)
class Heads:
    """`q` query heads on `kv` key heads, a divisor, over `size` ranks."""

    q: int
    kv: int
    size: int

    @property
    def are_shared(self):
        return self.size > self.kv

    @property
    def most(self):
        """The largest number of ranks with a query head for each."""
        return self.kv * (self.q // self.kv)

    def key_of(self, rank):
        """The key head of a rank that has one, and (place, count) among the ranks that share it."""
        for head in range(self.kv):
            [(begin, end)] = library.shard(self.size, head, self.kv)
            if rank < end:
                return head, (rank - begin, end - begin)

    def of(self, word, rank):
        """(begin, end) of a rank's query heads, "q", or key heads, "kv"."""
        each = self.q // self.kv if word == "q" else 1
        if not self.are_shared:
            [(begin, end)] = library.shard(self.kv, rank, self.size)
            return begin * each, end * each
        head, place = self.key_of(rank)
        [(begin, end)] = library.shard(each, *place) if word == "q" else [(0, 1)]
        return head * each + begin, head * each + end

    def ranges(self, word, features):
        """(begin, end) of every rank, in features of a head."""
        return Ranges(
            tuple(features * at for at in self.of(word, rank)) for rank in range(self.size)
        )

    def share(self, word, value, rank):
        """A rank's share of what is proportional to "q" or "kv" heads; "group": its query heads on
        each of its key heads."""
        (q_begin, q_end), (begin, end) = self.of("q", rank), self.of("kv", rank)
        if word == "group":
            return (q_end - q_begin) // (end - begin)
        if word == "q":
            return value // self.q * (q_end - q_begin)
        return value // self.kv * (end - begin)
