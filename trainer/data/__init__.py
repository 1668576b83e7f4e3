"""Labelled pairs from a file to the rows of a batch. Start with `pairs.py`.

pairs.read_pairs(path), pairs_from_columns(columns) -> PairTable   pairs from a file or from memory, checked
readers.read_table, FORMATS                JSON, JSON Lines, CSV, TSV; a new format is added there and nowhere else
text_files.read_text                       files as text: gzip, UTF-8
split.split_by_component, check_overlap    held-out parts that share no text with the training pairs
run_data.load_data -> RunData              the pairs of a run; locate_model: its base model
curriculum.PhasedBatchSampler              which rows make up each batch of a run
batch_filling.take_batch, spread_repeats     rows into batches: negatives with their anchor, no text twice
batch_layout.LayoutBuilder -> BatchLayout  queries, candidates, and who is masked for whom, for the loss
tickets.load_tickets -> Tickets            raw tickets, cleaned, for `trainer build-pairs`
incidents.generate_pairs                   pairs from a seeded grammar, to try things on
"""
