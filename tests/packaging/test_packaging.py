# SPDX-License-Identifier: BSD-3-Clause
"""What the build promises: libraries that load anywhere, instruction sets kept apart, clean wheels."""

import os
import re
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from building import BUILD_FILES, ISA_OBJECTS, ROOT, build, compiled, copy_of_project, run
from rotation import ISA_NAMES
from tiers import tiered

import fused_subpixel
from fused_subpixel import __main__, verification
from fused_subpixel.dispatch import backends
from fused_subpixel.ops import library

LIBRARIES = sorted(Path(fused_subpixel.__file__).parent.glob("*.so"))


def needs(*tools: str):
    missing = [tool for tool in tools if shutil.which(tool) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed here: {', '.join(missing)}")


# ---- the libraries ----


def dynamic_symbols(library: Path, *options: str) -> list[str]:
    return [line.split()[-1] for line in run("nm", "-D", *options, library).stdout.splitlines()]


@needs("nm", "readelf")
@pytest.mark.skipif(not LIBRARIES, reason="no compiled library beside the package")
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
class TestLibrary:
    def test_holds_nothing_of_python(self, library):
        symbols = dynamic_symbols(library)
        assert symbols, "nm read nothing"
        assert [s for s in symbols if re.match(r"_?Py[A-Z_]", s)] == []

    def test_takes_only_the_stable_abi_from_torch(self, library):
        undefined = dynamic_symbols(library, "--undefined-only")
        assert any(s.startswith(("aoti_torch_", "torch_")) for s in undefined), "the ops must be registered"
        assert [s for s in undefined if re.match(r"_ZNK?(2at|3c10|5torch|5caffe)", s)] == []

    def test_asks_the_loader_for_torch_and_the_c_runtime_only(self, library):
        needed = set(re.findall(r"NEEDED.*\[(.*)\]", run("readelf", "-d", library).stdout))
        assert {"libtorch.so", "libtorch_cpu.so"} <= needed
        runtime = r"(libc|libm|libdl|librt|libpthread|libgcc_s|libstdc\+\+|ld-linux[-\w]*)\.so\.\d+"
        assert [n for n in needed - {"libtorch.so", "libtorch_cpu.so"} if not re.fullmatch(runtime, n)] == []

    def test_runs_with_the_c_libraries_of_manylinux_2_28(self, library):
        """glibc 2.28 and the libstdc++ of GCC 8; built with newer ones, it asks for none of their symbols."""
        latest = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 25), "CXXABI": (1, 3, 11)}
        asked = [s.rpartition("@")[2].partition("_") for s in dynamic_symbols(library, "--undefined-only")]
        versions = {(name, tuple(map(int, v.split(".")))) for name, _, v in asked if name in latest}
        assert {name for name, _ in versions} >= {"GLIBC", "GLIBCXX"}
        assert [(name, version) for name, version in versions if version > latest[name]] == []

    def test_defines_nothing_that_another_library_could_take(self, library):
        assert dynamic_symbols(library, "--defined-only") == []


def strays(isa_object: Path, isa: str) -> list[str]:
    """Functions that an object for one instruction set defines outside its own namespace.

    The linker keeps one of several equal weak functions (std:: templates, inline functions). Were it the one
    for AVX-512, the portable path would run it, and die on an older processor.
    """
    own = re.compile(rf"_Z(GV|T[A-Z]|Z)*N[KVrRO]*14fused_subpixel3cpu{len(isa)}{isa}")
    symbols = [line.split() for line in run("nm", "--defined-only", isa_object).stdout.splitlines()]
    return [s[-1] for s in symbols if s[-2] in "TWi" and not own.match(s[-1])]


@needs("nm")
@pytest.mark.skipif(not ISA_OBJECTS, reason="no objects in build/ninja: `make build` leaves them there")
@pytest.mark.parametrize("path", ISA_OBJECTS, ids=lambda path: path.name)
def test_instruction_sets_are_kept_apart(path):
    assert strays(path, isa=path.name.split(".")[2]) == []


# ---- finding the libraries ----


