"""What a policy.onnx must be before any runtime opens it: plain data, whole, self-contained, and only arithmetic.

A small reader of the protobuf wire format, because the robot has no onnx package and because the runtime would follow
external-data paths. Field numbers are those of onnx.proto3 (ONNX 1.23).
"""

from __future__ import annotations

from collections.abc import Iterator

MAX_MODEL_BYTES = 256 * 2**20
# Arithmetic a policy needs. No control flow, no random numbers, no files, nothing that fills memory from a number.
_OPS = """
    Abs Add And ArgMax BatchNormalization Cast Ceil Clip Concat Constant Conv Cos Div Einsum Elu Equal Erf Exp
    Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool Greater GreaterOrEqual
    GroupNormalization HardSigmoid HardSwish Identity InstanceNormalization LayerNormalization LeakyRelu Less
    LessOrEqual Log LogSoftmax MatMul Max Mean Min Mish Mod Mul Neg Not Or Pow Reciprocal ReduceL1 ReduceL2
    ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Round
    ScatterElements ScatterND Selu Shape Sigmoid Sign Sin Slice Softmax Softplus Softsign Split Sqrt Squeeze Sub Sum
    Swish Tan Tanh TopK Transpose Unsqueeze Where Xor
"""
ALLOWED_OPS = frozenset(_OPS.split())
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def check_model(data: bytes, name: str = "policy.onnx") -> None:
    """Raises ValueError, one sentence naming the file, unless `data` is a complete ONNX model of allowed arithmetic and
    inline data."""
    try:
        _check_model(data)
    except ValueError as problem:
        raise ValueError(str(problem).replace("policy.onnx", name)) from None


def _check_model(data: bytes) -> None:
    if data[:2] == b"\x80\x02" or data[:2] in (b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise ValueError("policy.onnx is a Python pickle, which can run code; export the policy again")
    if data[:4] == b"PK\x03\x04":
        raise ValueError("policy.onnx is a zip archive (a torch file?), not an ONNX graph; export the policy again")
    if len(data) > MAX_MODEL_BYTES:
        raise ValueError(f"policy.onnx has {len(data)} bytes, more than the {MAX_MODEL_BYTES} a policy may have")
    graphs = 0
    for number, kind, _, body in _fields(data):
        if number == 7 and kind == _BYTES:
            graphs += 1
            _check_graph(body)
        elif number in (20, 25):
            raise ValueError("policy.onnx holds training information or functions, which a policy needs not")
        elif number == 8 and kind == _BYTES:
            _check_opset(body)
    if graphs != 1:
        raise ValueError(f"policy.onnx holds {graphs} graphs, expected one; it is truncated or no ONNX file")


def _check_opset(data: memoryview) -> None:
    domains = [bytes(body) for n, kind, _, body in _fields(data) if n == 1 and kind == _BYTES]
    if any(d not in (b"", b"ai.onnx") for d in domains):
        raise ValueError(f"policy.onnx asks for the operator set {domains[0]!r}; only the standard one is allowed")


def _check_graph(data: memoryview) -> None:
    for number, kind, _, body in _fields(data):
        if number == 1 and kind == _BYTES:
            _check_node(body)
        elif number == 5 and kind == _BYTES:
            _check_tensor(body)
        elif number == 15:
            raise ValueError("policy.onnx holds sparse tensors, which a policy needs not")


def _check_node(data: memoryview) -> None:
    op, domain = "", b""
    for number, kind, _, body in _fields(data):
        if number == 4 and kind == _BYTES:
            op = bytes(body).decode("utf-8", "replace")
        elif number == 7 and kind == _BYTES:
            domain = bytes(body)
        elif number == 5 and kind == _BYTES:
            _check_attribute(body)
    if op not in ALLOWED_OPS or domain not in (b"", b"ai.onnx"):
        raise ValueError(f"policy.onnx uses the operator {op!r}, which is not among those a policy may use")


def _check_attribute(data: memoryview) -> None:
    for number, kind, _, body in _fields(data):
        if number in (6, 11, 22, 23):
            raise ValueError("policy.onnx holds a nested graph or a sparse tensor, which a policy needs not")
        if number in (5, 10) and kind == _BYTES:
            _check_tensor(body)


def _check_tensor(data: memoryview) -> None:
    for number, _, value, _ in _fields(data):
        if number == 13 or (number == 14 and value != 0):
            raise ValueError("policy.onnx points to data outside the file; export it with the weights inside")


def _fields(data: bytes | memoryview) -> Iterator[tuple[int, int, int, memoryview]]:
    """(field number, wire type, varint, bytes) of one protobuf message. Raises ValueError if it ends too early."""
    view, at, end = memoryview(data), 0, len(data)
    while at < end:
        key, at = _varint(view, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(view, at)
            yield number, kind, value, view[:0]
            continue
        if kind == _BYTES:
            length, at = _varint(view, at)
        else:
            length = {_FIXED64: 8, _FIXED32: 4}.get(kind, -1)
        if number == 0 or length < 0 or at + length > end:
            raise ValueError("policy.onnx is truncated or no ONNX file; copy or export it again")
        yield number, kind, 0, view[at : at + length]
        at += length


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(view):
            break
        byte = view[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
    raise ValueError("policy.onnx is truncated or no ONNX file; copy or export it again")
