"""The programs that the README shows, for the tests that run them: on the tree and with the wheel."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# a phrase of each Python program -> what it imports, on how many ranks it runs, what each rank prints
PYTHON = {
    "ParallelFFN(16": (["torch"], [1, 2], "True"),
    "split.generate(": (["torch", "transformers"], [4], r"True \(4, 12\)"),
    "torch.load(model": (["torch", "transformers"], [4], r"unknown \[\] files 2"),
    "torch.Family(": (["torch"], [3], "True"),
    "lamella.torch.Pipeline(": (["torch"], [1, 2], r"loss 1\.1334"),
    "ffn.pack()": (["torch"], [1], r"torch.float32 None \['w1', 'w2'\]"),
    "operators.run": (["numpy"], [1], r"\[3. 3. 3. 3.\] \(2, 4\)"),
    "linear_col(x, up": (["jax"], [1, 2], "True"),
    "lj.PipelineStage": (["jax"], [1, 2], "True"),
}


def programs(language="c"):
    """The README's blocks in a language, in order."""
    return re.findall(r"^```%s\n(.*?)^```$" % language, (ROOT / "README.md").read_text(), re.M | re.S)
