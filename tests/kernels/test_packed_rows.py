import random
import sys
from types import ModuleType

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mllm.batch import NO_PARENT, PADDING_SEGMENT, Batch, SegmentBounds
from mllm.errors import UserError
from mllm.kernels import choice, compiled, masked_rows, segment_attention, varlen
from mllm.kernels.choice import Heads, fault_of
from mllm.kernels.packed_rows import PACKED, attention_of, lay_out
from mllm.kernels.varlen import VARLEN_KERNELS, TorchVarlen, varlen_kernel
from tests.helpers import kernel_stand_ins
from tests.helpers.kernel_stand_ins import PlainKernel

VARLEN = ("varlen", "flash2", "flash3", "flash4")


def random_rows(rng: random.Random, rows: int, trunks: bool) -> Batch:
    """Trunks with branches among lone segments, rows of unlike length."""
    lengths: list[list[int]] = []
    parents: list[list[int]] = []
    for _ in range(rows):
        own: list[int] = []
        above: list[int] = []
        for _ in range(rng.randint(1, 3)):
            trunk = len(own)
            own.append(rng.randint(1, 9))
            above.append(NO_PARENT)
            for _ in range(rng.randint(0, 3) if trunks else 0):
                own.append(rng.randint(1, 6))
                above.append(trunk)
        lengths.append(own)
        parents.append(above)
    return batch_of(lengths, parents)


def batch_of(lengths: list[list[int]], parents: list[list[int]]) -> Batch:
    """A batch of which only the segments count."""
    width = max(map(sum, lengths))
    ids = [[n for n, length in enumerate(row) for _ in range(length)] for row in lengths]
    segments = torch.tensor([row + [PADDING_SEGMENT] * (width - len(row)) for row in ids])
    most = max(map(len, parents))
    above = torch.tensor([row + [NO_PARENT] * (most - len(row)) for row in parents])
    bounds, none = SegmentBounds.of(lengths, parents, width), torch.empty(0, dtype=torch.int64)
    return Batch(segments, segments, segments, above, bounds, none, none, none)


