"""Labelled pairs from a file to the rows of a batch. Start with `pairs.py`.

pairs.read_pairs(path), pairs_from_columns(columns) -> PairTable   pairs from a file or from memory, checked
readers.read_table -> RawTable (raw_table) a file by what it is: json_files, delimited, binary_files (XLSX, Parquet)
dataset_folders.shards_of                  the files of a Hugging Face dataset, of `save_to_disk` or as on the hub
text_files.read_bytes, decode              gzip, and text in UTF-8, UTF-16 or cp1252
field_names.PairFinder                     which columns hold which field, by their usual names or a person's
ticket_names.py                            what exports call the columns of tickets
ticket_table.Columns, read_ticket_table    the same for tickets; read_linked_tickets: with the links between them
pair_cells.py                              a cell of pairs, checked
sources.join, by_source                    several files as one table, and apart again
split.hold_out, check_overlap              held-out parts that share no text with the training pairs
split.sample_pairs                         fewer pairs that keep phases and labels, and most anchors together
run_data.load_data -> RunData              the pairs and the corpus of a run; locate_model: its base model
curriculum.PhasedBatchSampler              which rows make up each batch of a run
batch_filling.draw_units                   what an epoch shows of a source, by its weight
batch_filling.take_batch, spread_repeats   rows into batches: negatives with their anchor, no text twice
batch_layout.LayoutBuilder -> BatchLayout  queries, candidates, and which are masked for whom: copies, known positives
false_negatives.Guide                      who is probably a false negative for whom, by the untouched encoder
tickets.load_tickets -> Tickets            raw tickets, cleaned, for `trainer build-pairs`
search_corpus.SearchCorpus                 who searches for what among whom; corpus_of_pairs, met_in_training
ticket_corpus.corpus_of_tickets            the same from tickets with known duplicates
dates.parse_dates                          when tickets were opened, in whichever way that is written
identifiers.link_rows, clean_id            ticket numbers in one spelling, and the links between them
origins.py                                 where the rows of built pairs come from
incidents.generate_pairs                   pairs from a seeded grammar, to try things on
"""
