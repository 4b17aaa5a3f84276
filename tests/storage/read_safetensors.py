"""Reads a safetensors file with nothing but struct and json, and checks it against what
safetensors_test.cpp writes: element i of tensor k is 1000 k + i.

Usage: read_safetensors.py FILE
"""

import json
import struct
import sys

EXPECTED = {
    "h.0.attn.weight": ("F32", [2, 3], 1, "<6f"),
    "h.0.attn.bias": ("F32", [3], 2, "<3f"),
    "counts": ("I64", [2], 3, "<2q"),
    "small": ("U8", [5], 0, "<5B"),
    "scalar": ("F64", [], 4, "<1d"),
    "empty": ("F32", [0, 7], 5, "<0f"),
}


def unique(pairs):
    keys = [key for key, _ in pairs]
    assert len(keys) == len(set(keys)), f"a key occurs twice: {keys}"
    return dict(pairs)


def main():
    with open(sys.argv[1], "rb") as file:
        content = file.read()
    (size,) = struct.unpack_from("<Q", content)
    assert size % 8 == 0, f"the tensors begin at {8 + size}, which is not a multiple of 8"
    text = content[8:8 + size].decode("utf-8")
    assert text.startswith("{")
    header = json.loads(text, object_pairs_hook=unique)
    assert header.pop("__metadata__") == {"format": "pt", "made \"by\"": "a test é"}
    data = content[8 + size:]

    assert header.keys() == EXPECTED.keys(), list(header)
    end_of_previous = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape, number, layout = EXPECTED[name]
        assert (entry["dtype"], entry["shape"]) == (dtype, shape), (name, entry)
        begin, end = entry["data_offsets"]
        assert begin == end_of_previous and end - begin == struct.calcsize(layout), (name, entry)
        end_of_previous = end
        values = struct.unpack(layout, data[begin:end])
        assert values == tuple(1000 * number + i for i in range(len(values))), (name, values)
    assert end_of_previous == len(data)


main()
