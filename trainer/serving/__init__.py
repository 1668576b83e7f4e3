"""A model put to work: `trainer export` writes it as a graph that a service runs without torch. Start with `export.py`.

export.export(ExportRequest) -> Path    writes, proves and judges; the folder is there only if it passed
graph.write_onnx, quantize, to_openvino the graph from token ids to the embedding, and its other forms
proof.differences                       what another process, `reader.py`, gets from the folder, against the model
judging.judge_export                    what was lost on held-out pairs; more than was allowed is an error
command.py                              the options of `trainer export`

`model/served.py` takes such a folder as an encoder, so that `trainer evaluate`, `index` and `search` do.
"""