INFO_AND_VERIFY = """
import sys
from fused_subpixel import __main__, verification
verification.CASES = verification.CASES[:1]
__main__.main(["info"])
sys.exit(__main__.main(["verify"]))
"""


@pytest.fixture(scope="module")
def clone_and_site(tmp_path_factory):
    """What ``pip install .`` leaves: a clone without libraries, and the package built and installed."""
    if not LIBRARIES:
        pytest.skip("no compiled library beside the package")
    clone, site = (tmp_path_factory.mktemp(name) for name in ("clone", "site"))
    package = Path(fused_subpixel.__file__).parent
    for folder, but in ((clone, ("*.so",)), (site, ())):
        ignored = shutil.ignore_patterns("__pycache__", *but)
        shutil.copytree(package, folder / "fused_subpixel", ignore=ignored)
    (clone / "setup.py").touch()
    (clone / "csrc").mkdir()
    return clone, site


@pytest.mark.full
def test_a_clone_that_hides_the_installed_package_says_so(clone_and_site):
    clone, site = clone_and_site
    done = run(sys.executable, "-c", INFO_AND_VERIFY, cwd=clone, PYTHONPATH=str(site))
    assert f"source folder {clone}" in done.stdout, done.stderr
    assert f"hides the built package, which is installed in {site}/fused_subpixel" in done.stdout
    assert "To use that one, start Python in another folder" in done.stdout
    assert re.search(r"^cpu +FAILED: .*hides the built package", done.stdout, re.M)
    assert re.search(r"^32 of 32 checks passed; not checked: cpu, cuda$", done.stdout, re.M)
    assert done.returncode == 1


@pytest.mark.full
def test_in_another_folder_the_installed_package_runs(clone_and_site, tmp_path):
    site = clone_and_site[1]
    done = run(sys.executable, "-c", INFO_AND_VERIFY, cwd=tmp_path, PYTHONPATH=str(site))
    assert f"installed in {site}" in done.stdout, done.stderr
    kernels = r"^cpu library .*loaded\n +kernels for \S+ \(.*L2 cache \d+ KiB; tf32 not allowed$"
    assert re.search(kernels, done.stdout, re.M)
    assert re.search(r"^(\d+) of \1 checks passed", done.stdout, re.M)
    assert done.returncode == 0


def problem_of(monkeypatch, folder: Path, stem: str = "fused_subpixel_cpu") -> library.LoadedLibrary:
    """What becomes of a library of the package in ``folder``."""
    monkeypatch.setattr(library, "FOLDER", folder / "fused_subpixel")
    monkeypatch.setattr(sys, "path", [str(folder)])
    return library._load(stem)


@pytest.mark.skipif(sys.platform != "linux", reason="libraries are built on Linux only")
def test_a_missing_library_is_expected_where_the_package_is_installed(monkeypatch, tmp_path):
    found = problem_of(monkeypatch, tmp_path)
    assert found.expected and "the package was installed without it" in str(found.problem)
    assert "--force-reinstall" in found.remedy
    found = problem_of(monkeypatch, tmp_path, "fused_subpixel_cuda")
    assert not found.expected and "where a CUDA toolkit is found" in found.remedy
    (tmp_path / "setup.py").touch()
    (tmp_path / "csrc").mkdir()
    found = problem_of(monkeypatch, tmp_path)
    assert not found.expected and str(found.problem).endswith("_cpu.so does not exist: not built")
    assert found.remedy == f"Build it with 'pip install --no-build-isolation -e .' in {tmp_path}"
    (tmp_path / "fused_subpixel").mkdir()
    (tmp_path / "fused_subpixel/fused_subpixel_cpu.so").write_bytes(b"not a library")
    found = problem_of(monkeypatch, tmp_path)
    assert found.expected and "does not load" in str(found.problem)


