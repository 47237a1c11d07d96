import itertools

import numpy as np
import pytest

from fgq.errors import KernelError
from fgq.kernels.dispatch import KERNELS, Kernel, Problem, Wish, build_table, select_kernel
from fgq.kernels.window import Window

PROBLEMS = [
    Problem(op=op, ternary=ternary, depthwise=depthwise)
    for op, ternary, depthwise in itertools.product(("matmul", "conv2d"), (True, False), (True, False))
    if op == "conv2d" or not depthwise
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_every_layer_has_a_kernel_and_a_reference(problem):
    for wish in (Wish.AUTO, Wish.REFERENCE):
        assert select_kernel(problem, wish).supports(problem)
    assert select_kernel(problem, Wish.REFERENCE).module == "fgq.kernels.reference"


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_without_multiplication_means_so_or_is_refused(problem):
    if problem.ternary:
        chosen = select_kernel(problem, Wish.MULTIPLICATION_FREE)
        assert chosen.multiplication_free
        assert chosen.supports(problem)
    else:
        with pytest.raises(KernelError, match="wanted ternary weights"):
            select_kernel(problem, Wish.MULTIPLICATION_FREE)


@pytest.mark.parametrize(
    ("problem", "name"),
    [
        (Problem(op="matmul", ternary=True), "matmul_ternary_portable"),
        (Problem(op="matmul", ternary=False), "matmul_int8_portable"),
        (Problem(op="conv2d", ternary=True), "conv2d_ternary_portable"),
        (Problem(op="conv2d", ternary=False), "conv2d_int8_portable"),
        (Problem(op="conv2d", ternary=False, depthwise=True), "conv2d_depthwise_int8_portable"),
        (Problem(op="conv2d", ternary=True, depthwise=True), "conv2d_depthwise_int8_portable"),
    ],
    ids=str,
)
def test_the_preferred_kernel(problem, name):
    assert select_kernel(problem, Wish.AUTO).name == name


def test_two_kernels_of_one_name_are_refused():
    kernel = Kernel(name="twice", op="matmul", module="nowhere")
    with pytest.raises(KernelError, match="kernel twice: found twice"):
        build_table([kernel, kernel])


def test_preparing_refuses_what_a_kernel_cannot_do():
    codes, alpha = np.full((2, 1, 1, 3), 2, np.int8), np.ones((2, 1, 1, 1), np.uint8)
    rest = np.zeros(3, np.int32), np.zeros(2, np.int32), 0, Window()
    with pytest.raises(KernelError, match="ternary"):
        KERNELS["conv2d_ternary_portable"].prepare(codes, alpha, *rest)
    with pytest.raises(KernelError, match="3 input channels"):
        KERNELS["conv2d_depthwise_int8_portable"].prepare(codes, alpha, *rest)


@pytest.mark.parametrize("kernel", [k for k in KERNELS.values() if k.op == "matmul"], ids=lambda k: k.name)
def test_running_refuses_activations_that_do_not_fit(kernel):
    prepared = kernel.prepare(
        np.ones((2, 3), np.int8), np.ones((2, 1), np.uint8), np.zeros(3, np.int32), np.zeros(2, np.int32), 0
    )
    with pytest.raises(KernelError, match=r"x: found uint8\[1, 4\], wanted uint8\[\*, 3\]"):
        kernel.run(prepared, np.zeros((1, 4), np.uint8))


def test_running_refuses_an_image_smaller_than_the_kernel():
    kernel = KERNELS["conv2d_int8_portable"]
    prepared = kernel.prepare(
        np.ones((1, 3, 3, 1), np.int8), np.ones((1, 3, 3, 1), np.uint8), np.zeros(1, np.int32),
        np.zeros(1, np.int32), 0, Window(),
    )  # fmt: skip
    with pytest.raises(KernelError, match="image: found 2 x 9"):
        kernel.run(prepared, np.zeros((1, 2, 9, 1), np.uint8))


def test_only_convolutions_have_a_window():
    flat = np.ones((2, 3), np.int8), np.ones((2, 1), np.uint8)
    deep = np.ones((2, 1, 1, 3), np.int8), np.ones((2, 1, 1, 1), np.uint8)
    rest = np.zeros(3, np.int32), np.zeros(2, np.int32), 0
    with pytest.raises(KernelError, match="window"):
        KERNELS["matmul_int8_portable"].prepare(*flat, *rest, Window())
    with pytest.raises(KernelError, match="window"):
        KERNELS["conv2d_int8_portable"].prepare(*deep, *rest)
