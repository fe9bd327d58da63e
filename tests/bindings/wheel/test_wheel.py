"""What a wheel holds, and that it computes where Debian's oneDNN is not installed."""

import json
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from wheel_commands import ROOT, run

NATIVE = {"liblamella.so.0", "lamella_torch.so", "liblamella_xla.so", "libdnnl.so.2"}
HIDDEN = ["libdnnl.so.2", "libgomp.so.1", "libOpenCL.so.1"]

# In a mount namespace of its own, each file that it is given is an empty one; then the command.
HIDE = """
while [ "$1" != -- ]; do mount --bind /dev/null "$1" || exit 1; shift; done
shift
exec "$@"
"""
ALONE = ["unshare", "--map-root-user", "--mount", "sh", "-c", HIDE, "sh"]

HOSTS = """
import sys
import numpy, torch, jax
import lamella.torch, lamella.jax

seed = int(numpy.random.SeedSequence().entropy % 2**32)
print("seed", seed)
draw = numpy.random.default_rng(seed)
x, w = (draw.standard_normal(shape, numpy.float32) for shape in ((37, 129), (65, 129)))
y = torch.ops.lamella.linear(torch.from_numpy(x), torch.from_numpy(w))[0]
numpy.testing.assert_allclose(y.numpy(), x @ w.T, rtol=1e-4, atol=1e-4)
x, w = (draw.standard_normal(shape, numpy.float32) for shape in ((41, 131), (131, 67)))
y = jax.jit(lamella.jax.linear)(x, w)
numpy.testing.assert_allclose(y, x @ w, rtol=1e-4, atol=1e-4)
assert lamella.__file__.startswith(sys.prefix)
with open("/proc/self/maps") as maps:
    loaded = {line.split()[-1] for line in maps if "liblamella.so.0" in line}
print("library", *loaded)

from lamella import errors, library

lib = library.native()
lib.lam_status_name.restype = library.ctypes.c_char_p
for name, (number, kind) in errors.STATUSES.items():
    assert lib.lam_status_name(number).decode() == name
group = lamella.Group.create(lamella.Group.new_id(), 0, 1)
jitted = jax.jit(lambda x: lamella.jax.all_reduce(x, group=group))
y, tensor = jitted(x), torch.from_numpy(x).requires_grad_()
numpy.testing.assert_array_equal(y, x)  # of a group of one
y = torch.ops.lamella.all_reduce(tensor, group=group.handle)
numpy.testing.assert_array_equal(y.detach().numpy(), x)
group.close()
calls = {
    "torch": lambda: torch.ops.lamella.all_reduce(tensor, group=group.handle),
    "torch overload": lambda: torch.ops.lamella.all_reduce.default(tensor, group=group.handle),
    "torch shapes": lambda: torch.ops.lamella.linear(tensor, tensor[:, 1:]),
    "jax": lambda: jitted(x),
}
for name, call in calls.items():
    try:
        call()
    except RuntimeError as error:
        print("failed:", name, type(error).__name__, type(errors.of(error)).__name__)
print(errors.of(RuntimeError("torch's own")))
"""
FAILURES = """\
failed: torch NotFound NotFound
failed: torch overload NotFound NotFound
failed: torch shapes InvalidArgument InvalidArgument
failed: jax JaxRuntimeError NotFound
None
"""


def libraries():
    """Debian's own files behind the names that a wheel carries."""
    listed = run("/sbin/ldconfig", "-p")
    found = [re.search(r"%s \(libc6,x86-64\) => (.*)" % re.escape(n), listed) for n in HIDDEN]
    return [os.path.realpath(match[1]) for match in found if match]


