from typing import Union

from jax import Array

ArrayLike = Union[Array, float]
DTypeLike = Union[str, type]
