"""What the text of a compiled program tells, and how often programs are called."""

import jax
import jax.numpy as jnp
import pytest

from manas_jax.errors import UserError
from manas_jax.runtime import ahead

LOOP = """HloModule jit_step, is_scheduled=true

%region_0.1 (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  ROOT %add = f32[]{:T(128)} add(%x, %y), backend_config={"estimated_cycles":"7"}
}

%body.2 (p: (f32[16]{0})) -> (f32[16]{0}) {
  %p = (f32[16]{0}) parameter(0)
  %f = f32[16]{0} fusion(%p), kind=kLoop, calls=%region_0.1, backend_config={"estimated_cycles":"10"}
  ROOT %r = f32[16]{0:T(128)} all-reduce(%f), to_apply=%region_0.1
}

ENTRY %main.3 (x: f32[16], y: bf16[3]) -> f32[16] {
  %x = f32[16]{0} parameter(0)
  %w = (f32[16]{0}) while(%x), condition=%c, body=%body.2, backend_config={"known_trip_count":{"n":"4"}}
  %c = f32[16]{0} copy(%x), backend_config={"window_config":{"estimated_cycles":"100"}}
  %s = bf16[3]{0} all-reduce-start(%y), to_apply=%region_0.1
  ROOT %d = bf16[3]{0} all-reduce-done(%s)
}
"""  # noqa: E501


def test_loops_count_as_often_as_they_run():
    found = ahead.entry_costs(LOOP)
    assert found.cycles == 100 + 4 * 10
    assert found.instructions == 5 + 4 * 3
    assert found.kinds == {"copy": 100, "other": 4 * 10}
    assert found.collectives == {"all-reduce": {"count": 5, "bytes": 4 * 64 + 6}}


def test_collectives_of_several_arrays():
    program = """
ENTRY %main (x: f32[16]) -> f32[16] {
  %a = (f32[16]{0}, f32[4,2]{1,0}, /*index=5*/f32[]) all-reduce(%x, %y, %z), to_apply=%add
  %b = f32[16]{0} get-tuple-element(%a), index=0, metadata={op_name="all-reduce(no)"}
  %s = (f32[2]{0}, f32[8]{0}, u32[]{:S(2)}) all-gather-start(%b), dimensions={0}
  ROOT %g = (pred[5]{0}, f64[2]{0}) all-gather(%p, %q), dimensions={0}
}
"""
    assert ahead.entry_costs(program).collectives == {
        "all-reduce": {"count": 1, "bytes": 4 * (16 + 8 + 1)},
        "all-gather": {"count": 2, "bytes": 4 * 8 + 5 + 8 * 2},
    }


def test_cycles_by_kind_and_module():
    """A fusion with an algorithm for the matrix units is a convolution; backward passes count."""
    program = """
ENTRY %main (x: f32[16]) -> f32[16] {
  %f = f32[4]{0} fusion(%x), metadata={op_name="jit(step)/jvp(Network)/cell0_column1/conv/add"}, backend_config={"estimated_cycles":"20","convolution_algorithm_config":{"emitter":"A"}}
  %g = f32[4]{0} fusion(%f), metadata={op_name="jit(step)/transpose(jvp(Network))/cell0_column1/conv/mul"}, backend_config={"estimated_cycles":"3"}
  %h = f32[4]{0} fusion(%g), metadata={op_name="jit(_forward)/jvp(Attention)/edge0/mul"}, backend_config={"estimated_cycles":"5"}
  %i = f32[4]{0} fusion(%h), metadata={op_name="jit(_backward)/transpose(jvp(jvp()))/checkpoint/Attention/edge0/mul"}, backend_config={"estimated_cycles":"30"}
  %j = f32[4]{0} fusion(%i), metadata={op_name="jit(apply)/Network/head_conv/add"}, backend_config={"estimated_cycles":"40"}
  ROOT %t = f32[4]{0} transpose(%h), metadata={op_name="jit(step)/jvp()/div"}, backend_config={"estimated_cycles":"7"}
}
"""  # noqa: E501
    found = ahead.entry_costs(program)
    assert found.kinds == {"convolution": 20, "copy": 7, "other": 3 + 5 + 30 + 40}
    assert found.modules == {"cell0_column1": 23, "Attention": 35, "head_conv": 40, "": 7}


def test_equal_calls_share_a_program():
    compiler = ahead.AheadCompiler()
    double, shape = jax.jit(lambda x: 2 * x), jax.ShapeDtypeStruct((3,), jnp.float32)
    for calls in (1, 3):
        assert compiler(double, shape, calls=calls) == shape
    (program,) = compiler.programs
    assert program.calls == 4
    assert program.argument_bytes == program.output_bytes == 12


def test_other_errors_of_the_compiler_are_one_line(monkeypatch):
    def refuse(lowered):
        raise jax.errors.JaxRuntimeError("INTERNAL: of\nseveral lines")

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    with pytest.raises(UserError, match=r"^sin: the compiler refuses it \(INTERNAL: of several"):
        ahead.AheadCompiler()(jax.jit(jnp.sin), jax.ShapeDtypeStruct((3,), jnp.float32))