def heads(batch: Batch, seed: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Query with 4 heads, key and value with 2, of 16 features."""
    torch.manual_seed(seed)
    rows, length = batch.segment_ids.shape
    return [torch.randn(rows, n, length, 16, dtype=dtype, requires_grad=True) for n in (4, 2, 2)]


def at_tokens(out: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Of [B, H, T, d] the places that aren't padding."""
    return out.transpose(1, 2)[batch.segment_ids != PADDING_SEGMENT]


def attended(kernel: str, batch: Batch, inputs: list[torch.Tensor]) -> torch.Tensor:
    """Outputs at the places that aren't padding, [places, 4, 16]."""
    return at_tokens(lay_out(kernel, batch, torch.float32).attend(*inputs, None, 0.0), batch)


def values_and_slopes(out: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    return [out, *torch.autograd.grad(out.float().square().sum(), inputs)]


@pytest.mark.parametrize("seed", range(6))
def test_segment_calls_equal_the_dense_mask_in_values_and_gradients(seed):
    batch = random_rows(random.Random(seed), rows=3, trunks=True)
    inputs = heads(batch, seed)
    found = {kernel: values_and_slopes(attended(kernel, batch, inputs), inputs) for kernel in ("mask", "segments")}
    for ours, theirs in zip(found["segments"], found["mask"], strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("most_pairs", [0, 300, 1 << 17], ids=["flash", "both", "products"])
def test_segment_attention_in_one_step_equals_torchs_operators_in_mixed_precision(most_pairs, monkeypatch):
    monkeypatch.setattr(segment_attention, "MOST_PAIRS_AT_ONCE", most_pairs)
    batch = random_rows(random.Random(7), rows=2, trunks=True)
    query, key, value = heads(batch, 7)
    inputs = [query, key, value.detach().bfloat16().requires_grad_()]
    rows = lay_out("segments", batch, torch.bfloat16)
    found = {}
    for attend in (rows.attend, rows.attend_by_calls):
        out = attend(*inputs, 0.3, 0.0)
        assert out.dtype == torch.bfloat16
        found[attend.__name__] = values_and_slopes(out, inputs)
    for one, other in zip(found["attend"], found["attend_by_calls"], strict=True):
        assert one.dtype == other.dtype
        # bfloat16 has eight bits: the output is read back in it, and short segments' scores are rounded to it.
        assert (one - other).float().norm() < 1e-2 * other.float().norm()
        assert torch.allclose(one.float(), other.float(), rtol=6e-2, atol=6e-2)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("seed", range(3))
def test_flex_attention_sees_what_the_dense_mask_shows(seed):
    batch = random_rows(random.Random(seed), rows=2, trunks=True)
    inputs = [x.detach() for x in heads(batch, seed)]
    assert torch.allclose(attended("flex", batch, inputs), attended("mask", batch, inputs), atol=1e-5)


def test_flex_attention_never_goes_on_uncompiled(monkeypatch):
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **named: compile_(function, backend="eager", **named))
    on_a_gpu = masked_rows._flex_attention.__wrapped__("cuda")
    monkeypatch.setattr(masked_rows, "_flex_attention", lambda device: on_a_gpu)
    monkeypatch.setattr(compiled, "GRAPHS_KEPT", 1)
    one, two = batch_of([[5, 4]], [[NO_PARENT, 0]]), batch_of([[3, 4], [8]], [[NO_PARENT, 0], [NO_PARENT]])
    with torch._dynamo.config.patch(recompile_limit=8):
        attended("flex", one, [x.detach() for x in heads(one, 0)])
        with pytest.raises(UserError, match=r"flex_attention would .* more than 1 kinds of inputs"):
            attended("flex", two, [x.detach() for x in heads(two, 0)])


@pytest.mark.parametrize("trunks", [True, False], ids=["trunks", "no trunks"])
@pytest.mark.parametrize("seed", range(8))
def test_two_passes_of_a_variable_length_kernel_equal_the_dense_mask(seed, trunks):
    batch = random_rows(random.Random(seed), rows=3, trunks=trunks)
    assert trunks or not batch.bounds.has_trunks
    inputs = heads(batch, seed)
    ours = varlen.VarlenRows(PlainKernel(), batch.bounds).attend(*inputs, 0.3, 0.0)
    theirs = lay_out("mask", batch, torch.float32).attend(*inputs, 0.3, 0.0)
    pairs = zip(*(values_and_slopes(at_tokens(out, batch), inputs) for out in (ours, theirs)), strict=True)
    for one, other in pairs:
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(
    ("lengths", "parents"),
    [
        ([[5, 3], [4]], [[NO_PARENT, 0], [NO_PARENT]]),
        ([[1, 1, 1]], [[NO_PARENT, 0, 0]]),
        ([[300, 2, 140]], [[NO_PARENT, 0, 0]]),
        ([[2, 3], [2, 2, 1, 3, 2]], [[NO_PARENT, NO_PARENT], [NO_PARENT, NO_PARENT, 0, 1, 0]]),
    ],
    ids=["a trunk and a lone row", "of one token", "longer than a tile", "branches behind another trunk"],
)
@pytest.mark.parametrize("kernel", VARLEN)
def test_variable_length_kernels_get_what_they_ask_for_and_equal_the_dense_mask(kernel, lengths, parents, monkeypatch):
    if kernel != "varlen":
        kernel_stand_ins.install(monkeypatch, kernel)
    batch = batch_of(lengths, parents)
    inputs = heads(batch, 3, torch.bfloat16)
    # As under autocast, where rotary embeddings widen query and key.
    wide = [inputs[0].float(), inputs[1].float(), inputs[2]]
    out = lay_out(kernel, batch, torch.bfloat16).attend(*wide, None, 0.0)
    assert out.dtype == torch.bfloat16
    ours = values_and_slopes(at_tokens(out, batch), inputs)
    mask = lay_out("mask", batch, torch.float32)
    theirs = values_and_slopes(at_tokens(mask.attend(*(x.float() for x in inputs), None, 0.0), batch), inputs)
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).float().norm() < 1e-2 * other.float().norm()


class Watched(TorchVarlen):
    """Notes where the memory of its inputs begins, and of what the language model hands in."""

    def __init__(self):
        self.read: list[int] = []

    def forward(self, inputs, over):
        self.read += [x.data_ptr() for x in inputs]
        return super().forward(inputs, over)


def test_rows_with_padding_are_read_where_the_model_wrote_them(monkeypatch):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 32}
    words = LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes)).bfloat16()
    batch = batch_of([[5, 3], [4]], [[NO_PARENT, NO_PARENT], [NO_PARENT]])
    watched, handed = Watched(), []
    rows = varlen.VarlenRows(watched, batch.bounds)

    class Rows:
        def attend(self, query, key, value, scaling, dropout):
            handed.extend(x.data_ptr() for x in (query, key, value))
            out = rows.attend(query, key, value, scaling, dropout)
            assert out.transpose(1, 2).is_contiguous()
            return out

    with attention_of(words, PACKED):
        words.get_decoder()(inputs_embeds=torch.randn(2, 8, 32).bfloat16(), use_cache=False, packed_rows=Rows())
    assert watched.read == handed != []


def llama(**changes) -> LlamaConfig:
    values = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "attention_dropout": 0.0}
    return LlamaConfig(**{**values, **changes})


@pytest.fixture
def no_packages(monkeypatch):
    """No flash-attn is installed."""
    kernel_stand_ins.remove(monkeypatch)


def test_without_packages_a_gpu_in_16_bits_takes_torchs_own_kernel_and_never_the_mask(no_packages):
    for dtype in ("bfloat16", "autocast"):
        for capability in (8, 9, 10, 12):
            assert choice.usable_kernels("auto", dtype, capability, llama()) == ("varlen",)
    assert choice.usable_kernels("auto", "float32", 9, llama()) == ("mask",)
    assert choice.usable_kernels("sdpa", "bfloat16", 9, llama()) == ("mask",)
    assert choice.usable_kernels("flex_attention", "bfloat16", 9, llama()) == ("flex",)