@pytest.mark.parametrize("expected", [False, True])
def test_verify_names_what_it_did_not_check(monkeypatch, capsys, expected):
    missing = library.LoadedLibrary(problem="it is gone", remedy="Build it", expected=expected)
    monkeypatch.setitem(library.libraries, "cpu", missing)
    monkeypatch.setattr(verification, "CASES", verification.CASES[:1])
    assert __main__.main(["verify"]) == int(expected)
    *_, last = output = capsys.readouterr().out.splitlines()
    assert f"cpu        {'FAILED' if expected else 'not checked'}: it is gone. Build it" in output
    assert re.fullmatch(r"(\d+) of \1 checks passed; not checked: cpu(, cuda)?", last)


def test_verify_fails_where_a_gpu_refuses_the_library(monkeypatch):
    monkeypatch.setitem(library.libraries, "cuda", library.LoadedLibrary())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [u for u in verification.unchecked() if u.backend == "cuda"] == [
        ("cuda", "torch finds no CUDA GPU", "", False)
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    refusal = "the driver is for CUDA 12.4, the library was built with 13.0"
    monkeypatch.setattr(backends, "refusal", lambda name, *_: refusal if name == "cuda" else None)
    assert [u for u in verification.unchecked() if u.backend == "cuda"] == [("cuda", refusal, "", True)]


def test_info_is_fit_for_a_bug_report(monkeypatch, capsys):
    monkeypatch.setenv("FUSED_SUBPIXEL_BACKEND", "auto")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert __main__.main(["info"]) == 0
    rows = {line[:14].rstrip(): line[15:] for line in capsys.readouterr().out.splitlines()}
    first = next(iter(rows))
    assert first == "fused_subpixel" and str(Path(fused_subpixel.__file__).parent) in rows[first]
    assert torch.__version__ in rows["torch"] and "numpy" in rows["torch"]
    assert "FUSED_SUBPIXEL_BACKEND=auto" in rows["environment"]
    assert "OMP_NUM_THREADS=3" in rows["environment"]
    assert f"{torch.get_num_threads()} threads on" in rows["cpu"]
    assert {"python", "cpu library", "cuda library", "  cpu", "  cuda", "  reference"} <= rows.keys()


# ---- instruction sets ----

CAPABILITY = "import torch, fused_subpixel; print(torch.ops.fused_subpixel._cpu_capability()[:2])"


@pytest.mark.skipif(not library.libraries["cpu"].loaded, reason="no CPU library")
@tiered(("newest", "isa"), [("avx2", 1), ("portable", 0)], fast=[("avx2", 1)])
def test_newer_instruction_sets_can_be_forbidden(newest, isa):
    usable = torch.ops.fused_subpixel._cpu_capability()[1]
    if not usable >> isa & 1:
        pytest.skip(f"no {newest} here")
    done = run(sys.executable, "-c", CAPABILITY, FUSED_SUBPIXEL_MAX_CPU_ISA=newest)
    assert done.returncode == 0, done.stderr
    stand_ins = sum(usable & 1 << bit for bit, name in enumerate(ISA_NAMES) if name.endswith("stand_in"))
    assert done.stdout == f"[{isa}, {stand_ins | usable & (2 << isa) - 1}]\n"


def test_an_unknown_instruction_set_is_refused():
    done = run(sys.executable, "-c", CAPABILITY, FUSED_SUBPIXEL_MAX_CPU_ISA="avx-2")
    assert done.returncode == 1
    assert "FUSED_SUBPIXEL_MAX_CPU_ISA: expected one of 'portable', 'avx2', 'avx512'" in done.stderr


# ---- importing ----


WITHOUT_NUMPY = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "numpy":
            raise ModuleNotFoundError("No module named 'numpy'", name="numpy")
sys.meta_path.insert(0, Hidden())
import torch
print("torch is there", file=sys.stderr, flush=True)  # what torch says about NumPy comes before
import fused_subpixel as fs
fs.subpixel_conv2d(torch.zeros(1, 3, 4, 4), torch.zeros(8, 3, 1, 1), activation="relu")
from fused_subpixel import __main__
sys.exit(__main__.main(["info"]))
"""


@pytest.mark.full
def test_numpy_is_not_needed():
    done = run(sys.executable, "-W", "ignore::RuntimeWarning", "-c", WITHOUT_NUMPY)
    assert done.returncode == 0, done.stderr
    assert done.stderr.partition("torch is there\n")[2] == ""


AGAIN = """
import gc, importlib, sys
import torch
import fused_subpixel as fs

def check(function):
    x, w = torch.randn(1, 3, 5, 6, requires_grad=True), torch.randn(8, 3, 3, 3, requires_grad=True)
    expected = torch.pixel_shuffle(torch.nn.functional.conv2d(x, w), 2).relu()
    gradients = torch.autograd.grad(expected.sum(), (x, w))
    operator = torch.ops.fused_subpixel.subpixel_conv2d
    geometry = list(fs.ops.geometry.Geometry(2, 2, 1, 1))
    for found in (
        function(x, w, activation="relu"),
        operator(x, w, None, None, None, geometry, 1, 0.0, None, None),
    ):
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found.sum(), (x, w)), gradients)
    assert function(x.to("meta"), w.to("meta")).shape == expected.shape
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        operator(x, w, None, None, None, geometry, 1, 0.0, None, None)
    assert counter.get_total_flops() > 0