def can_hide():
    if not shutil.which("unshare"):
        return False
    return subprocess.run([*ALONE, "/dev/null", "--", "true"], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def bare():
    """A command's prefix: what follows runs without Debian's oneDNN."""
    if not can_hide():
        pytest.skip("this user may not make a mount namespace (unshare), so nothing can be hidden")
    return [*ALONE, *libraries(), "--"]


def test_the_wheel_holds_the_native_files_and_what_they_need(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path)
    lib = tmp_path / "lamella/lib"
    assert NATIVE <= {path.name for path in lib.iterdir()}
    for path in lib.iterdir():
        dynamic = run("readelf", "-d", path)
        needed = re.findall(r"NEEDED\).*\[(.*)\]", dynamic)
        assert re.findall(r"SONAME\).*\[(.*)\]", dynamic) == [path.name]
        own = {n for n in needed if not re.match(r"ld-linux|lib(c|m|stdc\+\+|gcc_s)\.so", n)}
        assert all((lib / name).exists() for name in own), "%s needs %s" % (path.name, own)
    assert {"lamella/py.typed", "lamella/torch/modules.py", "lamella/jax/call.py"} <= names


def test_each_library_of_debian_comes_with_its_licence(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        carried = [n for n in names if n.startswith("lamella/lib/lib") and "lamella" not in n[12:]]
        texts = [archive.read(n).decode() for n in names if n.endswith("/copyright")]
        metadata = archive.read("lamella-%s.dist-info/METADATA" % wheel.name.split("-")[1]).decode()
    assert len(carried) == len(texts) >= 3
    for text in texts:
        for common in re.findall(r"/usr/share/common-licenses/([\w.-]*\w)", text):
            assert any(name.endswith("/common-licenses/" + common) for name in names)
    for needed in re.findall("Requires-Dist: (.*)", metadata):
        assert re.fullmatch(r'(torch|jax)>=[\d.]+; extra == "\1"', needed)
    assert set(re.findall("Provides-Extra: (.*)", metadata)) == {"torch", "jax"}


def test_two_builds_give_the_same_bytes(wheel, tmp_path):
    out = run(ROOT / "lamella", "wheel", "--out", tmp_path).strip()
    assert Path(out).name == wheel.name
    assert Path(out).read_bytes() == wheel.read_bytes()


def test_the_version_is_the_headers(wheel):
    header = (ROOT / "abi/lamella.h").read_text()
    parts = re.findall(r"LAM_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", header)
    assert wheel.name == "lamella-%s-py3-none-linux_x86_64.whl" % ".".join(parts)


@pytest.fixture(scope="module")
def said(bare, python, tmp_path_factory):
    """What both hosts did in a root without Debian's oneDNN."""
    env = dict(os.environ, DNNL_VERBOSE="1", JAX_PLATFORMS="cpu")
    return run(*bare, python, "-c", HOSTS, cwd=tmp_path_factory.mktemp("bare"), env=env)


def test_torch_and_jax_compute_with_the_wheels_own_onednn(said):
    products = re.findall(r"onednn_verbose,exec,cpu,matmul,.*,(\d+x\d+:\d+x\d+:\d+x\d+),", said)
    assert products == ["37x129:129x65:37x65", "41x131:131x67:41x67"], said


def test_torch_and_jax_share_one_library_and_its_groups(said, python):
    """Both have called the same group by then: `said` is there."""
    [line] = re.findall("^library (.*)$", said, re.M)
    [loaded] = line.split()
    assert Path(loaded).is_relative_to(python.parents[1] / "lib")


def test_failures_have_the_class_of_their_status(said):
    assert said.endswith(FAILURES)


def test_doctor_names_the_wheels_own_library_and_onednn(bare, python, tmp_path):
    env = dict(os.environ, LAMELLA_RANK="1", LAMELLA_SIZE="3")
    out = run(*bare, python, "-m", "lamella", "doctor", "--json", cwd=tmp_path, env=env)
    found = {row["name"]: row["found"] for row in json.loads(out)}
    lib = python.parents[1] / "lib"
    assert found["lamella"].startswith("0.1.0 (%s/" % lib)
    dnnl = r"2\.\d+\.\d+ \(%s/\S+/libdnnl\.so\.2\), instruction set " % lib
    assert re.match(dnnl, found["oneDNN"])
    assert found["torch"].startswith("2.13.0") and found["jax"] == "0.10.2"
    assert found["torch ops"].startswith(str(lib)) and found["jax ops"].startswith(str(lib))
    assert "./lamella run: rank 1 of 3" in found["launcher"]


def test_doctor_says_what_installs_a_host_that_is_missing(wheel, tmp_path):
    """With no packages but this one."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)}
    text = run("/usr/bin/python3", "-B", "-m", "lamella", "doctor", cwd=tmp_path, env=env)
    if "torch        not found" not in text:
        pytest.skip("/usr/bin/python3 has torch of its own")
    wanted = text.split("to install what is missing:")[1]
    assert "  torch        pip install 'torch>=2.10'" in wanted


def test_the_package_starts_ranks_itself(python, tmp_path):
    code = "import lamella; g = lamella.Group.from_env(); print(g.rank, 'of', g.size)"
    run_ranks = [python, "-m", "lamella", "run", "-n", "2", python, "-c", code]
    assert sorted(run(*run_ranks, cwd=tmp_path).splitlines()) == ["[0] 0 of 2", "[1] 1 of 2"]
    told = run(python, "-m", "lamella", "--help")
    assert told.startswith("usage: python -m lamella [-h] COMMAND")


def test_without_bazel_the_build_says_what_installs_it(tmp_path):
    for name in ("sh", "env", "readlink", "dirname", "gcc"):
        (tmp_path / name).symlink_to(shutil.which(name))
    code = "from bindings.wheel import backend; backend.build_wheel('.')"
    done = subprocess.run(
        ["/usr/bin/python3", "-B", "-c", code],
        env={"PATH": str(tmp_path), "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == "lamella: bazel is missing; run ./lamella setup\n"
