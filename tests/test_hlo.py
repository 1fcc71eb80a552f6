"""The text of compiled programs as data, and what it says of their cost: by hand on small texts, and as XLA counts its own."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from ddpm_jax.compile import costs, parse
from ddpm_jax.compile.hlo import Shape, shapes

# A step of a scan of seven turns on a TPU: a convolution fused with what follows it, and what is moved between chips. The outer
# loop's condition is a fusion, as TPUs have it.
TPU = """HloModule jit_f, is_scheduled=true, entry_computation_layout={(bf16[8,6,6,3]{0,3,2,1:T(8,128)(2,1)})->f32[4]{0:T(128)}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%fused (p0: bf16[8,6,6,3], p1: bf16[3,3,3,16]) -> bf16[8,6,6,16] {
  %p0 = bf16[8,6,6,3]{0,3,2,1:T(8,128)(2,1)} parameter(0)
  %p1 = bf16[3,3,3,16]{3,2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  %conv = bf16[8,6,6,16]{0,3,2,1:T(8,128)(2,1)} convolution(%p0, %p1), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f
  ROOT %neg = bf16[8,6,6,16]{0,3,2,1:T(8,128)(2,1)} negate(%conv)
}

%turn (arg: (s32[], bf16[8,6,6,3], bf16[3,3,3,16])) -> (s32[], bf16[8,6,6,3], bf16[3,3,3,16]) {
  %arg = (s32[]{:T(128)}, bf16[8,6,6,3]{0,3,2,1:T(8,128)(2,1)}, /*index=2*/bf16[3,3,3,16]{3,2,1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  %x = bf16[8,6,6,3]{0,3,2,1:T(8,128)(2,1)} get-tuple-element(%arg), index=1
  %k = bf16[3,3,3,16]{3,2,1,0:T(8,128)(2,1)S(1)} get-tuple-element(%arg), index=2
  %y = bf16[8,6,6,16]{0,3,2,1:T(8,128)(2,1)} fusion(%x, %k), kind=kOutput, calls=%fused, metadata={op_name="jit(f)/conv (3, 3)"}
  ROOT %out = (s32[]{:T(128)}, bf16[8,6,6,3]{0,3,2,1:T(8,128)(2,1)}, bf16[3,3,3,16]{3,2,1,0:T(8,128)(2,1)S(1)}) tuple(%next, %x, %k)
}

%less (q0: s32[], q1: s32[]) -> pred[] {
  %q0 = s32[]{:T(128)} parameter(0)
  %q1 = s32[]{:T(128)} parameter(1)
  ROOT %lt = pred[]{:T(512)} compare(%q0, %q1), direction=LT
}

%goes_on (arg.1: (s32[], bf16[8,6,6,3], bf16[3,3,3,16])) -> pred[] {
  %arg.1 = (s32[]{:T(128)}, bf16[8,6,6,3]{0,3,2,1:T(8,128)(2,1)}, bf16[3,3,3,16]{3,2,1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  %seven = s32[]{:T(128)} constant(7)
  ROOT %less_fusion = pred[]{:T(512)} fusion(%i.1, %seven), kind=kLoop, calls=%less
}

ENTRY %main (x0: bf16[8,6,6,3], k0: bf16[3,3,3,16], g: f32[4]) -> f32[4] {
  %x0 = bf16[8,6,6,3]{0,3,2,1:T(8,128)(2,1)} parameter(0)
  %k0 = bf16[3,3,3,16]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  %g = f32[4]{0:T(128)} parameter(2)
  %copy-start = (bf16[3,3,3,16]{3,2,1,0:T(8,128)(2,1)S(1)}, bf16[3,3,3,16]{3,2,1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%k0)
  %copy-done = bf16[3,3,3,16]{3,2,1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start)
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, bf16[8,6,6,3]{0,3,2,1:T(8,128)(2,1)}, bf16[3,3,3,16]{3,2,1,0:T(8,128)(2,1)S(1)}) tuple(%zero, %x0, %copy-done)
  %while = (s32[]{:T(128)}, bf16[8,6,6,3]{0,3,2,1:T(8,128)(2,1)}, bf16[3,3,3,16]{3,2,1,0:T(8,128)(2,1)S(1)}) while(%start), condition=%goes_on, body=%turn
  %ars = f32[4]{0:T(128)} all-reduce-start(%g), channel_id=1, replica_groups={{0,1}}, to_apply=%add
  %all-reduce = f32[4]{0:T(128)} all-reduce-done(%ars)
  %ags = (f32[4]{0:T(128)}, f32[8]{0:T(128)}) all-gather-start(%all-reduce), dimensions={0}, replica_groups={{0,1}}
  %ag = f32[8]{0:T(128)} all-gather-done(%ags)
  %custom = f32[4]{0:T(128)} custom-call(%ag), custom_call_target="tpu_custom_call", backend_config="{\\"x\\": \\"a=b, (c\\"}"
  ROOT %result = f32[4]{0:T(128)} add(%custom, %all-reduce)
}
"""

GPU = """HloModule jit_g

ENTRY %main.1 (x: bf16[8,6,6,16], k: bf16[32,3,3,16], g: bf16[8,3,3,32]) -> bf16[8,6,6,16] {
  %x = bf16[8,6,6,16]{3,2,1,0} parameter(0)
  %k = bf16[32,3,3,16]{3,2,1,0} parameter(1)
  %g = bf16[8,3,3,32]{3,2,1,0} parameter(2)
  %forward = (bf16[8,3,3,32]{3,2,1,0}, u8[0]{0}) custom-call(%x, %k), window={size=3x3 stride=2x2 pad=1_0x1_0}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
  %kernel = (bf16[32,3,3,16]{3,2,1,0}, u8[0]{0}) custom-call(%x, %g), window={size=3x3 stride=2x2 pad=1_0x1_0}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"
  %image = (bf16[8,6,6,16]{3,2,1,0}, u8[0]{0}) custom-call(%g, %k), window={size=3x3 stride=2x2 pad=1_0x1_0}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput"
  ROOT %out = bf16[8,6,6,16]{3,2,1,0} get-tuple-element(%image), index=0
}
"""


def test_shapes():
    found = shapes("(f32[2,3]{1,0}, (s32[], /*index=2*/bf16[4,5]{0,1:T(8,128)(2,1)S(1)}), pred[<=7], f8e4m3fn[3])")
    assert [shape.dtype for shape in found] == ["f32", "s32", "bf16", "pred", "f8e4m3fn"]
    assert [shape.bytes for shape in found] == [24, 4, 40, 7, 3]
    tiled = found[2]
    assert tiled == Shape("bf16", (4, 5), (0, 1), (8, 128), 1)
    assert tiled.padded_bytes == 8 * 128 * 2 and tiled.outermost_first == (1, 0)  # 5 rows of 4 in a tile of 8 x 128
    assert Shape("f32", (3,), (0,), (8, 128)).padded_bytes == 8 * 128 * 4
    assert Shape("f32", (2, 3, 9, 200), (3, 2, 1, 0), (8, 128)).padded_bytes == 2 * 3 * 16 * 256 * 4
    assert found[0].padded_bytes == found[0].bytes


def test_a_program_becomes_data():
    module = parse(TPU)
    assert module.entry == "main" and len(module.computations) == 6
    main = module.computations["main"]
    assert main.root.operands == ("custom", "all-reduce") and list(main.parameters) == [0, 1, 2]
    loop = main.instructions["while"]
    assert loop.called("body", "condition") == ["turn", "goes_on"] and loop.operands == ("start",)
    assert main.instructions["custom"].attribute("custom_call_target") == "tpu_custom_call"
    assert [user.name for user in main.users("copy-done")] == ["start"]
    assert [len(arrays) for arrays in main.operands(main.instructions["start"])] == [1, 1, 1]


def test_costs_of_a_program_for_a_tpu():
    found = costs(parse(TPU))
    # a 3x3 kernel on 6x6 pixels, padded by one: two of its columns miss one of six places each, so 16 of 18 meet pixels
    convolution = 2 * 8 * 16 * 16 * 3 * 16
    assert found.matrix_flops == {"bf16": 7 * convolution}
    assert found.flops == 7 * (convolution + 8 * 6 * 6 * 16 + 1 + 1) + 4
    assert found.convolutions == {("bf16", "HWCN_HWIO->HWCN"): 1} and found.loops == [7]
    assert found.custom_calls == {"tpu_custom_call": 1}
    assert found.collectives == {("all-reduce", "f32"): 1, ("all-gather", "f32"): 1}
    assert found.collective_bytes == {("all-reduce", "f32"): 16, ("all-gather", "f32"): 32}


def test_traffic_with_a_tpus_large_memory():
    """Tiles whole, what lies in vector memory not at all; a kernel is read from the large one once, before the loop."""
    found = costs(parse(TPU))
    kernel, small = 9 * 8 * 128 * 2, 128 * 4
    image, made = 36 * 8 * 128 * 2, 36 * 16 * 128 * 2  # 3 and 16 channels as rows of 8 images
    scalars = 3 * small + (2 * small + 512)  # of the counter: its sum, and its comparison
    ends = 2 * small + (small + small) + (small + small) + 3 * small  # all-reduce, all-gather, custom call, sum
    assert found.bytes == kernel + 7 * (image + made + scalars) + ends
    held = (9 * 3 * 16 * 2) + 7 * (36 * 8 * (3 + 16) * 2 + 12 + 9) + 32 + 48 + 48 + 48
    assert found.padding == found.bytes - held


def test_convolutions_and_their_gradients_by_cudnn_cost_the_same():
    found = costs(parse(GPU))
    # at stride 2, padded before, 3 places of a 3-wide kernel on 6 pixels: the first column misses one of 3
    each = 2 * 8 * 8 * 8 * 16 * 32
    assert found.matrix_flops == {"bf16": 3 * each}
    assert found.convolutions == {("bf16", "NHWC_OHWI->NHWC"): 3}


def xla_says(function, *args):
    compiled = jax.jit(function).lower(*args).compile()
    return compiled.cost_analysis(), costs(parse(compiled.as_text()))


def convolve(x, kernel, strides, padding, dilations=(1, 1), groups=1):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, (1, 1), dilations, ("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


@pytest.mark.parametrize(
    "case",
    [
        ((2, 9, 7, 4), (3, 3, 4, 8), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
        ((2, 9, 7, 4), (3, 2, 4, 8), (2, 3), ((0, 1), (2, 0)), (2, 1), 1),
        ((2, 9, 7, 4), (5, 5, 1, 4), (1, 1), ((2, 2), (2, 2)), (1, 1), 4),
    ],
)
def test_operations_of_convolutions_are_those_that_xla_counts(case):
    """Forward and both gradients, at strides, with dilation, depthwise."""
    shape, kernel_shape, *options = case
    x, kernel = jnp.ones(shape), jnp.ones(kernel_shape)

    def gradients(x, kernel):
        y, pull = jax.vjp(lambda x, kernel: convolve(x, kernel, *options), x, kernel)
        return y, pull(y)

    theirs, ours = xla_says(gradients, x, kernel)
    assert ours.flops == pytest.approx(theirs["flops"], rel=0.01) and ours.flops > 1000
    assert sum(ours.convolutions.values()) >= 3 or options[-1] > 1


def test_operations_and_traffic_of_products_and_sums_are_those_that_xla_counts():
    def function(a, b, index):
        y = jnp.tanh(a @ b)
        part = lax.dynamic_slice(b, (index, 0), (1, 64)) * 2.0
        return jax.nn.softmax(y + part).sum(0), lax.dynamic_update_slice(b, part, (0, 0)), jnp.sort(a, axis=0)

    theirs, ours = xla_says(function, jnp.ones((96, 128)), jnp.ones((128, 64)), 3)
    assert ours.matrix_flops == {"f32": 2 * 96 * 128 * 64}
    assert ours.flops == pytest.approx(theirs["flops"], rel=0.02)
    assert ours.bytes == pytest.approx(theirs["bytes accessed"], rel=0.1) and ours.padding == 0


def test_loops_count_as_often_as_they_turn():
    """Where XLA counts a body once: nested, and one whose end is not known before it runs."""

    def nested(x):
        body = lambda x, _: (jnp.sin(x @ x), None)  # noqa: E731
        return lax.scan(lambda x, _: lax.scan(body, x, length=5), x, length=3)[0]

    theirs, ours = xla_says(nested, jnp.ones((16, 16)))
    assert ours.matrix_flops == {"f32": 15 * 2 * 16**3} and sorted(ours.loops) == [3, 5]
    assert theirs["flops"] < ours.flops / 10

    _, ours = xla_says(lambda x: lax.while_loop(lambda x: (x @ x).sum() > 1, lambda x: x @ x, x), jnp.ones((16, 16)))
    assert ours.loops == [None] and ours.matrix_flops == {"f32": 2 * 2 * 16**3}


IN_PARTS = """HloModule jit_f

%begin (p: bf16[64,256]) -> bf16[256,256] {{
  %p = bf16[64,256]{{1,0}} parameter(0)
  ROOT %gather = bf16[256,256]{{1,0}} all-gather(%p), channel_id=2, dimensions={{0}}, frontend_attributes={{chain_id="1"}}
}}

%end (q: bf16[64,256]) -> bf16[256,256] {{
  %q = bf16[64,256]{{1,0}} parameter(0)
  ROOT %gather.1 = bf16[256,256]{{1,0}} all-gather(%q), channel_id={channel}, dimensions={{0}}, frontend_attributes={{chain_id="1"}}
}}

ENTRY %main (x: bf16[64,256]) -> bf16[256,256] {{
  %x = bf16[64,256]{{1,0}} parameter(0)
  %started = bf16[256,256]{{1,0}} fusion(%x), kind=kCustom, calls=%begin
  ROOT %ended = bf16[256,256]{{1,0}} fusion(%x), kind=kCustom, calls=%end
}}
"""


def test_a_collective_in_parts_counts_once():
    for channel, count in ((2, 1), (3, 2)):
        found = costs(parse(IN_PARTS.format(channel=channel)))
        assert dict(found.collectives) == {("all-gather", "bf16"): count}
        assert dict(found.collective_bytes) == {("all-gather", "bf16"): count * 256 * 256 * 2}


def test_of_branches_the_costliest_counts():
    def function(x, which):
        return lax.switch(which, [lambda x: x, lambda x: x @ x @ x, lambda x: x @ x], x)

    _, ours = xla_says(function, jnp.ones((16, 16)), 1)
    assert ours.matrix_flops == {"f32": 2 * 2 * 16**3}


def test_a_text_that_is_no_program():
    with pytest.raises(ValueError, match="must have an ENTRY"):
        parse("HloModule empty")
