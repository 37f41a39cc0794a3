"""Wire formats between processes: generated stubs and the Open Inference v2 codec. Knows numpy and protobuf only."""