def test_a_cpu_takes_calls_of_segments_and_no_kernel_of_a_gpu():
    for wanted in ("auto", "sdpa"):
        assert choice.usable_kernels(wanted, "float32", None, llama()) == ("segments",)
    with pytest.raises(UserError, match="needs a GPU"):
        choice.usable_kernels("flash_attention", "bfloat16", None, llama())


@pytest.mark.parametrize(
    ("package", "capability", "found"),
    [
        ("flash2", 8, ("flash2", "varlen")),
        ("flash3", 9, ("flash3", "varlen")),
        ("flash3", 8, ("varlen",)),
        ("flash4", 10, ("flash4", "varlen")),
        ("flash4", 8, ("varlen",)),
    ],
)
def test_an_installed_flash_attention_comes_first_on_gpus_that_it_is_for(package, capability, found, monkeypatch):
    kernel_stand_ins.install(monkeypatch, package)
    assert choice.usable_kernels("auto", "bfloat16", capability, llama()) == found


def test_a_namespace_that_flash_attention_4_alone_brings_is_no_flash_attention_2(no_packages, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    assert choice.usable_kernels("auto", "bfloat16", 8, llama()) == ("varlen",)
    with pytest.raises(UserError, match="flash-attn 2: it isn't installed"):
        choice.usable_kernels("flash_attention_2", "bfloat16", 8, llama())


def test_a_package_that_fails_to_import_is_passed_over_with_a_line_and_refused_by_name(monkeypatch, caplog):
    kernel_stand_ins.install(monkeypatch, "flash2")

    def fail(name):
        raise ImportError("flash_attn_2_cuda.so: undefined symbol: _ZN3c105ErrorC2E\nmore")

    monkeypatch.setattr("mllm.kernels.varlen.importlib.import_module", fail)
    assert choice.usable_kernels("auto", "bfloat16", 8, llama()) == ("varlen",)
    assert [r.message for r in caplog.records] == [
        "attention: flash-attn 2 can't be used: importing it fails: ImportError flash_attn_2_cuda.so: undefined symbol: "
        "_ZN3c105ErrorC2E"
    ]
    with pytest.raises(
        UserError, match=r"train.attention is flash_attention_2, but flash-attn 2: importing it fails.*ZN3"
    ):
        choice.usable_kernels("flash_attention_2", "bfloat16", 8, llama())


@pytest.mark.parametrize("wanted", ["auto", "torch_varlen"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 20}, "heads have 20 features, but it takes multiples of 8 up to 256.*train.attention sdpa"),
        ({"head_dim": 320}, "heads have 320 features"),
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1 .set it to 0."),
        ({"v_head_dim": 8}, "16 features for queries and 8 for values"),
    ],
)
def test_a_model_that_no_kernel_takes_is_told_before_it_is_loaded(wanted, changes, message, no_packages):
    with pytest.raises(UserError, match=message):
        choice.usable_kernels(wanted, "bfloat16", 9, llama(**changes))


def test_kernels_of_16_bits_asked_for_in_float32_are_an_error(no_packages):
    for wanted in ("torch_varlen", "flash_attention"):
        with pytest.raises(UserError, match=r"float32; write train.dtype bfloat16 or autocast"):
            choice.usable_kernels(wanted, "float32", 9, llama())


@pytest.mark.parametrize("kernel", VARLEN)
def test_every_kernel_is_tried_on_a_small_batch_before_a_model_is_trusted_to_it(kernel, monkeypatch):
    if kernel != "varlen":
        kernel_stand_ins.install(monkeypatch, kernel)
    state = torch.random.get_rng_state()
    assert choice.first_that_works((kernel,), llama()) == kernel
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_kernel_that_computes_wrong_numbers_or_fails_is_passed_over(monkeypatch, caplog):
    class Wrong(PlainKernel):
        def backward(self, given, inputs, attended, over):
            # As a kernel would that takes the normalizers of its own pass for those it is given.
            return super().backward(given, inputs, super().forward(inputs, over), over)

    class Failing(PlainKernel):
        def forward(self, inputs, over):
            raise RuntimeError("CUDA error: no kernel image\nmore")

    heads = Heads.of(llama())
    assert "slopes of queries are off by" in fault_of(Wrong(), heads, torch.device("cpu"))
    monkeypatch.setitem(VARLEN_KERNELS, "flash2", Failing)
    varlen_kernel.cache_clear()
    assert choice.first_that_works(("flash2", "varlen"), llama()) == "varlen"
    assert "flash-attn 2 fails on a small batch: RuntimeError: CUDA error: no kernel image" in caplog.text
    with pytest.raises(UserError, match=r"no attention kernel works here.*sdpa"):
        choice.first_that_works(("flash2",), llama())
    varlen_kernel.cache_clear()
