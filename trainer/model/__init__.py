"""The encoder: a Hugging Face model that embeds packed batches, trained through LoRA or whole, exported for anyone.

Start at `encoder`, and follow `Encoder.encode` down:

    loading      `load_encoder`: a folder or hub name to an `Encoder`
    folder       what a model folder says: modules, pooling, prompts, adapter or not; fetched from the hub if need be
    encoder      `Encoder`: texts or token batches to embeddings
    embedding    embeddings of whole data sets: cached, shared out over ranks
    embedding_types  embeddings kept in fewer bytes: float16, int8, signs
    export       the trained model as folders
    proof        these read back and compared, by sentence-transformers too; padded batches before training
    served       `ServedEncoder`: an exported graph in an encoder's place, which `runtime` opens without torch
    lora         adapters around the projections
    tiny         `build_tiny_mpnet`: a small random-weight model on the spot
    tokens       `TokenTable`: the tokens of a data set, and batches of them
    forward      the pass over a packed batch, and pooling
    families     `FAMILIES`: what differs between BERT, RoBERTa, MPNet, DistilBERT; a new family is an entry there
    packing      `TokenBatch`: sequences end to end, no padding
    attention    attention within the sequences of a batch; on a GPU `attention_triton` launches `attention_kernels`,
                 whose `kernel_options` are tiles, warps and stages
    fast_layers  layers that compute the same faster
    self_check   the kernel and the compiled layers against the plain ones, on the device itself

Nothing here knows of pairs, labels or metrics.
"""
