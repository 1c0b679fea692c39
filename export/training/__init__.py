"""Training decoders on text alone: captions pass a text tower, and the decoder learns to say them from what comes out.

`export/train_decoder.py` is the command. Data flows one way: embeddings and token ids of captions (`data`) -> batches
with noise (`batches`, `noise`) -> the model and its loss (`decoder`, `objective`) -> steps (`trainer`), with which an
interrupted run goes on (`state`) -> losses as CSV and picture (`losses`).
"""
