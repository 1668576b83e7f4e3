"""The run: from a config to an exported model that was judged and proven.

Start with `loop.py`, which tells the whole story in the order it happens; every other module is a part of it.

    loop          train(Config) -> RunResult: inputs, folder, baseline, plan, steps, finish; which weights are the best,
                  when a run ends early (out_of_patience), what `--dry-run` does (rehearse)
    setup         read_inputs (everything that can be wrong is found here), build_run (what trains)
    tokenized_data  the texts of all parts as tokens; fingerprints of what decides the result
    base_model    the model that a run begins with, loaded and fit for what the config asks; the original it came of
    accelerator   processes, device, loss scaling and tracker of a run
    settled       what a config comes to: dims and rate where it leaves them open, settings without effect
    plan          what a person sees before step 0: lint, trained parameters, phases, rates; config.toml, plan.json
    fast_paths    what the steps compute with on a GPU: what was proven there before step 0, else the plain way
    schedule      the learning rate of every step: warm-up, hold, cosine decay
    batch         Prepared: a rank's part of a step's batch, laid out and cut into chunks
    step          Stepper: train_step, settle its numbers, stop at NaN
    gradcache     one contrastive batch encoded in chunks, with the gradient of the whole
    optimizer     AdamW over exactly what trains; updates that change nothing
    log           log.jsonl and the tracker; the clocks of a run
    resume        save a checkpoint, continue from the newest
    run_folder    which folder, what may be in it, one process at a time
    finish        strength, judgement, export and its proof, the last files
    judging       the judgement beside the model that the run began with, and beside the original
    corpus_search  data.corpus at the end of a run: both models, BM25, both fused; how often it is embedded
    strength      how far to go from the untouched weights to the trained ones
    principal_axes  the turn of the trained embeddings that decides what fewer dims keep
    model_card    README.md of the exported model; summary: the table that a run ends with
    tracking      TensorBoard, Weights & Biases, MLflow
    card_alerts   how many alerts a ticket the thresholds raise on the training texts, for the card
    command       `trainer train`; settings_command: `trainer settings`; push_command: `trainer push`
"""
