# SPDX-License-Identifier: BSD-3-Clause
"""The emulator that runs CUDA kernels without a GPU: right kernels come out right, mistakes are noticed."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

simt = pytest.importorskip("fused_subpixel_simt", reason="build it: python setup.py build_host_tests")

SEEDS = range(12)


@pytest.fixture(params=SEEDS)
def seed(request: pytest.FixtureRequest) -> int:
    simt.set_seed(request.param)
    return request.param


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    yield
    simt.set_seed(0)
    simt.set_check_races(True)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def integers(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return rng.integers(-4, 5, shape).astype(np.float32)


def wrong_results(run, expected: NDArray[np.float32]) -> int:
    """Of all seeds, how many show that something is missing."""
    wrong = 0
    for seed in SEEDS:
        simt.set_seed(seed)
        wrong += not np.array_equal(run(), expected)
    return wrong


# ---- barriers and races ----


@pytest.mark.parametrize("threads", [1, 2, 32, 64, 1024])
def test_block_sum(seed: int, threads: int, rng: np.random.Generator) -> None:
    x = integers(rng, 7, threads)
    np.testing.assert_array_equal(simt.block_sum(x, threads, True), x.sum(1))


def test_block_sum_without_barriers(rng: np.random.Generator) -> None:
    x = integers(rng, 3, 256) + 100
    assert wrong_results(lambda: simt.block_sum(x, 256, False), x.sum(1)) == len(SEEDS)


def test_warp_sum(seed: int, rng: np.random.Generator) -> None:
    x = integers(rng, 3, 32)
    np.testing.assert_array_equal(simt.warp_sum(x, True), x.sum(1))


def test_warp_sum_without_barrier(rng: np.random.Generator) -> None:
    x = integers(rng, 3, 32)
    assert wrong_results(lambda: simt.warp_sum(x, False), x.sum(1)) == len(SEEDS)


@pytest.mark.parametrize("valid_tiles", [1, 5, 9])
def test_pipeline(seed: int, valid_tiles: int, rng: np.random.Generator) -> None:
    x = integers(rng, 9, 96, 4)
    expected = x[:valid_tiles].sum(0)[::-1].ravel()
    np.testing.assert_array_equal(simt.pipeline(x.ravel(), 96, valid_tiles, "nothing"), expected)


# With the check of races, any seed will do; without, such mistakes still show in the results.
@pytest.mark.parametrize("missing", ["barrier", "order"])
def test_pipeline_with_a_race(missing: str, rng: np.random.Generator) -> None:
    x = integers(rng, 9, 96, 4).ravel()
    nan = 0
    for seed in SEEDS:
        simt.set_seed(seed)
        simt.set_check_races(True)
        with pytest.raises(RuntimeError, match=r"the address awaits a copy by|race, no barrier since"):
            simt.pipeline(x, 96, 9, missing)
        simt.set_check_races(False)
        nan += np.isnan(simt.pipeline(x, 96, 9, missing)).any()
    assert nan > len(SEEDS) // 2


def test_pipeline_without_a_wait(seed: int, rng: np.random.Generator) -> None:
    x = integers(rng, 9, 96, 4).ravel()
    with pytest.raises(RuntimeError, match="the address awaits a copy by"):
        simt.pipeline(x, 96, 9, "wait")
    simt.set_check_races(False)
    assert np.isnan(simt.pipeline(x[: 3 * 96 * 4], 96, 3, "wait")).all()
    with pytest.raises(RuntimeError, match="the destination still awaits another copy"):
        simt.pipeline(x, 96, 9, "wait")


def test_same_seed_same_run(rng: np.random.Generator) -> None:
    x = integers(rng, 9, 96, 4).ravel()
    simt.set_check_races(False)

    def runs(seed: int) -> tuple:
        simt.set_seed(seed)
        return simt.pipeline(x, 96, 9, "barrier").tobytes(), simt.statistics()

    results = [runs(seed) for seed in SEEDS]
    assert results == [runs(seed) for seed in SEEDS]
    assert len({result for result, _ in results}) > 1


# ---- tensor cores ----


def test_ldmatrix() -> None:
    matrices = np.arange(4 * 8 * 8, dtype=np.uint16).reshape(4, 8, 8)
    g, t = np.divmod(np.arange(32), 4)
    for transposed in (False, True):
        got = simt.ldmatrix(matrices.ravel(), transposed).reshape(32, 4)
        for q, matrix in enumerate(matrices):
            source = matrix.T if transposed else matrix
            np.testing.assert_array_equal(got[:, q] & 0xFFFF, source[g, 2 * t])
            np.testing.assert_array_equal(got[:, q] >> 16, source[g, 2 * t + 1])


def test_stmatrix() -> None:
    matrices = np.arange(4 * 8 * 8, dtype=np.uint16)
    loaded = simt.ldmatrix(matrices, False)
    np.testing.assert_array_equal(simt.stmatrix(loaded), matrices)


def stored(type_name: str, x: NDArray[np.float32]) -> NDArray:
    """The bits of x in a storage type that holds x exactly."""
    if type_name == "Float16":
        return x.astype(np.float16).view(np.uint16)
    return (x.view(np.uint32) >> 16).astype(np.uint16) if type_name == "BFloat16" else x


@pytest.mark.parametrize("type_name", ["Float16", "BFloat16", "TF32"])
def test_mma(type_name: str, rng: np.random.Generator) -> None:
    k = 8 if type_name == "TF32" else 16
    a, b = integers(rng, 16, k), integers(rng, k, 8)
    got = simt.mma(type_name, stored(type_name, a), stored(type_name, b))
    np.testing.assert_array_equal(got.reshape(16, 8), a @ b)


@pytest.mark.parametrize("type_name", ["Float16", "BFloat16", "TF32"])
def test_mma_sums_in_float_one_after_another(type_name: str) -> None:
    k = 8 if type_name == "TF32" else 16
    a, b = np.zeros((16, k), np.float32), np.ones((k, 8), np.float32)
    a[0, :4] = 2.0**15, 2.0**-14, -(2.0**15), 2.0**-10  # the second is lost, the last is not
    got = simt.mma(type_name, stored(type_name, a), stored(type_name, b)).reshape(16, 8)
    np.testing.assert_array_equal(got[0], np.float32(2.0**-10))


def test_mma_does_not_see_the_low_bits_of_tf32() -> None:
    a = np.full((16, 8), 1 + 2**-10 + 2**-11, np.float32)
    got = simt.mma("TF32", a, np.ones((8, 8), np.float32))
    np.testing.assert_array_equal(got, np.float32(8 * (1 + 2**-10)))


GEMMS = [("Float16", False), ("Float16", True), ("BFloat16", False), ("BFloat16", True), ("TF32", False)]


@pytest.mark.parametrize("type_name, rows_are_k", GEMMS)
def test_gemm(type_name: str, rows_are_k: bool, rng: np.random.Generator) -> None:
    for seed, (m, n, k) in enumerate([(128, 128, 64), (1, 8, 16), (37, 136, 40), (150, 24, 88)]):
        simt.set_seed(seed)
        a, b = integers(rng, m, k), integers(rng, k, n)
        right = np.ascontiguousarray(b if rows_are_k else b.T)
        got = simt.gemm(type_name, rows_are_k, stored(type_name, a), stored(type_name, right))
        np.testing.assert_array_equal(got.reshape(m, n), a @ b)


def test_gemm_of_random_numbers(rng: np.random.Generator) -> None:
    a, b = rng.standard_normal((2, 128, 128)).astype(np.float16)
    got = simt.gemm("Float16", True, a.view(np.uint16), b.view(np.uint16)).reshape(128, 128)
    np.testing.assert_allclose(got, a.astype(np.float64) @ b.astype(np.float64), rtol=0, atol=1e-4)
    assert simt.statistics()["mmas"] == 8 * 16 * 8


# ---- mistakes ----

THREAD = r"block \([01], 0\), warp [01], lane \d+ \(thread \d+\)"
PLACE = r"\(selftest\.cpp:\d+\)"
RACE = rf"race, no barrier since it was (read|written) by {THREAD}"
MISTAKES = {
    "read_past_end": rf"{THREAD}: access to \S+ in or after the start .*, \d+ bytes past the end of last",
    "read_far_past_end": rf"{THREAD}: access .*, 399880 bytes past the end of last \(120 bytes\)",
    "read_before_start": rf"{THREAD}: access .*, \d+ bytes before the start of first \(120 bytes\)",
    "write_past_end": r"stray write 4 bytes past the end of last",
    "write_before_start": r"stray write \d bytes before the start of last",
    "null_read": rf"{THREAD}: access to .*near no known buffer",
    "load_16_past_end": rf"{THREAD}, load_16 {PLACE}: out of bounds, 8 bytes before the end of last",
    "store_16_past_end": rf"{THREAD}, store_16 {PLACE}: out of bounds, 8 bytes past the end of last",
    "shared_write": r"block \([01], 0\): stray write 0 bytes past the end of shared memory \(1032 bytes\)",
    "shared_write_far": rf"{THREAD}: access .* bytes past the end of shared memory \(1032 bytes\)",
    "misaligned_load": rf"{THREAD}, load_16 {PLACE}: misaligned address .* not a multiple of 16",
    "misaligned_store": rf"{THREAD}, store_16 {PLACE}: misaligned address .* not a multiple of 16",
    "misaligned_copy": rf"{THREAD}, cp_async {PLACE}: misaligned address .* not a multiple of 8",
    "misaligned_ldmatrix": rf"{THREAD}, ldmatrix_x4 {PLACE}: misaligned address .* not a multiple of 16",
    "divergent_barrier": rf"is stuck; warp 0: lanes 0-15 waiting in sync_threads {PLACE}, "
    rf"lanes 16-31 waiting in shuffle_xor {PLACE}; warp 1: ",
    "other_barrier": rf"{THREAD}, sync_threads {PLACE}: divergence, {THREAD} waits in sync_threads",
    "early_exit": rf"is stuck; warp 0: .*; warp 1: lanes 0-4 waiting in sync_threads {PLACE}, lanes 5 ended",
    "divergent_collective": rf"{THREAD}, (sync_warp|shuffle_xor) {PLACE}: divergence, {THREAD} waits in s",
    "absent_lane": rf"is stuck; warp 0: lanes 0-31 ended; warp 1: lanes 0-7 waiting in sync_warp {PLACE}",
    "strange_shuffle": r"no lane is this one's index \^ 32",
    "pending_copy": rf"{THREAD}, cp_async {PLACE}: thread ended with asynchronous copies under way",
    "uncommitted_copy": rf"{THREAD}, cp_async {PLACE}: thread ended with asynchronous copies under way",
    "copy_twice": rf"{THREAD}, cp_async {PLACE}: the destination still awaits another copy, cp_async",
    "copy_past_end": rf"{THREAD}, cp_async {PLACE}: out of bounds, 8 bytes before the end of last",
    "copy_from_shared": rf"{THREAD}, cp_async {PLACE}: the source is not in global memory",
    "copy_to_global": rf"{THREAD}, cp_async {PLACE}: the address does not lie in shared memory",
    "copy_to_past_shared": rf"{THREAD}, cp_async {PLACE}: out of bounds, 8 bytes before the end of shared",
    "use_before_wait": rf"{THREAD}, load_16 {PLACE}: the address awaits a copy by {THREAD}, cp_async {PLACE}",
    "race_in_warp": rf"{THREAD}, load_16 {PLACE}: {RACE}, store_16",
    "race_between_warps": rf"{THREAD}, (load|store)_16 {PLACE}: {RACE}, (load|store)_16",
    "race_to_write": rf"{THREAD}, store_16 {PLACE}: {RACE}",
    "misaligned_stmatrix": rf"{THREAD}, stmatrix_x4 {PLACE}: misaligned address .* not a multiple of 16",
    "race_of_stmatrix": rf"{THREAD}, stmatrix_x4 {PLACE}: {RACE}, stmatrix_x4",
    "race_of_copies": rf"{THREAD}, ldmatrix_x4 {PLACE}: {RACE}, cp_async",
    "ldmatrix_of_global": rf"{THREAD}, ldmatrix_x4 {PLACE}: the address does not lie in shared memory",
    "stack_overflow": rf"{THREAD}: access .* past the end of a thread's stack",
    "trap": rf"{THREAD}: trap after ",
    "division": rf"{THREAD}: integer division by zero after ",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name: str, rng: np.random.Generator) -> None:
    if name == "division" and platform.machine() != "x86_64":
        pytest.skip("x / 0 is 0 there")
    for seed in SEEDS:
        simt.set_seed(seed)
        with pytest.raises(RuntimeError) as error:
            simt.mistake(name)
        assert re.search(MISTAKES[name], str(error.value)), str(error.value)
        # the emulator goes on as if nothing had happened
        x = integers(rng, 2, 64)
        np.testing.assert_array_equal(simt.block_sum(x, 64, True), x.sum(1))


def test_no_mistake(seed: int) -> None:
    simt.mistake("none")
    simt.mistake("no_race")


@pytest.mark.parametrize(
    "shape",
    [(0, 1, 32, 0), (1, 0, 32, 0), (1, 65536, 32, 0), (1, 1, 0, 0), (1, 1, 1025, 0), (1, 1, 32, 232449)],
)
def test_impossible_launch(shape: tuple[int, int, int, int]) -> None:
    with pytest.raises(RuntimeError, match="launch: no such"):
        simt.launch(*shape)
    simt.launch(2, 3, 33, 232448)
    assert simt.statistics()["blocks"] == 6


# ---- conversions ----


def test_every_half() -> None:
    bits = np.arange(65536, dtype=np.uint16)
    halves = bits.view(np.float16)
    floats = simt.half_to_float(bits)
    np.testing.assert_array_equal(floats, halves.astype(np.float32))
    np.testing.assert_array_equal(np.signbit(floats), np.signbit(halves))
    numbers = ~np.isnan(halves)
    np.testing.assert_array_equal(simt.float_to_half(floats)[numbers], bits[numbers])


def test_rounding_to_half(rng: np.random.Generator) -> None:
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = (halves[1:] + halves[:-1]) / 2  # exact in float
    up, down = np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(0))
    special = np.array([0, 65504, 65519.99, 65520, 1e30, np.inf, np.nan, 1e-45, 2**-25, 2**-24], np.float32)
    random = rng.integers(0, 2**32, 1 << 20, dtype=np.uint32).view(np.float32)
    x = np.concatenate([ties, up, down, special, random])
    x = np.concatenate([x, -x])
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(np.float16)
    got = simt.float_to_half(x)
    np.testing.assert_array_equal(got.view(np.float16), expected)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(got[numbers], expected.view(np.uint16)[numbers])


def test_rounding_to_tf32(rng: np.random.Generator) -> None:
    x = np.concatenate([rng.standard_normal(1000).astype(np.float32), np.float32([1 + 2**-11, -1 - 2**-11])])
    got = simt.round_to_tf32(x)
    assert not (got.view(np.uint32) & 0x1FFF).any()
    assert (np.abs(got - x) <= np.abs(x) * 2.0**-11).all()
    np.testing.assert_array_equal(got[-2:], np.float32([1 + 2**-10, -1 - 2**-10]))  # ties away from zero
    special = np.float32([np.inf, -np.inf, np.nan, 0, np.finfo(np.float32).max])
    np.testing.assert_array_equal(
        simt.round_to_tf32(special), np.float32([np.inf, -np.inf, np.nan, 0, np.inf])
    )


# ---- Hopper's ----------------------------------------------------------------------------------------------


def planes(x: np.ndarray) -> np.ndarray:
    """[rows, k] as [8, rows, k / 8]."""
    return np.ascontiguousarray(x.reshape(x.shape[0], 8, -1).transpose(1, 0, 2))


@pytest.mark.parametrize("type_name", ["Float16", "BFloat16", "TF32"])
@pytest.mark.parametrize("start", [0, 1, 5, 8])
def test_wgmma(type_name: str, start: int, seed: int, rng: np.random.Generator) -> None:
    """Operands that start at any row: 16 bytes are all the alignment there is without a swizzle."""
    k = 32 if type_name == "TF32" else 64
    a, b = integers(rng, 72, k), integers(rng, 128, k)
    got = simt.wgmma(type_name, stored(type_name, planes(a)), stored(type_name, planes(b)), start, "")
    assert np.array_equal(got.reshape(64, 128), a[start : start + 64] @ b.T)


@pytest.mark.parametrize("lack", ["fence", "arrival", "parity", "bytes", "wait"])
def test_wgmma_that_lacks_something(lack: str, seed: int, rng: np.random.Generator) -> None:
    a, b = integers(rng, 72, 64), integers(rng, 128, 64)
    try:
        got = simt.wgmma("Float16", stored("Float16", planes(a)), stored("Float16", planes(b)), 3, lack)
    except RuntimeError:
        return
    assert not np.array_equal(got.reshape(64, 128), a[3:67] @ b.T)
