from typing import Any

class Module:
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

class Linear(Module):
    def __init__(self, in_features: int, out_features: int) -> None: ...