first = fs.subpixel_conv2d
for _ in range(2):
    problem = fs.ops.library.libraries["cpu"].problem
    for name in [name for name in sys.modules if name.startswith("fused_subpixel")]:
        del sys.modules[name]
    del fs
    gc.collect()
    import fused_subpixel as fs
    gc.collect()
    assert fs.subpixel_conv2d is not first and fs.ops.library.libraries["cpu"].problem == problem
    check(fs.subpixel_conv2d)
    check(first)
for name in [name for name in sys.modules if name.startswith("fused_subpixel")]:  # as autoreload does
    importlib.reload(sys.modules[name])
check(fs.subpixel_conv2d)

fs.ops.schemas.SCHEMAS = (fs.ops.schemas.SCHEMAS[0].replace("Tensor? residual, ", ""),)
try:
    importlib.reload(fs.ops.library)
except ImportError as error:
    print(error)
"""


@pytest.mark.full
def test_imported_again():
    done = run(sys.executable, "-W", "ignore::RuntimeWarning", "-c", AGAIN)
    assert done.returncode == 0, done.stderr
    assert "its operator subpixel_conv2d has other arguments. Restart Python" in done.stdout


# ---- the build, on a project of a few lines ----


SOURCES = {
    "csrc/cpu/plan.h": "#pragma once\nint plan();\n",
    "csrc/cpu/plan.cpp": '#include "cpu/plan.h"\nint plan() { return 1; }\n',
    "csrc/cpu/tile.h": "#pragma once\ninline int tile() { return 2; }\n",
    "csrc/cpu/kernels/kernels.cpp": '#include "cpu/tile.h"\n'
    "namespace fused_subpixel::cpu::FS_ISA { int dot(int n) { return n * tile(); } }\n",
    "csrc/cpu/kernels/matrix.cpp": "namespace fused_subpixel::cpu::FS_ISA { int half() { return 1; } }\n",
    "csrc/torch/ops_cpu.cpp": '#include "cpu/plan.h"\n#include "cpu/tile.h"\n'
    "int op() { return plan() + tile(); }\n",
    "fused_subpixel/__init__.py": '__version__ = "1.2.3"\n',
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A project with our build files and toy sources, built once."""
    pytest.importorskip("setuptools", minversion="77")
    if not (ROOT / "setup.py").exists():
        pytest.skip("not a source tree")
    tree = tmp_path_factory.mktemp("toy")
    for name in filter(lambda name: (ROOT / name).exists(), BUILD_FILES):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)
    for name, text in SOURCES.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    assert "plan.cpp.o" in compiled(build(tree))
    return tree


@pytest.mark.full
def test_nothing_changed_nothing_compiled(toy):
    assert compiled(build(toy)) == set()


@pytest.mark.full
def test_a_changed_header_recompiles_its_dependents_only(toy):
    kernels = {p.name for p in (toy / "build/ninja/csrc/cpu/kernels").glob("kernels.cpp.*.o")}
    library = {"fused_subpixel_cpu.so"}
    for header, dependents in {
        "csrc/cpu/plan.h": {"plan.cpp.o", "ops_cpu.cpp.o"},
        "csrc/cpu/tile.h": {"ops_cpu.cpp.o", *kernels},
    }.items():
        (toy / header).touch()
        assert compiled(build(toy)) == dependents | library
        assert compiled(build(toy)) == set()


