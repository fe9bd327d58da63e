"""As much of JAX as the package's public names show."""

from typing import TypeVar

class Array:
    def __add__(self, other: Array) -> Array: ...

T = TypeVar("T")

def custom_vjp(fun: T) -> T: ...
