"""The same classifier in other libraries, each run as a good engineer would run it.

A rival is made of one of our classifiers, with its weights, and is a function from messages
(token ids) to logits in their order (N, n_labels). Making it (export, quantisation, session)
is not part of what is timed. An extra that is not installed raises ImportError that names it.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from spamgpt.batches import batches_by_length, pad
from spamgpt.classifier import Classifier
from spamgpt.models.published import TRANSPOSED, published_config

Ids = Sequence[Sequence[int]]
Rival = Callable[[Ids], Tensor]
EXTRAS = 'pip install -e ".[bench]"'


def in_order(lengths: Sequence[int], batch_size: int = 64) -> Iterator[list[int]]:
    """Row numbers of batches as messages come."""
    for first in range(0, len(lengths), batch_size):
        yield list(range(first, min(first + batch_size, len(lengths))))


def length_grouped(
    lengths: Sequence[int], batch_size: int, generator: torch.Generator
) -> Iterator[list[int]]:
    """Row numbers of one epoch's batches, each of messages of like length.

    As transformers' `group_by_length` does it: rows are shuffled, cut into pieces of 50 batches,
    and each piece is sorted. What does not fill a batch at the end is left out.
    """
    order, piece = torch.randperm(len(lengths), generator=generator).tolist(), 50 * batch_size
    pieces = (order[first : first + piece] for first in range(0, len(order), piece))
    rows = [row for part in pieces for row in sorted(part, key=lambda row: -lengths[row])]
    for first in range(0, len(rows) - batch_size + 1, batch_size):
        yield rows[first : first + batch_size]


def _over(batches: Callable, logits: Callable[[Tensor, Tensor], Tensor]) -> Rival:
    """A function of all messages from one of padded ids (B, T) and their true lengths (B,)."""

    def run(sequences: Ids) -> Tensor:
        parts, order = [], []
        for rows in batches([len(ids) for ids in sequences]):
            parts.append(logits(*pad([sequences[row] for row in rows], 0)))
            order += rows
        found = torch.cat(parts)
        return torch.empty_like(found).index_copy_(0, torch.tensor(order), found)

    return run


def _sorted(max_tokens: int) -> Callable:
    return lambda lengths: batches_by_length(lengths, max_tokens)


def reference(classifier: Classifier):
    """transformers' GPT2ForSequenceClassification with the classifier's weights."""
    import transformers

    body = classifier.transformer
    config = transformers.GPT2Config(
        **published_config(body.config),
        num_labels=len(classifier.label_names),
        pad_token_id=classifier.tokenizer.eot_token,
    )
    model = transformers.GPT2ForSequenceClassification(config)
    weights = {k: v.T if k.endswith(TRANSPOSED) else v for k, v in body.state_dict().items()}
    model.transformer.load_state_dict(weights)
    # Theirs has no bias.
    model.score = torch.nn.Linear(body.config.n_embd, len(classifier.label_names))
    model.score.load_state_dict(classifier.score.state_dict())
    return model.eval()


def transformers_rival(
    classifier: Classifier, batches: Callable, dtype: torch.dtype = torch.float32
) -> Rival:
    """transformers itself."""
    model = reference(classifier).to(dtype)

    def logits(ids: Tensor, lengths: Tensor) -> Tensor:
        # The pads' ids are 0; the attention mask says where the message ends. The model looks
        # for its pad token to find the last real one, so that goes to the pads.
        real = torch.arange(ids.shape[1]) < lengths[:, None]
        ids = ids.masked_fill(~real, model.config.pad_token_id)
        with torch.inference_mode():
            return model(input_ids=ids, attention_mask=real.long()).logits.float()

    return _over(batches, logits)


def onnx_model(classifier: Classifier):
    """The classifier as an ONNX graph with ONNX Runtime's fused attention and GELU.

    Inputs: ids (B, T), padded on the right, and last (B,), the place of each last real token
    counted over all B * T. Output: logits (B, n_labels). Right pads need no mask.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    body, nodes, weights = classifier.transformer, [], []
    config = body.config

    def weight(name: str, value) -> str:
        value = value.detach().numpy() if isinstance(value, Tensor) else np.array(value)
        weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(kind: str, *inputs: str, domain: str = "", **attributes) -> str:
        output = f"{kind}_{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [output], output, domain=domain, **attributes))
        return output

    def norm(x: str, layer, name: str) -> str:
        scale, shift = weight(f"{name}.weight", layer.weight), weight(f"{name}.bias", layer.bias)
        return node("LayerNormalization", x, scale, shift, epsilon=layer.eps, axis=-1)

    def linear(x: str, layer, name: str) -> str:
        y = node("MatMul", x, weight(f"{name}.weight", layer.weight.T))
        return node("Add", y, weight(f"{name}.bias", layer.bias))

    wpe, zero = weight("wpe", body.wpe.weight), weight("zero", [0])
    x = node("Gather", weight("wte", body.wte.weight), "ids")
    x = node("Add", x, node("Slice", wpe, zero, node("Shape", "ids", start=1, end=2), zero))
    for i, block in enumerate(body.h):
        name, layer = f"h.{i}", block.attn.c_attn
        y = node(
            "Attention",
            norm(x, block.ln_1, f"{name}.ln_1"),
            weight(f"{name}.c_attn.weight", layer.weight.T),
            weight(f"{name}.c_attn.bias", layer.bias),
            domain="com.microsoft",
            num_heads=config.n_head,
            unidirectional=1,
        )
        x = node("Add", x, linear(y, block.attn.c_proj, f"{name}.attn.c_proj"))
        y = linear(norm(x, block.ln_2, f"{name}.ln_2"), block.mlp.c_fc, f"{name}.c_fc")
        y = node("FastGelu", y, domain="com.microsoft")
        x = node("Add", x, linear(y, block.mlp.c_proj, f"{name}.mlp.c_proj"))
    flat = node("Reshape", x, weight("flat", [-1, config.n_embd]))
    x = norm(node("Gather", flat, "last", axis=0), body.ln_f, "ln_f")
    nodes.append(helper.make_node("Identity", [linear(x, classifier.score, "score")], ["logits"]))
    info, shape = helper.make_tensor_value_info, ["B", len(classifier.label_names)]
    inputs = [info("ids", TensorProto.INT64, ["B", "T"]), info("last", TensorProto.INT64, ["B"])]
    outputs = [info("logits", TensorProto.FLOAT, shape)]
    graph = helper.make_graph(nodes, "gpt2", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def _feed(ids: Tensor, lengths: Tensor) -> dict:
    last = torch.arange(len(ids)) * ids.shape[1] + lengths - 1
    return {"ids": ids.numpy(), "last": last.numpy()}


def onnxruntime_rival(classifier: Classifier, int8: bool) -> Rival:
    """ONNX Runtime in fp32, or in int8 by its own dynamic quantisation."""
    try:
        import onnx
        import onnxruntime as ort
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise ImportError(f"ONNX Runtime is not installed: {EXTRAS}") from error
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fp32.onnx"
        onnx.save(onnx_model(classifier), file)
        if int8:
            exact, file = file, Path(folder) / "int8.onnx"
            quantize_dynamic(
                exact,
                file,
                op_types_to_quantize=["MatMul", "Attention"],
                per_channel=True,
                weight_type=QuantType.QInt8,
                # Types are not inferred through ONNX Runtime's own operators.
                extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
            )
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    # The fastest of 256, 512, 1024, 2048 and 4096 tokens a batch, for each of the two.
    return _over(
        _sorted(512 if int8 else 1024),
        lambda ids, lengths: torch.from_numpy(session.run(None, _feed(ids, lengths))[0]),
    )


def openvino_rival(classifier: Classifier, precision: str) -> Rival:
    """OpenVINO, which reads the same ONNX graph; `precision` "bf16" or "f32"."""
    try:
        import onnx
        import openvino
    except ImportError as error:
        raise ImportError(f"OpenVINO is not installed: {EXTRAS}") from error
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fp32.onnx"
        onnx.save(onnx_model(classifier), file)
        model = openvino.Core().compile_model(file, "CPU", settings)
    request = model.create_infer_request()

    def logits(ids: Tensor, lengths: Tensor) -> Tensor:
        return torch.tensor(request.infer(_feed(ids, lengths))[0], dtype=torch.float32)

    return _over(_sorted(1024), logits)


# By name: makes a rival of a classifier.
RIVALS = {
    "transformers, as they come": lambda c: transformers_rival(c, in_order),
    "transformers, sorted": lambda c: transformers_rival(c, _sorted(1024)),
    "transformers, sorted, bf16": lambda c: transformers_rival(c, _sorted(1024), torch.bfloat16),
    "ONNX Runtime, fp32": lambda c: onnxruntime_rival(c, int8=False),
    "ONNX Runtime, int8": lambda c: onnxruntime_rival(c, int8=True),
    "OpenVINO, bf16": lambda c: openvino_rival(c, "bf16"),
}