@pytest.mark.full
def test_the_library_of_an_earlier_build_goes_away(toy):
    stale = toy / "fused_subpixel/fused_subpixel_cuda.so"
    stale.touch()
    build(toy)
    assert [p.name for p in stale.parent.glob("*.so")] == ["fused_subpixel_cpu.so"]


@pytest.mark.full
@needs("nm")
def test_a_leaking_kernel_file_would_be_noticed(toy, tmp_path):
    tree = shutil.copytree(toy, tmp_path / "leaking")
    kernels = tree / "csrc/cpu/kernels/kernels.cpp"
    kernels.write_text("#include <algorithm>\n" + kernels.read_text().replace("n * tile()", "std::max(n, 1)"))
    build(tree, CXXFLAGS="-O0")
    assert any(
        "3max" in s for s in strays(tree / "build/ninja/csrc/cpu/kernels/kernels.cpp.portable.o", "portable")
    )
    assert strays(toy / "build/ninja/csrc/cpu/kernels/kernels.cpp.portable.o", "portable") == []


@pytest.mark.full
@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"FUSED_SUBPIXEL_CUDA": "1"}, "there are no sources csrc/cuda"),
        ({"FUSED_SUBPIXEL_CUDA": "yes"}, "is auto, 0 or 1, not 'yes'"),
        ({"CXX": "", "PATH": "/nowhere"}, "no C++ compiler: install"),
        ({"CXX": "nowhere++"}, "CXX names a compiler that does not run: `nowhere++ --version` fails"),
        ({"CXX": "env nowhere++ -m64"}, "does not run: `env nowhere++ -m64 --version` fails"),
        ({"CXX": "'g++"}, "does not run: `'g++ --version` fails"),
        ({"CXX": "/"}, "does not run: `/ --version` fails"),
        ({"MAX_JOBS": "many"}, "MAX_JOBS is a number of compilers, 1 or more, not 'many'"),
        ({"MAX_JOBS": "0"}, "1 or more, not '0'"),
    ],
)
def test_mistakes_are_told_in_one_line(toy, env, message):
    result = run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", cwd=toy, **env)
    assert result.returncode != 0
    assert len(result.stderr.splitlines()) == 1 and message in result.stderr


@pytest.mark.full
def test_without_torch_it_says_what_to_do(toy):
    hide = "import runpy, sys; sys.modules['torch'] = None; sys.argv = ['setup.py', '-q', 'build_ext']; "
    result = run(sys.executable, "-c", hide + "runpy.run_path('setup.py', run_name='__main__')", cwd=toy)
    assert result.returncode != 0
    assert "pip install --no-build-isolation ." in result.stderr.splitlines()[-1]


# ---- CUDA sources and toolkit, on that project and with a compiler that only pretends ----

NVCC = """\
#!/bin/sh
case "$*" in
  *--dryrun*) echo '#$ TOP={root}' >&2 ;;
  *--list-gpu-code*) for arch in 75 80 86 89 90 100 120; do echo sm_$arch; done ;;
  *) while [ $# -gt 0 ]; do case $1 in -c) in=$2 ;; -o) out=$2 ;; -MF) echo "$2:" > "$2" ;; esac; shift; done
     {cxx} -fPIC -x c++ -c "$in" -o "$out" ;;
esac
"""


def pretended_toolkit(root: Path) -> Path:
    for folder in ("bin", "lib", "include"):
        (root / folder).mkdir(parents=True)
    nvcc = root / "bin/nvcc"
    nvcc.write_text(NVCC.format(root=root, cxx=shutil.which("g++") or shutil.which("clang++")))
    nvcc.chmod(0o755)
    (root / "lib/empty.c").touch()
    run("cc", "-c", "empty.c", "-o", "empty.o", cwd=root / "lib")
    run("ar", "rcs", "libcudart_static.a", "empty.o", cwd=root / "lib")
    return root


