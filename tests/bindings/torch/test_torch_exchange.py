"""operators.run on anybody's tensors: torch's through its C exchange table, NumPy's and JAX's
through a capsule; none of them copied."""

import ctypes

import numpy
import pytest
import torch


from lamella import errors, exchange, operators

F32 = 2 | 32 << 8


def address(array):
    return array.__array_interface__["data"][0]


def described(borrowed):
    t = borrowed.tensor
    dims = t.shape[: t.ndim]
    return t.data + t.byte_offset, dims, t.strides[: t.ndim] if t.strides else None


STRIDED = {
    "rows": lambda: torch.randn(6, 9)[1:4, 2:7],
    "turned": lambda: torch.randn(5, 3).t(),
    "expanded": lambda: torch.randn(1, 4).expand(3, 4),
    "bf16": lambda: torch.randn(3, 4).bfloat16(),
    "scalar": lambda: torch.tensor(3.0),
}


@pytest.mark.parametrize("name", STRIDED)
def test_a_torch_tensor_is_described_where_it_lies(name):
    t = STRIDED[name]()
    data, dims, strides = described(exchange.Borrowed(t))
    assert (data, tuple(dims), tuple(strides or ())) == (t.data_ptr(), t.shape, t.stride())


def test_torchs_table_is_used_and_not_its_capsules(monkeypatch):
    assert exchange.functions_of(torch.Tensor) and exchange.functions_of(torch.nn.Parameter)
    monkeypatch.setattr(torch.Tensor, "__dlpack__", None)
    exchange.Borrowed(torch.zeros(2))
    assert exchange.functions_of(numpy.ndarray) is None


def with_table(*tables):
    """A type whose exchange table is the first of these, each pointing to the next."""
    for table, older in zip(tables, tables[1:]):
        table.previous = ctypes.pointer(older)
    kind = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    new = kind(("PyCapsule_New", ctypes.pythonapi))
    capsule = new(ctypes.addressof(tables[0]), b"dlpack_exchange_api", None)
    return type("Kind", (), dict(__dlpack_c_exchange_api__=capsule, keep=tables))


def test_an_older_table_is_found_behind_a_newer_one():
    one, two = exchange.Table(major=1), exchange.Table(major=2)
    one.tensor_from_object = ctypes.cast(exchange.FROM_OBJECT(lambda o, t: 0), ctypes.c_void_p)
    one.current_stream = ctypes.cast(exchange.STREAM(lambda d, i, s: 0), ctypes.c_void_p)
    assert exchange.functions_of(with_table(two, one))
    assert exchange.functions_of(with_table(exchange.Table(major=2))) is None
    assert exchange.functions_of(with_table(exchange.Table(major=1))) is None


@pytest.mark.parametrize("kind", ["torch", "numpy", "mixed"])
def test_an_operator_writes_in_place(kind):
    x, w = torch.randn(5, 7), torch.randn(3, 7)
    y, wanted = torch.full((6, 3), 9.0), torch.relu(x @ w.t())
    inputs = [x, w] if kind == "torch" else [x.numpy(), w.numpy()]
    operators.run("linear", inputs, [y[:5] if kind != "numpy" else y.numpy()[:5]], act="relu")
    torch.testing.assert_close(y[:5], wanted)
    assert (y[5] == 9).all()


def test_jaxs_arrays_are_read():
    jax = pytest.importorskip("jax", reason="jax is not installed: ./lamella setup")
    x, w = numpy.ones((2, 3), "f"), jax.numpy.full((4, 3), 2.0)
    y = numpy.empty((2, 4), "f")
    operators.run("linear", [x, w], [y])
    assert (y == 6).all()
    fixed = jax.numpy.zeros((2, 4))
    with pytest.raises(errors.InvalidArgument, match="nothing says that this .* may be written"):
        operators.run("linear", [x, w], [fixed])
    assert not fixed.any()


def test_pythons_own_functions_are_left_as_they_were():
    assert ctypes.pythonapi.PyCapsule_GetName.argtypes is None
    assert ctypes.pythonapi.PyCapsule_GetPointer.argtypes is None


def test_a_gradient_is_added_to_where_it_lies():
    dy, x = torch.randn(5, 3).bfloat16(), torch.randn(5, 7).bfloat16()
    dw, db = torch.ones(7, 3).t(), None
    operators.run("linear_wgrad", [dy, x], [dw, db], acc=1)
    wanted = 1 + dy.double().t() @ x.double()
    torch.testing.assert_close(dw.double(), wanted, rtol=1e-5, atol=1e-5)


def test_shapes_are_inferred_as_attributes_ask():
    x, w = torch.empty(2, 5, 7), torch.empty(3, 7)
    assert operators.infer("linear", [x, w]) == [((2, 5, 3), F32), None]
    assert operators.infer("linear", [x, w], save=1) == [((2, 5, 3), F32)] * 2
    coded = torch.zeros(4, 138, dtype=torch.uint8)
    found = operators.infer("codec_unpack", [coded], codec=2, cols=130)
    assert found[0][0] == (4, 130)


X, W = numpy.ones((2, 3), "f"), numpy.ones((4, 3), "f")


def read_only():
    y = numpy.empty((2, 4), "f")
    y.flags.writeable = False
    return y


@pytest.mark.parametrize(
    "name, inputs, outputs, attributes, message",
    [
        ("linear", [X, W], [read_only()], {}, "read-only"),
        ("linear", [X, 3], [], {}, "found int, expected a tensor"),
        ("line", [], [], {}, "no operator is called 'line'"),
        ("linear", [X, W], [], dict(acc=1), "no attribute 'acc'; it has act, save, dtype"),
        ("linear", [X, W], [numpy.empty((2, 5), "f")], {}, r"y: found \[2, 5\]"),
    ],
)
def test_what_cannot_be_is_refused(name, inputs, outputs, attributes, message):
    with pytest.raises(errors.Error, match=message):
        operators.run(name, inputs, outputs, **attributes)
