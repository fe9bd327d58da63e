"""Lamella in PyTorch: every operator as torch.ops.lamella.<name>, and modules made of them.

Importing this registers schemas and kernels (native, over torch's stable ABI), fakes and autograd
for every row of the operator table; `torch.compile(fullgraph=True)` works, and operators that
communicate keep their order in it, backward included. An optional input that is None, or of size
0, is absent; an absent output is a tensor of size 0.

    import torch, lamella.torch
    group = lamella.torch.group()             # of torchrun, or an initialised torch.distributed
    y, _ = torch.ops.lamella.linear_col(x, w, b, group=group.handle)
    ffn = lamella.torch.ParallelFFN(576, 1536, "silu", gated=True, bias=False, group=group)
    ffn.load_state_dict(unsplit)              # each rank keeps its part
    lamella.torch.whole_state_dict(ffn)       # and back, on every rank
    model = lamella.torch.parallelize(model, lamella.torch.Plan(tp=2))  # a whole decoder
    pipeline = lamella.torch.Pipeline(stages, "1f1b", micro_batches=8, group=group, loss_fn=f)
    loss = pipeline.step(inputs, targets)     # stages: this rank's modules
"""

from lamella.torch.register import ops
from lamella.torch.accumulate import accumulate_grads
from lamella.torch.checkpoint import load, save
from lamella.torch.distributed import group
from lamella.torch.families import FFN, Block, Family, register_family
from lamella.torch.loss import next_token_loss
from lamella.torch.modules import (
    ColumnParallelLinear,
    ParallelFFN,
    RowParallelLinear,
    VocabParallelEmbedding,
    pack,
    vocab_parallel_cross_entropy,
    whole_state_dict,
)
from lamella.torch.packing import pack_weight
from lamella.torch.pipeline import Pipeline, PipelineStage
from lamella.torch.pipelined import Pipelined
from lamella.torch.plan import Plan, parallelize
from lamella.torch.stage import from_view

__all__ = [
    "Block",
    "ColumnParallelLinear",
    "FFN",
    "Family",
    "ParallelFFN",
    "Pipeline",
    "PipelineStage",
    "Pipelined",
    "Plan",
    "RowParallelLinear",
    "VocabParallelEmbedding",
    "accumulate_grads",
    "from_view",
    "group",
    "load",
    "next_token_loss",
    "ops",
    "pack",
    "pack_weight",
    "parallelize",
    "register_family",
    "save",
    "vocab_parallel_cross_entropy",
    "whole_state_dict",
]