@pytest.fixture(scope="module")
def cuda_toy(toy, tmp_path_factory):
    """The toy with CUDA sources, and a toolkit."""
    folder = tmp_path_factory.mktemp("cuda")
    tree = shutil.copytree(toy, folder / "toy")
    (tree / "csrc/cuda/instances").mkdir(parents=True)
    for name in ("generic", "sm80_conv", "sm90_conv"):
        (tree / f"csrc/cuda/instances/{name}.cu").write_text(f"int {name}() {{ return 1; }}\n")
    (tree / "csrc/cuda/launch.cpp").write_text(
        'extern "C" __attribute__((visibility("default"))) const char* archs() { return FS_CUDA_ARCHS; }\n'
    )
    return tree, pretended_toolkit(folder / "toolkit")


def compiled_for(tree: Path) -> dict[str, list[str]]:
    """By CUDA source, the architectures in build.ninja."""
    text = (tree / "build/ninja/build.ninja").read_text()
    steps = re.findall(r"^build \S+: nvcc csrc/cuda/instances/(\S+)\.cu\n  flags = (.*)$", text, re.M)
    return {name: re.findall(r",code=(\w+)", flags) for name, flags in steps}


@pytest.mark.full
@needs("ar", "cc")
@pytest.mark.parametrize(
    ("asked", "generic", "sm80", "sm90"),
    [
        (
            "",
            "sm_75 sm_80 sm_86 sm_89 sm_90a sm_100a sm_120 compute_120",
            "sm_80 sm_90a sm_100a sm_120 compute_120",
            "sm_90a",
        ),
        ("9.0a", "sm_90a", "sm_90a", "sm_90a"),
        ("8.6, 8.9+PTX", "sm_86 sm_89 compute_89", "sm_86 sm_89 compute_89", ""),
        ("75", "sm_75", "", ""),
    ],
    ids=["default", "Hopper", "Ampere and Ada", "Turing"],
)
def test_each_cuda_source_is_compiled_for_its_architectures(cuda_toy, asked, generic, sm80, sm90):
    tree, toolkit = cuda_toy
    build(tree, FUSED_SUBPIXEL_CUDA="1", CUDA_HOME=str(toolkit), FUSED_SUBPIXEL_CUDA_ARCHS=asked)
    expected = {"generic": generic.split(), "sm80_conv": sm80.split(), "sm90_conv": sm90.split()}
    assert compiled_for(tree) == {name: archs for name, archs in expected.items() if archs}
    text = (tree / "build/ninja/build.ninja").read_text()
    assert ("-DFS_HAVE_SM80=1" in text, "-DFS_HAVE_SM90=1" in text) == (bool(sm80), bool(sm90))
    assert (tree / "fused_subpixel/fused_subpixel_cuda.so").exists()
    built_for = asked.replace(".", "").replace(", ", ";") or "75;80;86;89;90a;100a;120+PTX"
    assert built_for.encode() in (tree / "fused_subpixel/fused_subpixel_cuda.so").read_bytes()


@pytest.mark.full
@needs("ar", "cc")
@pytest.mark.parametrize(
    ("env", "message"),
    [
        *(
            ({"FUSED_SUBPIXEL_CUDA_ARCHS": archs}, f"knows no architecture {unknown!r}, but 75, 80, 86")
            for archs, unknown in {
                "61;90a": "61",
                "native": "native",
                "sm_90": "sm_90",
                "9": "9",
                "90+ptx": "90+ptx",
            }.items()
        ),
        ({"CUDA_HOME": "/nowhere"}, "CUDA_HOME names /nowhere, which holds no bin/nvcc"),
    ],
    ids=str,
)
def test_mistakes_about_cuda_are_told_in_one_line(cuda_toy, env, message):
    tree, toolkit = cuda_toy
    env = {"CUDA_HOME": str(toolkit), "FUSED_SUBPIXEL_CUDA": "1", **env}
    result = run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", cwd=tree, **env)
    assert result.returncode != 0
    assert len(result.stderr.splitlines()) == 1 and message in result.stderr


