"""A float32 twin of a quantised GGUF: the same values, so that llama.cpp leaves activations alone.

llama.cpp quantises activations to int8 beside q8_0 and q4_0 weights, which hides small errors of
an exporter under its rounding. The twin holds exactly what gguf-py's own reader and dequantiser
find in the file; run by the same graph it must agree with the dequantised reference to float32
precision.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from gguf.quants import dequantize

from emo_export.converters.gguf.keys import copy_keys
from emo_export.converters.gguf.reader import GgufReader
from emo_export.files.gguf_header import read_gguf
from emo_export.files.gguf_parts import part_paths


def write_float_twin(source: Path, twin: Path) -> None:
    """Write every tensor of `source` as float32 into `twin`, keeping all keys, tensor by tensor."""
    parts = part_paths(source, read_gguf(source))
    readers = [GgufReader(part) for part in parts]
    reader = readers[0]
    tensors = [tensor for each in readers for tensor in each.tensors]
    writer = gguf.GGUFWriter(twin, str(reader.fields["general.architecture"].contents()))
    copy_keys(writer, source, lambda name: name != "general.file_type")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in tensors:
        shape = [int(n) for n in reversed(tensor.shape)]
        nbytes = 4 * int(np.prod(shape))
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        writer.write_tensor_data(np.ascontiguousarray(values, dtype=np.float32))
    writer.close()
