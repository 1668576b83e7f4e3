"""Matryoshka fine-tuning of text-embedding encoders on labelled pairs.

Which room for what, from the top floor down; a room imports only from floors below its own:

    main         the command line: which command runs, and the exit code
    training     the run: loop, step, schedule, optimizer, resume, finish
    checkpoint   what a run saves, and how it is found again
    report       report.html of a run, or of several
    labelling    people's labels, where they tell most
    lint         what is wrong with labelled pairs
    mining       labelled pairs out of raw tickets
    search       an index of embedded tickets, searched for like ones and for duplicates
    serving      a model as a graph for onnxruntime or OpenVINO
    evaluation   judging an encoder: metrics, thresholds, intervals, verdict
    loss         the Matryoshka ranking loss over all dims in one product
    data         pairs, tickets, splits, the curriculum, the layout of a batch
    model        the encoder: loading, packing, LoRA, embedding, export
    text         cleaning, masking and comparing texts without a model
    config       one experiment, typed and checked; `config_file` reads and writes it as TOML
    system       console, files, processes, signals, ranks
    errors       the errors that a person sees

`launcher` starts several processes through accelerate. Everything is imported from where it stands, as in
`from trainer.model.loading import load_encoder`; the package itself imports nothing, so that `--help` is quick.
"""

__version__ = "0.1.0"