@pytest.mark.full
@needs("ar", "cc", "g++")
@pytest.mark.parametrize("cxx", ["g++ -DSOME=1", "ccache g++ -DSOME=1"])
def test_the_named_compiler_is_used_with_its_arguments(cuda_toy, tmp_path, cxx):
    tree, toolkit = shutil.copytree(cuda_toy[0], tmp_path / "toy"), cuda_toy[1]
    ccache = tmp_path / "bin/ccache"
    ccache.parent.mkdir()
    ccache.write_text('#!/bin/sh\nexec "$@"\n')
    ccache.chmod(0o755)
    env = {"PATH": f"{ccache.parent}{os.pathsep}{os.environ['PATH']}", "CUDA_HOME": str(toolkit)}
    build(tree, CXX=cxx, FUSED_SUBPIXEL_CUDA="1", FUSED_SUBPIXEL_CUDA_ARCHS="75", **env)
    text = (tree / "build/ninja/build.ninja").read_text()
    assert f"\ncxx = {cxx}\n" in text
    assert " -ccbin g++ -Xcompiler=-DSOME=1\n" in text


@pytest.mark.full
@needs("ar", "cc")
def test_a_toolkit_folder_without_nvcc_is_told(no_toolkit):
    tree, env = no_toolkit
    output = build(tree, **{**env, "CUDA_HOME": "/nowhere"})
    assert "CUDA_HOME names /nowhere, which holds no bin/nvcc: looking elsewhere" in output
    assert "no CUDA toolkit found, building the CPU library only" in output


PIP = """\
import os, pathlib, sys
pathlib.Path(os.environ["PIP_CALLS"]).write_text(" ".join(sys.argv[1:]))
sys.exit(int(os.environ["PIP_STATUS"]))
"""


@pytest.fixture
def no_toolkit(cuda_toy, tmp_path):
    """The CUDA toy where no nvcc can be found, and a pip that only notes what it is asked for."""
    tree = shutil.copytree(cuda_toy[0], tmp_path / "toy")
    toolkit = tree / "tools/compile/cuda_toolkit.py"
    toolkit.write_text(toolkit.read_text().replace("/usr/local/cuda/bin", "/nowhere"))
    for package, text in {"nvidia/__init__": "", "pip/__init__": "", "pip/__main__": PIP}.items():
        path = tmp_path / f"stubs/{package}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    folders = [folder for folder in os.environ["PATH"].split(os.pathsep) if not Path(folder, "nvcc").exists()]
    env = {"PYTHONPATH": str(tmp_path / "stubs"), "PATH": os.pathsep.join(folders), "CUDA_HOME": ""}
    return tree, {**env, "CUDA_PATH": "", "PIP_CALLS": str(tmp_path / "calls"), "PIP_STATUS": "0"}


@pytest.mark.full
@needs("ar", "cc")
def test_a_missing_toolkit_is_fetched(no_toolkit):
    tree, env = no_toolkit
    output = build(tree, "--quiet", "fetch_cuda_toolkit", **env)
    assert "no nvcc found, so pip installs that of CUDA 13" in output and len(output.splitlines()) == 1
    calls = Path(env["PIP_CALLS"]).read_text()
    assert calls.startswith("install --quiet nvidia-cuda-nvcc==13.")
    for part in ("nvidia-nvvm", "nvidia-cuda-crt", "nvidia-cuda-runtime", "nvidia-cuda-cccl"):
        assert f" {part}==13." in calls


@pytest.mark.full
@needs("ar", "cc")
def test_without_toolkit_and_network_the_cpu_library_is_built(no_toolkit):
    tree, env = no_toolkit
    arguments = ("--quiet", "fetch_cuda_toolkit", "build_ext", "--inplace")
    output = build(tree, *arguments, **{**env, "PIP_STATUS": "1"})
    assert "could not be installed" in output and "building the CPU library only" in output
    assert [p.name for p in (tree / "fused_subpixel").glob("*.so")] == ["fused_subpixel_cpu.so"]


@pytest.mark.full
@needs("ar", "cc")
def test_nothing_is_fetched_where_nothing_is_missing(no_toolkit, cuda_toy):
    tree, env = no_toolkit
    for change in ({"FUSED_SUBPIXEL_CUDA": "0"}, {"CUDA_HOME": str(cuda_toy[1])}):
        assert build(tree, "--quiet", "fetch_cuda_toolkit", **{**env, **change}) == ""
    assert not Path(env["PIP_CALLS"]).exists()


# ---- programs for other machines ----


@pytest.mark.full
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_make_gpu_refuses_in_one_line():
    done = run(sys.executable, "tools/gpu.py")
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(r"make gpu: torch \S+ (is built without CUDA|finds no CUDA GPU).*\n", done.stderr)
    done = run(sys.executable, "tools/gpu.py", "--steps", "build,rest")
    assert done.returncode == 2 and "unknown step 'rest'; known are checks, build, test" in done.stderr


@pytest.mark.full
@pytest.mark.skipif(not LIBRARIES, reason="no compiled library beside the package")
def test_the_libraries_load_from_another_folder():
    done = run(sys.executable, "tools/load_elsewhere.py", sys.executable)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cpu library: loaded, operators registered" in done.stdout


# ---- wheel and sdist, of this project ----


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of this project with its objects, so nothing needs compiling, and remains of older builds."""
    pytest.importorskip("setuptools", minversion="77")
    tree = copy_of_project(tmp_path_factory.mktemp("project"))
    # leaves build/lib.<platform>, whose files would be in the next wheel
    build(tree, "build", FUSED_SUBPIXEL_CUDA="0")
    for folder in (tree / "fused_subpixel", *tree.glob("build/lib*/fused_subpixel")):
        (folder / "fused_subpixel_cuda.so").touch()
        (folder / "fused_subpixel_old.so").touch()
    for folder in tree.glob("build/lib*/fused_subpixel"):
        (folder / "removed_module.py").touch()
    return tree


def call_backend(tree: Path, hook: str) -> tuple[Path, str]:
    """Call setuptools' build backend as pip does; return the file it made and what it said."""
    code = f"from setuptools import build_meta; build_meta.{hook}('dist')"
    result = run(sys.executable, "-c", code, cwd=tree, FUSED_SUBPIXEL_CUDA="0")
    assert result.returncode == 0, result.stdout + result.stderr
    (made,) = (tree / "dist").glob("*.whl" if "wheel" in hook else "*.tar.gz")
    return made, result.stdout


@pytest.mark.full
def test_wheel(project):
    wheel, output = call_backend(project, "build_wheel")
    assert compiled(output) == set()
    assert re.fullmatch(r"fused_subpixel-[\w.]+-py3-none-linux_\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (info,) = (name for name in archive.namelist() if name.endswith(".dist-info/WHEEL"))
        assert "Root-Is-Purelib: false" in archive.read(info).decode()
        assert len(archive.read("fused_subpixel/fused_subpixel_cpu.so")) > 10_000
    python = {str(path.relative_to(ROOT)) for path in (ROOT / "fused_subpixel").rglob("*.py")}
    libraries = {f"fused_subpixel/fused_subpixel_{name}.so" for name in ("cpu", "schemas")}
    assert names == python | libraries | {"fused_subpixel/py.typed"}


@pytest.mark.full
def test_sdist_has_all_that_a_build_needs(project, tmp_path):
    sdist, _ = call_backend(project, "build_sdist")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    assert {str(p.relative_to(project)) for p in (project / "csrc").rglob("*") if p.is_file()} <= names
    assert {"setup.py", "pyproject.toml", "LICENSE", "fused_subpixel/py.typed"} <= names
    assert [name for name in names if name.endswith((".so", ".o", ".pyc"))] == []
    (unpacked,) = tmp_path.iterdir()
    # with the objects there is nothing to compile, unless a file that they were made of is missing
    shutil.copytree(project / "build/ninja", unpacked / "build/ninja")
    assert compiled(build(unpacked, FUSED_SUBPIXEL_CUDA="0")) == set()
    assert (unpacked / "fused_subpixel/fused_subpixel_cpu.so").exists()
